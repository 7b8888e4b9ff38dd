//! How long nobody can write when the server that leads is killed. Every kill is a round of its own: the killed server is started again and has caught up
//! before the next one, so that each kill finds three servers that could lead.

use super::cluster;
use super::samples::{Samples, Table};
use crate::commands::cluster::items;
use crate::commands::demo::world::World;
use crate::commands::demo::writer::Writer;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
/// A gap that is told on its own: longer than an election without a silence to wait for.
const SLOW: Duration = Duration::from_millis(300);
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub async fn measure(runs: usize, table: &mut Table) -> anyhow::Result<()> {
    let cluster = cluster("leader", 3, 0).await?;
    let world = World::new(&cluster);
    let (mut gaps, mut returns) = (Samples::default(), Samples::default());
    let (mut written, mut lost) = (0, 0);
    for round in 0..runs {
        let leader = cluster.leader().await?;
        let prefix = format!("round{round}");
        let writer = Writer::start(&cluster, &prefix);
        let warm = || async { Ok(writer.acknowledged().len() >= 20) };
        world.until("writes are acknowledged", PATIENCE, warm).await?;
        let killed = Instant::now();
        cluster.host.kill(&leader, Signal::SIGKILL)?;
        let next = writer.next_after(killed, PATIENCE).await.with_context(|| format!("kill {round}, of {leader}"))?;
        gaps.add(next - killed);
        if next - killed > SLOW {
            println!("    kill {round}, of {leader}: {} ms", (next - killed).as_millis());
        }
        let elected = || async { Ok(cluster.leader().await? != leader) };
        world.until("another server leads", PATIENCE, elected).await?;
        let acknowledged = writer.finish().await?;
        let returned = Instant::now();
        cluster.host.restart(&leader)?;
        let last = acknowledged.last().map(|w| w.name.clone()).context("nothing was written")?;
        let caught_up = || async { cluster.has(&leader, &format!("{CONFIG_MAPS}/{last}")) };
        world.until(&format!("{leader} has caught up"), PATIENCE, caught_up).await?;
        returns.add(returned.elapsed());
        let list = cluster.api.get(&format!("{CONFIG_MAPS}?labelSelector=writer%3D{prefix}")).await?;
        let there: BTreeSet<_> = items(&list).filter_map(|o| o["metadata"]["name"].as_str()).collect();
        written += acknowledged.len();
        lost += acknowledged.iter().filter(|w| !there.contains(w.name.as_str())).count();
        cluster.api.delete(&format!("{CONFIG_MAPS}?labelSelector=writer%3D{prefix}"), &json!({})).await?;
    }
    table.times("leader killed to next acknowledged write", &gaps);
    table.times("killed server started again to caught up", &returns);
    table.once("acknowledged writes, and how many were lost", format!("{written}, {lost} lost"));
    cluster.host.shutdown()?;
    ensure!(lost == 0, "{lost} of {written} acknowledged writes were lost");
    Ok(())
}
