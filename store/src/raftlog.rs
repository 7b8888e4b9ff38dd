//! The part of the log that Raft reads while it runs: entries since the last snapshot, in memory.
//!
//! What is here is what Raft may read; whether it is on disk yet is the writer's business (see `replica`).

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot, SnapshotMetadata};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::cell::Cell;
use std::collections::VecDeque;

/// Entries after a snapshot, and the state beside them.
pub struct RaftLog {
    hard_state: HardState,
    /// The newest snapshot on disk: the log's beginning may be earlier, never later.
    snapshot: SnapshotMetadata,
    /// Index and term just before the first entry.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Somebody needs a snapshot newer than the one there is.
    snapshot_wanted: Cell<bool>,
}

/// Up to where the changes of membership in a log say that it is agreed on, or 0.
///
/// A leader proposes a change when it has applied the one before, so whoever holds a change knows that the earlier ones are agreed on. The
/// commit index need not have reached the disk; a member that forgot it would stand for election in a membership that is two changes old,
/// and a majority of that one need not meet a majority of today's (found by the simulation: two leaders in a term).
fn agreed_by_changes(entries: &VecDeque<Entry>) -> u64 {
    let changes = entries.iter().rev().filter(|e| e.get_entry_type() != EntryType::EntryNormal);
    changes.map(|e| e.index).nth(1).unwrap_or(0)
}

impl RaftLog {
    /// What a restarted member had: a snapshot's place and the entries behind it.
    pub fn new(snapshot: SnapshotMetadata, mut hard_state: HardState, entries: Vec<Entry>) -> Self {
        hard_state.term = hard_state.term.max(snapshot.term);
        hard_state.commit = hard_state.commit.max(snapshot.index);
        let base = (snapshot.index, snapshot.term);
        let entries: VecDeque<_> = entries.into_iter().filter(|e| e.index > base.0).collect();
        if !bug!("restart_forgets_agreed_changes") {
            hard_state.commit = hard_state.commit.max(agreed_by_changes(&entries));
        }
        let bytes = entries.iter().map(size).sum();
        RaftLog { hard_state, snapshot, base, entries, bytes, snapshot_wanted: Cell::new(false) }
    }

    pub fn append(&mut self, new: &[Entry]) {
        let Some(first) = new.first() else { return };
        while self.entries.back().is_some_and(|e| e.index >= first.index) {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
        }
        for entry in new.iter().filter(|e| e.index > self.base.0) {
            self.bytes += size(entry);
            self.entries.push_back(entry.clone());
        }
    }

    /// Term and vote as they were written last.
    pub fn promised(&self) -> (u64, u64) {
        (self.hard_state.term, self.hard_state.vote)
    }

    /// How many changes of membership are in the log after an index.
    #[cfg(feature = "simulation")]
    pub fn changes_after(&self, index: u64) -> usize {
        self.entries.iter().filter(|e| e.index > index && e.get_entry_type() != EntryType::EntryNormal).count()
    }

    #[cfg(feature = "simulation")]
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub fn set_hard_state(&mut self, hs: HardState) {
        self.hard_state = hs;
    }

    /// A snapshot from the leader takes the place of everything.
    pub fn install(&mut self, snapshot: SnapshotMetadata) {
        self.base = (snapshot.index, snapshot.term);
        self.hard_state.commit = self.hard_state.commit.max(snapshot.index);
        self.hard_state.term = self.hard_state.term.max(snapshot.term);
        self.snapshot = snapshot;
        self.entries.clear();
        self.bytes = 0;
    }

    /// A snapshot was written here. Entries up to `keep_from` go; the ones between it and the snapshot stay for followers that are a
    /// little behind.
    pub fn snapshot_taken(&mut self, snapshot: SnapshotMetadata, keep_from: u64) {
        if snapshot.index < self.snapshot.index {
            return;
        }
        while self.entries.front().is_some_and(|e| e.index <= keep_from.min(snapshot.index)) {
            if let Some(gone) = self.entries.pop_front() {
                self.bytes -= size(&gone);
                self.base = (gone.index, gone.term);
            }
        }
        self.snapshot = snapshot;
    }

    /// Forgets applied entries, oldest first, while there are more than `bytes_max` of them: the disk has them until a snapshot
    /// does, and a member that lacks them gets that snapshot.
    pub fn trim(&mut self, applied: u64, bytes_max: usize) {
        while self.bytes > bytes_max && self.entries.front().is_some_and(|e| e.index < applied) {
            if let Some(gone) = self.entries.pop_front() {
                self.bytes -= size(&gone);
                self.base = (gone.index, gone.term);
            }
        }
    }

    /// The index before the first entry here, and the terms of the entries.
    #[cfg(feature = "simulation")]
    pub fn terms(&self) -> (u64, Vec<u64>) {
        (self.base.0, self.entries.iter().map(|e| e.term).collect())
    }

    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.index
    }

    /// Whether the member ran before: it may have voted, or promised a leader not to. A group begins with a snapshot at index 1, and any
    /// later one is of a member that ran, though all of its log may be in it (found by the simulation: a vote beside a read lease).
    pub fn has_past(&self) -> bool {
        let has_log = !self.entries.is_empty() || self.snapshot.index > 1;
        has_log || self.hard_state.term > self.snapshot.term || self.hard_state.vote != raft::INVALID_ID
    }

    /// The disk's log may go up to here: what is behind it is in a snapshot, and no longer in memory.
    pub fn base_index(&self) -> u64 {
        self.base.0.min(self.snapshot.index)
    }

    /// Whether a newer snapshot was asked for since the last call.
    pub fn take_snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.take()
    }

    fn last(&self) -> (u64, u64) {
        self.entries.back().map_or(self.base, |e| (e.index, e.term))
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + std::mem::size_of::<Entry>()
}

impl Storage for RaftLog {
    fn initial_state(&self) -> Result<RaftState> {
        let conf_state = self.snapshot.conf_state.clone().unwrap_or_default();
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last().0 + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let first = (low - self.base.0 - 1) as usize;
        let count = (high - low) as usize;
        let mut left = max_size.into().unwrap_or(u64::MAX);
        let mut found = Vec::new();
        for entry in self.entries.iter().skip(first).take(count) {
            let size = size(entry) as u64;
            // At least one, so that an entry over the limit still goes out.
            if !found.is_empty() && size > left {
                break;
            }
            left = left.saturating_sub(size);
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index == self.snapshot.index {
            return Ok(self.snapshot.term);
        }
        if index < self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        match self.entries.get((index - self.base.0 - 1) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last().0)
    }

    /// The place of the newest snapshot on disk; its data travels beside Raft's messages (see `transport`).
    /// A member refuses one that does not list it, so a member that is new needs a snapshot taken after it was let in.
    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let lists = |c: &ConfState| c.voters.contains(&to) || c.learners.contains(&to);
        // One that ends before the kept entries begin would leave a hole.
        let joins = self.snapshot.index >= request_index.max(self.base.0);
        let fits = joins && self.snapshot.conf_state.as_ref().is_some_and(lists);
        if !fits {
            self.snapshot_wanted.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(Snapshot { metadata: Some(self.snapshot.clone()), ..Default::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_have_promised_something_has_a_past() {
        let check = |(index, term): (u64, u64), (now, vote): (u64, u64), entries: &[u64], expect: bool| {
            let snapshot = SnapshotMetadata { index, term, ..Default::default() };
            let entries =
                entries.iter().map(|index| Entry { index: *index, term: now, ..Default::default() }).collect();
            let hard_state = HardState { term: now, vote, commit: index };
            assert_eq!(RaftLog::new(snapshot, hard_state, entries).has_past(), expect, "{index} {term} {now} {vote}");
        };
        // Just begun, or just joined.
        check((1, 1), (1, 0), &[], false);
        check((0, 0), (0, 0), &[], false);
        check((1, 1), (2, 0), &[], true);
        check((1, 1), (1, 5), &[], true);
        check((1, 1), (2, 0), &[2], true);
        // All of its log is in the snapshot.
        check((54, 4), (4, 0), &[], true);
    }
}
