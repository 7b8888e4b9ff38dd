//! A member that joins over a slow link that breaks again and again: it gets the snapshot all the same, and hardly more than once.

use crate::cluster::{CLIENT_PORT, Cluster, OUTSIDE, slot, wait_until};
use crate::network::{self, Slow};
use crate::workload::write_much;
use crate::{client, members};
use anyhow::{Context as _, ensure};
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::kv_client::KvClient;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const MEGABYTES: u64 = 110;
const LINK: Slow = Slow { kbit: 160_000, queue_ms: 50 };
/// What is under way when a connection breaks, and the record that a killed receiver cuts its part back to.
const LOST_A_BREAK: u64 = 5 << 20;
const WAIT: Duration = Duration::from_secs(20);

pub fn over_a_link_that_breaks() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    let leader = members::wait_for_leader(&cluster)?;
    // Versions of one key: history is kept, so all of them are in the snapshot.
    write_much(&cluster, MEGABYTES)?;
    network::slow(&cluster.host, &leader, Some(LINK))?;
    let joins = slot(1);
    cluster.join(&joins)?;
    let (ours, theirs) = (cluster.address(&leader)?, cluster.address(&joins)?);
    let sent = || metric(&cluster, &leader, "skiff_store_snapshot_sent_bytes_total");
    let broken = || metric(&cluster, &leader, "skiff_store_snapshots_broken_total");
    let mut breaks = 0;
    for part in 1..=4 {
        wait_until("more of the snapshot is sent", WAIT, || Ok(sent()? > part * 20_000_000))?;
        let before = broken()?;
        if part % 2 == 0 {
            cluster.kill(&joins)?;
        } else {
            network::sever(&cluster.host, &joins, &[ours])?;
            network::sever(&cluster.host, &leader, &[theirs])?;
        }
        wait_until("the transfer is broken off", WAIT, || Ok(broken()? > before))?;
        breaks += 1;
        network::sever(&cluster.host, &joins, &[])?;
        network::sever(&cluster.host, &leader, &[])?;
        cluster.start_again(&joins)?;
    }
    let applied = |name: &str| metric(&cluster, name, "skiff_store_applied_index");
    let there = || Ok(applied(&joins).unwrap_or(0) >= applied(&leader)?);
    wait_until("the new member has caught up", WAIT, there)?;
    let size = metric(&cluster, &leader, "skiff_store_bytes")?;
    let resumed = metric(&cluster, &leader, "skiff_store_snapshot_resumed_bytes_total")?;
    let (sent, done) = (sent()?, metric(&cluster, &leader, "skiff_store_snapshots_sent_total")?);
    println!(
        "  {size} bytes of state; {sent} bytes sent in {breaks} broken attempts and {done} whole; {resumed} were there already"
    );
    ensure!(size > 100_000_000 && resumed > size / 5, "{size} bytes of state, {resumed} resumed");
    ensure!(sent < size + size / 10 + breaks * LOST_A_BREAK, "{sent} bytes sent for a state of {size}");
    cluster.check_ends()?;
    let _ = network::slow(&cluster.host, &leader, None);
    // Both have the same.
    let request = || pb::RangeRequest { key: "w/much".into(), serializable: true, ..Default::default() };
    let read = |name: &str| -> anyhow::Result<_> {
        let address = cluster.address(name)?;
        members::run_in(&cluster, OUTSIDE, async || {
            let answer = client::within(WAIT, KvClient::new(client::channel(address)?).range(request())).await?;
            Ok(answer.kvs)
        })
    };
    ensure!(read(&joins)? == read(&leader)?, "the new member reads something else");
    Ok(())
}

/// A number from a member's `/metrics`.
fn metric(cluster: &Cluster, name: &str, metric: &str) -> anyhow::Result<u64> {
    let address = cluster.address(name)?;
    let text = members::run_in(cluster, OUTSIDE, async || {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect((address, CLIENT_PORT)).await?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: skiff\r\nConnection: close\r\n\r\n").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await.map(|_| text)
        };
        Ok(tokio::time::timeout(Duration::from_secs(5), ask).await??)
    })?;
    let value = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    value.with_context(|| format!("{name} tells no {metric}"))?.trim().parse().context("its value")
}
