//! A local cluster that a scenario uses from the command line, and from inside.

use crate::idle;
use anyhow::{Context as _, ensure};
use serde_json::Value;
use skiff::commands::cluster::{Cluster, is_ready, items};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");
/// Long enough for a machine on which everything else runs too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The cluster's folder; whatever happens, the cluster goes with it.
pub struct Local {
    pub dir: PathBuf,
}

impl Local {
    /// A place for a cluster; nothing runs there yet.
    pub fn new(name: &str) -> Local {
        Local { dir: std::env::temp_dir().join(format!("skiff-test-{name}-{}", std::process::id())) }
    }

    /// A cluster that runs.
    pub fn up(name: &str, servers: usize, agents: usize) -> anyhow::Result<Local> {
        let local = Local::new(name);
        let (servers, agents) = (servers.to_string(), agents.to_string());
        local.run(&["up", "--servers", &servers, "--agents", &agents, "--dir", local.dir()])?;
        Ok(local)
    }

    pub fn dir(&self) -> &str {
        self.dir.to_str().expect("a plain path")
    }

    /// A file in the folder.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> anyhow::Result<String> {
        let path = self.dir.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path.display().to_string())
    }

    pub fn skiff(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(SKIFF);
        command.args(words).env("KUBECONFIG", self.dir.join("kubeconfig"));
        command.output().with_context(|| format!("running skiff {words:?}"))
    }

    /// Runs a command that must succeed; its output.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.skiff(words)?;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        ensure!(output.status.success(), "skiff {words:?}: {out}{err}");
        Ok(out)
    }

    /// Runs a command that must fail; what it complains.
    pub fn refused(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.skiff(words)?;
        ensure!(!output.status.success(), "skiff {words:?} should fail, but said:\n{}", text(&output.stdout));
        Ok(text(&output.stderr))
    }

    /// Looks until the output of a command is as it should be; gives it.
    pub fn until(&self, words: &[&str], good: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let begun = Instant::now();
        loop {
            // While servers are hurt, a command may fail.
            let output = self.skiff(words)?;
            let said = text(&output.stdout);
            if output.status.success() && good(&said) {
                return Ok(said);
            }
            let complaint = text(&output.stderr);
            ensure!(begun.elapsed() < PATIENCE, "skiff {words:?} still says:\n{said}{complaint}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The cluster from inside: its processes and links, and its API.
    pub fn cluster(&self) -> anyhow::Result<Cluster> {
        Cluster::open(&self.dir)
    }

    /// Mends links and processes, and waits until every node is Ready and every server answers for itself.
    fn make_whole(&self, servers: usize, agents: usize) -> anyhow::Result<()> {
        let cluster = self.cluster()?;
        for node in cluster.host.status()?.nodes {
            cluster.host.heal(&node.name)?;
            match node.pid {
                Some(_) => cluster.host.kill(&node.name, nix::sys::signal::Signal::SIGCONT)?,
                None => drop(cluster.host.restart(&node.name)?),
            }
        }
        for n in 1..=servers {
            let name = format!("s{n}");
            wait_until(&format!("{name} serves"), || cluster.has(&name, skiff::server::LEADER_LEASE))?;
        }
        block_on(async {
            let ready = || async {
                let nodes = cluster.api.get("/api/v1/nodes").await?;
                Ok(items(&nodes).filter(|n| is_ready(n)).count() == agents)
            };
            until("every node is Ready", ready).await
        })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("SKIFF_TEST_LOGS").is_some() {
            keep_logs(&self.dir);
        }
        let _ = self.skiff(&["down", "--dir", self.dir()]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Copies the processes' logs beside the folder that is about to go.
fn keep_logs(dir: &Path) {
    let to = dir.with_extension("logs");
    let _ = std::fs::create_dir_all(&to);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|e| e == "log") {
            let _ = std::fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
}

/// A cluster that scenarios use one after the other.
pub struct Shared {
    name: &'static str,
    servers: usize,
    agents: usize,
    local: Mutex<Option<(Local, idle::Fresh)>>,
}

impl Shared {
    pub const fn new(name: &'static str, servers: usize, agents: usize) -> Shared {
        Shared { name, servers, agents, local: Mutex::new(None) }
    }

    /// Runs a scenario on the cluster, which is whole and has the demo's image.
    pub fn with(&self, scenario: fn(&Local) -> anyhow::Result<()>) -> anyhow::Result<()> {
        // A scenario that panicked left a cluster that can be mended.
        let mut local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        if local.is_none() {
            let new = Local::up(self.name, self.servers, self.agents)?;
            new.run(&["demo-image"])?;
            let fresh = idle::fresh(&new)?;
            *local = Some((new, fresh));
        }
        let (local, fresh) = local.as_ref().context("the cluster is up")?;
        local.make_whole(self.servers, self.agents).context("before the scenario")?;
        scenario(local)?;
        local.make_whole(self.servers, self.agents).context("after the scenario")?;
        idle::settles(local, fresh).context("after the scenario")
    }

    /// Takes the cluster down, if it ever was up.
    pub fn end(&self) {
        drop(self.local.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a scenario's asynchronous part.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}

/// Looks until `done` says so; an error that comes while the API moves to another server is looked over.
pub async fn until<F: Future<Output = anyhow::Result<bool>>>(
    what: &str,
    mut done: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let state = tokio::time::timeout(Duration::from_secs(10), done()).await.context("no answer within 10 s");
        match state.and_then(|s| s) {
            Ok(true) => return Ok(()),
            Ok(false) => ensure!(begun.elapsed() < PATIENCE, "after {} s still not: {what}", PATIENCE.as_secs()),
            Err(e) if begun.elapsed() > PATIENCE => return Err(e.context(format!("waiting until {what}"))),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The same for what blocks.
pub fn wait_until(what: &str, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match done() {
            Ok(true) => return Ok(()),
            Ok(false) => ensure!(begun.elapsed() < PATIENCE, "after {} s still not: {what}", PATIENCE.as_secs()),
            Err(e) if begun.elapsed() > PATIENCE => return Err(e.context(format!("waiting until {what}"))),
            Err(_) => {}
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A text within an object; empty when it is not there.
pub fn text_of<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
