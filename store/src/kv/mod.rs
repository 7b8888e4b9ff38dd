//! The state machine: a multi-versioned map from keys to values, the history of its changes, and the leases that keys hang on.
//!
//! It is deterministic and has no clock: what it does depends on the commands alone, in the order of the log. Every replica that has
//! applied the same entries answers the same. Old versions stay readable until compaction; the events of the same span stay too, so
//! that a watch can begin in the past. What compaction made unreadable is swept away a little at a time (`sweep`), because
//! all at once it would hold up everyone.

mod blocks;
#[cfg(test)]
mod footprint;
mod history;
mod index;
mod leases;
mod read;
mod record;
mod slab;
pub mod sweep;
#[cfg(test)]
mod tests;
mod txn;

use crate::types::*;
use blocks::{At, Blocks};
use index::Index;
use leases::Leases;
use record::Record;
use std::sync::Arc;

/// The map and its history.
#[derive(Default)]
pub struct Kv {
    /// Where each key's versions lie.
    index: Index,
    /// All versions, and the changes of every revision after the last that was swept.
    blocks: Blocks,
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
        let pairs: Vec<KeyValue> = pairs.collect();
        // A sweep finds what to drop by the changes before the compaction, which are not known any more.
        let unreadable = |of_key: &[KeyValue]| sweep::unreadable(of_key.iter().map(Record::of), compacted);
        let pairs = pairs.chunk_by(|a, b| a.key == b.key).flat_map(|of_key| &of_key[unreadable(of_key)..]);
        let pairs: Vec<&KeyValue> = pairs.collect();
        let places = kv.place(&pairs);
        let mut done = 0;
        for of_key in pairs.chunk_by(|a, b| a.key == b.key) {
            let Some(newest) = of_key.last().map(|pair| Record::of(pair)) else { continue };
            kv.size += of_key.iter().map(|pair| Record::of(pair).size()).sum::<usize>();
            if !newest.is_tombstone() {
                kv.leases.attach(newest.lease, newest.key);
                kv.live += newest.size();
            }
            kv.index.append(newest.key, &places[done..done + of_key.len()]);
            done += of_key.len();
        }
        kv
    }

    /// Takes versions into memory: what a watch can still ask for in order of revision, the rest as it comes.
    fn place(&mut self, pairs: &[&KeyValue]) -> Vec<At> {
        let mut places: Vec<_> = pairs.iter().map(|_| At::default()).collect();
        let mut changes = Vec::new();
        for (pair, place) in pairs.iter().zip(&mut places) {
            match pair.mod_revision > self.compacted {
                true => changes.push((pair, place)),
                false => *place = self.blocks.settle(&Record::of(pair)),
            }
        }
        // In order of key until now; within a revision that order stays.
        changes.sort_by_key(|(pair, _)| pair.mod_revision);
        for (pair, place) in changes {
            *place = self.blocks.push(&Record::of(pair));
        }
        places
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
        self.index.len()
    }

    /// Whether a key is there now.
    fn has(&self, key: &[u8]) -> bool {
        self.blocks.newest(self.index.get(&self.blocks, key)).is_some()
    }

    /// A version as its readers get it.
    fn pair(&self, at: At, record: Record<'_>) -> Arc<KeyValue> {
        Arc::new(self.blocks.pair(at, record))
    }

    fn put(&mut self, put: &Put, revision: Revision, events: &mut Vec<Arc<Event>>) -> Option<Arc<KeyValue>> {
        let (mut prev, mut at) = (None, At::default());
        self.index.push(&mut self.blocks, &put.key, |blocks, versions| {
            prev = blocks.newest(versions).map(|(at, record)| Arc::new(blocks.pair(at, record)));
            at = blocks.push(&version(put, prev.as_deref(), revision));
            at
        });
        let record = self.blocks.get(at);
        self.size += record.size();
        self.live += record.size();
        self.live -= prev.as_ref().map_or(0, |p| Record::of(p).size());
        let before = prev.as_ref().map_or(0, |p| p.lease);
        if before != record.lease {
            self.leases.detach(before, record.key);
            self.leases.attach(record.lease, record.key);
        }
        // The bytes of a request lie in a buffer of the network or the log; a watcher has its own, or it would keep those.
        let kv = Arc::new(record.to_pair());
        events.push(Arc::new(Event { kind: EventKind::Put, kv, prev: prev.clone() }));
        prev
    }

    fn delete(&mut self, range: &KeyRange, revision: Revision, events: &mut Vec<Arc<Event>>) -> Vec<Arc<KeyValue>> {
        let gone: Vec<_> = self.read(range, Revision::MAX).map(|(at, record)| self.pair(at, record)).collect();
        for kv in &gone {
            let tombstone = Record::tombstone(&kv.key, revision);
            self.size += kv.key.len();
            self.live -= kv.key.len() + kv.value.len();
            self.leases.detach(kv.lease, &kv.key);
            if bug!("delete_without_tombstone") {
                self.blocks.push(&tombstone);
            } else {
                self.index.push(&mut self.blocks, &kv.key, |blocks, _| blocks.push(&tombstone));
            }
            let tombstone = Arc::new(tombstone.to_pair());
            events.push(Arc::new(Event { kind: EventKind::Delete, kv: tombstone, prev: Some(kv.clone()) }));
        }
        gone
    }

    /// Closes a change: it has a revision of its own if it changed something.
    fn note(&mut self, events: &[Arc<Event>]) {
        if !events.is_empty() {
            self.revision += 1;
        }
    }
}

/// What a put makes of a key that had the value `prev`, or none.
fn version<'a>(put: &'a Put, prev: Option<&'a KeyValue>, revision: Revision) -> Record<'a> {
    Record {
        key: &put.key,
        value: prev.filter(|_| put.ignore_value).map_or(&put.value[..], |p| &p.value[..]),
        create_revision: prev.map_or(revision, |p| p.create_revision),
        mod_revision: revision,
        version: prev.map_or(1, |p| p.version + 1),
        lease: prev.filter(|_| put.ignore_lease).map_or(put.lease, |p| p.lease),
    }
}
