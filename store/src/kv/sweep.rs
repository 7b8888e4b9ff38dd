//! Compaction, and the walk that snapshots take.
//!
//! Compaction itself is a number: what lies before it is unreadable from then on. The memory is given back by [`Kv::sweep`], some
//! revisions at a time, between batches. How far a replica has swept is its own affair and never shows in an answer.

use super::Kv;
use super::record::Record;
use crate::error::Error;
use crate::types::*;
use bytes::Bytes;
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
        let (mut dropped, mut last) = (0, 0);
        let mut key = Vec::new();
        while let Some((_, change)) = self.blocks.oldest().filter(|(_, change)| change.mod_revision <= self.compacted) {
            if change.mod_revision != last {
                if dropped == revisions {
                    return true;
                }
                (dropped, last) = (dropped + 1, change.mod_revision);
            }
            key.clear();
            key.extend_from_slice(change.key);
            self.blocks.pass();
            // Only keys that changed since the last compaction can have something to drop.
            self.sweep_key(&key);
        }
        if dropped == 0 {
            self.clean();
        }
        !self.swept()
    }

    /// Whether nothing is left of what compaction made unreadable.
    pub fn swept(&self) -> bool {
        self.blocks.is_clean() && self.blocks.oldest().is_none_or(|(_, change)| change.mod_revision > self.compacted)
    }

    fn sweep_key(&mut self, key: &[u8]) {
        let blocks = &self.blocks;
        let gone = self
            .index
            .drop_oldest(blocks, key, |versions| unreadable(versions.iter().map(|at| blocks.get(*at)), self.compacted));
        for at in gone {
            self.size -= self.blocks.get(at).size();
            self.blocks.release(at);
        }
    }

    /// Moves what is left in one block of which little is left, and frees it.
    fn clean(&mut self) {
        for at in self.blocks.to_clean() {
            if bug!("cleaning_loses_a_version") && self.index.get(&self.blocks, self.blocks.key(at)).contains(&at) {
                self.index.drop_oldest(&self.blocks, self.blocks.key(at), <[_]>::len);
            }
            self.index.relocate(&mut self.blocks, at, |blocks| blocks.relocate(at));
        }
        self.blocks.cleaned();
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
        // The least key after another is that one and a zero.
        let from = after.map_or_else(Vec::new, |after| [&after[..], &[0]].concat());
        let mut pairs = Vec::new();
        let mut last = None;
        for versions in self.index.range(&self.blocks, &from, None).take(max) {
            let records = versions.iter().map(|at| (*at, self.blocks.get(*at)));
            pairs.extend(records.take_while(|(_, r)| r.mod_revision <= at).map(|(at, record)| self.pair(at, record)));
            last = versions.last();
        }
        (pairs, last.map(|at| Bytes::copy_from_slice(self.blocks.key(*at))))
    }
}

/// How many of a key's versions, oldest first, nothing reads any more: the newest at or before the compaction stays, unless it is a deletion.
pub(super) fn unreadable<'a, I>(versions: I, compacted: Revision) -> usize
where
    I: DoubleEndedIterator<Item = Record<'a>> + ExactSizeIterator,
{
    match versions.enumerate().rev().find(|(_, record)| record.mod_revision <= compacted) {
        Some((i, record)) if record.is_tombstone() => i + 1,
        Some((i, _)) => i + bug!("compaction_drops_live_version") as usize,
        None => 0,
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
        if let Some(kv) = self.kept.take().filter(|kv| kv.version != 0) {
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
