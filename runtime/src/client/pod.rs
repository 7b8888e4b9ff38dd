//! The handle on one pod.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::connection::Connection;
use super::runtime::{Inner, SPEC_FILE, kill_pod};
use super::streams::{self, Attached, ExecIo, ExecSession};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result, check_name, on};
use crate::helper::{HelperConfig, HelperRecord, RECORD_FILE};
use crate::image::Pin;
use crate::private;
use crate::spec::{ContainerSpec, ContainerState, ExecSpec, Phase, PodSpec, PodState, Stats};
use crate::wire::{Reply, Request, StartRequest};

/// A pod on this host. Cheap to clone; dropping it leaves the pod running.
#[derive(Clone)]
pub struct Pod {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Arc<Inner>,
    dir: PathBuf,
    config: HelperConfig,
    /// The helper, when it is our own child, so that it can be reaped.
    child: Mutex<Option<Child>>,
    /// The images of its containers, kept from being collected.
    pins: Mutex<BTreeMap<String, Pin>>,
    state: watch::Sender<PodState>,
}

impl Pod {
    pub(super) fn new(
        runtime: Arc<Inner>,
        dir: PathBuf,
        config: HelperConfig,
        child: Option<Child>,
        alive: bool,
    ) -> Pod {
        let (state, _) = watch::channel(PodState { gone: !alive, ..PodState::default() });
        let shared = Shared { runtime, dir, config, child: Mutex::new(child), pins: Mutex::default(), state };
        let pod = Pod { shared: Arc::new(shared) };
        if alive {
            tokio::spawn(follow(Arc::downgrade(&pod.shared)));
        }
        pod
    }

    /// Its specification.
    pub fn spec(&self) -> &PodSpec {
        &self.shared.config.spec
    }

    /// Its directory: the caller may keep files of its own there (`own-*`); they go with the pod.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Process id of the helper, which lives in the pod's namespaces.
    pub fn helper_pid(&self) -> Result<i32> {
        let file = self.shared.dir.join(RECORD_FILE);
        let text = fs::read(&file).context(on("read", &file))?;
        let record: HelperRecord = serde_json::from_slice(&text).map_err(io::Error::from).context(on("read", &file))?;
        Ok(record.pid)
    }

    /// The pod's network namespace, for whoever wires it or enters it.
    pub fn netns_path(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/ns/net", self.helper_pid()?)))
    }

    /// A directory of the helper's mount namespace (a memory volume, say) as this process can reach it.
    pub fn through_helper(&self, path: &Path) -> Result<PathBuf> {
        let below = path.strip_prefix("/").unwrap_or(path);
        Ok(PathBuf::from(format!("/proc/{}/root", self.helper_pid()?)).join(below))
    }

    /// The state as last told by the helper.
    pub fn state(&self) -> PodState {
        self.shared.state.borrow().clone()
    }

    /// Wakes after every change of the state.
    pub fn watch(&self) -> watch::Receiver<PodState> {
        self.shared.state.subscribe()
    }

    /// Waits for the helper's first word after a recovery.
    pub(super) async fn synced(&self) {
        let mut states = self.watch();
        let told = states.wait_for(|state| state.synced || state.gone);
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), told).await;
    }

    /// One container's state.
    pub fn container(&self, id: &str) -> Option<ContainerState> {
        self.shared.state.borrow().containers.iter().find(|container| container.id == id).cloned()
    }

    /// Waits until a container has ended (or the helper is gone, which is an error).
    pub async fn wait_exit(&self, id: &str) -> Result<ContainerState> {
        let mut states = self.watch();
        let ended =
            |state: &PodState| state.gone || state.containers.iter().any(|c| c.id == id && c.phase == Phase::Exited);
        let _ = states.wait_for(ended).await;
        match self.container(id) {
            Some(state) if state.phase == Phase::Exited => Ok(state),
            _ => Err(Error::HelperGone { pod: self.spec().id.clone(), cause: "the connection ended".into() }),
        }
    }

    async fn ask(&self, request: &Request, fds: &[RawFd]) -> Result<Connection> {
        Connection::request(&self.spec().id, &self.shared.dir, request, fds).await
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.shared.dir.join("containers").join(id)
    }

    fn container_cgroup(&self, id: &str) -> Cgroup {
        self.shared.config.cgroup.child(id)
    }

    /// Makes a container and runs its program; returns its pid once the program runs. After a failure the container is there,
    /// ended, and wants to be removed like any other.
    pub async fn start_container(&self, spec: ContainerSpec) -> Result<i32> {
        check_name("container id", &spec.id)?;
        let pin = self.shared.runtime.images.pin(&spec.image)?;
        let dir = self.container_dir(&spec.id);
        fs::create_dir_all(&dir).context(on("make", &dir))?;
        let file = dir.join(SPEC_FILE);
        let text = serde_json::to_vec(&spec).map_err(io::Error::from).context(on("write", &file))?;
        private::write(&file, &text).context(on("write", &file))?;
        let cgroup = self.container_cgroup(&spec.id);
        cgroup.make()?;
        cgroup.limit(&spec.resources)?;
        let layers = pin.layers();
        self.shared.pins.lock().unwrap_or_else(PoisonError::into_inner).insert(spec.id.clone(), pin);
        let request = StartRequest {
            spec,
            layers_dir: self.shared.runtime.images.layers_dir().to_string_lossy().into_owned(),
            layers,
            dir: dir.to_string_lossy().into_owned(),
            cgroup,
        };
        let id = request.spec.id.clone();
        let mut connection = self.ask(&Request::Start(Box::new(request)), &[]).await?;
        let pid = match connection.reply().await? {
            (Reply::Started { pid }, _) => pid,
            (other, _) => return Err(Error::Helper(format!("the helper answered {other:?} to a start"))),
        };
        // The caller finds the container in the state that it sees next.
        let known =
            |state: &PodState| state.gone || state.containers.iter().any(|c| c.id == id && c.phase != Phase::Starting);
        let _ = self.watch().wait_for(known).await;
        Ok(pid)
    }

    /// Runs a program in a container. `stdin`: whether it gets an input. Dropping the session kills it.
    pub async fn exec(&self, spec: ExecSpec, stdin: bool) -> Result<ExecSession> {
        let made = || "make pipes".to_owned();
        if spec.tty {
            let mut connection = self.ask(&Request::Exec(spec), &[]).await?;
            let (_, fds) = connection.reply().await?;
            let master = fds.into_iter().next().ok_or_else(|| Error::Helper("the helper sent no terminal".into()))?;
            let io = ExecIo::of_terminal(master).context(|| "open a terminal".into())?;
            return Ok(ExecSession { io, connection });
        }
        let (stdin_end, stdin_ours) = if stdin {
            let (end, writer) = streams::input().context(made)?;
            (end, Some(writer))
        } else {
            (fs::File::open("/dev/null").context(|| "open /dev/null".into())?.into(), None)
        };
        let (stdout_end, stdout) = streams::output().context(made)?;
        let (stderr_end, stderr) = streams::output().context(made)?;
        let fds = [stdin_end.as_raw_fd(), stdout_end.as_raw_fd(), stderr_end.as_raw_fd()];
        let mut connection = self.ask(&Request::Exec(spec), &fds).await?;
        drop((stdin_end, stdout_end, stderr_end));
        connection.reply().await?;
        let io = ExecIo { stdin: stdin_ours, stdout: Some(stdout), stderr: Some(stderr), terminal: None };
        Ok(ExecSession { io, connection })
    }

    /// Joins a container's own streams from now on. A client that does not read fast enough is cut off.
    pub async fn attach(&self, id: &str) -> Result<Attached> {
        let made = || "make pipes".to_owned();
        let (stdout_end, stdout) = streams::output().context(made)?;
        let (stderr_end, stderr) = streams::output().context(made)?;
        let request = Request::Attach { container: id.to_owned() };
        let mut connection = self.ask(&request, &[stdout_end.as_raw_fd(), stderr_end.as_raw_fd()]).await?;
        drop((stdout_end, stderr_end));
        let (_, fds) = connection.reply().await?;
        let mut io = ExecIo { stdin: None, stdout: Some(stdout), stderr: Some(stderr), terminal: None };
        let tty = streams::is_terminal(fds.first());
        match fds.into_iter().next() {
            Some(master) if tty => {
                let terminal = streams::Terminal::new(master).context(|| "open a terminal".into())?;
                io.stdin = Some(Box::new(terminal.clone()));
                io.terminal = Some(terminal);
            }
            Some(input) => io.stdin = Some(streams::writer(input).context(made)?),
            None => {}
        }
        Ok(Attached { io })
    }

    /// Sends a signal to a container's first process, or to all of its processes.
    pub async fn signal(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let request = Request::Signal { container: id.to_owned(), signal, all };
        self.ask(&request, &[]).await?.reply().await.map(drop)
    }

    /// Kills everything when CLOCK_BOOTTIME reaches the deadline, also when no agent is left to do it; 0 lifts it.
    pub async fn set_lease(&self, deadline_boottime_ms: u64) -> Result<()> {
        self.ask(&Request::Lease { deadline_boottime_ms }, &[]).await?.reply().await.map(drop)
    }

    /// Forgets an ended container: its files, control group and state. Its log stays.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = Request::Remove { container: id.to_owned() };
        match self.ask(&request, &[]).await {
            Ok(mut connection) => connection.reply().await.map(drop)?,
            Err(Error::HelperGone { .. }) => {}
            Err(error) => return Err(error),
        }
        self.shared.pins.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        let (cgroup, dir) = (self.container_cgroup(id), self.container_dir(id));
        blocking(move || {
            cgroup.destroy()?;
            remove(&dir)
        })
        .await
    }

    /// CPU and memory of one container.
    pub fn container_stats(&self, id: &str) -> Stats {
        self.container_cgroup(id).stats()
    }

    /// CPU and memory of the whole pod.
    pub fn stats(&self) -> Stats {
        self.shared.config.cgroup.stats()
    }

    /// Kills every process of the pod and ends its helper; the directory stays.
    pub async fn stop(&self) -> Result<()> {
        match self.ask(&Request::Stop, &[]).await {
            Ok(mut connection) => match connection.reply().await {
                Ok(_) | Err(Error::HelperGone { .. }) => {}
                Err(error) => return Err(error),
            },
            Err(Error::HelperGone { .. }) => {}
            Err(error) => return Err(error),
        }
        let shared = self.shared.clone();
        blocking(move || match shared.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(mut child) => child.wait().map(drop).context(|| "wait for the helper".into()),
            None => {
                kill_pod(&shared.dir, &shared.config);
                Ok(())
            }
        })
        .await
    }

    /// Ends the pod and removes every trace of it but its logs.
    pub async fn delete(&self) -> Result<()> {
        self.stop().await?;
        self.shared.pins.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let shared = self.shared.clone();
        blocking(move || {
            shared.config.cgroup.destroy()?;
            remove(&shared.dir)
        })
        .await
    }

    /// Pins the images of containers that an earlier process started.
    pub(super) fn adopt(&self, containers: &BTreeMap<String, ContainerSpec>) {
        let mut pins = self.shared.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, spec) in containers {
            if let Ok(pin) = self.shared.runtime.images.pin(&spec.image) {
                pins.insert(id.clone(), pin);
            }
        }
    }
}

/// Copies the helper's state into the pod's until either is gone.
async fn follow(pod: std::sync::Weak<Shared>) {
    let Some(shared) = pod.upgrade() else { return };
    let connection = Connection::request(&shared.config.spec.id, &shared.dir, &Request::Watch, &[]).await;
    drop(shared);
    if let Ok(mut connection) = connection {
        while let Ok((reply, _)) = connection.reply().await {
            let Some(shared) = pod.upgrade() else { return };
            if let Reply::State(mut state) = reply {
                state.synced = true;
                shared.state.send_replace(state);
            }
        }
    }
    let Some(shared) = pod.upgrade() else { return };
    shared.state.send_modify(|state| state.gone = true);
    // A helper that ended by itself is reaped here; a deliberate stop has taken the child already.
    let child = shared.child.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut child) = child {
        let _ = tokio::task::spawn_blocking(move || child.wait()).await;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::Helper(format!("a task of the runtime ended: {error}")))?
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context(on("remove", dir)),
        _ => Ok(()),
    }
}
