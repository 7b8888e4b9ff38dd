//! A node in a directory: a runtime with one image, a network that is only loopback, and the pods' manager.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use libtest_mimic::Failed;
use serde_json::{Value, json};
use skiff_pods::{
    Desired, HostPort, LogRange, LogRequest, NodeCapacity, PodEvent, PodIdentity, PodNetwork, Pods, PodsConfig,
    PodsDeps, RegistryImages, Report, TokenRequest, TokenSource,
};
use skiff_runtime::{ImageBuilder, ImageConfig, ImageStore, Runtime, RuntimeConfig};
use tokio::sync::{mpsc, watch};

pub const IMAGE: &str = "localhost/shell:v1";
const PROGRAMS: [&str; 11] = ["sh", "cat", "head", "ls", "sleep", "stty", "id", "touch", "rm", "stat", "readlink"];
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Node {
    pub dir: PathBuf,
    pub runtime: Runtime,
    pub pods: Option<Pods>,
    pub desired: watch::Sender<Arc<Desired>>,
    pub news: Arc<Mutex<News>>,
    changed: watch::Receiver<u64>,
    config: PodsConfig,
    deps: PodsDeps,
    reports: mpsc::Sender<Report>,
}

#[derive(Default)]
pub struct News {
    pub statuses: BTreeMap<String, PodStatus>,
    pub events: Vec<PodEvent>,
    pub gone: Vec<String>,
}

/// Every pod has the same address, because each is alone in its namespace: loopback stands for the network. It has a bug: the first pod named
/// [`UNLUCKY`] makes it panic.
#[derive(Default)]
struct Loopback {
    panicked: AtomicBool,
}

/// The pod whose sandbox meets a bug.
pub const UNLUCKY: &str = "unlucky";

impl PodNetwork for Loopback {
    fn attach(&self, pod: PodIdentity, _: PathBuf, _: Vec<HostPort>) -> BoxFuture<'static, Result<Ipv4Addr, String>> {
        assert!(pod.name != UNLUCKY || self.panicked.swap(true, Ordering::Relaxed), "a bug for the test");
        async { Ok(Ipv4Addr::new(127, 0, 0, 9)) }.boxed()
    }

    fn detach(&self, _: String) -> BoxFuture<'static, Result<(), String>> {
        async { Ok(()) }.boxed()
    }
}

struct Tokens;

impl TokenSource for Tokens {
    fn service_account_token(&self, request: TokenRequest) -> BoxFuture<'static, Result<String, String>> {
        async move { Ok(format!("token-of-{}", request.service_account)) }.boxed()
    }
}

/// A test and its name.
pub type Test = (&'static str, fn() -> Result<(), Failed>);

/// Runs a test on a fresh node.
pub fn with(test: impl AsyncFnOnce(&mut Node) -> Result<(), Failed>) -> Result<(), Failed> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("skiff-pods-{}-{number}", std::process::id()));
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = executor.block_on(async {
        let mut node = Node::open(&dir, &format!("skiff-test-{}-{number}", std::process::id())).await?;
        test(&mut node).await.map_err(|failed| node.explain(failed))
    });
    drop(executor);
    let swept = Runtime::sweep(&dir.join("state"));
    let _ = std::fs::remove_dir_all(&dir);
    result?;
    swept.map_err(Failed::from)
}

impl Node {
    async fn open(dir: &Path, cgroup: &str) -> Result<Node, Failed> {
        let runtime = Runtime::open(RuntimeConfig {
            state_dir: dir.join("state"),
            image_dir: image_dir(),
            cgroup_parent: cgroup.into(),
            insecure_registries: Vec::new(),
        })?;
        let config = PodsConfig {
            root_dir: dir.join("pods"),
            log_dir: dir.join("logs"),
            node_name: "node-1".into(),
            host_ips: vec!["192.0.2.1".into()],
            cluster_dns: vec!["10.43.0.10".into()],
            cluster_domain: "cluster.local".into(),
            capacity: NodeCapacity { cpu_millis: 2000, memory_bytes: 4 << 30, ephemeral_storage_bytes: 0 },
            pod_pids_max: 200,
            allowed_unsafe_sysctls: vec!["kernel.*".into()],
        };
        let images = Arc::new(RegistryImages::new(runtime.images().clone()));
        let deps = PodsDeps {
            runtime: runtime.clone(),
            network: Arc::new(Loopback::default()),
            tokens: Arc::new(Tokens),
            images,
        };
        let (desired, _) = watch::channel(Arc::new(Desired { synced: true, ..Desired::default() }));
        let (reports, mut receiver) = mpsc::channel(64);
        let news: Arc<Mutex<News>> = Arc::default();
        let (bump, changed) = watch::channel(0u64);
        let kept = news.clone();
        tokio::spawn(async move {
            while let Some(report) = receiver.recv().await {
                let mut news = kept.lock().unwrap();
                match report {
                    Report::PodStatus { name, status, .. } => drop(news.statuses.insert(name, *status)),
                    Report::Event(event) => news.events.push(event),
                    Report::PodGone { name, .. } => news.gone.push(name),
                }
                drop(news);
                bump.send_modify(|count| *count += 1);
            }
        });
        let mut node = Node { dir: dir.into(), runtime, pods: None, desired, news, changed, config, deps, reports };
        node.start_agent().await?;
        Ok(node)
    }

    /// Starts the manager, as an agent that begins.
    pub async fn start_agent(&mut self) -> Result<(), Failed> {
        let pods =
            Pods::start(self.config.clone(), self.deps.clone(), self.desired.subscribe(), self.reports.clone()).await;
        self.pods = Some(pods?);
        Ok(())
    }

    /// Ends the manager and all its tasks, as a killed agent does; returns once they are gone.
    pub fn stop_agent(&mut self) {
        self.pods = None;
    }

    /// Wants one more pod (or another version of it).
    pub fn apply(&self, name: &str, change: Value) {
        self.desired.send_modify(|desired| {
            let mut object = json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}});
            merge(&mut object, change);
            let pod: Pod = serde_json::from_value(object).unwrap();
            let desired = Arc::make_mut(desired);
            desired.pods.retain(|have| have.metadata.name.as_deref() != Some(name));
            desired.pods.push(Arc::new(pod));
        });
    }

    /// Changes the level otherwise.
    pub fn change(&self, change: impl FnOnce(&mut Desired)) {
        self.desired.send_modify(|desired| change(Arc::make_mut(desired)));
    }

    /// Waits until the news say so.
    pub async fn until(&self, what: &str, holds: impl Fn(&News) -> bool) -> Result<(), Failed> {
        let mut changed = self.changed.clone();
        let wait = changed.wait_for(|_| holds(&self.news.lock().unwrap()));
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(format!("in vain: {what}").into()),
        }
    }

    pub async fn until_phase(&self, name: &str, phase: &str) -> Result<(), Failed> {
        self.until(&format!("{name} is {phase}"), |news| {
            news.statuses.get(name).is_some_and(|status| status.phase.as_deref() == Some(phase))
        })
        .await
    }

    pub async fn until_ready(&self, name: &str) -> Result<(), Failed> {
        self.until(&format!("{name} is ready"), |news| news.statuses.get(name).is_some_and(ready)).await
    }

    pub fn status(&self, name: &str) -> PodStatus {
        self.news.lock().unwrap().statuses.get(name).cloned().unwrap_or_default()
    }

    pub fn happened(&self, reason: &str, part: &str) -> Result<(), Failed> {
        let news = self.news.lock().unwrap();
        match news.events.iter().any(|event| event.reason == reason && event.message.contains(part)) {
            true => Ok(()),
            false => Err(format!("no event {reason} with {part:?}").into()),
        }
    }

    /// The whole log of a container.
    pub async fn log(&self, name: &str, container: &str, previous: bool) -> Result<String, Failed> {
        let request = LogRequest {
            namespace: "default".into(),
            name: name.into(),
            container: container.into(),
            previous,
            range: LogRange::default(),
        };
        let pods = self.pods.as_ref().ok_or("no agent")?;
        let mut chunks = pods.streams().logs(&request)?;
        let mut text = String::new();
        while let Some(chunk) = chunks.recv().await {
            text.push_str(&String::from_utf8_lossy(&chunk?));
        }
        Ok(text)
    }

    fn explain(&self, failed: Failed) -> Failed {
        let news = self.news.lock().unwrap();
        let events: Vec<String> =
            news.events.iter().map(|event| format!("{} {} {}", event.name, event.reason, event.message)).collect();
        let statuses: Vec<String> =
            news.statuses.iter().map(|(name, status)| format!("{name}: {}", json!(status))).collect();
        let words = failed.message().unwrap_or_default();
        format!("{words}\n{}\n{}", events.join("\n"), statuses.join("\n")).into()
    }
}

pub fn ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn merge(target: &mut Value, change: Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (key, value) in change {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, change) => *target = change,
    }
}

/// All tests of this process share one store, since all use the same image.
pub fn image_dir() -> PathBuf {
    std::env::temp_dir().join(format!("skiff-pods-{}-images", std::process::id()))
}

/// Makes the image, once.
pub fn shell_image(store: &ImageStore) -> Result<(), Failed> {
    let place = |name: &&str| {
        let host = ["/bin", "/usr/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
        host.map(|host| (host, format!("/bin/{name}")))
    };
    let found: Vec<(PathBuf, String)> = PROGRAMS.iter().filter_map(place).collect();
    let programs: Vec<(&Path, &str)> = found.iter().map(|(host, inside)| (host.as_path(), inside.as_str())).collect();
    // The test itself is in the image too, as the server that probes talk to.
    let own = std::env::current_exe()?;
    let programs = [programs, vec![(own.as_path(), "/bin/skiff-echo")]].concat();
    let config = ImageConfig { env: vec!["PATH=/bin".into()], cmd: vec!["sh".into()], ..ImageConfig::default() };
    ImageBuilder::from_host_binaries(&programs)?.dir("/tmp", 0o1777).config(config).build(store, IMAGE)?;
    Ok(())
}

/// `skiff-echo PORT FILE`: answers every HTTP request with 200 while FILE exists, else with 503.
pub fn maybe_echo() {
    use std::io::{Read, Write};
    let mut arguments = std::env::args();
    if !arguments.next().is_some_and(|name| name.ends_with("skiff-echo")) {
        return;
    }
    let port: u16 = arguments.next().and_then(|port| port.parse().ok()).unwrap_or(80);
    let file = arguments.next().unwrap_or_default();
    let listener = std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
    for mut stream in listener.incoming().flatten() {
        let mut request = [0u8; 4096];
        let count = stream.read(&mut request).unwrap_or(0);
        if count == 0 {
            continue;
        }
        let status = if Path::new(&file).exists() { "200 OK" } else { "503 Service Unavailable" };
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    }
    std::process::exit(0);
}

pub fn equal<T: PartialEq + std::fmt::Debug>(got: T, expect: T) -> Result<(), Failed> {
    if got == expect { Ok(()) } else { Err(format!("got {got:?}, expected {expect:?}").into()) }
}
