//! A runtime in a directory of its own with one image, gone when the test is over, also when it fails.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::Failed;
use skiff_runtime::{
    ContainerSpec, ContainerState, ExecSpec, ImageBuilder, ImageConfig, LogSpec, Phase, Pod, PodSpec, Runtime,
    RuntimeConfig,
};
use tokio::io::AsyncReadExt;

pub const IMAGE: &str = "localhost/shell:v1";
const PROGRAMS: [&str; 14] = [
    "sh", "cat", "ls", "sleep", "id", "mkdir", "touch", "hostname", "mount", "mknod", "stat", "chmod", "unshare", "dd",
];

pub struct Fixture {
    pub runtime: Runtime,
    pub dir: PathBuf,
}

/// A test and its name.
pub type Test = (&'static str, fn() -> Result<(), Failed>);

/// Runs a test against a fresh runtime.
pub fn with(test: impl AsyncFnOnce(&Fixture) -> Result<(), Failed>) -> Result<(), Failed> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("skiff-runtime-{}-{number}", std::process::id()));
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let config = RuntimeConfig {
        state_dir: dir.join("state"),
        image_dir: dir.join("images"),
        cgroup_parent: format!("skiff-test-{}-{number}", std::process::id()),
        insecure_registries: Vec::new(),
    };
    let result = executor.block_on(async {
        let runtime = Runtime::open(config)?;
        shell_image(&runtime)?;
        let fixture = Fixture { runtime, dir: dir.clone() };
        test(&fixture).await
    });
    let swept = Runtime::sweep(&dir.join("state"));
    let _ = std::fs::remove_dir_all(&dir);
    result?;
    swept.map_err(Failed::from)
}

fn shell_image(runtime: &Runtime) -> Result<(), Failed> {
    let found: Vec<(PathBuf, String)> = PROGRAMS
        .iter()
        .filter_map(|name| {
            let place = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"]
                .iter()
                .map(|dir| Path::new(dir).join(name))
                .find(|path| path.exists());
            place.map(|place| (place, format!("/bin/{name}")))
        })
        .collect();
    let programs: Vec<(&Path, &str)> = found.iter().map(|(host, inside)| (host.as_path(), inside.as_str())).collect();
    let config = ImageConfig { env: vec!["PATH=/bin".into()], cmd: vec!["sh".into()], ..ImageConfig::default() };
    ImageBuilder::from_host_binaries(&programs)?
        .file("/etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n", 0o644)
        .file("/etc/group", "root:x:0:\nweb:x:33:\nextra:x:50:web\n", 0o644)
        .link("/var/run", "/run")
        .dir("/tmp", 0o1777)
        .config(config)
        .build(runtime.images(), IMAGE)?;
    Ok(())
}

impl Fixture {
    pub async fn pod(&self, id: &str) -> Result<Pod, Failed> {
        let spec = PodSpec { id: id.into(), name: format!("test/{id}"), hostname: id.into(), ..PodSpec::default() };
        Ok(self.runtime.create_pod(spec).await?)
    }

    /// A container that runs a script.
    pub fn container(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.into(),
            name: id.into(),
            image: IMAGE.into(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("PATH".into(), "/bin".into())],
            log: Some(LogSpec::at(self.log_path(id))),
            ..ContainerSpec::default()
        }
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{id}.log"))
    }

    /// The text that a container wrote, without the log's own words.
    pub fn log(&self, id: &str) -> String {
        let text = std::fs::read_to_string(self.log_path(id)).unwrap_or_default();
        text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).fold(String::new(), |all, line| all + line + "\n")
    }

    /// Runs a container to its end and gives its state and output.
    pub async fn run(&self, pod: &Pod, spec: ContainerSpec) -> Result<(ContainerState, String), Failed> {
        let id = spec.id.clone();
        pod.start_container(spec).await?;
        let state = pod.wait_exit(&id).await?;
        Ok((state, self.log(&id)))
    }

    /// Runs a program in a container and gives its exit code and output.
    pub async fn exec(&self, pod: &Pod, container: &str, script: &str) -> Result<(i32, String), Failed> {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        let spec = ExecSpec { container: container.into(), args, ..ExecSpec::default() };
        let mut session = pod.exec(spec, false).await?;
        let mut output = String::new();
        if let Some(mut stdout) = session.io.stdout.take() {
            stdout.read_to_string(&mut output).await?;
        }
        Ok((session.wait().await?, output))
    }
}

/// Waits until a container's program runs.
pub async fn running(pod: &Pod, id: &str) -> Result<(), Failed> {
    let mut states = pod.watch();
    states.wait_for(|state| state.containers.iter().any(|c| c.id == id && c.phase == Phase::Running)).await?;
    Ok(())
}

pub fn equal<T: PartialEq + std::fmt::Debug>(got: T, expect: T) -> Result<(), Failed> {
    if got == expect { Ok(()) } else { Err(format!("got {got:?}, expected {expect:?}").into()) }
}

pub fn holds(what: &str, holds: bool) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(format!("not so: {what}").into()) }
}
