//! A round: members, clients, faults under one seed; then everything is mended, and everything that was seen is judged.

use crate::audit::Log;
use crate::client::{channel, put, revision, within};
use crate::cluster::{Cluster, OUTSIDE, wait_until};
use crate::history::{Kind, Operation, Outcome, by_key};
use crate::leasing::TTL_MAX_S;
use crate::linear;
use crate::members::{self, run_in};
use crate::nemesis::{Nemesis, Plan};
use crate::watching::{Pair, pair};
use crate::workload::Clients;
use anyhow::{Context as _, ensure};
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::kv_client::KvClient;
use skiff_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use skiff_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use std::time::{Duration, Instant};

/// Every member of a mended group acknowledges a write within this.
const PROGRESS_WITHIN: Duration = Duration::from_secs(15);
/// A healthy group has ended a lease by then after its time is up: a new leader gives each its full time again.
const LEASES_END_WITHIN: Duration = Duration::from_secs(2 * TTL_MAX_S + 3);
/// All members have applied everything by then.
const EQUAL_WITHIN: Duration = Duration::from_secs(20);
const LAST_KEY: &str = "z/last";

/// Runs a round with faults at random.
pub fn at_random(plan: Plan, seed: u64) -> anyhow::Result<()> {
    let mut figures = String::new();
    let script = |cluster: &mut Cluster, _: &Clients| {
        let mut nemesis = Nemesis::new(cluster, plan, seed);
        nemesis.run()?;
        let faults: usize = nemesis.done.values().sum();
        figures = format!("{faults} faults {:?}, up to {} members", nemesis.done, nemesis.largest);
        Ok(())
    };
    let told = run(plan.members, seed, script)?;
    println!("  seed {seed}: {figures}; {told}");
    Ok(())
}

/// Runs a round whose faults are a script's, which also mends them. What was seen, in words.
pub fn run(
    members: usize,
    seed: u64,
    script: impl FnOnce(&mut Cluster, &Clients) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut cluster = Cluster::start(members)?;
    let result = run_on(&mut cluster, seed, script);
    result.map_err(|e| e.context(format!("the members' logs are in {}", cluster.keep_logs().display())))
}

fn run_on(
    cluster: &mut Cluster,
    seed: u64,
    script: impl FnOnce(&mut Cluster, &Clients) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    members::wait_for_leader(cluster)?;
    let clients = Clients::start(cluster, seed)?;
    let ran = script(cluster, &clients);
    if let Err(error) = ran {
        clients.stop();
        let _ = clients.finish(0);
        return Err(error);
    }
    let progress = progress(cluster)?;
    clients.stop();
    let leases = wait_until("every lease has ended", LEASES_END_WITHIN, || no_leases(cluster))?;
    let last = last_write(cluster)?;
    let shared = clients.shared.clone();
    let told = clients.finish(last)?;
    let operations = shared.operations.lock().unwrap_or_else(|e| e.into_inner());
    let lives = shared.lives.lock().unwrap_or_else(|e| e.into_inner());
    let (_, first) = told.first().context("there is a watcher")?;
    let log = Log::new(&first.changes)?;
    ensure!(
        log.last() == last,
        "a watcher was told changes up to {}, the last one is {last}: {:?}",
        log.last(),
        first.wrong
    );
    for (scope, told) in &told {
        log.check_told(*scope, told).with_context(|| format!("watching {scope:?}"))?;
    }
    are_equal(cluster, &log)?;
    cluster.check_ends()?;
    log.check_operations(&operations)?;
    log.check_leases(&lives, &told)?;
    let searched = linear::check_keys(&by_key(&operations))?;
    let events: usize = told.iter().map(|(_, t)| t.changes.len()).sum();
    let streams: usize = told.iter().map(|(_, t)| t.streams).sum();
    Ok(format!(
        "{}; {searched} of them searched for an order, {last} revisions; {events} events on {streams} streams; {} leases, kept alive {} times; \
         progress {} ms after healing, leases gone in {} ms",
        counts(&operations),
        lives.len(),
        lives.iter().map(|l| l.kept_alive).sum::<usize>(),
        progress.as_millis(),
        leases.as_millis()
    ))
}

fn counts(operations: &[Operation]) -> String {
    let count = |fits: &dyn Fn(&Operation) -> bool| operations.iter().filter(|o| fits(o)).count();
    let reads = count(&|o| matches!(o.kind, Kind::Get { .. } | Kind::GetBoth { .. }));
    let unknown = count(&|o| o.outcome == Outcome::Unknown);
    let refused = count(&|o| o.outcome == Outcome::Refused);
    format!("{} operations ({reads} reads, {unknown} of unknown outcome, {refused} refused)", operations.len())
}

/// Every member acknowledges a write; how long that took.
fn progress(cluster: &Cluster) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    for name in &cluster.running {
        let address = cluster.address(name)?;
        let left = PROGRESS_WITHIN.saturating_sub(begun.elapsed());
        run_in(cluster, OUTSIDE, async || {
            let until = Instant::now() + left;
            loop {
                match put(&channel(address)?, "w/progress", 0, Duration::from_secs(2)).await {
                    Ok(_) => return Ok(()),
                    Err(e) if Instant::now() > until => return Err(e.into()),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .with_context(|| {
            format!("{name} acknowledges no write {} s after everything was mended", PROGRESS_WITHIN.as_secs())
        })?;
    }
    Ok(begun.elapsed())
}

fn no_leases(cluster: &Cluster) -> anyhow::Result<bool> {
    let address = cluster.address(cluster.running.first().context("a member")?)?;
    run_in(cluster, OUTSIDE, async || {
        let channel = channel(address)?;
        let range =
            pb::RangeRequest { key: "l/".into(), range_end: "l0".into(), count_only: true, ..Default::default() };
        let max = Duration::from_secs(3);
        let Ok(keys) = within(max, KvClient::new(channel.clone()).range(range)).await else { return Ok(false) };
        let mut leases = LeaseClient::new(channel);
        let asked = leases.lease_leases(pb::LeaseLeasesRequest {});
        let Ok(leases) = within(max, asked).await.map(|a| a.leases) else { return Ok(false) };
        Ok(keys.count == 0 && leases.is_empty())
    })
}

/// The write that is the last of all: (its revision).
fn last_write(cluster: &Cluster) -> anyhow::Result<u64> {
    let address = cluster.address(cluster.running.first().context("a member")?)?;
    run_in(cluster, OUTSIDE, async || Ok(put(&channel(address)?, LAST_KEY, 1, Duration::from_secs(5)).await?))
}

type Contents = (u32, Vec<(String, u64, Pair)>);

/// All members have the same, and it is what the history comes to.
fn are_equal(cluster: &Cluster, log: &Log) -> anyhow::Result<()> {
    let meant = log.keys();
    let mut first: Option<(u32, i64)> = None;
    for name in &cluster.running {
        let mut seen = None;
        wait_until(&format!("{name} has applied everything"), EQUAL_WITHIN, || {
            let status = members::look(cluster)?.remove(name);
            Ok(status.is_some_and(|s| revision(s.header) >= log.last()))
        })?;
        // Members that agree on what is compacted have the same digest.
        wait_until(&format!("{name} has compacted as the others"), EQUAL_WITHIN, || {
            let (compacted, contents) = contents(cluster, name, log.last())?;
            let alike = first.is_none_or(|(_, c)| c == compacted);
            seen = Some((compacted, contents));
            Ok(alike)
        })?;
        let (compacted, (hash, keys)) = seen.context("it was asked")?;
        let (expected, _) = *first.get_or_insert((hash, compacted));
        ensure!(hash == expected, "{name} has the digest {hash:x} at {}, others {expected:x}", log.last());
        let differs = keys.iter().zip(&meant).find(|(a, b)| a != b);
        ensure!(
            differs.is_none() && keys.len() == meant.len(),
            "{name} differs from the history: {differs:?}, {} keys",
            keys.len()
        );
    }
    Ok(())
}

fn contents(cluster: &Cluster, name: &str, at: u64) -> anyhow::Result<(i64, Contents)> {
    let address = cluster.address(name)?;
    run_in(cluster, OUTSIDE, async || {
        let (channel, max) = (channel(address)?, Duration::from_secs(5));
        let mut maintenance = MaintenanceClient::new(channel.clone());
        let hash = within(max, maintenance.hash_kv(pb::HashKvRequest { revision: at as i64 })).await?;
        let all = bytes::Bytes::from_static(&[0]);
        let range = pb::RangeRequest {
            key: all.clone(),
            range_end: all,
            revision: at as i64,
            serializable: true,
            ..Default::default()
        };
        let mut kv = KvClient::new(channel).max_decoding_message_size(64 << 20);
        let kvs = within(max, kv.range(range)).await?.kvs;
        let key = |kv: &skiff_proto::etcd::mvccpb::KeyValue| String::from_utf8_lossy(&kv.key).into_owned();
        let keys = kvs.iter().map(|kv| (key(kv), kv.mod_revision as u64, pair(kv))).collect();
        Ok((hash.compact_revision, (hash.hash, keys)))
    })
}
