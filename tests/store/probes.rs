//! Health and metrics over plain HTTP on the client port, beside gRPC.

use crate::support::*;
use anyhow::ensure;

pub const TESTS: &[Test] = &[("health and metrics over HTTP", || Box::pin(probes()))];

async fn probes() -> anyhow::Result<()> {
    let dir = Dir::new()?;
    let servers = leader_first(start_all(&Plan::together(&dir, &["a", "b", "c"], &[])?).await?).await?;
    for server in &servers {
        ensure!(http(server.endpoint(), "/health").await? == (200, r#"{"health":"true","reason":""}"#.into()));
        ensure!(http(server.endpoint(), "/livez").await?.0 == 200);
        ensure!(http(server.endpoint(), "/readyz").await?.0 == 200);
        ensure!(http(server.endpoint(), "/nothing").await?.0 == 404);
        let (status, version) = http(server.endpoint(), "/version").await?;
        ensure!(status == 200 && version.contains("etcdserver"), "{version}");
        ensure!(server.metric("skiff_store_has_leader").await? == 1);
        ensure!(server.metric("process_resident_memory_bytes").await? > 1 << 20);
    }
    let (_, text) = http(servers[0].endpoint(), "/metrics").await?;
    for line in text.lines() {
        ensure!(line.starts_with('#') || line.split(' ').count() == 2, "no line of Prometheus: {line:?}");
    }
    let revision = servers[0].metric("skiff_store_revision").await?;
    ctl(servers[0].endpoint(), &["put", "a", "1"]).await?;
    ensure!(servers[0].metric("skiff_store_revision").await? == revision + 1);
    ensure!(servers[0].metric("skiff_store_syncs_total").await? > 0);
    // Without a majority: alive, but neither healthy nor ready.
    let mut servers = servers.into_iter();
    let left = servers.next_back();
    for server in servers {
        server.kill().await?;
    }
    if let Some(left) = left {
        until("it says that it is not healthy", || async { Ok(http(left.endpoint(), "/health").await?.0 == 503) })
            .await?;
        holds(&http(left.endpoint(), "/health").await?.1, &[r#""health":"false""#, "LEADER"])?;
        ensure!(http(left.endpoint(), "/livez").await?.0 == 200);
        ensure!(left.metric("skiff_store_has_leader").await? == 0);
        holds(&ctl_fails(left.endpoint(), &["endpoint", "health"]).await?, &["unhealthy"])?;
    }
    Ok(())
}
