//! The calls that clients make, with a limit on the time of each.

use crate::cluster::CLIENT_PORT;
use crate::history::{BOTH, Done, Kind};
use crate::linear::State;
use anyhow::Context as _;
use bytes::Bytes;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::kv_client::KvClient;
use skiff_proto::etcd::mvccpb;
use std::net::Ipv4Addr;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// A client that was not answered by then does not know what happened.
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// A connection to a member, made when it is used.
pub fn channel(address: Ipv4Addr) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}:{CLIENT_PORT}"))?;
    Ok(endpoint.connect_timeout(Duration::from_secs(1)).tcp_nodelay(true).connect_lazy())
}

/// The answer, or a status that says it did not come in time.
pub async fn within<T>(
    max: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(max, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

/// Whether an error says that nothing was done and nothing will be.
pub fn is_refusal(status: &Status) -> bool {
    let told = status.message();
    (status.code() == Code::ResourceExhausted && told.starts_with("etcdserver: mvcc: database space exceeded"))
        || (status.code() == Code::Unavailable && told == "etcdserver: no leader")
        || never_sent(status)
}

/// Whether nobody was there to be asked.
pub fn never_sent(status: &Status) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(status);
    while let Some(error) = cause {
        // What hyper and tonic say of a connection that could not be made has no type of its own that could be asked for.
        if error.to_string().contains("tcp connect error") {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A value's number, and bytes that make it large.
pub fn encode(value: u64, padding: usize) -> Bytes {
    let mut text = format!("{value}:").into_bytes();
    text.resize(text.len() + padding, b'.');
    text.into()
}

pub fn decode(value: &[u8]) -> u64 {
    let digits = value.split(|b| *b == b':').next().unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).unwrap_or(u64::MAX)
}

fn found(kv: Option<&mvccpb::KeyValue>) -> Option<(u64, u64)> {
    kv.map(|kv| (decode(&kv.value), kv.mod_revision as u64))
}

pub fn revision(header: Option<pb::ResponseHeader>) -> u64 {
    header.map_or(0, |h| h.revision as u64)
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

/// What a client knows when it swaps: the value that it expects, and in which revision that was written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    pub value: State,
    pub mod_revision: u64,
}

/// Carries out one operation.
pub async fn perform(
    kv: &mut KvClient<Channel>,
    key: &str,
    kind: Kind,
    expected: Expected,
    padding: usize,
    ask_before: bool,
) -> Result<Done, Status> {
    let bytes = |key: &str| Bytes::copy_from_slice(key.as_bytes());
    match kind {
        Kind::Get { serializable } => {
            let request = pb::RangeRequest { key: bytes(key), serializable, ..Default::default() };
            let answer = within(PATIENCE, kv.range(request)).await?;
            Ok(Done { revision: revision(answer.header), found: vec![found(answer.kvs.first())], ..Default::default() })
        }
        Kind::GetBoth { serializable } => {
            let request =
                pb::RangeRequest { key: bytes("p/"), range_end: bytes("p0"), serializable, ..Default::default() };
            let answer = within(PATIENCE, kv.range(request)).await?;
            let of = |key: &str| found(answer.kvs.iter().find(|kv| kv.key == key.as_bytes()));
            Ok(Done { revision: revision(answer.header), found: BOTH.map(of).to_vec(), ..Default::default() })
        }
        Kind::Put { value } => {
            let request = pb::PutRequest {
                key: bytes(key),
                value: encode(value, padding),
                prev_kv: ask_before,
                ..Default::default()
            };
            let answer = within(PATIENCE, kv.put(request)).await?;
            let before = ask_before.then(|| answer.prev_kv.map(|kv| decode(&kv.value)));
            Ok(Done { revision: revision(answer.header), before, changed: true, ..Default::default() })
        }
        Kind::Delete => {
            let request = pb::DeleteRangeRequest { key: bytes(key), prev_kv: true, ..Default::default() };
            let answer = within(PATIENCE, kv.delete_range(request)).await?;
            let before = answer.prev_kvs.first().map(|kv| decode(&kv.value));
            let changed = answer.deleted > 0;
            Ok(Done { revision: revision(answer.header), before: Some(before), changed, ..Default::default() })
        }
        Kind::Swap { value, .. } => {
            let compare = pb::Compare {
                result: pb::compare::CompareResult::Equal as i32,
                target: pb::compare::CompareTarget::Mod as i32,
                key: bytes(key),
                target_union: Some(pb::compare::TargetUnion::ModRevision(expected.mod_revision as i64)),
                ..Default::default()
            };
            let put = pb::PutRequest { key: bytes(key), value: encode(value, padding), ..Default::default() };
            let get = pb::RangeRequest { key: bytes(key), ..Default::default() };
            let request = pb::TxnRequest {
                compare: vec![compare],
                success: vec![op(pb::request_op::Request::RequestPut(put))],
                failure: vec![op(pb::request_op::Request::RequestRange(get))],
            };
            let answer = within(PATIENCE, kv.txn(request)).await?;
            let range = answer.responses.first().and_then(|r| match &r.response {
                Some(pb::response_op::Response::ResponseRange(range)) => Some(found(range.kvs.first())),
                _ => None,
            });
            let (revision, changed) = (revision(answer.header), answer.succeeded);
            Ok(Done { revision, found: range.into_iter().collect(), before: None, changed })
        }
        Kind::PutBoth { value } => {
            let put =
                |key: &str| pb::PutRequest { key: bytes(key), value: encode(value, padding), ..Default::default() };
            let success = BOTH.iter().map(|key| op(pb::request_op::Request::RequestPut(put(key)))).collect();
            let answer = within(PATIENCE, kv.txn(pb::TxnRequest { success, ..Default::default() })).await?;
            Ok(Done { revision: revision(answer.header), changed: true, ..Default::default() })
        }
    }
}

/// One put, for scenarios that only want to know whether it was acknowledged.
pub async fn put(channel: &Channel, key: &str, value: u64, max: Duration) -> Result<u64, Status> {
    let request = pb::PutRequest { key: key.to_owned().into(), value: encode(value, 16), ..Default::default() };
    within(max, KvClient::new(channel.clone()).put(request)).await.map(|answer| revision(answer.header))
}

/// One read of a key: (value, revision of the answer).
pub async fn get(channel: &Channel, key: &str, serializable: bool, max: Duration) -> Result<(State, u64), Status> {
    let request = pb::RangeRequest { key: key.to_owned().into(), serializable, ..Default::default() };
    let answer = within(max, KvClient::new(channel.clone()).range(request)).await?;
    Ok((answer.kvs.first().map(|kv| decode(&kv.value)), revision(answer.header)))
}

/// What a member says of itself.
pub async fn status(channel: &Channel) -> anyhow::Result<pb::StatusResponse> {
    let mut client = pb::maintenance_client::MaintenanceClient::new(channel.clone());
    within(PATIENCE, client.status(pb::StatusRequest {})).await.context("asking for a member's status")
}
