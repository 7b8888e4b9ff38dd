//! Watchers that go from member to member: each begins again behind the last event that it was told.

use crate::client::{channel, decode, within};
use crate::workload::Shared;
use bytes::Bytes;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::mvccpb;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;

/// A change of one key, as told by a watch or found in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: u64,
    pub key: String,
    /// None: it was deleted.
    pub pair: Option<Pair>,
    /// The value before, where the watch asked for it.
    pub before: Option<Option<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub value: u64,
    pub create: u64,
    pub version: i64,
    pub lease: i64,
}

pub fn pair(kv: &mvccpb::KeyValue) -> Pair {
    Pair { value: decode(&kv.value), create: kv.create_revision as u64, version: kv.version, lease: kv.lease }
}

/// What a watcher looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The first key; all from there on to the end.
    pub from: &'static str,
    pub before: bool,
}

/// What a watcher was told, in the order in which it was, each with its time.
#[derive(Default)]
pub struct Told {
    pub changes: Vec<(u64, Change)>,
    pub streams: usize,
    /// Broken promises that are seen at once.
    pub wrong: Option<String>,
}

/// The watcher with this number, until it has been told the last change of the run.
pub async fn watch(shared: Arc<Shared>, number: usize, scope: Scope, homes: Vec<Ipv4Addr>, seed: u64) -> Told {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut told = Told::default();
    // The first change of all has revision 2.
    let mut last = 1;
    let mut tries_at_the_end = 20;
    while last < shared.goal.load(Ordering::Acquire) && told.wrong.is_none() && tries_at_the_end > 0 {
        let home = homes[rng.random_range(0..homes.len())];
        let mut broken_after = Duration::from_millis(rng.random_range(200..4000));
        if shared.goal.load(Ordering::Acquire) != u64::MAX {
            broken_after = Duration::from_secs(10);
            tries_at_the_end -= 1;
        }
        told.streams += 1;
        let stream = follow(&shared, number, scope, home, &mut told, &mut last);
        if tokio::time::timeout(broken_after, stream).await.is_ok() {
            // It ended by itself: the member is gone, or does not answer.
            tokio::time::sleep(Duration::from_millis(rng.random_range(10..60))).await;
        }
    }
    told
}

async fn follow(
    shared: &Shared,
    number: usize,
    scope: Scope,
    home: Ipv4Addr,
    told: &mut Told,
    last: &mut u64,
) -> Option<()> {
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: Bytes::from_static(scope.from.as_bytes()),
        range_end: Bytes::from_static(&[0]),
        start_revision: *last as i64 + 1,
        prev_kv: scope.before,
        ..Default::default()
    };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    requests.send(pb::WatchRequest { request_union: Some(create) }).await.ok()?;
    let mut client = pb::watch_client::WatchClient::new(channel(home).ok()?).max_decoding_message_size(256 << 20);
    let mut answers = within(Duration::from_secs(2), client.watch(ReceiverStream::new(stream))).await.ok()?;
    loop {
        let answer = answers.message().await.ok()??;
        if answer.compact_revision > 0 {
            let (wanted, compacted) = (*last + 1, answer.compact_revision);
            told.wrong = Some(format!("a watch from {wanted} on was told that history before {compacted} is gone"));
        }
        if answer.canceled {
            return None;
        }
        let now = shared.clock.now();
        for event in answer.events {
            let Some(kv) = &event.kv else { continue };
            let revision = kv.mod_revision as u64;
            let change = Change {
                revision,
                key: String::from_utf8_lossy(&kv.key).into_owned(),
                pair: (event.r#type() == mvccpb::event::EventType::Put).then(|| pair(kv)),
                before: scope.before.then(|| event.prev_kv.as_ref().map(|kv| decode(&kv.value))),
            };
            told.changes.push((now, change));
            *last = revision.max(*last);
        }
        shared.watched[number].store(*last, Ordering::Release);
        if *last >= shared.goal.load(Ordering::Acquire) {
            return Some(());
        }
    }
}
