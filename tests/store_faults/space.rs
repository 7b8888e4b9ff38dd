//! Disks that are full: a follower's, the leader's, everybody's. A member may refuse writes or stop, and says why; no
//! acknowledged write is lost, and it serves again once there is space.

use crate::cluster::{Cluster, wait_until};
use crate::members;
use crate::round;
use crate::workload::{Clients, write_much};
use anyhow::Context as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// More than the log has room for beforehand: the segment that is written and the one that is ready.
const MEGABYTES: u64 = 40;
/// How long those who have room may take to go on.
const WITHIN: Duration = Duration::from_secs(20);

pub fn full_disks() -> anyhow::Result<()> {
    let mut stopped = Vec::new();
    let told = round::run(3, 5, |cluster, clients| {
        let leader = members::wait_for_leader(cluster)?;
        let follower = cluster.running.iter().find(|n| **n != leader).context("a follower")?.clone();
        stopped.push(fill(cluster, clients, &[follower])?);
        let leader = members::wait_for_leader(cluster)?;
        stopped.push(fill(cluster, clients, &[leader])?);
        let all: Vec<_> = cluster.running.iter().cloned().collect();
        stopped.push(fill(cluster, clients, &all)?);
        Ok(())
    })?;
    println!("  a follower's disk was full, then the leader's, then all: {stopped:?} members stopped; {told}");
    Ok(())
}

/// Fills disks, writes more than there is room for, gives the room back; how many members stopped.
fn fill(cluster: &mut Cluster, clients: &Clients, names: &[String]) -> anyhow::Result<usize> {
    for name in names {
        cluster.may_have_stopped.insert(name.clone());
        cluster.disk(name)?.fill()?;
    }
    write_much(cluster, MEGABYTES)?;
    if names.len() == 1 {
        let led_from_elsewhere = || Ok(members::leader(cluster).is_some_and(|leader| !names.contains(&leader)));
        wait_until("a member with room leads", WITHIN, led_from_elsewhere)?;
        let before = clients.shared.acknowledged.load(Ordering::Relaxed);
        let goes_on = || Ok(clients.shared.acknowledged.load(Ordering::Relaxed) > before + 50);
        wait_until("writes go on beside a full disk", WITHIN, goes_on)?;
    }
    cluster.check_ends()?;
    let mut stopped = 0;
    for name in names {
        cluster.disk(name)?.free()?;
        if !cluster.is_alive(name)? {
            stopped += 1;
            cluster.start_again(name)?;
        }
    }
    members::settle(cluster)?;
    Ok(stopped)
}
