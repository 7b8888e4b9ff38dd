//! Certificates that live for seconds: a cluster on which each is renewed several times goes on as if they were good for ever.

use crate::local::{Local, SKIFF, block_on, text, until};
use crate::pods;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use skiff::commands::cluster::{Cluster, is_ready};
use skiff_local::Direction;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

/// Long enough for a busy machine to dial with one before it ends.
const LIFE: Duration = Duration::from_secs(16);

/// Servers and agents renew their own at half life, and no server stands for election for it; what was connected is cut and connects again with what is current; an agent that slept through the end of its certificate is taken in again by its key.
pub fn renewal() -> anyhow::Result<()> {
    let local = Local::new("certificates");
    let mut up = Command::new(SKIFF);
    up.args(["up", "--servers", "3", "--agents", "2", "--dir", local.dir()]).env("SKIFF_CERTIFICATE_LIFE", "16s");
    let output = up.output()?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let begun = Instant::now();
    local.run(&["demo-image"])?;
    let cluster = local.cluster()?;
    let shown = |node: &str| std::fs::read_to_string(local.dir.join(node).join("agent/node.crt"));
    block_on(async {
        pods::start(&cluster.api, &pods::web("steady", "a1")).await?;
        // Every request is a connection of its own: one that met a certificate past its end would fail.
        let (mut seen, mut failed) = (BTreeSet::new(), Vec::new());
        let term = term(&cluster).await?;
        while seen.len() < 3 || begun.elapsed() < 2 * LIFE {
            if let Err(error) = cluster.api.get("/api/v1/nodes").await {
                failed.push(format!("{error:#}"));
            }
            seen.insert(shown("a1")?);
            ensure!(begun.elapsed() < 6 * LIFE, "a1 had {} certificates in {:?}", seen.len(), begun.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(failed.is_empty(), "requests failed: {failed:?}");
        let now = self::term(&cluster).await?;
        ensure!(now == term, "an election was held in the calm: term {term} became {now}");
        until("both nodes are Ready", || async {
            let nodes = cluster.api.get("/api/v1/nodes").await?;
            Ok(skiff::commands::cluster::items(&nodes).filter(|n| is_ready(n)).count() == 2)
        })
        .await?;
        local.run(&["exec", "steady", "--", "/skiff", "--version"])?;

        // The certificates that the servers began with have ended: every connection between their stores is made with others.
        let leader = cluster.leader().await?;
        let mut followers = ["s1", "s2", "s3"].into_iter().filter(|s| *s != leader);
        let (cut, restarted) = (followers.next().context("a follower")?, followers.next().context("another")?);
        cluster.host.cut(cut, Direction::Both)?;
        note(&cluster, "while-cut").await?;
        // Longer than a silent connection is believed in.
        tokio::time::sleep(Duration::from_secs(6)).await;
        cluster.host.heal(cut)?;
        until("the server that was cut off has caught up", || async { cluster.has(cut, &noted("while-cut")) }).await?;
        cluster.host.kill(restarted, Signal::SIGKILL)?;
        note(&cluster, "while-dead").await?;
        cluster.host.restart(restarted)?;
        until("the server that was killed has caught up", || async { cluster.has(restarted, &noted("while-dead")) })
            .await?;

        // Asleep for longer than its certificate lives.
        let before = shown("a2")?;
        cluster.host.kill("a2", Signal::SIGSTOP)?;
        tokio::time::sleep(LIFE + Duration::from_secs(2)).await;
        cluster.host.kill("a2", Signal::SIGCONT)?;
        until("a2 has another certificate and is Ready", || async {
            let node = cluster.api.get("/api/v1/nodes/a2").await?;
            Ok(is_ready(&node) && shown("a2")? != before)
        })
        .await?;
        pods::start(&cluster.api, &pods::web("again", "a2")).await?;
        local.run(&["exec", "again", "--", "/skiff", "--version"]).map(drop)
    })
}

/// The term of the server that leads, as it has written it.
async fn term(cluster: &Cluster) -> anyhow::Result<u64> {
    let lease = cluster.api.get(skiff::server::LEADER_LEASE).await?;
    lease["spec"]["leaseTransitions"].as_u64().context("the leader's lease names its term")
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn noted(name: &str) -> String {
    format!("{CONFIG_MAPS}/{name}")
}

async fn note(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    cluster.api.post(CONFIG_MAPS, &object).await.map(drop)
}
