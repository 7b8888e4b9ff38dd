//! The first process of an instance: holds its namespaces, starts and reaps its processes, forwards its API.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use skiff_netlink::Cidr;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::children::Children;
use crate::forward::{self, Live};
use crate::frame;
use crate::launch::{LIFELINE_FD, READY_FD};
use crate::plan;
use crate::spec::{Answer, NodeSpec, NodeStatus, Ready, Request, Status, SupervisorSpec};
use crate::switch::Switch;

/// How long a killed process may take to be gone before a restart gives up.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Runs the supervisor that `spec` describes until it is told to end, its parent is gone, or SIGTERM; then all its processes end with it.
///
/// Only [`crate::Host::create`] starts it: as the first process of a PID namespace, with the descriptors that it prepares.
pub fn supervisor_main(spec: &Path) -> Result<()> {
    if std::process::id() != 1 {
        bail!("the local cluster's supervisor is started by skiff up or skiff demo, not by hand");
    }
    // SAFETY: the parent put these two descriptors there for this process alone.
    let (lifeline, mut ready) = unsafe { (File::from_raw_fd(LIFELINE_FD), File::from_raw_fd(READY_FD)) };
    let mut say = |answer: &Ready| -> Result<()> { Ok(ready.write_all(&serde_json::to_vec(answer)?)?) };
    let made = prepare(spec);
    match made {
        Ok((runtime, supervisor, doors)) => {
            say(&Ready::Yes { port: supervisor.port })?;
            drop(ready);
            runtime.block_on(run(supervisor, doors, lifeline))
        }
        Err(error) => {
            say(&Ready::No { why: format!("{error:#}") })?;
            Err(error)
        }
    }
}

struct Supervisor {
    spec: SupervisorSpec,
    pid: i32,
    port: u16,
    began: Instant,
    switch: Switch,
    children: Children,
    live: watch::Sender<Live>,
}

/// Where others come in.
struct Doors {
    control: UnixListener,
    api: TcpListener,
}

type Asked = (Request, oneshot::Sender<Answer>);

fn prepare(path: &Path) -> Result<(tokio::runtime::Runtime, Supervisor, Doors)> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let spec: SupervisorSpec =
        serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))?;
    // Still the parent's /proc: the name of this process there is its pid in the root namespace.
    let own = std::fs::read_link("/proc/self").context("read /proc/self")?;
    let pid = own.to_str().and_then(|name| name.parse().ok()).context("understand /proc/self")?;
    isolate_mounts()?;
    let subnet: Cidr = spec.subnet.parse()?;
    let mut switch = Switch::new(subnet)?;
    if spec.uplink {
        switch.add_uplink(&spec.instance).context("connect the local cluster to this machine's network")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let doors = runtime.block_on(open_doors(&spec))?;
    let port = doors.api.local_addr().context("find the API's port")?.port();
    let live = watch::Sender::new(Live::new());
    Ok((
        runtime,
        Supervisor { spec, pid, port, began: Instant::now(), switch, children: Children::default(), live },
        doors,
    ))
}

/// Nothing mounted here is seen outside, and /proc shows this PID namespace.
fn isolate_mounts() -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make the mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mount /proc for the local cluster")
}

async fn open_doors(spec: &SupervisorSpec) -> Result<Doors> {
    // Left by an instance that was killed: no one listens there, or this instance would not have been started.
    match std::fs::remove_file(&spec.socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old socket {}", spec.socket.display()));
        }
        _ => {}
    }
    let control = UnixListener::bind(&spec.socket).with_context(|| format!("listen on {}", spec.socket.display()))?;
    std::fs::set_permissions(&spec.socket, std::fs::Permissions::from_mode(0o600))
        .context("close the socket to others")?;
    let api = TcpListener::bind((Ipv4Addr::LOCALHOST, spec.port)).await;
    let api =
        api.with_context(|| format!("listen on 127.0.0.1:{}: choose another port, or 0 for any free one", spec.port))?;
    Ok(Doors { control, api })
}

async fn run(mut supervisor: Supervisor, doors: Doors, lifeline: File) -> Result<()> {
    let switch = Arc::new(supervisor.switch.namespace().try_clone().context("copy the switch's namespace")?);
    tokio::spawn(forward::serve(doors.api, switch, supervisor.live.subscribe()));
    let (asked, mut questions) = mpsc::channel::<Asked>(64);
    tokio::spawn(listen(doors.control, asked));
    let mut ended = signal(SignalKind::child()).context("watch for ended processes")?;
    let mut stop = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut parent = tokio::task::spawn(parent_gone(lifeline, supervisor.spec.tied));
    loop {
        tokio::select! {
            _ = ended.recv() => {
                for name in supervisor.children.reap() {
                    let how = supervisor.children.get(&name).and_then(|child| child.ended.clone());
                    eprintln!("{name} ended: {}", how.unwrap_or_default());
                }
            }
            Some((request, answer)) = questions.recv() => {
                let last = matches!(request, Request::Shutdown);
                let reply = supervisor.answer(request).await.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
                // One who asked and went away needs no answer.
                let _ = answer.send(reply);
                if last {
                    // The answer leaves before this process, and with it the instance, ends.
                    tokio::task::yield_now().await;
                    return Ok(());
                }
            }
            _ = stop.recv() => return Ok(()),
            _ = &mut parent => return Ok(()),
        }
        supervisor.publish_live();
    }
}

/// Ends when the parent's end of the pipe closes; never for an instance of its own.
async fn parent_gone(lifeline: File, tied: bool) {
    if !tied {
        return std::future::pending().await;
    }
    if let Ok(mut pipe) = tokio::net::unix::pipe::Receiver::from_file(lifeline) {
        let mut byte = [0];
        while matches!(pipe.read(&mut byte).await, Ok(1)) {}
    }
}

async fn listen(control: UnixListener, asked: mpsc::Sender<Asked>) {
    loop {
        match control.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, asked.clone()));
            }
            Err(error) => {
                eprintln!("accepting a control connection failed: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, asked: mpsc::Sender<Asked>) -> Option<()> {
    loop {
        let request = frame::read_async(&mut stream).await.ok()?;
        let (answer, reply) = oneshot::channel();
        asked.send((request, answer)).await.ok()?;
        frame::write_async(&mut stream, &reply.await.ok()?).await.ok()?;
    }
}

impl Supervisor {
    async fn answer(&mut self, request: Request) -> Result<Answer> {
        Ok(match request {
            Request::Prepare { name } => {
                self.switch.port(&name)?;
                Answer::Done
            }
            Request::Spawn(spec) => self.spawn(spec)?,
            Request::Kill { name, signal } => {
                let signal = Signal::try_from(signal).with_context(|| format!("{signal} is not a signal"))?;
                self.children.kill(&name, signal)?;
                if signal == Signal::SIGKILL {
                    self.wait_for_end(&name).await?;
                }
                Answer::Done
            }
            Request::Restart { name } => {
                let spec =
                    self.children.get(&name).with_context(|| format!("no node {name} was started"))?.spec.clone();
                if self.children.is_running(&name) {
                    self.children.kill(&name, Signal::SIGKILL)?;
                    self.wait_for_end(&name).await?;
                }
                self.spawn(spec)?
            }
            Request::Cut { name, direction } => {
                self.switch.cut(&name, direction)?;
                Answer::Done
            }
            Request::Heal { name } => {
                self.switch.heal(&name)?;
                Answer::Done
            }
            Request::Status => Answer::Status(self.status()),
            Request::Shutdown => Answer::Done,
        })
    }

    fn spawn(&mut self, spec: NodeSpec) -> Result<Answer> {
        let port = self.switch.port(&spec.name)?;
        Ok(Answer::Pid(self.children.spawn(spec, &port.namespace)?.as_raw()))
    }

    async fn wait_for_end(&mut self, name: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            self.children.reap();
            if !self.children.is_running(name) {
                return Ok(());
            }
            if start.elapsed() > END_WITHIN {
                bail!("{name} was killed but does not end: it hangs in the kernel");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn status(&self) -> Status {
        let nodes = self.switch.ports().iter().map(|(name, port)| {
            let child = self.children.get(name);
            NodeStatus {
                name: name.clone(),
                address: port.address,
                pid: child.and_then(|child| child.pid).map(|pid| pid.as_raw()),
                ended: child.and_then(|child| child.ended.clone()),
                cut: port.cut,
                log: child.map(|child| child.spec.log.clone()).unwrap_or_default(),
                namespace_fd: port.fd(),
            }
        });
        Status {
            instance: self.spec.instance.clone(),
            pid: self.pid,
            port: self.port,
            subnet: self.spec.subnet.clone(),
            uplink: self.spec.uplink,
            uptime: self.began.elapsed().as_secs(),
            nodes: nodes.collect(),
        }
    }

    fn publish_live(&self) {
        let nodes = self.switch.ports().iter();
        let live =
            nodes.filter(|(name, port)| plan::is_server(name) && port.cut.is_none() && self.children.is_running(name));
        let live: Live = live.map(|(name, port)| (name.clone(), port.address)).collect();
        self.live.send_if_modified(|now| {
            let changed = *now != live;
            *now = live;
            changed
        });
    }
}
