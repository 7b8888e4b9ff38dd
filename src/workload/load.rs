//! `skiff load`: sends requests at a steady rate, each on a connection of its own, and tells every tenth of a second how they went.
//!
//! A request that was not answered with 200 in full before the time-out failed. The next one is sent when it is due, whatever the last one does: a
//! stalled server does not hide behind a stalled client.

use anyhow::Context as _;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Send requests at a steady rate and count what comes back.
#[derive(clap::Args, Debug)]
pub struct LoadArgs {
    /// host:port
    target: String,
    /// Requests a second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Milliseconds until a request counts as failed
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
}

#[derive(Default)]
struct Interval {
    ok: u64,
    /// When each request that failed was begun, milliseconds since 1970.
    failed: Vec<u64>,
    slowest_ms: u64,
    by: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
}

/// Runs until it is killed. One line of JSON on standard output for each tenth of a second in which something ended.
pub async fn run(args: LoadArgs) -> anyhow::Result<()> {
    let interval: Arc<Mutex<Interval>> = Arc::default();
    let mut send = tokio::time::interval(Duration::from_secs(1) / args.rate.max(1));
    let mut tell = tokio::time::interval(Duration::from_millis(100));
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = send.tick() => {
                let (interval, target) = (interval.clone(), args.target.clone());
                let limit = Duration::from_millis(args.timeout_ms);
                tokio::spawn(async move {
                    let (begun, begun_ms) = (std::time::Instant::now(), now_ms());
                    let stage = Stage::default();
                    let result = match tokio::time::timeout(limit, request(&target, &stage)).await {
                        Ok(result) => result.map_err(|e| format!("{e:#}")),
                        Err(_) => Err(format!("timed out: {}", stage.get())),
                    };
                    note(&interval, result, begun_ms, begun.elapsed());
                });
            }
            _ = tell.tick() => say(&interval),
            _ = term.recv() => return Ok(()),
        }
    }
}

/// What a request waits for, for the message when it waits too long.
#[derive(Default)]
struct Stage(Mutex<&'static str>);

impl Stage {
    fn set(&self, name: &'static str) {
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = name;
    }

    fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// One request; who answered, as `node/version`.
async fn request(target: &str, stage: &Stage) -> anyhow::Result<String> {
    stage.set("resolve");
    let address = tokio::net::lookup_host(target).await.context("resolve")?.next().context("resolve: no address")?;
    stage.set("connect");
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    stage.set("receive");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await.context("send")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("receive")?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "answered {}", head.lines().next().unwrap_or_default());
    let body: serde_json::Value = serde_json::from_str(body.trim()).context("half an answer")?;
    let field = |name: &str| body[name].as_str().unwrap_or("?").to_owned();
    Ok(format!("{}/{}", field("node"), field("version")))
}

fn note(interval: &Mutex<Interval>, result: Result<String, String>, begun_ms: u64, took: Duration) {
    let mut interval = interval.lock().unwrap_or_else(|e| e.into_inner());
    interval.slowest_ms = interval.slowest_ms.max(took.as_millis() as u64);
    match result {
        Ok(by) => {
            interval.ok += 1;
            *interval.by.entry(by).or_default() += 1;
        }
        Err(why) => {
            interval.failed.push(begun_ms);
            *interval.errors.entry(why).or_default() += 1;
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn say(interval: &Mutex<Interval>) {
    let now = std::mem::take(&mut *interval.lock().unwrap_or_else(|e| e.into_inner()));
    if now.ok == 0 && now.failed.is_empty() {
        return;
    }
    let at_ms = now_ms();
    println!(
        "{}",
        json!({"at_ms": at_ms, "ok": now.ok, "failed_begun_ms": now.failed, "slowest_ms": now.slowest_ms, "by": now.by, "errors": now.errors})
    );
}
