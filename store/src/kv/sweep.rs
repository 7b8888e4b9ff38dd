//! Compaction, and the walk that snapshots take.
//!
//! Compaction itself is a number: what lies before it is unreadable from then on. The memory is given back by [`Kv::sweep`], some
//! revisions at a time, between batches. How far a replica has swept is its own affair and never shows in an answer.

use super::{Kv, is_tombstone};
use crate::error::Error;
use crate::types::*;
use bytes::Bytes;
use std::ops::Bound;
use std::sync::Arc;

impl Kv {
    /// Makes unreadable what only reads before `at` could see. Reads at `at` and later, and watches from `at + 1` on, still work.
    pub fn compact(&mut self, at: Revision) -> Result<(), Error> {
        if at > self.revision {
            return Err(Error::Future { asked: at, current: self.revision });
        }
        if at <= self.compacted {
            return Err(Error::Compacted { asked: at, oldest: self.compacted });
        }
        self.compacted = at;
        Ok(())
    }

    /// Drops what up to `revisions` compacted revisions left behind; whether there is more to drop now.
    pub fn sweep(&mut self, revisions: usize) -> bool {
        if self.pins > 0 {
            return false;
        }
        let mut dropped = 0;
        let mut last = 0;
        while let Some(change) = self.changes.front().filter(|change| change.revision() <= self.compacted) {
            if change.revision() != last {
                if dropped == revisions {
                    break;
                }
                (dropped, last) = (dropped + 1, change.revision());
            }
            // Only keys that changed since the last compaction can have something to drop.
            if let Some(change) = self.changes.pop_front() {
                self.sweep_key(&change.kv.key);
            }
        }
        if self.changes.capacity() > 4 * self.changes.len() + 1024 {
            self.changes.shrink_to(2 * self.changes.len());
        }
        !self.swept()
    }

    /// Whether nothing is left of what compaction made unreadable.
    pub fn swept(&self) -> bool {
        self.changes.front().is_none_or(|change| change.revision() > self.compacted)
    }

    fn sweep_key(&mut self, key: &Bytes) {
        let Some(history) = self.keys.get_mut(key) else { return };
        // The newest version at or before the compaction stays, unless it is a deletion.
        let keep_from = match history.iter().rposition(|kv| kv.mod_revision <= self.compacted) {
            Some(i) if is_tombstone(&history[i]) => i + 1,
            Some(i) => i + bug!("compaction_drops_live_version") as usize,
            None => 0,
        };
        let keep_from = keep_from.min(history.len());
        self.size -= history[..keep_from].iter().map(|kv| kv.key.len() + kv.value.len()).sum::<usize>();
        history.drop_oldest(keep_from);
        if history.is_empty() {
            self.keys.remove(key);
        }
    }

    /// Keeps every version until as many [`Kv::unpin`]: a snapshot is being written.
    pub fn pin(&mut self) {
        self.pins += 1;
    }

    /// Ends a [`Kv::pin`].
    pub fn unpin(&mut self) {
        self.pins = self.pins.saturating_sub(1);
    }

    /// Up to `max` keys after `after`, with all their versions up to `at`: how a snapshot walks the map without stopping it.
    pub fn chunk_after(&self, after: Option<&Bytes>, max: usize, at: Revision) -> (Vec<Arc<KeyValue>>, Option<Bytes>) {
        let from = after.map_or(Bound::Unbounded, |k| Bound::Excluded(k.clone()));
        let mut pairs = Vec::new();
        let mut last = None;
        for (key, history) in self.keys.range((from, Bound::Unbounded)).take(max) {
            pairs.extend(history.iter().take_while(|kv| kv.mod_revision <= at).cloned());
            last = Some(key.clone());
        }
        (pairs, last)
    }
}

/// A digest of what is readable at the revisions from `compacted` to `at`: equal on replicas that agree, however far each has
/// swept. Feed it every version in the order of [`Kv::chunk_after`].
pub struct Hasher {
    hasher: crc32fast::Hasher,
    compacted: Revision,
    at: Revision,
    /// The newest version at or before the compaction of the key at hand.
    kept: Option<Arc<KeyValue>>,
}

impl Hasher {
    pub fn new(compacted: Revision, at: Revision) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&compacted.to_be_bytes());
        Hasher { hasher, compacted, at, kept: None }
    }

    pub fn feed(&mut self, kv: &Arc<KeyValue>) {
        if self.kept.as_ref().is_some_and(|k| k.key != kv.key) {
            self.flush();
        }
        if kv.mod_revision <= self.compacted {
            self.kept = Some(kv.clone());
        } else if kv.mod_revision <= self.at {
            self.flush();
            digest(&mut self.hasher, kv);
        }
    }

    fn flush(&mut self) {
        if let Some(kv) = self.kept.take().filter(|kv| !is_tombstone(kv)) {
            digest(&mut self.hasher, &kv);
        }
    }

    pub fn finish(mut self) -> u32 {
        self.flush();
        self.hasher.finalize()
    }
}

fn digest(hasher: &mut crc32fast::Hasher, kv: &KeyValue) {
    hasher.update(&(kv.key.len() as u32).to_be_bytes());
    hasher.update(&kv.key);
    for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease as u64] {
        hasher.update(&number.to_be_bytes());
    }
    hasher.update(&kv.value);
}
