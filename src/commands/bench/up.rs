//! How long `skiff up` takes, as somebody who types it sees it: the process from its start to its end, on an empty folder.

use super::folder;
use super::samples::{Samples, Table};
use anyhow::{Context as _, ensure};
use std::path::Path;
use std::time::Instant;
use tokio::process::Command;

pub async fn measure(runs: usize, table: &mut Table) -> anyhow::Result<()> {
    tell!("\n==> up: 1 server, 2 agents, until all are Ready");
    let mut samples = Samples::default();
    for _ in 0..runs {
        let dir = folder("up");
        let begun = Instant::now();
        let up = skiff(&["up", "--servers", "1", "--agents", "2"], &dir).await;
        let took = begun.elapsed();
        // In any case: a cluster of which something came up is there.
        skiff(&["down"], &dir).await?;
        up?;
        samples.add(took);
    }
    table.times("up, 1 server and 2 agents, all Ready", &samples);
    Ok(())
}

async fn skiff(words: &[&str], dir: &Path) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("finding this binary")?;
    let output = Command::new(own).args(words).arg("--dir").arg(dir).output().await.context("running skiff")?;
    ensure!(output.status.success(), "skiff {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
