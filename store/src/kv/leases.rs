//! Leases as the log knows them: their granted time and the keys that hang on them.
//!
//! A lease ends by a command only, never by itself: the leader counts its time (see `lessor`) and proposes its end.

use super::Kv;
use crate::error::Error;
use crate::types::*;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Leases {
    all: BTreeMap<LeaseId, Entry>,
}

struct Entry {
    ttl_s: i64,
    keys: BTreeSet<Box<[u8]>>,
}

impl Leases {
    pub fn restore(&mut self, lease: Lease) {
        self.all.insert(lease.id, Entry { ttl_s: lease.ttl_s, keys: BTreeSet::new() });
    }

    pub fn holds(&self, id: LeaseId) -> bool {
        self.all.contains_key(&id)
    }

    pub fn attach(&mut self, id: LeaseId, key: &[u8]) {
        if id != 0
            && let Some(lease) = self.all.get_mut(&id)
        {
            lease.keys.insert(key.into());
        }
    }

    pub fn detach(&mut self, id: LeaseId, key: &[u8]) {
        if id != 0
            && let Some(lease) = self.all.get_mut(&id)
        {
            lease.keys.remove(key);
        }
    }
}

impl Kv {
    pub fn grant(&mut self, lease: Lease) -> Result<(), Error> {
        if self.leases.holds(lease.id) {
            return Err(Error::LeaseExists(lease.id));
        }
        self.leases.restore(lease);
        Ok(())
    }

    /// Ends a lease. Its keys go at one revision, in order.
    pub fn revoke(&mut self, id: LeaseId) -> Result<Vec<Arc<Event>>, Error> {
        let Some(lease) = self.leases.all.remove(&id) else { return Err(Error::LeaseNotFound(id)) };
        let mut events = Vec::new();
        let next = self.revision() + 1;
        for key in lease.keys.into_iter().skip(bug!("lease_end_leaves_a_key") as usize) {
            self.delete(&KeyRange::key(key), next, &mut events);
        }
        self.note(&events);
        Ok(events)
    }

    pub fn leases(&self) -> impl Iterator<Item = Lease> + '_ {
        self.leases.all.iter().map(|(id, lease)| Lease { id: *id, ttl_s: lease.ttl_s })
    }

    /// The keys that hang on a lease, in order.
    pub fn lease_keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.leases
            .all
            .get(&id)
            .map(|lease| lease.keys.iter().map(|key| Bytes::copy_from_slice(key)).collect())
            .unwrap_or_default()
    }
}
