//! Servers to measure: started with a fresh data directory, gone with it when the measuring ends.

use anyhow::{Context as _, bail};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it serves.
const START_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Whose server it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Make {
    /// This binary's own store.
    Skiff,
    /// This binary of etcd.
    Etcd(PathBuf),
}

/// How a member is started.
#[derive(Clone)]
pub struct Member {
    pub make: Make,
    name: String,
    dir: PathBuf,
    client: u16,
    peer: u16,
    /// All members of its cluster: (name, peer port).
    cluster: Vec<(String, u16)>,
}

/// A running server.
pub struct Server {
    pub name: String,
    pub endpoint: String,
    pid: u32,
    /// What was started here.
    started: Option<(Member, Child)>,
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// So many members of one cluster, not started yet, with their data under a folder.
pub fn members(make: &Make, count: usize, under: &Path) -> anyhow::Result<Vec<Member>> {
    let kind = if *make == Make::Skiff { "skiff" } else { "etcd" };
    let ports: Vec<_> = (0..count).map(|_| Ok((free_port()?, free_port()?))).collect::<anyhow::Result<_>>()?;
    let name = |i: usize| format!("m{i}");
    let cluster: Vec<_> = ports.iter().enumerate().map(|(i, (_, peer))| (name(i), *peer)).collect();
    let member = |(i, (client, peer)): (usize, &(u16, u16))| Member {
        make: make.clone(),
        name: name(i),
        dir: under.join(format!("skiff-bench-{}-{kind}-{i}", std::process::id())),
        client: *client,
        peer: *peer,
        cluster: cluster.clone(),
    };
    Ok(ports.iter().enumerate().map(member).collect())
}

impl Member {
    fn command(&self) -> anyhow::Result<Command> {
        let Member { name, dir, client, peer, cluster, .. } = self;
        Ok(match &self.make {
            Make::Skiff => {
                let mut command = Command::new(std::env::current_exe()?);
                // History stays, as etcd keeps it unless it is told to compact.
                command.args([
                    "store",
                    "serve",
                    "--history-revisions",
                    "1000000000",
                    "--history-bytes",
                    "1000000000000",
                ]);
                command.arg("--quota-bytes=0").arg("--data-dir").arg(dir).args(["--name", name]);
                command.arg(format!("--listen-client=127.0.0.1:{client}"));
                command.arg(format!("--listen-peer=127.0.0.1:{peer}"));
                if cluster.len() > 1 {
                    let all: Vec<_> = cluster.iter().map(|(name, port)| format!("{name}=127.0.0.1:{port}")).collect();
                    command.arg("--initial-cluster").arg(all.join(","));
                }
                command
            }
            // Its defaults, but for the quota.
            Make::Etcd(binary) => {
                let mut command = Command::new(binary);
                let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
                command.arg("--data-dir").arg(dir).args(["--quota-backend-bytes", "8589934592", "--name", name]);
                command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
                command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
                let all: Vec<_> =
                    cluster.iter().map(|(name, port)| format!("{name}=http://127.0.0.1:{port}")).collect();
                command.args(["--initial-cluster", &all.join(","), "--log-level", "error"]);
                command
            }
        })
    }

    /// Starts it on the data that is there; does not wait until it serves.
    pub fn launch(&self) -> anyhow::Result<Server> {
        let mut command = self.command()?;
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.with_context(|| format!("running {:?}", command.get_program()))?;
        let name = if self.make == Make::Skiff { "skiff" } else { "etcd" }.to_owned();
        let endpoint = format!("127.0.0.1:{}", self.client);
        Ok(Server { name, endpoint, pid: process.id(), started: Some((self.clone(), process)) })
    }

    /// Removes its data.
    pub fn clear(&self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// Starts it without data, and waits until it accepts connections.
    pub fn start(&self) -> anyhow::Result<Server> {
        self.clear();
        let mut server = self.launch()?;
        server.wait_until_it_listens()?;
        Ok(server)
    }
}

impl Server {
    /// One that runs already.
    pub fn running(endpoint: &str, pid: Option<u32>) -> Server {
        Server { name: String::new(), endpoint: endpoint.to_owned(), pid: pid.unwrap_or(0), started: None }
    }

    pub fn wait_until_it_listens(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        while TcpStream::connect(&self.endpoint).is_err() {
            if let Some((_, process)) = &mut self.started
                && let Some(status) = process.try_wait()?
            {
                bail!("{} ended at once: {status}", self.name);
            }
            if Instant::now() > deadline {
                bail!("{} does not serve after {} s", self.name, START_MAX.as_secs());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.pid as i32);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Kills the process and starts it again on its data, without waiting until it serves.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let (member, mut process) = self.started.take().context("only a server that was started here is restarted")?;
        process.kill()?;
        process.wait()?;
        let again = member.launch()?;
        *self = again;
        Ok(())
    }

    /// How often the server has synced its log so far, as its metrics say.
    pub fn syncs(&self) -> Option<u64> {
        let text = http_get(&self.endpoint, "/metrics").ok()?;
        let names = ["skiff_store_syncs_total ", "etcd_disk_wal_fsync_duration_seconds_count "];
        let value = text.lines().find_map(|line| names.iter().find_map(|name| line.strip_prefix(name)))?;
        value.trim().parse::<f64>().ok().map(|n| n as u64)
    }

    /// Memory: (resident, of which anonymous), in bytes. What is resident and not anonymous are pages of files that the kernel can take back.
    pub fn memory(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|l| l.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) << 10
        };
        (field("VmRSS:"), field("RssAnon:"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((member, process)) = &mut self.started {
            let _ = process.kill();
            let _ = process.wait();
            let _ = std::fs::remove_dir_all(&member.dir);
        }
    }
}

fn http_get(addr: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Microseconds of CPU that a process has used so far.
pub fn cpu_us(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces; what follows its closing bracket does not.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // The kernel tells these in hundredths of a second, whatever its own clock.
    Some(ticks * 10_000)
}
