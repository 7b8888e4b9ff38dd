//! Three servers, of which one is hurt: writes go on, and none that was acknowledged is lost.

use crate::local::{Local, block_on, until, wait_until};
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use skiff::commands::cluster::{Cluster, items};
use skiff::commands::demo::writer::Writer;
use skiff_local::Direction;
use std::time::{Duration, Instant};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Far more than it takes (the benchmark tells that): on a machine whose cores are all taken, everything is late.
const WRITES_AGAIN_WITHIN: Duration = Duration::from_secs(15);

pub fn leader_killed(local: &Local) -> anyhow::Result<()> {
    hurt(
        local,
        "killed",
        Victim::Leader,
        |c, name| c.host.kill(name, Signal::SIGKILL),
        |c, name| c.host.restart(name).map(drop),
    )
}

pub fn leader_stopped(local: &Local) -> anyhow::Result<()> {
    hurt(
        local,
        "stopped",
        Victim::Leader,
        |c, name| c.host.kill(name, Signal::SIGSTOP),
        |c, name| c.host.kill(name, Signal::SIGCONT),
    )
}

pub fn leader_cut_off(local: &Local) -> anyhow::Result<()> {
    hurt(local, "cut", Victim::Leader, |c, name| c.host.cut(name, Direction::Both), |c, name| c.host.heal(name))
}

pub fn follower_cut_off(local: &Local) -> anyhow::Result<()> {
    hurt(local, "follower", Victim::Follower, |c, name| c.host.cut(name, Direction::Both), |c, name| c.host.heal(name))
}

#[derive(PartialEq)]
enum Victim {
    Leader,
    Follower,
}

/// Hurts a server while a writer writes; heals it, and sees that it has caught up and that every acknowledged write is there.
fn hurt(
    local: &Local,
    prefix: &str,
    victim: Victim,
    hurt: fn(&Cluster, &str) -> anyhow::Result<()>,
    heal: fn(&Cluster, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let (acknowledged, name) = block_on(async {
        let leader = cluster.leader().await?;
        let name = match victim {
            Victim::Leader => leader.clone(),
            Victim::Follower => ["s1", "s2", "s3"].into_iter().find(|s| *s != leader).context("a follower")?.to_owned(),
        };
        let writer = Writer::start(&cluster, prefix);
        until("writes are acknowledged", || async { Ok(writer.acknowledged().len() >= 20) }).await?;
        let moment = Instant::now();
        hurt(&cluster, &name)?;
        writer.next_after(moment, WRITES_AGAIN_WITHIN).await.with_context(|| format!("{name} was {prefix}"))?;
        if victim == Victim::Leader {
            until("another server leads", || async { Ok(cluster.leader().await? != name) }).await?;
        }
        // Many writes more, so that there is something to catch up with.
        let before = writer.acknowledged().len();
        until("writes go on", || async { Ok(writer.acknowledged().len() >= before + 50) }).await?;
        Ok((writer.finish().await?, name))
    })?;
    heal(&cluster, &name)?;
    let last = acknowledged.last().context("nothing was written")?;
    let path = format!("{CONFIG_MAPS}/{}", last.name);
    wait_until(&format!("{name} has caught up"), || cluster.has(&name, &path))?;
    block_on(async {
        let selector = format!("{CONFIG_MAPS}?labelSelector=writer%3D{prefix}");
        let list = cluster.api.get(&selector).await?;
        let there: Vec<_> = items(&list).filter_map(|o| o["metadata"]["name"].as_str()).collect();
        let lost: Vec<_> = acknowledged.iter().filter(|w| !there.contains(&w.name.as_str())).map(|w| &w.name).collect();
        ensure!(lost.is_empty(), "of {} acknowledged writes these are lost: {lost:?}", acknowledged.len());
        cluster.api.delete(&selector, &serde_json::json!({})).await?;
        Ok(())
    })
}
