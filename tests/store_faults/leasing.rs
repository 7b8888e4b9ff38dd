//! Clients with leases: each grants one, puts a key under it, keeps it alive for a while, and then revokes it or lets it lapse.

use crate::client::{PATIENCE, channel, encode, within};
use crate::workload::Shared;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::kv_client::KvClient;
use skiff_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Seconds.
pub const TTL_MAX_S: u64 = 2;

/// A lease as its client saw it. Times are nanoseconds of the run's clock.
#[derive(Clone, Debug)]
pub struct Life {
    pub key: String,
    /// It was promised to last until then: from the sending of what was answered, its TTL.
    pub until: u64,
    /// Its end was asked for then.
    pub revoked: Option<u64>,
    pub kept_alive: usize,
}

pub async fn client(shared: Arc<Shared>, homes: Vec<Ipv4Addr>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !shared.is_over() {
        let home = homes[rng.random_range(0..homes.len())];
        let Ok(channel) = channel(home) else { continue };
        if let Some(life) = live(&shared, &channel, &mut rng).await {
            shared.lives.lock().unwrap_or_else(|e| e.into_inner()).push(life);
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(20..200))).await;
    }
}

async fn live(shared: &Shared, channel: &Channel, rng: &mut StdRng) -> Option<Life> {
    let mut leases = LeaseClient::new(channel.clone());
    let ttl = rng.random_range(1..=TTL_MAX_S);
    let sent = shared.clock.now();
    let granted = within(PATIENCE, leases.lease_grant(pb::LeaseGrantRequest { ttl: ttl as i64, id: 0 })).await.ok()?;
    let ttl_ns = granted.ttl as u64 * 1_000_000_000;
    let value = shared.next_value();
    let key = format!("l/{value}");
    let put =
        pb::PutRequest { key: key.clone().into(), value: encode(value, 0), lease: granted.id, ..Default::default() };
    within(PATIENCE, KvClient::new(channel.clone()).put(put)).await.ok()?;
    let mut life = Life { key, until: sent + ttl_ns, revoked: None, kept_alive: 0 };
    for _ in 0..rng.random_range(0..5) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..ttl * 600))).await;
        let sent = shared.clock.now();
        let request = pb::LeaseKeepAliveRequest { id: granted.id };
        let (requests, stream) = tokio::sync::mpsc::channel(1);
        requests.send(request).await.ok()?;
        let answer = async {
            let mut answers = leases.lease_keep_alive(ReceiverStream::new(stream)).await?.into_inner();
            answers.message().await
        };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(Some(answer))) if answer.ttl > 0 => {
                life.until = sent + answer.ttl as u64 * 1_000_000_000;
                life.kept_alive += 1;
            }
            // It has ended, or nobody knows: what was promised before stands.
            _ => break,
        }
    }
    if rng.random_ratio(3, 10) {
        life.revoked = Some(shared.clock.now());
        let _ = within(PATIENCE, leases.lease_revoke(pb::LeaseRevokeRequest { id: granted.id })).await;
    }
    Some(life)
}
