//! The catalogue: which name stands for which image, a key each in the replicated store.
//!
//! The keys lie outside of the Kubernetes objects: images are the cluster's own, no API kind holds them.

use prost::Message as _;
use skiff_fleet::UpstreamError;
use skiff_proto::fleet as pb;
use skiff_store::{KeyRange, Op, OpResponse, RangeRequest, Store, Txn};

/// Before every name.
pub const PREFIX: &str = "/skiff/images/";

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn unavailable(error: impl std::fmt::Display) -> UpstreamError {
    UpstreamError::Unavailable(format!("the catalogue of images cannot be reached: {error}"))
}

/// Enters names, or points them at another image.
pub async fn put(store: &Store, records: &[pb::ImageRecord]) -> Result<(), UpstreamError> {
    // A transaction each: an archive may hold more names than one transaction may have operations.
    for record in records {
        let put = Op::put(key(&record.reference), record.encode_to_vec());
        store.txn(Txn { success: vec![put], ..Default::default() }).await.map_err(unavailable)?;
    }
    Ok(())
}

/// Every name, in order.
pub async fn all(store: &Store) -> Result<Vec<pb::ImageRecord>, UpstreamError> {
    let request = RangeRequest { range: KeyRange::prefix(PREFIX), ..Default::default() };
    let found = store.range(request).await.map_err(unavailable)?;
    Ok(found.kvs.iter().filter_map(|kv| pb::ImageRecord::decode(kv.value.clone()).ok()).collect())
}

/// Takes a name out; what it stood for, if it was there.
pub async fn remove(store: &Store, name: &str) -> Result<Option<pb::ImageRecord>, UpstreamError> {
    let txn = Txn { success: vec![Op::delete(key(name))], ..Default::default() };
    let answer = store.txn(txn).await.map_err(unavailable)?;
    let Some(OpResponse::Delete { prev, .. }) = answer.responses.into_iter().next() else { return Ok(None) };
    Ok(prev.first().and_then(|kv| pb::ImageRecord::decode(kv.value.clone()).ok()))
}
