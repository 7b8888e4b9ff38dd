//! What a cluster costs that does nothing: each process's share of memory, and the processor time it took while at rest.

use super::cluster;
use super::samples::Table;
use anyhow::Context as _;
use std::time::{Duration, Instant};

pub async fn measure(rest: Duration, table: &mut Table) -> anyhow::Result<()> {
    let cluster = cluster("idle", 1, 2).await?;
    let mut processes = Vec::new();
    for node in cluster.host.status()?.nodes {
        let pid = cluster.host.outer_pid(node.pid.with_context(|| format!("{} does not run", node.name))?)?;
        processes.push((node.name, pid));
    }
    tell!("    resting for {} s", rest.as_secs());
    tokio::time::sleep(rest / 2).await;
    let begun = Instant::now();
    let before: Vec<_> = processes.iter().map(|(_, pid)| processor_time(*pid)).collect::<Result<_, _>>()?;
    tokio::time::sleep(rest - rest / 2).await;
    for ((name, pid), before) in processes.iter().zip(before) {
        let used = processor_time(*pid)?.saturating_sub(before);
        let share = 100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64();
        let what = if name.starts_with('s') { "idle server" } else { "idle agent" };
        let measured = format!("{:.1} MB, {share:.2} %", pss_kib(*pid)? as f64 * 1024.0 / 1e6);
        table.once(&format!("{what} {name}: PSS, share of a core"), measured);
    }
    cluster.host.shutdown()
}

/// The process's proportional share of memory, KiB.
fn pss_kib(pid: i32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let value = line.and_then(|l| l.trim().strip_suffix(" kB")).and_then(|v| v.trim().parse().ok());
    value.with_context(|| format!("{path} has no Pss"))
}

/// User and system time of all the process's threads, to the nanosecond: /proc/PID/stat counts whole ticks, of which an idle process has few.
fn processor_time(pid: i32) -> anyhow::Result<Duration> {
    let folder = format!("/proc/{pid}/task");
    let mut total = 0;
    for thread in std::fs::read_dir(&folder).with_context(|| format!("reading {folder}"))?.flatten() {
        // A thread may end meanwhile.
        let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        total += text.split_ascii_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}
