//! The loads, and what each measures.

use super::servers::cpu_us;
use anyhow::Context as _;
use bytes::Bytes;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::kv_client::KvClient;
use skiff_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use skiff_proto::etcd::etcdserverpb::watch_client::WatchClient;
use skiff_proto::health::HealthCheckRequest;
use skiff_proto::health::health_client::HealthClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// Keys that puts and gets choose from.
const KEYS: u64 = 10_000;
/// Keys of the range load.
const RANGE_KEYS: usize = 1000;

/// A server under load.
pub struct Target {
    channels: Vec<Channel>,
    value: Bytes,
}

impl Target {
    pub async fn new(endpoint: &str, connections: usize, value_bytes: usize) -> anyhow::Result<Target> {
        let mut channels = Vec::new();
        for _ in 0..connections {
            let endpoint = Endpoint::from_shared(format!("http://{endpoint}"))?.tcp_nodelay(true);
            channels.push(endpoint.connect().await.context("connecting to the server")?);
        }
        let target = Target { channels, value: vec![b'v'; value_bytes].into() };
        let mut kv = KvClient::new(target.channels[0].clone());
        for i in 0..RANGE_KEYS {
            kv.put(target.put(format!("range/{i:08}").into())).await?;
        }
        Ok(target)
    }

    fn put(&self, key: Bytes) -> pb::PutRequest {
        pb::PutRequest { key, value: self.value.clone(), ..Default::default() }
    }
}

/// What is asked of a server, by how many clients.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Calls that do nothing.
    Floor(usize),
    Put(usize),
    Get(usize),
    GetSerializable(usize),
    /// All of a thousand keys at once.
    Range(usize),
    /// A compare and a put.
    Txn(usize),
    /// Three gets and a put.
    Mixed(usize),
    /// A lease granted, a key put under it, the lease revoked: three calls.
    LeaseChurn(usize),
    /// One writer, and so many watchers of what it writes; the operations are events that arrived.
    Watch(usize),
}

/// What a load came to.
pub struct Measured {
    name: String,
    per_second: f64,
    p50_us: u64,
    p99_us: u64,
    cpu_us: Option<f64>,
}

impl Measured {
    pub const HEADER: &str = "server   load                     ops/s     p50 us     p99 us   server CPU us/op";

    pub fn line(&self, server: &str) -> String {
        let cpu = self.cpu_us.map_or("-".into(), |c| format!("{c:.1}"));
        let Measured { name, per_second, p50_us, p99_us, .. } = self;
        format!("{server:8} {name:20} {per_second:>9.0} {p50_us:>10} {p99_us:>10} {cpu:>18}")
    }

    pub fn ratio(&self, other: &Measured) -> String {
        let times = |a: f64, b: f64| if b > 0.0 { format!("{:.2}x", a / b) } else { "-".into() };
        let cpu = match (self.cpu_us, other.cpu_us) {
            (Some(a), Some(b)) => times(a, b),
            _ => "-".into(),
        };
        let per_second = times(self.per_second, other.per_second);
        let p50 = times(self.p50_us as f64, other.p50_us as f64);
        let p99 = times(self.p99_us as f64, other.p99_us as f64);
        format!("{:8} {:20} {per_second:>9} {p50:>10} {p99:>10} {cpu:>18}", "ratio", self.name)
    }
}

/// Numbers that look random and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

impl Load {
    pub fn name(&self) -> String {
        match self {
            Load::Floor(n) => format!("floor c={n}"),
            Load::Put(n) => format!("put c={n}"),
            Load::Get(n) => format!("get c={n}"),
            Load::GetSerializable(n) => format!("get-serial c={n}"),
            Load::Range(n) => format!("range-1000 c={n}"),
            Load::Txn(n) => format!("txn c={n}"),
            Load::Mixed(n) => format!("mixed c={n}"),
            Load::LeaseChurn(n) => format!("lease-churn c={n}"),
            Load::Watch(n) => format!("watch w={n}"),
        }
    }

    /// Puts the load on for a time.
    pub async fn run(self, target: &Target, time: Duration, pid: Option<u32>) -> anyhow::Result<Measured> {
        let cpu = |pid: Option<u32>| pid.and_then(cpu_us);
        if let Load::Watch(watchers) = self {
            return watch(self.name(), target, watchers, time, pid).await;
        }
        let (Load::Floor(clients)
        | Load::Put(clients)
        | Load::Get(clients)
        | Load::GetSerializable(clients)
        | Load::Range(clients)
        | Load::Txn(clients)
        | Load::Mixed(clients)
        | Load::LeaseChurn(clients)
        | Load::Watch(clients)) = self;
        let before = cpu(pid);
        let begin = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|i| {
                let channel = target.channels[i % target.channels.len()].clone();
                let value = target.value.clone();
                tokio::spawn(async move { self.client(channel, value, i as u64, begin + time).await })
            })
            .collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await??);
        }
        let took = begin.elapsed();
        let cpu = before.zip(cpu(pid)).map(|(before, after)| (after - before) as f64);
        Ok(measured(self.name(), latencies, took, cpu))
    }

    async fn client(self, channel: Channel, value: Bytes, number: u64, until: Instant) -> anyhow::Result<Vec<u32>> {
        let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let mut health = HealthClient::new(channel.clone());
        let mut leases = LeaseClient::new(channel);
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ (number + 1).wrapping_mul(0x1000_0001));
        let mut latencies = Vec::with_capacity(1 << 14);
        let put = |n: u64, lease: i64| {
            let key = format!("bench/{:08}", n % KEYS).into();
            pb::PutRequest { key, value: value.clone(), lease, ..Default::default() }
        };
        let get = |n: u64, serializable: bool| {
            let key = format!("bench/{:08}", n % KEYS).into();
            pb::RangeRequest { key, serializable, ..Default::default() }
        };
        while Instant::now() < until {
            let n = numbers.next();
            let begin = Instant::now();
            match self {
                Load::Floor(_) => drop(health.check(HealthCheckRequest::default()).await?),
                Load::Put(_) => drop(kv.put(put(n, 0)).await?),
                Load::Get(_) => drop(kv.range(get(n, false)).await?),
                Load::GetSerializable(_) => drop(kv.range(get(n, true)).await?),
                Load::Range(_) => {
                    let (key, range_end) = ("range/".into(), "range0".into());
                    let found = kv.range(pb::RangeRequest { key, range_end, ..Default::default() }).await?;
                    anyhow::ensure!(found.get_ref().kvs.len() == RANGE_KEYS, "the range came back incomplete");
                }
                Load::Txn(_) => {
                    let put = put(n, 0);
                    let compare = pb::Compare {
                        result: pb::compare::CompareResult::Greater as i32,
                        target: pb::compare::CompareTarget::Version as i32,
                        key: put.key.clone(),
                        target_union: Some(pb::compare::TargetUnion::Version(-1)),
                        ..Default::default()
                    };
                    let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
                    let txn = pb::TxnRequest { compare: vec![compare], success: vec![op], failure: Vec::new() };
                    drop(kv.txn(txn).await?);
                }
                Load::Mixed(_) if n & 3 == 0 => drop(kv.put(put(n >> 2, 0)).await?),
                Load::Mixed(_) => drop(kv.range(get(n >> 2, false)).await?),
                Load::LeaseChurn(_) => {
                    let lease = leases.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await?.into_inner();
                    kv.put(put(n, lease.id)).await?;
                    leases.lease_revoke(pb::LeaseRevokeRequest { id: lease.id }).await?;
                }
                Load::Watch(_) => break,
            }
            latencies.push(begin.elapsed().as_micros() as u32);
        }
        Ok(latencies)
    }
}

fn measured(name: String, mut latencies: Vec<u32>, took: Duration, cpu: Option<f64>) -> Measured {
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        u64::from(latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0))
    };
    let count = latencies.len().max(1) as f64;
    Measured {
        name,
        per_second: latencies.len() as f64 / took.as_secs_f64(),
        p50_us: at(0.50),
        p99_us: at(0.99),
        cpu_us: cpu.map(|cpu| cpu / count),
    }
}

/// Many watches, on as many streams as there are connections; each put is an event for all of them. A put waits until the one
/// before it has arrived everywhere, so the latency is that of a whole fan-out.
async fn watch(
    name: String,
    target: &Target,
    watchers: usize,
    time: Duration,
    pid: Option<u32>,
) -> anyhow::Result<Measured> {
    let key: Bytes = "watched".into();
    let arrived = Arc::new(AtomicU64::new(0));
    let woken = Arc::new(tokio::sync::Notify::new());
    let created = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for (i, channel) in target.channels.iter().enumerate() {
        let count = watchers / target.channels.len() + usize::from(i < watchers % target.channels.len());
        let (requests, stream) = tokio::sync::mpsc::channel(16);
        let create = pb::watch_request::RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: key.clone(),
            ..Default::default()
        });
        let create = pb::WatchRequest { request_union: Some(create) };
        let mut client = WatchClient::new(channel.clone());
        let (arrived, created, woken) = (arrived.clone(), created.clone(), woken.clone());
        tasks.push(tokio::spawn(async move {
            let feed = tokio::spawn(async move {
                for _ in 0..count {
                    if requests.send(create.clone()).await.is_err() {
                        return;
                    }
                }
                // The stream lives as long as its sender.
                requests.closed().await;
            });
            let mut answers = client.watch(tokio_stream::wrappers::ReceiverStream::new(stream)).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                if answer.created {
                    created.fetch_add(1, Ordering::AcqRel);
                }
                arrived.fetch_add(answer.events.len() as u64, Ordering::AcqRel);
                woken.notify_one();
            }
            feed.abort();
            Ok::<_, tonic::Status>(())
        }));
    }
    let wait = |counter: Arc<AtomicU64>, goal: u64| {
        let woken = woken.clone();
        async move {
            while counter.load(Ordering::Acquire) < goal {
                let _ = tokio::time::timeout(Duration::from_millis(50), woken.notified()).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait(created, watchers as u64))
        .await
        .context("the watches did not begin within 20 s")?;
    let mut kv = KvClient::new(target.channels[0].clone());
    let (before, begin) = (pid.and_then(cpu_us), Instant::now());
    let mut latencies = Vec::new();
    while begin.elapsed() < time {
        let put = Instant::now();
        kv.put(target.put(key.clone())).await?;
        let goal = (latencies.len() as u64 + 1) * watchers as u64;
        tokio::time::timeout(Duration::from_secs(20), wait(arrived.clone(), goal))
            .await
            .context("events did not arrive within 20 s")?;
        latencies.push(put.elapsed().as_micros() as u32);
    }
    let took = begin.elapsed();
    let events = (latencies.len() * watchers) as f64;
    let cpu = before.zip(pid.and_then(cpu_us)).map(|(before, after)| (after - before) as f64);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let fan_outs = measured(name, latencies, took, None);
    Ok(Measured { per_second: events / took.as_secs_f64(), cpu_us: cpu.map(|cpu| cpu / events), ..fan_outs })
}
