//! The state machine: a multi-versioned map from keys to values, the history of its changes, and the leases that keys hang on.
//!
//! It is deterministic and has no clock: what it does depends on the commands alone, in the order of the log. Every replica that has
//! applied the same entries answers the same. Old versions stay readable until compaction; the events of the same span stay too, so
//! that a watch can begin in the past. What compaction made unreadable is swept away a little at a time (`sweep`), because
//! all at once it would hold up everyone.

mod history;
mod leases;
mod read;
pub mod sweep;
#[cfg(test)]
mod tests;
mod txn;

use crate::types::*;
use bytes::Bytes;
pub use history::Change;
use history::History;
use leases::Leases;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The map and its history.
#[derive(Default)]
pub struct Kv {
    keys: BTreeMap<Bytes, History>,
    /// The changes of every revision after the last that was swept, in order.
    changes: VecDeque<Change>,
    revision: Revision,
    compacted: Revision,
    /// Keys and values of all versions, in bytes.
    size: usize,
    /// Of that, what the newest revision reads.
    live: usize,
    /// Snapshots that are being written: versions stay meanwhile that compaction would drop.
    pins: usize,
    leases: Leases,
}

fn is_tombstone(kv: &KeyValue) -> bool {
    kv.version == 0
}

impl Kv {
    /// An empty store begins at revision 1, as etcd's does.
    pub fn new() -> Self {
        Kv { revision: 1, ..Default::default() }
    }

    /// A store rebuilt from a snapshot's pairs (all versions, in order of key and revision) and its leases.
    pub fn restore(
        revision: Revision,
        compacted: Revision,
        leases: impl Iterator<Item = Lease>,
        pairs: impl Iterator<Item = KeyValue>,
    ) -> Self {
        let mut kv = Kv { revision, compacted, ..Default::default() };
        leases.for_each(|lease| kv.leases.restore(lease));
        let mut changes = Vec::new();
        let mut keys: Vec<(Bytes, History)> = Vec::new();
        let mut pairs = pairs.peekable();
        while let Some(pair) = pairs.next() {
            let pair = Arc::new(pair);
            kv.size += pair.key.len() + pair.value.len();
            if keys.last().is_none_or(|(key, _)| *key != pair.key) {
                keys.push((pair.key.clone(), History::default()));
            }
            let Some((_, history)) = keys.last_mut() else { break };
            if pair.mod_revision > compacted {
                let prev = history.last().filter(|p| !is_tombstone(p)).cloned();
                changes.push(Change { kv: pair.clone(), prev });
            }
            let newest = pairs.peek().is_none_or(|next| next.key != pair.key);
            if newest && !is_tombstone(&pair) {
                kv.leases.attach(pair.lease, &pair.key);
                kv.live += pair.key.len() + pair.value.len();
            }
            history.push(pair);
        }
        // In order of key until now; within a revision that order stays.
        changes.sort_by_key(Change::revision);
        kv.changes = changes.into();
        // Built whole from what is in order already, which is much faster than one key after the other.
        kv.keys = keys.into_iter().collect();
        kv
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Keys and values of all versions, in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Of [`Kv::size`], what only older revisions read: what compaction can give back.
    pub fn history_size(&self) -> usize {
        self.size.saturating_sub(self.live)
    }

    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// The newest version of a key, unless it is deleted.
    fn latest(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.keys.get(key).and_then(|h| h.last()).filter(|kv| !is_tombstone(kv))
    }

    fn put(&mut self, put: &Put, revision: Revision, events: &mut Vec<Arc<Event>>) -> Option<Arc<KeyValue>> {
        let (history, key) = match self.keys.get_mut(&put.key[..]) {
            // A key keeps the bytes that it was first stored with: versions share them.
            Some(history) => {
                let key = history.last().map(|kv| kv.key.clone());
                (history, key.unwrap_or_else(|| Bytes::copy_from_slice(&put.key)))
            }
            // The bytes of a request lie in a buffer of the network or the log; the map has its own, or it would keep those.
            None => {
                let key = Bytes::copy_from_slice(&put.key);
                (self.keys.entry(key.clone()).or_default(), key)
            }
        };
        let prev = history.last().filter(|kv| !is_tombstone(kv)).cloned();
        let kv = Arc::new(KeyValue {
            key,
            value: match &prev {
                Some(p) if put.ignore_value => p.value.clone(),
                _ => Bytes::copy_from_slice(&put.value),
            },
            create_revision: prev.as_ref().map_or(revision, |p| p.create_revision),
            mod_revision: revision,
            version: prev.as_ref().map_or(1, |p| p.version + 1),
            lease: match &prev {
                Some(p) if put.ignore_lease => p.lease,
                _ => put.lease,
            },
        });
        let bytes = |kv: &KeyValue| kv.key.len() + kv.value.len();
        self.size += bytes(&kv);
        self.live += bytes(&kv);
        self.live -= prev.as_ref().map_or(0, |p| bytes(p));
        history.push(kv.clone());
        let before = prev.as_ref().map_or(0, |p| p.lease);
        if before != kv.lease {
            self.leases.detach(before, &kv.key);
            self.leases.attach(kv.lease, &kv.key);
        }
        events.push(Arc::new(Event { kind: EventKind::Put, kv, prev: prev.clone() }));
        prev
    }

    fn delete(&mut self, range: &KeyRange, revision: Revision, events: &mut Vec<Arc<Event>>) -> Vec<Arc<KeyValue>> {
        let gone: Vec<_> = self.read(range, Revision::MAX).cloned().collect();
        for kv in &gone {
            let tombstone = Arc::new(KeyValue {
                key: kv.key.clone(),
                value: Bytes::new(),
                create_revision: 0,
                mod_revision: revision,
                version: 0,
                lease: 0,
            });
            self.size += kv.key.len();
            self.live -= kv.key.len() + kv.value.len();
            self.leases.detach(kv.lease, &kv.key);
            if let Some(history) = self.keys.get_mut(&kv.key).filter(|_| !bug!("delete_without_tombstone")) {
                history.push(tombstone.clone());
            }
            events.push(Arc::new(Event { kind: EventKind::Delete, kv: tombstone, prev: Some(kv.clone()) }));
        }
        gone
    }

    /// Closes a change: it has a revision of its own if it changed something.
    fn note(&mut self, events: &[Arc<Event>]) {
        if !events.is_empty() {
            self.revision += 1;
            self.changes.extend(events.iter().map(|event| Change::of(event)));
        }
    }

    /// The changes from `start` on; None if some of them are compacted.
    pub fn changes_from(&self, start: Revision) -> Option<impl Iterator<Item = &Change>> {
        if start <= self.compacted && start != 0 {
            return None;
        }
        let first = self.changes.partition_point(|change| change.revision() < start.max(self.compacted + 1));
        Some(self.changes.range(first..))
    }
}
