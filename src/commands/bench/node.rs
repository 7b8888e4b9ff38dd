//! How long a lost node hurts: from the moment its agent is killed and its link is cut until no Service offers its pods, until the other nodes' rules say
//! so too, and until its pods run elsewhere. The victim is always the node with the most pods; it returns before the next one goes.

use super::cluster;
use super::samples::{Samples, Table};
use crate::commands::cluster::{is_ready, items};
use crate::commands::demo::world::World;
use crate::workload::image;
use nix::sys::signal::Signal;
use serde_json::json;
use skiff_local::Direction;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const REPLICAS: usize = 6;

pub async fn measure(runs: usize, table: &mut Table) -> anyhow::Result<()> {
    let cluster = cluster("node", 3, 3).await?;
    let (world, host) = (World::new(&cluster), &cluster.host);
    image::hand_in(&cluster.api).await?;
    world.apply(include_str!("../../../manifests/demo/web.yaml")).await?;
    world.patch_deployment(json!({"spec": {"replicas": REPLICAS}})).await?;
    let ready = || async { Ok(world.ready_web().await?.len() == REPLICAS) };
    let (mut withdrawn, mut followed) = (Samples::default(), Samples::default());
    let (mut replaced, mut returned) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        world.until("all pods are Ready", PATIENCE, ready).await?;
        let victim = fullest(&world).await?;
        let lost = Instant::now();
        host.kill(&victim, Signal::SIGKILL)?;
        host.cut(&victim, Direction::Both)?;
        let at = AtomicU64::new(0);
        let gone = || async {
            let (nodes, revision) = world.offered_nodes().await?;
            at.store(revision, Ordering::Relaxed);
            Ok(!nodes.contains(&victim))
        };
        world.until("its endpoints are withdrawn", PATIENCE, gone).await?;
        withdrawn.add(lost.elapsed());
        let taken_in = || async { world.all_have_taken_in(at.load(Ordering::Relaxed), &victim).await };
        world.until("the other nodes follow", PATIENCE, taken_in).await?;
        followed.add(lost.elapsed());
        let elsewhere = || async {
            let pods = world.ready_web().await?;
            Ok(pods.iter().filter(|p| p["spec"]["nodeName"] != victim.as_str()).count() == REPLICAS)
        };
        world.until("replacements are Ready", PATIENCE, elsewhere).await?;
        replaced.add(lost.elapsed());
        let back = Instant::now();
        host.heal(&victim)?;
        host.restart(&victim)?;
        let adopted = || async {
            let nodes = world.api.get("/api/v1/nodes").await?;
            let all = items(&nodes).filter(|n| is_ready(n)).count() == 3;
            Ok(all && world.pods("app%3Dweb").await?.len() == REPLICAS)
        };
        world.until("the node is back and its replaced pods are gone", PATIENCE, adopted).await?;
        returned.add(back.elapsed());
    }
    table.times("node lost to endpoints withdrawn", &withdrawn);
    table.times("node lost to the other nodes' rules", &followed);
    table.times("node lost to replacements Ready", &replaced);
    table.times("node back to adopted", &returned);
    cluster.host.shutdown()
}

/// The node that most pods of `web` run on.
async fn fullest(world: &World<'_>) -> anyhow::Result<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for pod in world.ready_web().await? {
        *counts.entry(pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let fullest = counts.into_iter().max_by_key(|(_, count)| *count);
    fullest.map(|(node, _)| node).ok_or_else(|| anyhow::anyhow!("no pod of web is Ready"))
}
