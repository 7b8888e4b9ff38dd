//! A queue of keys under a name, in the order of their creation: whoever's key is the oldest has the lock, or the office.
//!
//! Each key hangs on its owner's lease, so that an owner that dies leaves the queue. Whoever waits watches only the key before its
//! own. This is the protocol of etcd's clients, so locks taken by the service and by clients exclude each other.

use crate::api::Api;
use crate::error;
use bytes::Bytes;
use skiff_store::*;
use tonic::Status;

/// Seconds that a lock without a lease of its caller's lives.
const OWN_LEASE_S: i64 = 60;

/// A place in a queue.
pub struct Place {
    pub key: Bytes,
    /// The revision that created the key.
    pub revision: Revision,
    pub lease: LeaseId,
}

pub fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

fn created(key: &Bytes, revision: Revision) -> Compare {
    let range = KeyRange::key(key.clone());
    Compare { range, op: CompareOp::Equal, target: CompareTarget::CreateRevision(revision) }
}

impl Api {
    /// Queues up under a name, or finds the place that this lease has there already. The value is written in both cases.
    pub(crate) async fn queue_up(&self, name: &[u8], lease: LeaseId, value: Bytes) -> Result<Place, Status> {
        if name.is_empty() {
            return Err(error::empty_key());
        }
        let lease = match lease {
            0 => self.store.grant_lease(0, OWN_LEASE_S).await.map_err(error::status)?.id,
            lease => lease,
        };
        let key: Bytes = [&prefix(name)[..], format!("{lease:x}").as_bytes()].concat().into();
        let txn = Txn {
            compare: vec![created(&key, 0)],
            success: vec![Op::Put(Put { key: key.clone(), value: value.clone(), lease, ..Default::default() })],
            failure: vec![Op::get(key.clone())],
            fence: None,
        };
        let done = self.store.txn(txn).await.map_err(error::status)?;
        let revision = match done.responses.first() {
            Some(OpResponse::Range(found)) => match found.kvs.first() {
                Some(kv) => {
                    if kv.value != value {
                        self.proclaim_at(&key, kv.create_revision, value).await?;
                    }
                    kv.create_revision
                }
                None => done.revision,
            },
            _ => done.revision,
        };
        Ok(Place { key, revision, lease })
    }

    /// Waits until the place is the first. An error if it is lost meanwhile.
    pub(crate) async fn wait_for_turn(&self, name: &[u8], place: &Place) -> Result<(), Status> {
        loop {
            let before = RangeRequest {
                range: KeyRange::prefix(prefix(name)),
                limit: 1,
                sort: SortTarget::CreateRevision,
                descending: true,
                bounds: Bounds { max_create: place.revision - 1, ..Default::default() },
                ..Default::default()
            };
            let found = self.store.range(before).await.map_err(error::status)?;
            let Some(last) = found.kvs.first() else { break };
            self.wait_for_deletion(&last.key, found.revision).await?;
        }
        let own = RangeRequest { range: KeyRange::key(place.key.clone()), ..Default::default() };
        let own = self.store.range(own).await.map_err(error::status)?;
        match own.kvs.first() {
            Some(kv) if kv.create_revision == place.revision => Ok(()),
            _ => Err(Status::failed_precondition(
                "etcdserver: the lease of this place in the queue ended while it waited",
            )),
        }
    }

    async fn wait_for_deletion(&self, key: &Bytes, seen_at: Revision) -> Result<(), Status> {
        let request = WatchRequest { range: KeyRange::key(key.clone()), start_revision: seen_at + 1 };
        // A watch that cannot begin or go on is no reason to fail: the queue is looked at again.
        let Ok(mut watch) = self.store.watch(request).await else { return Ok(()) };
        loop {
            match watch.next().await {
                Ok(batch) if batch.events.iter().any(|e| e.kind == EventKind::Delete) => return Ok(()),
                Ok(_) => {}
                Err(WatchError::Stopped) => return Err(error::stopped()),
                Err(_) => return Ok(()),
            }
        }
    }

    /// Writes a value into a place that is still the same; false if it is not.
    pub(crate) async fn proclaim_at(&self, key: &Bytes, revision: Revision, value: Bytes) -> Result<bool, Status> {
        let found = self.store.range(RangeRequest { range: KeyRange::key(key.clone()), ..Default::default() }).await;
        let lease = found.map_err(error::status)?.kvs.first().map_or(0, |kv| kv.lease);
        let put = Put { key: key.clone(), value, lease, ..Default::default() };
        let txn = Txn { compare: vec![created(key, revision)], success: vec![Op::Put(put)], ..Default::default() };
        Ok(self.store.txn(txn).await.map_err(error::status)?.succeeded)
    }

    /// Gives a place up, if it is still the same; the revision afterwards.
    pub(crate) async fn leave(&self, key: &Bytes, revision: Revision) -> Result<Revision, Status> {
        let txn =
            Txn { compare: vec![created(key, revision)], success: vec![Op::delete(key.clone())], ..Default::default() };
        Ok(self.store.txn(txn).await.map_err(error::status)?.revision)
    }

    /// The oldest place under a name.
    pub(crate) async fn first(&self, name: &[u8]) -> Result<(Option<KeyValue>, Revision), Status> {
        let request = RangeRequest {
            range: KeyRange::prefix(prefix(name)),
            limit: 1,
            sort: SortTarget::CreateRevision,
            ..Default::default()
        };
        let found = self.store.range(request).await.map_err(error::status)?;
        Ok((found.kvs.first().cloned(), found.revision))
    }
}

/// Gives the place up when the caller goes away while it waits.
pub struct Waiting {
    api: Api,
    place: Option<(Bytes, Revision)>,
}

impl Waiting {
    pub fn new(api: &Api, place: &Place) -> Self {
        Waiting { api: api.clone(), place: Some((place.key.clone(), place.revision)) }
    }

    /// The turn has come: the place is the caller's to give up.
    pub fn done(mut self) {
        self.place = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let (Some((key, revision)), Ok(runtime)) = (self.place.take(), tokio::runtime::Handle::try_current()) {
            let api = self.api.clone();
            runtime.spawn(async move { api.leave(&key, revision).await });
        }
    }
}
