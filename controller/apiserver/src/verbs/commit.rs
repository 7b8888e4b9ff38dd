//! The last step of every write: one transaction that holds only if nothing changed since the object was read.

use crate::services::Claims;
use crate::state::{State, store_status};
use crate::storage::encode::Stored;
use bytes::Bytes;
use skiff_api::status::Status;
use skiff_store::{Compare, Op, Revision, Term, Txn};

/// How a write ended.
#[derive(Debug)]
pub enum Committed {
    Done(Stored),
    /// Somebody else was faster: read again.
    Raced,
}

/// Another object that changes with a write, if nobody else changed it meanwhile.
#[derive(Debug, Clone)]
pub struct Put {
    pub key: String,
    /// The revision at which it was read.
    pub expected: Revision,
    pub value: Bytes,
}

/// A write of one key with what belongs to it.
#[derive(Debug, Default)]
pub struct Write {
    pub key: String,
    /// The revision at which the object was read; 0 when it must not exist.
    pub expected: Revision,
    /// What to store; None deletes.
    pub value: Option<Bytes>,
    /// Addresses and ports taken and given back with this write.
    pub claims: Claims,
    /// Other keys that must not have changed: the namespace that the object is created in.
    pub guards: Vec<(String, Revision)>,
    /// Objects that change in the same moment: quotas that count this one.
    pub also: Vec<Put>,
    pub fence: Option<Term>,
}

pub async fn commit(state: &State, write: Write) -> Result<Committed, Status> {
    let mut compare = vec![Compare::mod_revision(write.key.clone().into_bytes(), write.expected)];
    compare
        .extend(write.guards.iter().map(|(key, revision)| Compare::mod_revision(key.clone().into_bytes(), *revision)));
    let mut success = Vec::with_capacity(1 + write.claims.take.len() + write.claims.release.len());
    match &write.value {
        Some(value) => success.push(Op::put(write.key.clone().into_bytes(), value.clone())),
        None => success.push(Op::delete(write.key.clone().into_bytes())),
    }
    for (key, owner) in &write.claims.take {
        compare.push(Compare::mod_revision(key.clone().into_bytes(), 0));
        success.push(Op::put(key.clone().into_bytes(), owner.clone().into_bytes()));
    }
    for put in &write.also {
        compare.push(Compare::mod_revision(put.key.clone().into_bytes(), put.expected));
        success.push(Op::put(put.key.clone().into_bytes(), put.value.clone()));
    }
    success.extend(write.claims.release.iter().map(|key| Op::delete(key.clone().into_bytes())));
    let txn = Txn { compare, success, failure: Vec::new(), fence: write.fence };
    let response = state.store.txn(txn).await.map_err(store_status)?;
    if !response.succeeded {
        return Ok(Committed::Raced);
    }
    Ok(Committed::Done(Stored { bytes: write.value.unwrap_or_default(), revision: response.revision }))
}
