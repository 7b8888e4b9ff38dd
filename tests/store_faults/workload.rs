//! The clients of a run: some beside the members, from where they lose them all with the network, some in the same namespace as
//! a member, from where they reach that one even when nobody else does.

use crate::client::{self, Expected, channel, is_refusal, within};
use crate::cluster::{Cluster, OUTSIDE, SLOTS, slot};
use crate::history::{Clock, Done, Kind, Operation, Outcome};
use crate::leasing::{self, Life};
use crate::members;
use crate::watching::{self, Scope, Told};
use anyhow::Context as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use skiff_netlink::netns;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::kv_client::KvClient;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Registers; few, so that clients meet.
const KEYS: u64 = 6;
const CLIENTS_OUTSIDE: u64 = 8;
const WATCHERS: [Scope; 4] = [
    Scope { from: "\0", before: false },
    Scope { from: "\0", before: true },
    Scope { from: "p/", before: false },
    Scope { from: "\0", before: false },
];
/// Revisions of history that stay behind the slowest watcher when a client compacts.
const HISTORY: u64 = 300;
/// A large write that is not acknowledged by then is not waited for.
const WRITE_MUCH_MAX: Duration = Duration::from_millis(300);

/// What all clients of a run share.
pub struct Shared {
    pub clock: Clock,
    over: AtomicBool,
    values: AtomicU64,
    /// Watchers end when they have been told this revision.
    pub goal: AtomicU64,
    /// How far each watcher has been told.
    pub watched: Vec<AtomicU64>,
    pub operations: Mutex<Vec<Operation>>,
    pub lives: Mutex<Vec<Life>>,
    pub compactions: AtomicU64,
    pub acknowledged: AtomicU64,
}

impl Shared {
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub fn next_value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }
}

/// What each watcher of a thread was told.
pub type Watched = Vec<(Scope, Told)>;

/// Running clients.
pub struct Clients {
    pub shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<Watched>>>,
}

impl Clients {
    /// Starts them. All slots have clients: those of a slot without a member find nobody there.
    pub fn start(cluster: &Cluster, seed: u64) -> anyhow::Result<Clients> {
        let shared = Arc::new(Shared {
            clock: Clock::new(),
            over: AtomicBool::new(false),
            values: AtomicU64::new(1),
            goal: AtomicU64::new(u64::MAX),
            watched: WATCHERS.iter().map(|_| AtomicU64::new(1)).collect(),
            operations: Mutex::default(),
            lives: Mutex::default(),
            compactions: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
        });
        let homes: Vec<_> = (0..SLOTS).map(|n| cluster.address(&slot(n))).collect::<anyhow::Result<_>>()?;
        let mut threads = Vec::new();
        for (n, name) in (0..SLOTS).map(slot).chain([OUTSIDE.to_owned()]).enumerate() {
            let namespace = cluster.host.namespace(&name)?;
            let (shared, seed) = (shared.clone(), seed.wrapping_mul(1000) + n as u64 * 100);
            let homes = if name == OUTSIDE { homes.clone() } else { vec![homes[n]] };
            let work = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                anyhow::Ok(runtime.block_on(clients_of(shared, name == OUTSIDE, homes, seed)))
            };
            threads.push(std::thread::spawn(move || netns::inside_file(&namespace, work)?));
        }
        Ok(Clients { shared, threads })
    }

    /// No further operations; watchers go on.
    pub fn stop(&self) {
        self.shared.over.store(true, Ordering::Release);
    }

    /// Waits until every watcher has been told everything up to `last`. What each was told.
    pub fn finish(self, last: u64) -> anyhow::Result<Vec<(Scope, Told)>> {
        self.shared.goal.store(last, Ordering::Release);
        let mut all = Vec::new();
        for thread in self.threads {
            all.extend(thread.join().ok().context("a client panicked")??);
        }
        Ok(all)
    }
}

async fn clients_of(shared: Arc<Shared>, outside: bool, homes: Vec<Ipv4Addr>, seed: u64) -> Vec<(Scope, Told)> {
    let mut clients = Vec::new();
    for n in 0..if outside { CLIENTS_OUTSIDE } else { 1 } {
        clients.push(tokio::spawn(registers(shared.clone(), homes.clone(), seed + n)));
    }
    if !outside {
        futures_util::future::join_all(clients).await;
        return Vec::new();
    }
    for n in 0..4 {
        clients.push(tokio::spawn(leasing::client(shared.clone(), homes.clone(), seed + 20 + n)));
    }
    clients.push(tokio::spawn(compact(shared.clone(), homes.clone(), seed + 30)));
    let watchers = WATCHERS.iter().enumerate().map(|(n, scope)| {
        let watch = watching::watch(shared.clone(), n, *scope, homes.clone(), seed + 40 + n as u64);
        async move { (*scope, watch.await) }
    });
    let told = futures_util::future::join_all(watchers).await;
    futures_util::future::join_all(clients).await;
    told
}

/// A client of registers: stays with a member until that does not answer.
async fn registers(shared: Arc<Shared>, homes: Vec<Ipv4Addr>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known = [Expected::default(); KEYS as usize];
    while !shared.is_over() {
        let home = homes[rng.random_range(0..homes.len())];
        let Ok(channel) = channel(home) else { return };
        let mut kv = KvClient::new(channel);
        let mut visits = rng.random_range(20..400);
        while visits > 0 && !shared.is_over() {
            visits -= 1;
            let n = rng.random_range(0..KEYS);
            let expected = known[n as usize];
            let kind = match rng.random_range(0..100) {
                0..25 => Kind::Get { serializable: false },
                25..35 => Kind::Get { serializable: true },
                35..60 => Kind::Put { value: shared.next_value() },
                60..82 => Kind::Swap { expected: expected.value, value: shared.next_value() },
                82..88 => Kind::Delete,
                88..94 => Kind::PutBoth { value: shared.next_value() },
                pick => Kind::GetBoth { serializable: pick > 97 },
            };
            let padding = if rng.random_ratio(1, 4) { 8000 } else { 60 };
            let (key, ask_before) = (format!("r/{n}"), rng.random_ratio(1, 2));
            let call = shared.clock.now();
            let result = client::perform(&mut kv, &key, kind, expected, padding, ask_before).await;
            let end = shared.clock.now();
            if result.as_ref().is_err_and(client::never_sent) {
                tokio::time::sleep(Duration::from_millis(rng.random_range(20..150))).await;
                break;
            }
            let failed = result.is_err();
            let outcome = match result {
                Ok(done) => {
                    remember(&mut known[n as usize], kind, &done);
                    shared.acknowledged.fetch_add(u64::from(done.changed), Ordering::Relaxed);
                    Outcome::Done(done)
                }
                Err(status) if is_refusal(&status) => Outcome::Refused,
                Err(_) => Outcome::Unknown,
            };
            let operation = Operation { key, kind, call, end, outcome, member: home.to_string() };
            shared.operations.lock().unwrap_or_else(|e| e.into_inner()).push(operation);
            if failed {
                tokio::time::sleep(Duration::from_millis(rng.random_range(10..80))).await;
                break;
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..8))).await;
        }
    }
}

/// What the next swap of this key will expect.
fn remember(known: &mut Expected, kind: Kind, done: &Done) {
    let seen = |value, mod_revision| Expected { value, mod_revision };
    *known = match (kind, done.found.first()) {
        (Kind::Put { value }, _) => seen(Some(value), done.revision),
        (Kind::Swap { value, .. }, _) if done.changed => seen(Some(value), done.revision),
        (Kind::Delete, _) => Expected::default(),
        (Kind::Get { .. } | Kind::Swap { .. }, Some(found)) => seen(found.map(|f| f.0), found.map_or(0, |f| f.1)),
        _ => *known,
    };
}

/// Many large writes to a key of their own, so that logs need room.
pub fn write_much(cluster: &Cluster, megabytes: u64) -> anyhow::Result<()> {
    let homes: Vec<_> = cluster.running.iter().map(|n| cluster.address(n)).collect::<anyhow::Result<_>>()?;
    members::run_in(cluster, OUTSIDE, async || {
        let homes = homes.into_iter().map(channel).collect::<anyhow::Result<Vec<_>>>()?;
        for n in 0..megabytes {
            let value = client::encode(n, 1 << 20);
            let request = pb::PutRequest { key: "w/much".into(), value, ..Default::default() };
            // Whether it is acknowledged is not the question.
            let _ = within(WRITE_MUCH_MAX, KvClient::new(homes[n as usize % homes.len()].clone()).put(request)).await;
        }
        Ok(())
    })
}

/// Compacts now and then, behind what every watcher has been told.
async fn compact(shared: Arc<Shared>, homes: Vec<Ipv4Addr>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !shared.is_over() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(500..2000))).await;
        let slowest = shared.watched.iter().map(|w| w.load(Ordering::Acquire)).min().unwrap_or(0);
        let Ok(channel) = channel(homes[rng.random_range(0..homes.len())]) else { continue };
        let revision = slowest.saturating_sub(HISTORY) as i64;
        let request = pb::CompactionRequest { revision, physical: false };
        if revision > 0 && within(client::PATIENCE, KvClient::new(channel).compact(request)).await.is_ok() {
            shared.compactions.fetch_add(1, Ordering::Relaxed);
        }
    }
}
