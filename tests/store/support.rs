//! Servers as processes of their own, commands that are run to their end, and a load of puts that remembers what was acknowledged.

use anyhow::{Context as _, bail, ensure};
use libtest_mimic::Failed;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::kv_client::KvClient;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

/// No command and no wait here takes longer.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Below the ports that the kernel hands out by itself: a client's connection never sits on one of these.
const PORTS: std::ops::Range<u16> = 21_000..32_000;

pub type Done = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;
/// A name and what is done under it.
pub type Test = (&'static str, fn() -> Done);

fn etcdctl() -> String {
    let named = std::env::var("SKIFF_ETCDCTL").unwrap_or_default();
    named.split(':').find(|b| !b.is_empty()).unwrap_or("etcdctl").to_owned()
}

/// The first line of what etcdctl says of itself; None if there is none.
pub fn etcdctl_version() -> Option<String> {
    let output = std::process::Command::new(etcdctl()).arg("version").env("ETCDCTL_API", "3").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

pub fn run(test: fn() -> Done) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(test()).map_err(|e| Failed::from(format!("{e:#}")))
}

/// An address on loopback where nobody listens.
pub fn free() -> anyhow::Result<String> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id() % u32::from(PORTS.len() as u16)) as u16;
    for _ in 0..PORTS.len() {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + (begin.wrapping_add(step)) % PORTS.len() as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(format!("127.0.0.1:{port}"));
        }
    }
    bail!("no port is free")
}

/// A folder that goes with the test, however that ends.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> anyhow::Result<Dir> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("skiff-store-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(Dir(dir))
    }

    pub fn sub(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The same, as an argument.
    pub fn arg(&self, name: &str) -> String {
        self.sub(name).display().to_string()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

async fn finish(mut command: Command, input: &str) -> anyhow::Result<Said> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let shown = format!("{:?}", command.as_std());
    let mut child = command.spawn().with_context(|| format!("running {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that asks nothing may be gone before it reads.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let done = tokio::time::timeout(WAIT_MAX, child.wait_with_output());
    let output = done.await.with_context(|| format!("{shown} does not end"))??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said { status: output.status, out: text(output.stdout), err: text(output.stderr) })
}

/// `skiff store ...`, with standard input.
pub async fn store_with(args: &[&str], input: &str) -> anyhow::Result<Said> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
    command.arg("store").args(args);
    finish(command, input).await
}

/// `skiff store ...`, which must succeed: what it prints.
pub async fn store(args: &[&str]) -> anyhow::Result<String> {
    let said = store_with(args, "").await?;
    ensure!(said.status.success(), "skiff store {}: {said:?}", args.join(" "));
    Ok(said.out)
}

/// `skiff store ...`, which must fail with exit code 1: what it complains of.
pub async fn store_fails(args: &[&str]) -> anyhow::Result<String> {
    let said = store_with(args, "").await?;
    ensure!(said.status.code() == Some(1), "skiff store {}: {said:?}", args.join(" "));
    Ok(said.err)
}

/// etcdctl with these endpoints, which must succeed: what it prints.
pub async fn ctl(endpoints: &str, args: &[&str]) -> anyhow::Result<String> {
    let said = ctl_any(endpoints, args).await?;
    ensure!(said.status.success(), "etcdctl {}: {said:?}", args.join(" "));
    Ok(said.out)
}

/// etcdctl, which must fail: all that it says.
pub async fn ctl_fails(endpoints: &str, args: &[&str]) -> anyhow::Result<String> {
    let said = ctl_any(endpoints, args).await?;
    ensure!(!said.status.success(), "etcdctl {}: {said:?}", args.join(" "));
    Ok(said.out + &said.err)
}

async fn ctl_any(endpoints: &str, args: &[&str]) -> anyhow::Result<Said> {
    let mut command = Command::new(etcdctl());
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints={endpoints}")).args(args);
    finish(command, "").await
}

/// How a server is started.
#[derive(Clone)]
pub struct Plan {
    pub name: String,
    pub data: PathBuf,
    pub client: String,
    pub peer: String,
    pub more: Vec<String>,
}

impl Plan {
    /// A member with fresh addresses.
    pub fn new(dir: &Dir, name: &str, more: &[&str]) -> anyhow::Result<Plan> {
        let more = more.iter().map(|m| (*m).to_owned()).collect();
        Ok(Plan { name: name.to_owned(), data: dir.sub(name), client: free()?, peer: free()?, more })
    }

    /// The members of a new cluster.
    pub fn together(dir: &Dir, names: &[&str], more: &[&str]) -> anyhow::Result<Vec<Plan>> {
        let plans: Vec<_> = names.iter().map(|name| Plan::new(dir, name, more)).collect::<Result<_, _>>()?;
        let all = initial_cluster(&plans);
        Ok(plans
            .into_iter()
            .map(|mut plan| {
                plan.more.extend(["--initial-cluster".to_owned(), all.clone()]);
                plan
            })
            .collect())
    }

    pub fn joining(dir: &Dir, name: &str, seed: &Server) -> anyhow::Result<Plan> {
        Plan::new(dir, name, &["--join", &seed.plan.peer])
    }

    pub fn spawn(&self) -> anyhow::Result<Server> {
        let log = self.data.with_extension("log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
        command.args([
            "store",
            "serve",
            "--name",
            &self.name,
            "--listen-client",
            &self.client,
            "--listen-peer",
            &self.peer,
        ]);
        command.arg("--data-dir").arg(&self.data).args(&self.more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).kill_on_drop(true);
        Ok(Server { child: command.spawn().context("starting a server")?, plan: self.clone(), log })
    }

    /// Started, and serving.
    pub async fn start(&self) -> anyhow::Result<Server> {
        let mut server = self.spawn()?;
        server.serves().await?;
        Ok(server)
    }
}

/// All of them started at once, and serving.
pub async fn start_all(plans: &[Plan]) -> anyhow::Result<Vec<Server>> {
    let mut servers = plans.iter().map(Plan::spawn).collect::<anyhow::Result<Vec<_>>>()?;
    for server in &mut servers {
        server.serves().await?;
    }
    Ok(servers)
}

/// `name=address,...` of these members.
pub fn initial_cluster(plans: &[Plan]) -> String {
    plans.iter().map(|p| format!("{}={}", p.name, p.peer)).collect::<Vec<_>>().join(",")
}

/// A process that serves; killed when it is dropped.
pub struct Server {
    pub plan: Plan,
    pub child: Child,
    log: PathBuf,
}

impl Server {
    pub fn endpoint(&self) -> &str {
        &self.plan.client
    }

    /// What it has written to its log.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it answers reads.
    pub async fn serves(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.plan.name, self.said());
            }
            if matches!(http(&self.plan.client, "/health").await, Ok((200, _))) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} does not serve: {}", self.plan.name, self.said());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) -> anyhow::Result<()> {
        let pid = self.child.id().context("it has ended already")?;
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal)?)
    }

    /// SIGTERM, and waits for its end, which must be a success.
    pub async fn terminate(mut self) -> anyhow::Result<Plan> {
        self.signal(nix::sys::signal::Signal::SIGTERM)?;
        let status = tokio::time::timeout(WAIT_MAX, self.child.wait()).await.context("it does not end")??;
        ensure!(status.success(), "{} ended with {status}: {}", self.plan.name, self.said());
        Ok(self.plan.clone())
    }

    /// SIGKILL.
    pub async fn kill(mut self) -> anyhow::Result<Plan> {
        self.child.kill().await?;
        Ok(self.plan.clone())
    }

    /// Waits until it ends by itself; how.
    pub async fn ends(&mut self) -> anyhow::Result<ExitStatus> {
        let ended = tokio::time::timeout(WAIT_MAX, self.child.wait()).await;
        Ok(ended.with_context(|| format!("{} goes on: {}", self.plan.name, self.said()))??)
    }

    /// A metric's value.
    pub async fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let (_, text) = http(&self.plan.client, "/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("no {name} in {text}"))?.parse().context("its value")
    }

    pub async fn leads(&self) -> anyhow::Result<bool> {
        Ok(self.metric("skiff_store_is_leader").await? == 1)
    }

    /// The id in etcdctl's words.
    pub async fn id(&self) -> anyhow::Result<String> {
        let list = ctl(self.endpoint(), &["member", "list"]).await?;
        let line = list.lines().find(|line| line.split(", ").nth(2) == Some(&self.plan.name));
        let id = line.and_then(|line| line.split(", ").next());
        Ok(id.with_context(|| format!("{} is not in {list}", self.plan.name))?.to_owned())
    }
}

/// The leader first, the others behind it.
pub async fn leader_first(servers: Vec<Server>) -> anyhow::Result<Vec<Server>> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        for at in 0..servers.len() {
            if servers[at].leads().await? {
                let mut servers = servers;
                servers.swap(0, at);
                return Ok(servers);
            }
        }
        ensure!(Instant::now() < deadline, "nobody leads");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// HTTP/1.1 GET without TLS: the status and the body.
pub async fn http(addr: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let get = async {
        let mut stream = tokio::net::TcpStream::connect(addr).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        anyhow::Ok((status, body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(5), get).await.context("no answer over HTTP")?
}

pub fn channel(addr: &str) -> anyhow::Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{addr}"))?.connect_lazy())
}

/// Puts under way all the time, at whoever serves.
pub struct Load {
    shared: Arc<LoadShared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

struct LoadShared {
    endpoints: Mutex<Vec<String>>,
    acknowledged: Mutex<BTreeMap<String, String>>,
    /// When each acknowledgement came.
    times: Mutex<Vec<Instant>>,
    ends: AtomicBool,
}

const WRITERS: usize = 4;

impl Load {
    pub fn begin(endpoints: &[&str]) -> Load {
        let shared = Arc::new(LoadShared {
            endpoints: Mutex::new(endpoints.iter().map(|e| (*e).to_owned()).collect()),
            acknowledged: Mutex::default(),
            times: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let tasks = (0..WRITERS).map(|writer| tokio::spawn(write(shared.clone(), writer))).collect();
        Load { shared, tasks }
    }

    /// Where it writes from now on.
    pub fn aim(&self, endpoints: &[&str]) {
        *self.shared.endpoints.lock().unwrap() = endpoints.iter().map(|e| (*e).to_owned()).collect();
    }

    pub fn count(&self) -> usize {
        self.shared.acknowledged.lock().unwrap().len()
    }

    /// Waits for so many more acknowledgements.
    pub async fn more(&self, count: usize) -> anyhow::Result<()> {
        let goal = self.count() + count;
        until("the load goes on", || async { Ok(self.count() >= goal) }).await
    }

    /// The longest time without an acknowledgement since `begin`.
    pub fn longest_gap(&self, begin: Instant) -> Duration {
        let times = self.shared.times.lock().unwrap();
        let since: Vec<_> = times.iter().filter(|t| **t >= begin).collect();
        let gaps = since.windows(2).map(|pair| *pair[1] - *pair[0]);
        let first = since.first().map(|t| **t - begin);
        gaps.chain(first).max().unwrap_or(Duration::MAX)
    }

    /// Ends the load; checks on each of these servers that nothing that was acknowledged is missing. How much that was.
    pub async fn check(self, endpoints: &[&str]) -> anyhow::Result<usize> {
        self.shared.ends.store(true, Ordering::Relaxed);
        for task in self.tasks {
            tokio::time::timeout(WAIT_MAX, task).await.context("a writer does not end")??;
        }
        let expected = self.shared.acknowledged.lock().unwrap().clone();
        for endpoint in endpoints {
            let request = pb::RangeRequest { key: "load/".into(), range_end: "load0".into(), ..Default::default() };
            let answer = KvClient::new(channel(endpoint)?).max_decoding_message_size(64 << 20).range(request).await?;
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            let found: BTreeMap<_, _> =
                answer.into_inner().kvs.into_iter().map(|kv| (text(&kv.key), text(&kv.value))).collect();
            for (key, value) in &expected {
                ensure!(
                    found.get(key) == Some(value),
                    "{key}={value} was acknowledged; {endpoint} has {:?}",
                    found.get(key)
                );
            }
        }
        Ok(expected.len())
    }
}

async fn write(shared: Arc<LoadShared>, writer: usize) {
    let mut turn = writer;
    let mut clients: BTreeMap<String, KvClient<Channel>> = BTreeMap::new();
    for number in 0.. {
        let (key, value) = (format!("load/{writer}/{number:06}"), format!("v{number}"));
        loop {
            if shared.ends.load(Ordering::Relaxed) {
                return;
            }
            let endpoint = {
                let endpoints = shared.endpoints.lock().unwrap();
                endpoints[turn % endpoints.len()].clone()
            };
            let Ok(channel) = channel(&endpoint) else { return };
            let client = clients.entry(endpoint.clone()).or_insert_with(|| KvClient::new(channel));
            let put = pb::PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
            if matches!(tokio::time::timeout(Duration::from_secs(15), client.put(put)).await, Ok(Ok(_))) {
                shared.times.lock().unwrap().push(Instant::now());
                shared.acknowledged.lock().unwrap().insert(key, value);
                break;
            }
            // The same again elsewhere: whether it happened is not known, and it may happen twice.
            clients.remove(&endpoint);
            turn += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Waits until a condition holds.
pub async fn until<F: Future<Output = anyhow::Result<bool>>>(
    what: &str,
    mut holds: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    while !holds().await? {
        ensure!(Instant::now() < deadline, "it did not come to pass: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(())
}

/// What was said must contain all of these.
pub fn holds(said: &str, expected: &[&str]) -> anyhow::Result<()> {
    for part in expected {
        ensure!(said.contains(part), "{said:?} without {part:?}");
    }
    Ok(())
}

/// The file in a data directory whose name begins so.
pub fn file(dir: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir)?.filter_map(|e| e.ok()).map(|e| e.path()).collect();
    found.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)));
    found.sort();
    found.into_iter().next().with_context(|| format!("no {prefix} in {}", dir.display()))
}
