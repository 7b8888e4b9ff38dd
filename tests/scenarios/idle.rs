//! After a scenario a cluster has nothing to do, and that must show: in the processor time of each process, its threads and its open files. What a
//! whole run leaves on the machine is looked at once more when every cluster is down.

use crate::local::{Local, PATIENCE};
use anyhow::{Context as _, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long processor time is counted.
const WINDOW: Duration = Duration::from_millis(1500);
/// The most that a process of an idle cluster uses, in hundredths of a core. These are unoptimized, and heartbeats, probes and the leader's looks go on.
const CPU_PERCENT_MAX: u64 = 8;
/// More threads or open files than when the cluster was fresh: what a cluster keeps for its pods and its peers.
const THREADS_MORE_MAX: usize = 24;
const FILES_MORE_MAX: usize = 120;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    threads: usize,
    files: usize,
}

/// A fresh cluster's processes, to compare with.
pub struct Fresh(BTreeMap<String, Held>);

/// The cluster's servers and agents: name and process id.
fn processes(local: &Local) -> Vec<(String, i32)> {
    let prefix = format!("{}/", local.dir());
    let ids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let named = ids.filter_map(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = command.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        let long_lived = words.get(1).is_some_and(|verb| verb == "server" || verb == "agent");
        let at = words.iter().position(|w| w == "--data-dir").filter(|_| long_lived)?;
        let name = words.get(at + 1)?.strip_prefix(&prefix)?.to_owned();
        Some((name, pid))
    });
    named.collect()
}

fn held(pid: i32) -> anyhow::Result<Held> {
    let count = |what: &str| anyhow::Ok(std::fs::read_dir(format!("/proc/{pid}/{what}"))?.count());
    Ok(Held { threads: count("task")?, files: count("fd")? })
}

/// Processor time so far, in ticks of a hundredth of a second.
fn ticks(pid: i32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything, the 12th and 13th field: user and system time.
    let fields: Vec<_> = stat.rsplit_once(") ").context("a stat line")?.1.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Takes down what a fresh cluster holds.
pub fn fresh(local: &Local) -> anyhow::Result<Fresh> {
    let all = processes(local);
    ensure!(!all.is_empty(), "no process of the cluster in {} was found", local.dir());
    Ok(Fresh(all.into_iter().map(|(name, pid)| Ok((name, held(pid)?))).collect::<anyhow::Result<_>>()?))
}

/// Waits until every process of the cluster is idle, and says which one is not.
pub fn settles(local: &Local, fresh: &Fresh) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let busy = busy(local, fresh)?;
        if busy.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the cluster has nothing to do and is not idle: {}", busy.join("; "));
    }
}

fn busy(local: &Local, fresh: &Fresh) -> anyhow::Result<Vec<String>> {
    let before: BTreeMap<_, _> =
        processes(local).into_iter().filter_map(|(n, pid)| Some((pid, (n, ticks(pid).ok()?)))).collect();
    let begun = Instant::now();
    std::thread::sleep(WINDOW);
    let window_ms = begun.elapsed().as_millis() as u64;
    let mut busy = Vec::new();
    for (pid, (name, ticks_before)) in before {
        let (Ok(now), Ok(held)) = (ticks(pid), held(pid)) else { continue };
        // A tick is 10 ms, so that a share in percent is ticks by seconds.
        let percent = (now - ticks_before) * 1000 / window_ms;
        if percent > CPU_PERCENT_MAX {
            busy.push(format!("{name} uses {percent} % of a core"));
        }
        let Some(was) = fresh.0.get(&name) else { continue };
        if held.threads > was.threads + THREADS_MORE_MAX {
            busy.push(format!("{name} has {} threads, {} when it was fresh", held.threads, was.threads));
        }
        if held.files > was.files + FILES_MORE_MAX {
            busy.push(format!("{name} has {} open files, {} when it was fresh", held.files, was.files));
        }
    }
    Ok(busy)
}

/// What this machine has of its own: links, mounts, control groups of Skiff's, by name.
pub fn machine() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let names = |dir: &str| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name());
    all.extend(names("/sys/class/net").map(|n| format!("link {}", n.to_string_lossy())));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    all.extend(mounts.lines().filter_map(|l| l.split(' ').nth(4)).map(|m| format!("mount {m}")));
    groups(Path::new("/sys/fs/cgroup"), 0, &mut all);
    all
}

/// Control groups whose name is ours; whatever is below one goes with it.
fn groups(dir: &Path, depth: u32, all: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        if entry.file_name().to_string_lossy().starts_with("skiff") {
            all.insert(format!("control group {}", entry.path().display()));
        } else if depth < 3 {
            groups(&entry.path(), depth + 1, all);
        }
    }
}

/// Fails when the machine has something that it had not before.
pub fn left_nothing(before: &BTreeSet<String>) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let left: Vec<_> = machine().difference(before).cloned().collect();
        if left.is_empty() {
            return Ok(());
        }
        // The kernel takes some namespaces apart in its own time.
        ensure!(begun.elapsed() < Duration::from_secs(10), "left behind on this machine: {}", left.join(", "));
        std::thread::sleep(Duration::from_millis(100));
    }
}
