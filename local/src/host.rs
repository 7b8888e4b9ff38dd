//! The parent's side of a local cluster.

use std::fs::{self, File};
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use skiff_netlink::route::Rt;
use skiff_netlink::{Cidr, netns};

use crate::client::ask;
use crate::groups;
use crate::launch::{self, Launched};
use crate::plan;
use crate::registry::{self, Record};
use crate::spec::{Answer, Direction, NodeSpec, Ready, Request, Status, SupervisorSpec};

/// The supervisor's socket, in the instance's directory.
pub const SOCKET: &str = "supervisor.sock";
const SPEC: &str = "supervisor.json";
const LOG: &str = "supervisor.log";
/// How long a supervisor may take to end; the kernel kills all processes of its namespace in that time.
const END_WITHIN: Duration = Duration::from_secs(20);

/// A local cluster to be.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Its files; made when not there.
    pub dir: PathBuf,
    /// Names it among the instances of this machine: cgroups, devices and rules carry it. Lower-case letters and digits, at most 10.
    pub instance: String,
    /// Nodes reach what this machine reaches, masqueraded.
    pub uplink: bool,
    /// For the API on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// None chooses one.
    pub subnet: Option<Cidr>,
    /// The cluster ends with this process, however that ends. Otherwise it stays until [`Host::shutdown`].
    pub tied: bool,
    /// The directory is removed with the cluster.
    pub temporary: bool,
    /// The arguments that make this program call [`crate::supervisor_main`]; the path of the specification is added.
    pub supervisor_args: Vec<String>,
    /// Where instances of this machine are recorded; [`registry::FOLDER`].
    pub registry: PathBuf,
}

/// A running local cluster. Its calls are short and block; a tied one ends when this value is dropped.
#[derive(Debug)]
pub struct Host {
    record: Record,
    socket: PathBuf,
    registry: PathBuf,
    subnet: Cidr,
    port: u16,
    /// Present in the process that started a tied instance.
    lifeline: Option<OwnedFd>,
    child: bool,
}

impl Host {
    /// Sweeps what dead instances left, chooses a subnet, and starts the supervisor.
    ///
    /// # Errors
    /// Not root; an instance of this name or directory is alive; no free subnet or port; the kernel refuses a namespace or device.
    pub fn create(config: LocalConfig) -> Result<Host> {
        check_instance(&config.instance)?;
        if !nix::unistd::geteuid().is_root() {
            bail!("a local cluster makes namespaces and network devices, which needs root: run it with sudo");
        }
        let _held = registry::lock(&config.registry)?;
        registry::sweep(&config.registry)?;
        let others = registry::all(&config.registry);
        let dir = std::path::absolute(&config.dir).with_context(|| format!("resolve {}", config.dir.display()))?;
        if let Some(other) = others.iter().find(|other| other.instance == config.instance || other.dir == dir) {
            bail!(
                "the local cluster {} is running in {} (pid {}): use it, or end it with skiff down",
                other.instance,
                other.dir.display(),
                other.pid
            );
        }
        let groups = groups::own()?;
        groups::remove(&groups, &config.instance)?;
        registry::remove_device(&config.instance)?;
        let subnet = match config.subnet {
            Some(subnet) => subnet,
            None => choose_subnet(&others)?,
        };
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let socket = dir.join(SOCKET);
        let spec = SupervisorSpec {
            instance: config.instance.clone(),
            dir: dir.clone(),
            socket: socket.clone(),
            subnet: subnet.to_string(),
            uplink: config.uplink,
            port: config.port,
            tied: config.tied,
        };
        let spec_path = dir.join(SPEC);
        fs::write(&spec_path, serde_json::to_vec_pretty(&spec)?)
            .with_context(|| format!("write {}", spec_path.display()))?;
        groups::make_room(&groups, &config.instance)?;
        let mut argv = config.supervisor_args.clone();
        argv.push(spec_path.display().to_string());
        let Launched { pid, lifeline, ready } = launch::launch(&argv, &dir.join(LOG))?;
        let started = registry::started(pid.as_raw()).unwrap_or_default();
        let record = Record {
            instance: config.instance,
            pid: pid.as_raw(),
            started,
            subnet: subnet.to_string(),
            dir,
            temporary: config.temporary,
            groups,
        };
        registry::save(&config.registry, &record)?;
        let lifeline = config.tied.then_some(lifeline);
        let mut host = Host { record, socket, registry: config.registry, subnet, port: 0, lifeline, child: true };
        match read_ready(ready) {
            Ok(port) => host.port = port,
            Err(error) => {
                let log = host.record.dir.join(LOG);
                let tail = fs::read_to_string(&log).unwrap_or_default();
                let tail: String =
                    tail.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
                host.wait_for_end()?;
                registry::forget(&host.registry, &host.record)?;
                return Err(error.context(format!("start the local cluster's supervisor\n{tail}")));
            }
        }
        Ok(host)
    }

    /// A local cluster that is running already, by its directory.
    pub fn open(dir: &Path, registry: &Path) -> Result<Host> {
        let dir = std::path::absolute(dir).with_context(|| format!("resolve {}", dir.display()))?;
        let record = registry::all(registry).into_iter().find(|record| record.dir == dir && record.is_alive());
        let record = record
            .ok_or_else(|| anyhow!("no local cluster is running in {}: start one with skiff up", dir.display()))?;
        let subnet = record.subnet.parse()?;
        let mut host = Host {
            socket: dir.join(SOCKET),
            record,
            registry: registry.to_owned(),
            subnet,
            port: 0,
            lifeline: None,
            child: false,
        };
        host.port = host.status()?.port;
        Ok(host)
    }

    pub fn instance(&self) -> &str {
        &self.record.instance
    }

    pub fn dir(&self) -> &Path {
        &self.record.dir
    }

    pub fn subnet(&self) -> Cidr {
        self.subnet
    }

    /// 127.0.0.1 at this port leads to the API of a live server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A node's address, known before the node is.
    pub fn address(&self, name: &str) -> Result<Ipv4Addr> {
        plan::address(self.subnet, name)
    }

    /// The cgroup below which a node shall keep its pods, so that they can be swept.
    pub fn cgroup(&self, name: &str) -> String {
        groups::name(&self.record.instance, name)
    }

    /// Makes a node's namespace and link, with no process.
    pub fn prepare(&self, name: &str) -> Result<()> {
        self.ask(Request::Prepare { name: name.to_owned() }).map(drop)
    }

    /// Starts a node's process; gives its pid in the instance's PID namespace.
    pub fn spawn(&self, node: NodeSpec) -> Result<i32> {
        match self.ask(Request::Spawn(node))? {
            Answer::Pid(pid) => Ok(pid),
            other => bail!("the supervisor answered {other:?} to a spawn"),
        }
    }

    /// Sends a signal to a node's process alone.
    pub fn kill(&self, name: &str, signal: Signal) -> Result<()> {
        self.ask(Request::Kill { name: name.to_owned(), signal: signal as i32 }).map(drop)
    }

    /// Starts a node's process again as it was, killing it first if it runs.
    pub fn restart(&self, name: &str) -> Result<i32> {
        match self.ask(Request::Restart { name: name.to_owned() })? {
            Answer::Pid(pid) => Ok(pid),
            other => bail!("the supervisor answered {other:?} to a restart"),
        }
    }

    /// Drops a node's packets in the switch; its link stays up.
    pub fn cut(&self, name: &str, direction: Direction) -> Result<()> {
        self.ask(Request::Cut { name: name.to_owned(), direction }).map(drop)
    }

    /// Undoes every cut of a node.
    pub fn heal(&self, name: &str) -> Result<()> {
        self.ask(Request::Heal { name: name.to_owned() }).map(drop)
    }

    pub fn status(&self) -> Result<Status> {
        match self.ask(Request::Status)? {
            Answer::Status(status) => Ok(status),
            other => bail!("the supervisor answered {other:?} to a question for its status"),
        }
    }

    /// A node's network namespace.
    pub fn namespace(&self, name: &str) -> Result<File> {
        let status = self.status()?;
        let node = status
            .nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("no node {name} was started"))?;
        Ok(netns::open(Path::new(&format!("/proc/{}/fd/{}", status.pid, node.namespace_fd)))?)
    }

    /// Runs `work` in a node's network namespace, on a thread of its own.
    pub fn run_in<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(netns::inside_file(&self.namespace(name)?, work)?)
    }

    /// The pid that a process of the instance has in the root PID namespace.
    pub fn outer_pid(&self, inner: i32) -> Result<i32> {
        let ours =
            fs::read_link(format!("/proc/{}/ns/pid", self.record.pid)).context("find the instance's PID namespace")?;
        let pids = fs::read_dir("/proc")
            .context("list processes")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids {
            if fs::read_link(format!("/proc/{pid}/ns/pid")).ok().as_ref() != Some(&ours) {
                continue;
            }
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            if line.split_ascii_whitespace().last().and_then(|last| last.parse().ok()) == Some(inner) {
                return Ok(pid);
            }
        }
        bail!("process {inner} of the instance {} is gone", self.record.instance)
    }

    /// Ends every process of the cluster and removes every trace of it.
    pub fn shutdown(mut self) -> Result<()> {
        // The supervisor ends while it answers: that the answer is lost is as good.
        let _ = self.ask(Request::Shutdown);
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.wait_for_end()?;
        let _held = registry::lock(&self.registry)?;
        registry::forget(&self.registry, &self.record)
    }

    fn wait_for_end(&mut self) -> Result<()> {
        self.lifeline = None;
        let pid = Pid::from_raw(self.record.pid);
        let start = Instant::now();
        while self.is_running(pid) {
            if start.elapsed() > Duration::from_secs(2) && self.record.is_alive() {
                // It is the right process: the time it began was compared just now.
                let _ = kill(pid, Signal::SIGKILL);
            }
            if start.elapsed() > END_WITHIN {
                bail!("the supervisor (pid {pid}) does not end: a process of the local cluster hangs in the kernel");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child = false;
        Ok(())
    }

    fn is_running(&self, pid: Pid) -> bool {
        if self.child {
            // Also reaps it.
            return matches!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive));
        }
        self.record.is_alive()
    }

    fn ask(&self, request: Request) -> Result<Answer> {
        ask(&self.socket, &request)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.lifeline.take().is_some()
            && self.child
            && let Err(error) = self.end()
        {
            tracing::warn!(%error, "the local cluster left traces; the next start sweeps them");
        }
    }
}

fn check_instance(name: &str) -> Result<()> {
    let fine =
        (1..=10).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !fine {
        bail!("{name:?} cannot name a local cluster: use 1 to 10 lower-case letters and digits");
    }
    Ok(())
}

fn choose_subnet(others: &[Record]) -> Result<Cidr> {
    let mut rt = Rt::open()?;
    let mut used: Vec<Cidr> = rt.routes()?.into_iter().map(|route| route.to).collect();
    used.extend(rt.addresses()?.into_iter().map(|address| Cidr::around(address.ip, address.prefix)));
    used.extend(others.iter().filter_map(|other| other.subnet.parse::<Cidr>().ok()));
    plan::free_subnet(&used, (std::process::id() % 256) as u8)
}

fn read_ready(ready: OwnedFd) -> Result<u16> {
    let mut text = String::new();
    File::from(ready).read_to_string(&mut text).context("wait for the supervisor")?;
    match serde_json::from_str(&text) {
        Ok(Ready::Yes { port }) => Ok(port),
        Ok(Ready::No { why }) => bail!(why),
        Err(_) => bail!("it ended before it was ready"),
    }
}
