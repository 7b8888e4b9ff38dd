//! The handle on the runtime: makes pods, finds them again, sweeps what a dead owner left.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::pod::Pod;
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result, check_name, on};
use crate::helper::{CONFIG_FILE, HelperConfig, HelperRecord, PROGRAM, RECORD_FILE};
use crate::image::ImageStore;
use crate::private;
use crate::spec::{ContainerSpec, PodSpec};
use crate::sys;

/// How long a new helper may take to make its namespaces.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Where the runtime's control groups are, for a later sweep.
const CGROUP_FILE: &str = "cgroup.json";
/// A container's specification in its directory.
pub(super) const SPEC_FILE: &str = "spec.json";

/// Where a runtime keeps things.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Records, sockets and writable layers of pods; may be lost with a reboot. One runtime a directory.
    pub state_dir: PathBuf,
    /// Images and their layers. On the same or another disk, but one that can carry overlays.
    pub image_dir: PathBuf,
    /// Control group below the caller's own (or below the root when it begins with `/`) that holds everything made here.
    pub cgroup_parent: String,
    /// Registries (`host:port`) that are spoken to without TLS, beside localhost.
    pub insecure_registries: Vec<String>,
}

/// Containers and images of one owner on one host. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub config: RuntimeConfig,
    pub images: ImageStore,
    pub cgroup: Cgroup,
}

/// A pod that an earlier process left.
pub struct Recovered {
    /// The pod; when it is not alive, only good for `delete`.
    pub pod: Pod,
    /// Its helper answers and its containers are as they were.
    pub alive: bool,
    /// The containers that it was given.
    pub containers: BTreeMap<String, ContainerSpec>,
}

/// A pod's directory, what its helper was told, and its containers.
type Found = (PathBuf, HelperConfig, BTreeMap<String, ContainerSpec>);

impl Runtime {
    /// Opens the directories (made when absent) and the control group. Needs root.
    pub fn open(config: RuntimeConfig) -> Result<Runtime> {
        let pods = config.state_dir.join("pods");
        for dir in [&config.state_dir, &pods] {
            private::dir(dir).context(on("make", dir))?;
        }
        let cgroup = Cgroup::parent(&config.cgroup_parent)?;
        let record = config.state_dir.join(CGROUP_FILE);
        // Earlier ones stay listed: an owner that comes back elsewhere in the hierarchy leaves the old place to the sweep.
        let mut places: Vec<Cgroup> = read_json(&record).unwrap_or_default();
        if !places.contains(&cgroup) {
            places.push(cgroup.clone());
        }
        let text =
            serde_json::to_vec(&places).map_err(io::Error::from).context(|| "write down the control group".into())?;
        private::write(&record, &text).context(on("write", &record))?;
        cgroup.child("helpers").make()?;
        let images = ImageStore::open(&config.image_dir, &config.insecure_registries)?;
        Ok(Runtime { inner: Arc::new(Inner { config, images, cgroup }) })
    }

    /// The images on this host.
    pub fn images(&self) -> &ImageStore {
        &self.inner.images
    }

    /// Directory of a pod; nothing of it need exist.
    pub fn pod_dir(&self, id: &str) -> PathBuf {
        self.inner.config.state_dir.join("pods").join(id)
    }

    /// Makes a pod: its helper, namespaces and control group. A failure leaves nothing behind.
    pub async fn create_pod(&self, spec: PodSpec) -> Result<Pod> {
        check_name("pod id", &spec.id)?;
        let runtime = self.clone();
        let made = tokio::task::spawn_blocking(move || runtime.create_pod_blocking(spec)).await;
        let (config, child) = made.map_err(|error| Error::Helper(format!("make a pod: {error}")))??;
        let dir = self.pod_dir(&config.spec.id);
        Ok(Pod::new(self.inner.clone(), dir, config, Some(child), true))
    }

    fn create_pod_blocking(&self, spec: PodSpec) -> Result<(HelperConfig, Child)> {
        let dir = self.pod_dir(&spec.id);
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Invalid {
                    what: "pod id",
                    value: spec.id,
                    why: "there is such a pod; recover or delete it first".into(),
                });
            }
            result => result.context(on("make", &dir))?,
        }
        let cgroup = self.inner.cgroup.child(&format!("pod-{}", spec.id));
        let config = HelperConfig { spec, cgroup, helper_cgroup: self.inner.cgroup.child("helpers") };
        let made = self.launch(&dir, &config);
        if made.is_err() {
            let _ = config.cgroup.destroy();
            let _ = fs::remove_dir_all(&dir);
        }
        made.map(|child| (config, child))
    }

    fn launch(&self, dir: &Path, config: &HelperConfig) -> Result<Child> {
        config.cgroup.make()?;
        config.cgroup.limit(&config.spec.resources)?;
        if config.cgroup.unified {
            config.cgroup.hand_down()?;
        }
        let file = dir.join(CONFIG_FILE);
        let text = serde_json::to_vec(config).map_err(io::Error::from).context(on("write", &file))?;
        private::write(&file, &text).context(on("write", &file))?;
        let log_path = dir.join("helper.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).context(on("open", &log_path))?;
        let log_too = log.try_clone().context(on("open", &log_path))?;
        let (ours, theirs) = UnixStream::pair().context(|| "make a socket pair".into())?;
        let program = program()?;
        let mut child = Command::new(sys::fd_path(program))
            .arg0(PROGRAM)
            .arg(dir)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(log_too))
            .spawn()
            .context(|| format!("start the helper of pod {}", config.spec.id))?;
        let answer = ready(ours);
        if answer.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        answer.map(|()| child)
    }

    /// Every pod in the state directory, alive or not. Containers of dead ones are killed here and now.
    pub async fn recover(&self) -> Result<Vec<Recovered>> {
        let runtime = self.clone();
        let found = tokio::task::spawn_blocking(move || runtime.find_pods()).await;
        let found = found.map_err(|error| Error::Helper(format!("look for pods: {error}")))??;
        let mut pods = Vec::new();
        for one in found {
            pods.push(self.revive(one).await);
        }
        Ok(pods)
    }

    /// The pod with this id, if this runtime's directory knows it: for a caller that lost its handle. Nothing else is looked at.
    pub async fn recover_pod(&self, id: &str) -> Option<Recovered> {
        let dir = self.pod_dir(id);
        let config = read_json::<HelperConfig>(&dir.join(CONFIG_FILE))?;
        let containers = containers_in(&dir);
        Some(self.revive((dir, config, containers)).await)
    }

    /// A handle on a pod that was found; what is left of a dead one is ended first.
    async fn revive(&self, (dir, config, containers): Found) -> Recovered {
        let alive = crate::wire::connect(&dir).is_ok();
        if !alive {
            kill_pod(&dir, &config);
        }
        let pod = Pod::new(self.inner.clone(), dir, config, None, alive);
        pod.adopt(&containers);
        if alive {
            pod.synced().await;
        }
        Recovered { pod, alive, containers }
    }

    fn find_pods(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for dir in directories(&self.inner.config.state_dir.join("pods"))? {
            let Some(config) = read_json::<HelperConfig>(&dir.join(CONFIG_FILE)) else {
                // Made, but nothing started in it yet.
                let _ = fs::remove_dir_all(&dir);
                continue;
            };
            let containers = containers_in(&dir);
            found.push((dir, config, containers));
        }
        Ok(found)
    }

    /// Removes what a runtime that is gone left of its pods: processes, control groups, the whole state directory. Images stay.
    pub fn sweep(state_dir: &Path) -> Result<()> {
        for dir in directories(&state_dir.join("pods")).unwrap_or_default() {
            if let Some(config) = read_json::<HelperConfig>(&dir.join(CONFIG_FILE)) {
                kill_pod(&dir, &config);
                config.cgroup.destroy()?;
            }
            fs::remove_dir_all(&dir).context(on("remove", &dir))?;
        }
        for cgroup in read_json::<Vec<Cgroup>>(&state_dir.join(CGROUP_FILE)).unwrap_or_default() {
            cgroup.destroy()?;
        }
        match fs::remove_dir_all(state_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context(on("remove", state_dir)),
            _ => Ok(()),
        }
    }
}

/// The containers of the pod in this directory, by id.
fn containers_in(pod_dir: &Path) -> BTreeMap<String, ContainerSpec> {
    let dirs = directories(&pod_dir.join("containers")).unwrap_or_default();
    let specs = dirs.iter().filter_map(|dir| read_json::<ContainerSpec>(&dir.join(SPEC_FILE)));
    specs.map(|spec| (spec.id.clone(), spec)).collect()
}

/// Ends a pod without its helper's help.
pub(super) fn kill_pod(dir: &Path, config: &HelperConfig) {
    if let Some(record) = read_json::<HelperRecord>(&dir.join(RECORD_FILE))
        && record.alive()
    {
        // SAFETY: kill takes no pointers; boot id and start time say that the process is the one that we started.
        unsafe { libc::kill(record.pid, libc::SIGKILL) };
    }
    let children = config.cgroup.dirs.iter().filter_map(|(_, dir)| fs::read_dir(dir).ok()).flatten().flatten();
    for child in children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        config.cgroup.child(&child.file_name().to_string_lossy()).kill();
    }
}

/// The sealed copy of this program that helpers run; made once a process.
fn program() -> Result<&'static OwnedFd> {
    static PROGRAM_FILE: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(file) = PROGRAM_FILE.get() {
        return Ok(file);
    }
    let file = sys::sealed_self().context(|| "copy this program for its helpers".into())?;
    Ok(PROGRAM_FILE.get_or_init(|| file))
}

/// Waits for the helper's `R`, or its reason.
fn ready(channel: UnixStream) -> Result<()> {
    channel.set_read_timeout(Some(READY_TIMEOUT)).context(|| "wait for the helper".into())?;
    let mut text = Vec::new();
    let mut chunk = [0u8; 1024];
    let mut reader = &channel;
    loop {
        let count =
            reader.read(&mut chunk).context(|| format!("wait for the helper (descriptor {})", channel.as_raw_fd()))?;
        text.extend_from_slice(&chunk[..count]);
        if text == b"R" {
            return Ok(());
        }
        if count == 0 {
            break;
        }
    }
    match text.split_first() {
        Some((b'E', why)) => Err(Error::Helper(String::from_utf8_lossy(why).into_owned())),
        _ => Err(Error::Helper("the helper ended at once; does main call maybe_run_helper first?".into())),
    }
}

fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(on("list", dir))?,
    };
    let mut dirs: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    dirs.sort();
    Ok(dirs)
}

fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}
