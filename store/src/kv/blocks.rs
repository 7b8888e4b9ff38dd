//! The memory of all versions: records packed into blocks, so that a version costs its bytes and a few more.
//!
//! ```text
//!   settled blocks, in no order                  the history, in order of revision
//!   [ ... ][ ... ][ open ]   <- cleaning    [ passed | not yet ][ ... ][ ... ][ open ]  <- new versions
//! ```
//!
//! What is written goes to the end of the history, which is thereby what a watch of the past reads: there is no second list of changes. When
//! compaction has passed a block of the history, it is settled: its place in the order means nothing any more. A settled block of which little
//! is still referred to is cleaned: what is left moves to another, and it is freed. Nothing in a block changes once it is written, so a
//! full block is shared with readers, who slice it; it lives as long as the last of them.
//!
//! Whoever holds an [`At`] must give it back by [`Blocks::release`], or the block stays.

use super::record::{NUMBERS_MAX, Record, split_key};
use super::slab::Slab;
use crate::types::{KeyValue, Revision};
use bytes::Bytes;
use std::collections::VecDeque;

/// Where a version lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    pub block: u32,
    pub offset: u16,
    /// The index's own, in its leaves; elsewhere 0. It fits in what would be lost between one place and the next.
    pub list: u16,
}

impl At {
    fn new(block: u32, offset: usize) -> Self {
        At { block, offset: offset as u16, list: 0 }
    }
}

/// Bytes of a block: large beside most records, so that little is wasted at its end, and small enough to be cleaned at once. A
/// simulation has small ones, so that they are full, settled and cleaned all the time.
const BLOCK_BYTES: usize = if cfg!(feature = "simulation") { 512 } else { 64 << 10 };
const _: () = assert!(BLOCK_BYTES <= 1 << 16, "an offset takes two bytes");
/// A record that takes more than this part of a block has one of its own.
const LARGE_PART: usize = 4;

pub struct Blocks {
    blocks: Slab<Block>,
    /// Blocks that watches of the past read, in order of revision.
    history: VecDeque<u32>,
    /// How far compaction has passed the first of them.
    passed: usize,
    /// The block at the end of the history that takes new versions.
    newest: Option<u32>,
    /// The settled block that takes what cleaning moves.
    settling: Option<u32>,
    /// Blocks to be cleaned.
    sparse: VecDeque<u32>,
    block_bytes: usize,
}

struct Block {
    memory: Memory,
    /// Bytes of records that are referred to.
    live: usize,
    in_history: bool,
    is_sparse: bool,
}

enum Memory {
    /// Records are still appended.
    Open(Vec<u8>),
    Full(Bytes),
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Open(bytes) => bytes,
            Memory::Full(bytes) => bytes,
        }
    }
}

impl Default for Blocks {
    fn default() -> Self {
        Blocks::with_block_bytes(BLOCK_BYTES)
    }
}

impl Blocks {
    pub fn with_block_bytes(block_bytes: usize) -> Self {
        Blocks {
            blocks: Slab::default(),
            history: VecDeque::new(),
            passed: 0,
            newest: None,
            settling: None,
            sparse: VecDeque::new(),
            block_bytes,
        }
    }

    /// Adds the newest version to the history.
    pub fn push(&mut self, record: &Record) -> At {
        let room = record.size() + NUMBERS_MAX;
        if let Some(open) = self.newest.filter(|open| !self.has_room(*open, room)) {
            self.newest = None;
            self.close(open);
        }
        let block = match self.newest {
            Some(open) => open,
            None => {
                let block = self.open(room, true);
                self.history.push_back(block);
                block
            }
        };
        let at = self.append(block, record);
        self.newest = (!self.is_large(room)).then_some(block);
        if self.newest.is_none() {
            self.close(block);
        }
        at
    }

    /// Adds a version that is no longer part of the history.
    pub fn settle(&mut self, record: &Record) -> At {
        let room = record.size() + NUMBERS_MAX;
        if self.is_large(room) {
            let block = self.open(room, false);
            let at = self.append(block, record);
            self.close(block);
            return at;
        }
        if let Some(open) = self.settling.filter(|open| !self.has_room(*open, room)) {
            self.close(open);
            self.settling = None;
        }
        let block = match self.settling {
            Some(open) => open,
            None => self.open(room, false),
        };
        self.settling = Some(block);
        self.append(block, record)
    }

    fn is_large(&self, room: usize) -> bool {
        room > self.block_bytes / LARGE_PART
    }

    fn open(&mut self, room: usize, in_history: bool) -> u32 {
        let bytes = if self.is_large(room) { room } else { self.block_bytes };
        let memory = Memory::Open(Vec::with_capacity(bytes));
        self.blocks.insert(Block { memory, live: 0, in_history, is_sparse: false })
    }

    fn has_room(&self, block: u32, room: usize) -> bool {
        match self.blocks.get(block).map(|block| &block.memory) {
            Some(Memory::Open(bytes)) => bytes.capacity() - bytes.len() >= room,
            _ => false,
        }
    }

    fn append(&mut self, block: u32, record: &Record) -> At {
        let mut offset = 0;
        if let Some(Block { memory: Memory::Open(bytes), live, .. }) = self.blocks.get_mut(block) {
            offset = bytes.len();
            record.encode(bytes);
            *live += bytes.len() - offset;
        }
        At::new(block, offset)
    }

    /// Nothing more is appended to a block: readers may share it.
    fn close(&mut self, number: u32) {
        let Some(block) = self.blocks.get_mut(number) else { return };
        if let Memory::Open(bytes) = &mut block.memory {
            let mut bytes = std::mem::take(bytes);
            // Giving back a little would only leave a hole that nothing fits in.
            if bytes.capacity() - bytes.len() > self.block_bytes / 16 {
                bytes.shrink_to_fit();
            }
            block.memory = Memory::Full(bytes.into());
        }
        self.settle_passed();
        self.look_at(number);
    }

    fn bytes_at(&self, at: At) -> &[u8] {
        self.blocks.get(at.block).map_or(&[], |block| &block.memory.bytes()[at.offset as usize..])
    }

    pub fn get(&self, at: At) -> Record<'_> {
        Record::decode(self.bytes_at(at)).0
    }

    /// The last of these versions of a key, which are in order, unless it is a deletion.
    pub fn newest(&self, versions: &[At]) -> Option<(At, Record<'_>)> {
        let at = *versions.last()?;
        Some((at, self.get(at))).filter(|(_, record)| !record.is_tombstone())
    }

    pub fn key(&self, at: At) -> &[u8] {
        split_key(self.bytes_at(at)).0
    }

    /// The pair at a place. It shares the block's memory, unless that is still appended to.
    pub fn pair(&self, at: At, record: Record<'_>) -> KeyValue {
        match self.blocks.get(at.block).map(|block| &block.memory) {
            Some(Memory::Full(bytes)) => record.slice_of(bytes),
            _ => record.to_pair(),
        }
    }

    /// A version is no longer referred to.
    pub fn release(&mut self, at: At) {
        let length = Record::decode(self.bytes_at(at)).1;
        if let Some(block) = self.blocks.get_mut(at.block) {
            block.live = block.live.saturating_sub(length);
        }
        self.look_at(at.block);
    }

    /// Frees a block that nobody needs, and notes one that is to be cleaned: a third of it is dead.
    fn look_at(&mut self, number: u32) {
        let Some(block) = self.blocks.get_mut(number) else { return };
        let Memory::Full(bytes) = &block.memory else { return };
        if block.in_history || block.is_sparse {
            return;
        }
        if block.live == 0 {
            self.blocks.remove(number);
        } else if block.live * 3 < bytes.len() * 2 {
            block.is_sparse = true;
            self.sparse.push_back(number);
        }
    }

    /// The oldest change of the history that compaction has not passed.
    pub fn oldest(&self) -> Option<(At, Record<'_>)> {
        let block = *self.history.front()?;
        let data = self.blocks.get(block)?.memory.bytes().get(self.passed..).filter(|rest| !rest.is_empty())?;
        Some((At::new(block, self.passed), Record::decode(data).0))
    }

    /// Takes the oldest change out of the history. The version itself stays while it is referred to.
    pub fn pass(&mut self) {
        let Some(front) = self.history.front().and_then(|front| self.blocks.get(*front)) else { return };
        if let Some(rest) = front.memory.bytes().get(self.passed..).filter(|rest| !rest.is_empty()) {
            self.passed += Record::decode(rest).1;
        }
        self.settle_passed();
    }

    /// Blocks leave the history once compaction has passed all of them.
    fn settle_passed(&mut self) {
        while let Some(number) = self.history.front().copied() {
            let Some(block) = self.blocks.get_mut(number) else { return };
            match &block.memory {
                Memory::Full(bytes) if self.passed >= bytes.len() => {}
                _ => return,
            }
            block.in_history = false;
            self.history.pop_front();
            self.passed = 0;
            self.look_at(number);
        }
    }

    /// The changes from a revision on, in order.
    pub fn history_from(&self, start: Revision) -> impl Iterator<Item = (At, Record<'_>)> {
        let first = |number: &u32| self.blocks.get(*number).map(|block| Record::decode(block.memory.bytes()).0);
        // A revision may begin at the end of the block before the first that begins with it.
        let later = self.history.partition_point(|block| first(block).is_some_and(|r| r.mod_revision < start));
        let blocks = self.history.range(later.saturating_sub(1)..);
        blocks.flat_map(move |block| self.records(*block)).skip_while(move |(_, record)| record.mod_revision < start)
    }

    /// All that was written to a block, whether it is referred to or not.
    fn records(&self, block: u32) -> Records<'_> {
        let bytes = self.blocks.get(block).map_or(&[][..], |block| block.memory.bytes());
        Records { block, bytes, offset: 0 }
    }

    /// Whether there is a block to be cleaned.
    pub fn is_clean(&self) -> bool {
        self.sparse.is_empty()
    }

    /// The places in the block that is to be cleaned next. What is still referred to among them is to be moved by [`Blocks::relocate`], and then
    /// the block is freed by [`Blocks::cleaned`].
    pub fn to_clean(&self) -> Vec<At> {
        self.sparse.front().map_or_else(Vec::new, |block| self.records(*block).map(|(at, _)| at).collect())
    }

    /// Copies a version to a settled block.
    pub fn relocate(&mut self, at: At) -> At {
        let Some(Memory::Full(bytes)) = self.blocks.get(at.block).map(|block| &block.memory) else { return at };
        let bytes = bytes.slice(at.offset as usize..);
        self.settle(&Record::decode(&bytes).0)
    }

    /// Frees the block whose versions have moved.
    pub fn cleaned(&mut self) {
        if let Some(block) = self.sparse.pop_front() {
            self.blocks.remove(block);
        }
    }
}

/// The records of a block, one after the other.
struct Records<'a> {
    block: u32,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = (At, Record<'a>);
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.offset..).filter(|rest| !rest.is_empty())?;
        let (record, length) = Record::decode(rest);
        let at = At::new(self.block, self.offset);
        self.offset += length;
        Some((at, record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(blocks: &mut Blocks, key: &str, revision: Revision) -> At {
        let key = key.as_bytes();
        blocks.push(&Record {
            key,
            value: &[b'v'; 40],
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        })
    }

    fn revisions(blocks: &Blocks, start: Revision) -> Vec<Revision> {
        blocks.history_from(start).map(|(_, record)| record.mod_revision).collect()
    }

    #[test]
    fn the_history_is_read_from_any_revision_on() {
        let mut blocks = Blocks::with_block_bytes(256);
        let of_two = |i: u64| i / 2;
        for i in 0..40 {
            push(&mut blocks, "key", of_two(i));
        }
        for start in 0..=21 {
            let expect: Vec<_> = (0..40).map(of_two).filter(|revision| *revision >= start).collect();
            assert_eq!(revisions(&blocks, start), expect, "from {start}");
        }
    }

    #[test]
    fn what_is_passed_and_released_is_freed_and_what_is_left_moves() {
        let mut blocks = Blocks::with_block_bytes(1000);
        let places: Vec<_> = (1..=100).map(|i| push(&mut blocks, &format!("k{i:03}"), i)).collect();
        let full = blocks.history.len();
        for (i, at) in places.iter().enumerate() {
            let (oldest, record) = blocks.oldest().unwrap();
            assert_eq!((oldest, record.mod_revision), (*at, i as u64 + 1));
            blocks.pass();
            if i % 4 != 0 {
                blocks.release(*at);
            }
        }
        assert!(blocks.oldest().is_none() && revisions(&blocks, 0).len() < 20);
        assert_eq!(blocks.sparse.len(), full - 1, "all but the one that is still open");
        let mut kept = Vec::new();
        while !blocks.is_clean() {
            for at in blocks.to_clean().into_iter().filter(|at| places.iter().position(|p| p == at).unwrap() % 4 == 0) {
                kept.push(blocks.relocate(at));
            }
            blocks.cleaned();
        }
        assert!(kept.iter().enumerate().all(|(i, at)| blocks.key(*at) == format!("k{:03}", 4 * i + 1).as_bytes()));
    }

    #[test]
    fn a_large_record_has_a_block_of_its_own_and_keeps_its_place() {
        let mut blocks = Blocks::with_block_bytes(256);
        push(&mut blocks, "a", 1);
        let large = Record { value: &[1; 5000], ..Record::tombstone(b"b", 2) };
        let large = Record { version: 1, create_revision: 2, ..large };
        let at = blocks.push(&large);
        push(&mut blocks, "c", 3);
        assert_eq!(revisions(&blocks, 0), [1, 2, 3]);
        assert_eq!((blocks.get(at), at.offset), (large, 0));
        assert_eq!(blocks.pair(at, blocks.get(at)), large.to_pair());
    }
}
