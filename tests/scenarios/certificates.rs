//! Certificates that live for seconds: a cluster on which each is renewed several times goes on as if they were good for ever.

use crate::local::{Local, SKIFF, block_on, text, until};
use crate::pods;
use anyhow::ensure;
use nix::sys::signal::Signal;
use skiff::commands::cluster::is_ready;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

/// Long enough for a busy machine to dial with one before it ends.
const LIFE: Duration = Duration::from_secs(16);

/// Servers and agents renew their own at half life; an agent that slept through the end of its certificate is taken in again by its key.
pub fn renewal() -> anyhow::Result<()> {
    let local = Local::new("certificates");
    let mut up = Command::new(SKIFF);
    up.args(["up", "--servers", "1", "--agents", "2", "--dir", local.dir()]).env("SKIFF_CERTIFICATE_LIFE", "16s");
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
        while seen.len() < 3 || begun.elapsed() < 2 * LIFE {
            if let Err(error) = cluster.api.get("/api/v1/nodes").await {
                failed.push(format!("{error:#}"));
            }
            seen.insert(shown("a1")?);
            ensure!(begun.elapsed() < 6 * LIFE, "a1 had {} certificates in {:?}", seen.len(), begun.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(failed.is_empty(), "requests failed: {failed:?}");
        until("both nodes are Ready", || async {
            let nodes = cluster.api.get("/api/v1/nodes").await?;
            Ok(skiff::commands::cluster::items(&nodes).filter(|n| is_ready(n)).count() == 2)
        })
        .await?;
        local.run(&["exec", "steady", "--", "/skiff", "--version"])?;

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
