//! Members in this process, and etcdctl beside it.

use anyhow::{Context as _, bail, ensure};
use libtest_mimic::Failed;
use skiff_etcd::{Api, Settings};
use skiff_store::{Config, Limits, Peer, Store};
use std::future::Future;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

/// No command and no wait here takes longer.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

pub type Done = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;
/// A name and what is done under it.
pub type Test = (&'static str, fn() -> Done);

/// The binary that the tests run with at the moment; one set of tests runs after the other.
static CHOSEN: std::sync::RwLock<String> = std::sync::RwLock::new(String::new());

pub fn binaries() -> Vec<String> {
    let named = std::env::var("SKIFF_ETCDCTL").unwrap_or_default();
    let named: Vec<_> = named.split(':').filter(|b| !b.is_empty()).map(str::to_owned).collect();
    if named.is_empty() { vec!["etcdctl".into()] } else { named }
}

pub fn choose(binary: &str) {
    *CHOSEN.write().unwrap_or_else(|e| e.into_inner()) = binary.to_owned();
}

fn binary() -> String {
    CHOSEN.read().unwrap_or_else(|e| e.into_inner()).clone()
}

/// The first line of what etcdctl says of itself; None if there is none.
pub fn version() -> Option<String> {
    let output = std::process::Command::new(binary()).arg("version").env("ETCDCTL_API", "3").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

pub fn run(test: fn() -> Done) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(test()).map_err(|e| Failed::from(format!("{e:#}")))
}

/// A folder that goes with the test, however that ends.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> anyhow::Result<Dir> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("skiff-etcdctl-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(Dir(dir))
    }

    pub fn sub(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running member.
pub struct Member {
    pub store: Store,
    pub endpoint: String,
    pub peer: String,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// How a member begins.
#[derive(Default)]
pub struct Begin {
    pub initial: Vec<Peer>,
    pub join: Vec<String>,
    pub learner: bool,
    pub listener: Option<TcpListener>,
    pub settings: Settings,
    pub quota_bytes: usize,
}

impl Member {
    pub async fn start(dir: &Path, name: &str, begin: Begin) -> anyhow::Result<Member> {
        let listener = match begin.listener {
            Some(listener) => listener,
            None => TcpListener::bind("127.0.0.1:0")?,
        };
        let client = TcpListener::bind("127.0.0.1:0")?;
        let (peer, endpoint) = (listener.local_addr()?.to_string(), client.local_addr()?.to_string());
        let store = Store::start(Config {
            dir: Some(dir.to_owned()),
            name: name.into(),
            peer_addr: peer.clone(),
            client_addr: format!("http://{endpoint}"),
            listener: Some(listener),
            join: begin.join,
            initial: begin.initial,
            learner: begin.learner,
            limits: Limits { quota_bytes: begin.quota_bytes, ..Default::default() },
            ..Default::default()
        })
        .await?;
        let serving = tokio::spawn(skiff_etcd::serve(client, Api::new(store.clone(), begin.settings), None));
        let mut leadership = store.leadership();
        // Who joins learns of the leader with its first message.
        let led = tokio::time::timeout(WAIT_MAX, leadership.wait_for(|l| l.leader.is_some()));
        led.await.context("no leader")?.context("the store ended")?;
        drop(leadership);
        Ok(Member { store, endpoint, peer, serving })
    }

    pub async fn alone(dir: &Dir) -> anyhow::Result<Member> {
        Member::start(&dir.sub("one"), "one", Begin::default()).await
    }

    pub async fn stop(self) {
        self.store.stop().await;
        let _ = self.serving.await;
    }

    /// Runs etcdctl; its standard output, if it succeeded.
    pub async fn ctl(&self, args: &str) -> anyhow::Result<String> {
        ctl(&self.endpoint, &args.split_whitespace().collect::<Vec<_>>(), "").await
    }

    /// The same with arguments that hold spaces or nothing, and with standard input.
    pub async fn ctl_with(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        ctl(&self.endpoint, args, input).await
    }

    /// Runs etcdctl, which must fail; what it says.
    pub async fn fails(&self, args: &str) -> anyhow::Result<String> {
        match self.ctl(args).await {
            Ok(output) => bail!("`etcdctl {args}` succeeded: {output}"),
            Err(e) => Ok(e.to_string()),
        }
    }

    /// Starts etcdctl and leaves it running.
    pub fn begin(&self, args: &str) -> anyhow::Result<Running> {
        let args: Vec<_> = args.split_whitespace().collect();
        let mut child = command(&self.endpoint, &args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().context("no output")?;
        Ok(Running { input: child.stdin.take(), lines: BufReader::new(output).lines(), child })
    }
}

fn command(endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints={endpoint}")).args(args).kill_on_drop(true);
    command
}

pub async fn ctl(endpoint: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = command(endpoint, args);
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().context("running etcdctl")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
    }
    let done = tokio::time::timeout(WAIT_MAX, child.wait_with_output());
    let output = done.await.with_context(|| format!("`etcdctl {}` does not end", args.join(" ")))??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`etcdctl {}`: {said}{complaint}", args.join(" "));
    Ok(said)
}

/// An etcdctl that goes on running.
pub struct Running {
    pub input: Option<tokio::process::ChildStdin>,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    pub child: Child,
}

impl Running {
    pub async fn line(&mut self) -> anyhow::Result<String> {
        let line = tokio::time::timeout(WAIT_MAX, self.lines.next_line()).await.context("no further line came")??;
        line.context("the output ended")
    }

    /// The next lines must be these.
    pub async fn expect(&mut self, lines: &[&str]) -> anyhow::Result<()> {
        for expected in lines {
            let line = self.line().await?;
            ensure!(line == *expected, "{line:?} came where {expected:?} was expected");
        }
        Ok(())
    }

    /// Interrupts it, as Ctrl-C does, and waits for its end.
    pub async fn interrupt(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("it has ended already")?;
        let status = std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status()?;
        ensure!(status.success(), "it cannot be interrupted");
        tokio::time::timeout(WAIT_MAX, self.child.wait()).await.context("it does not end")??;
        Ok(())
    }
}

/// Waits until a condition holds.
pub async fn until<F: Future<Output = anyhow::Result<bool>>>(
    what: &str,
    mut holds: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + WAIT_MAX;
    while !holds().await? {
        ensure!(tokio::time::Instant::now() < deadline, "it did not come to pass: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// What was said must be exactly this.
pub fn same(said: &str, expected: &str) -> anyhow::Result<()> {
    ensure!(said == expected, "{said:?}, not {expected:?}");
    Ok(())
}

/// What was said must contain this.
pub fn holds(said: &str, expected: &str) -> anyhow::Result<()> {
    ensure!(said.contains(expected), "{said:?} without {expected:?}");
    Ok(())
}
