//! What has changed, in order: what a watch of the past begins with.

use super::Kv;
use super::blocks::At;
use super::record::Record;
use crate::types::*;
use std::sync::Arc;

/// One change of one key, where it lies.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    kv: &'a Kv,
    at: At,
    record: Record<'a>,
}

impl Change<'_> {
    pub fn key(&self) -> &[u8] {
        self.record.key
    }

    pub fn revision(&self) -> Revision {
        self.record.mod_revision
    }

    /// What watchers are told of it.
    pub fn event(&self) -> Arc<Event> {
        let kind = if self.record.is_tombstone() { EventKind::Delete } else { EventKind::Put };
        Arc::new(Event { kind, kv: self.kv.pair(self.at, self.record), prev: self.before() })
    }

    /// The version before it, if the key was there. Compaction keeps that one for as long as it keeps the change.
    fn before(&self) -> Option<Arc<KeyValue>> {
        let versions = self.kv.index.get(&self.kv.blocks, self.record.key);
        let place = versions.iter().rposition(|at| *at == self.at)?;
        let (at, record) = self.kv.blocks.newest(&versions[..place])?;
        Some(self.kv.pair(at, record))
    }
}

impl Kv {
    /// The changes from `start` on; None if some of them are compacted.
    pub fn changes_from(&self, start: Revision) -> Option<impl Iterator<Item = Change<'_>>> {
        if start <= self.compacted && start != 0 {
            return None;
        }
        let changes = self.blocks.history_from(start.max(self.compacted + 1));
        Some(changes.map(|(at, record)| Change { kv: self, at, record }))
    }
}
