//! Servers to measure: started with a fresh data directory, gone with it when the measuring ends.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a server may take until it serves.
const START_MAX: Duration = Duration::from_secs(20);

/// A running server.
pub struct Server {
    pub name: String,
    pub endpoint: String,
    pid: u32,
    /// What was started here, and its data.
    started: Option<(Child, PathBuf)>,
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Server {
    /// One that runs already.
    pub fn running(endpoint: &str, pid: Option<u32>) -> Server {
        Server { name: String::new(), endpoint: endpoint.to_owned(), pid: pid.unwrap_or(0), started: None }
    }

    /// This binary's own store.
    pub async fn skiff(under: &Path) -> anyhow::Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        let (client, peer) = (free_port()?, free_port()?);
        let dir = under.join(format!("skiff-bench-{}-skiff", std::process::id()));
        command.args(["store", "serve", "--history-revisions", "1000000000", "--history-bytes", "1000000000000"]);
        command.arg("--quota-bytes=0").arg("--data-dir").arg(&dir);
        command.arg(format!("--listen-client=127.0.0.1:{client}")).arg(format!("--listen-peer=127.0.0.1:{peer}"));
        Self::start("skiff", command, client, dir).await
    }

    /// etcd, with its defaults but for the quota.
    pub async fn etcd(binary: &Path, under: &Path) -> anyhow::Result<Server> {
        let mut command = Command::new(binary);
        let (client, peer) = (free_port()?, free_port()?);
        let dir = under.join(format!("skiff-bench-{}-etcd", std::process::id()));
        let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        command.arg("--data-dir").arg(&dir).args(["--quota-backend-bytes", "8589934592"]);
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("default={peer_url}"), "--log-level", "error"]);
        Self::start("etcd", command, client, dir).await
    }

    async fn start(name: &str, mut command: Command, port: u16, dir: PathBuf) -> anyhow::Result<Server> {
        let _ = std::fs::remove_dir_all(&dir);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.with_context(|| format!("running {:?}", command.get_program()))?;
        let endpoint = format!("127.0.0.1:{port}");
        let pid = process.id();
        let mut server = Server { name: name.to_owned(), endpoint, pid, started: Some((process, dir)) };
        let deadline = tokio::time::Instant::now() + START_MAX;
        while tokio::net::TcpStream::connect(&server.endpoint).await.is_err() {
            if let Some((process, _)) = &mut server.started
                && let Some(status) = process.try_wait()?
            {
                bail!("{name} ended at once: {status}");
            }
            if tokio::time::Instant::now() > deadline {
                bail!("{name} does not serve after {} s", START_MAX.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How often the server has synced its log so far, as its metrics say.
    pub fn syncs(&self) -> Option<u64> {
        let text = http_get(&self.endpoint, "/metrics").ok()?;
        let names = ["skiff_store_syncs_total ", "etcd_disk_wal_fsync_duration_seconds_count "];
        let value = text.lines().find_map(|line| names.iter().find_map(|name| line.strip_prefix(name)))?;
        value.trim().parse::<f64>().ok().map(|n| n as u64)
    }

    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((process, dir)) = &mut self.started {
            let _ = process.kill();
            let _ = process.wait();
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

fn http_get(addr: &str, path: &str) -> std::io::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(addr)?;
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
