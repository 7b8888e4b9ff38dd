//! The group seen from outside: who leads, who belongs to it; and changes of that.

use crate::client::{channel, status, within};
use crate::cluster::{Cluster, OUTSIDE, wait_until};
use anyhow::Context as _;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use skiff_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long members are asked for what they say of themselves.
const LOOK_MAX: Duration = Duration::from_millis(250);
/// Within this every member of a mended group belongs to it and votes.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// Runs asynchronous work in a member's namespace, or [`OUTSIDE`].
pub fn run_in<T: Send>(
    cluster: &Cluster,
    place: &str,
    work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    cluster.host.run_in(place, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    })?
}

/// What every member that answers says of itself, by name.
pub fn look(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, pb::StatusResponse>> {
    let names: Vec<_> =
        cluster.running.iter().map(|n| Ok((n.clone(), cluster.address(n)?))).collect::<anyhow::Result<_>>()?;
    run_in(cluster, OUTSIDE, async || {
        let asked = names.into_iter().map(async |(name, address)| {
            let channel = channel(address).ok()?;
            let answer = tokio::time::timeout(LOOK_MAX, status(&channel)).await.ok()?.ok()?;
            Some((name, answer))
        });
        Ok(futures_util::future::join_all(asked).await.into_iter().flatten().collect())
    })
}

pub fn id(status: &pb::StatusResponse) -> u64 {
    status.header.map_or(0, |h| h.member_id)
}

/// The name of the member that leads: of those that say they do, the one of the highest term.
pub fn leader(cluster: &Cluster) -> Option<String> {
    let all = look(cluster).ok()?;
    let leads = all.into_iter().filter(|(_, s)| s.leader != 0 && s.leader == id(s));
    leads.max_by_key(|(_, s)| s.raft_term).map(|(name, _)| name)
}

pub fn wait_for_leader(cluster: &Cluster) -> anyhow::Result<String> {
    let mut found = None;
    wait_until("a member leads", Duration::from_secs(20), || {
        found = leader(cluster);
        Ok(found.is_some())
    })?;
    found.context("a member leads")
}

/// Asks the leader to hand over to this member; whether it did.
pub fn move_leader(cluster: &Cluster, to: &str) -> bool {
    let Ok(all) = look(cluster) else { return false };
    let Some(target_id) = all.get(to).map(id) else { return false };
    let Some(leader) = all.iter().find(|(name, s)| s.leader == id(s) && *name != to).map(|(name, _)| name) else {
        return false;
    };
    let Ok(address) = cluster.address(leader) else { return false };
    let moved = run_in(cluster, OUTSIDE, async || {
        let mut client = MaintenanceClient::new(channel(address)?);
        Ok(within(Duration::from_secs(1), client.move_leader(pb::MoveLeaderRequest { target_id })).await.is_ok())
    });
    moved.unwrap_or(false)
}

/// The members that the group agrees on.
fn list(cluster: &Cluster) -> anyhow::Result<Vec<pb::Member>> {
    let addresses: Vec<_> = cluster.running.iter().map(|n| cluster.address(n)).collect::<anyhow::Result<_>>()?;
    run_in(cluster, OUTSIDE, async || {
        for address in addresses {
            let mut client = ClusterClient::new(channel(address)?);
            let asked = client.member_list(pb::MemberListRequest { linearizable: true });
            if let Ok(answer) = within(Duration::from_secs(1), asked).await {
                return Ok(answer.members);
            }
        }
        anyhow::bail!("nobody says who belongs to the group")
    })
}

/// Removes a member from the group and ends it, if enough are left that answer; whether it was asked for.
pub fn remove(cluster: &mut Cluster, name: &str, least: usize) -> anyhow::Result<bool> {
    let Ok(members) = list(cluster) else { return Ok(false) };
    let voters = members.iter().filter(|m| !m.is_learner).count();
    let Some(member) = members.iter().find(|m| m.name == name) else { return Ok(false) };
    if voters <= least || member.is_learner || look(cluster)?.len() < cluster.running.len() {
        return Ok(false);
    }
    let Some(other) = cluster.running.iter().find(|n| *n != name) else { return Ok(false) };
    let (id, address) = (member.id, cluster.address(other)?);
    let removed = run_in(cluster, OUTSIDE, async || {
        let mut client = ClusterClient::new(channel(address)?);
        Ok(within(Duration::from_secs(5), client.member_remove(pb::MemberRemoveRequest { id })).await.is_ok())
    })?;
    if removed {
        cluster.retire(name)?;
    }
    Ok(true)
}

/// Once everything is mended: waits until the processes that run are the members of the group and all vote. A process that was
/// removed and not told so (the answer was lost) is ended.
pub fn settle(cluster: &mut Cluster) -> anyhow::Result<Duration> {
    let mut seen = String::new();
    let begun = std::time::Instant::now();
    let settled = wait_until("the members that run are those of the group, and vote", SETTLED_WITHIN, || {
        for name in cluster.running.clone() {
            if !cluster.is_alive(&name)? {
                cluster.check_ends()?;
                cluster.start_again(&name)?;
            }
        }
        let Ok(members) = list(cluster) else { return Ok(false) };
        seen = members
            .iter()
            .map(|m| format!("{} {:x}{}", m.name, m.id, if m.is_learner { " without a vote, " } else { ", " }))
            .collect();
        let names: Vec<_> = members.iter().map(|m| m.name.clone()).collect();
        for name in cluster.running.clone() {
            let gone_for_a_while = !names.contains(&name) && begun.elapsed() > Duration::from_secs(10);
            if gone_for_a_while {
                cluster.retire(&name)?;
            }
        }
        Ok(members.iter().all(|m| !m.is_learner && cluster.running.contains(&m.name))
            && members.len() == cluster.running.len())
    });
    settled.with_context(|| format!("the group's members are {seen}those that run {:?}", cluster.running))
}
