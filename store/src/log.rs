//! The log on disk: segments of checksummed records, each the whole of a batch, and synced once.
//!
//! A batch holds Raft entries and perhaps the hard state. An entry at an index that is there already replaces it and all that follow, so
//! nothing that was written is ever written over. Every segment begins with the hard state, which lets old ones simply go.
//!
//! Segments are made of zeros ahead of time, by a thread of their own: writing into them changes no metadata, and a sync then waits
//! for this file's data only. That a batch is one record is what makes a crash readable: pages of one batch may reach the
//! medium in any order, so a record that is not whole is a batch that was never acknowledged, and nothing can follow it.

use crate::background;
use crate::disk::Disk;
use crate::record::{self, Next};
use crate::sizes::Sizes;
use prost::Message as _;
use raft::eraftpb::{Entry, HardState};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

/// What surrounds an entry's data, about.
const ITEM_BYTES: usize = 32;
/// Memory that the writer keeps between batches.
const BUFFER_BYTES: usize = 4 << 20;
/// The next segment, while it is being made.
const AHEAD: &str = "tmp-segment";
const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const PREFIX: &str = "log-";

/// Why a log could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("reading {file}: {source}")]
    Io { file: String, source: io::Error },
    #[error(
        "{file} is damaged at byte {offset} and whole records follow: this is not a torn write. Remove this server's data directory and let it join again, or restore a backup"
    )]
    Damaged { file: String, offset: usize },
    #[error("{file} has no entries between {last}, where the newest snapshot ends, and {next}: part of it is missing")]
    Gap { file: String, last: u64, next: u64 },
}

/// What the log held when it was opened.
pub struct Recovered {
    pub hard_state: HardState,
    /// Contiguous, ascending.
    pub entries: Vec<Entry>,
    /// Bytes of a torn tail that were cut off.
    pub torn_bytes: usize,
}

struct Segment {
    name: String,
    number: u64,
    bytes: usize,
    /// Bytes that were made of zeros: writing beyond them makes the file grow.
    made: usize,
    last_index: u64,
}

/// The writer.
pub struct Log {
    disk: Arc<dyn Disk>,
    segments: Vec<Segment>,
    hard_state: HardState,
    /// The segment that is being made ready.
    ahead: Ahead,
    /// There was no room for it.
    short: bool,
    buffer: Vec<u8>,
    sizes: Sizes,
}

/// The next segment.
enum Ahead {
    /// Not begun, or it could not be made.
    None,
    Making(Receiver<io::Result<()>>),
    Ready,
}

impl Log {
    /// Reads every segment and cuts off a torn tail.
    pub fn open(disk: Arc<dyn Disk>) -> Result<(Log, Recovered), LogError> {
        Log::read(disk, true)
    }

    /// As [`Log::open`], with segments of other sizes.
    #[cfg(feature = "simulation")]
    pub fn open_sized(disk: Arc<dyn Disk>, sizes: Sizes) -> Result<(Log, Recovered), LogError> {
        Log::open(disk).map(|(log, found)| (Log { sizes, ..log }, found))
    }

    /// Reads every segment and changes nothing.
    pub fn look(disk: Arc<dyn Disk>) -> Result<Recovered, LogError> {
        Log::read(disk, false).map(|(_, found)| found)
    }

    fn read(disk: Arc<dyn Disk>, cut: bool) -> Result<(Log, Recovered), LogError> {
        let io_error = |file: &str| {
            let file = file.to_owned();
            move |source| LogError::Io { file, source }
        };
        let names: Vec<_> =
            disk.list().map_err(io_error("the folder"))?.into_iter().filter(|n| n.starts_with(PREFIX)).collect();
        let mut log = Log {
            disk: disk.clone(),
            segments: Vec::new(),
            hard_state: HardState::default(),
            ahead: Ahead::None,
            short: false,
            buffer: Vec::new(),
            sizes: Sizes::default(),
        };
        let mut found = Recovered { hard_state: HardState::default(), entries: Vec::new(), torn_bytes: 0 };
        for (i, name) in names.iter().enumerate() {
            let data = disk.read(name).map_err(io_error(name))?;
            let number = u64::from_str_radix(&name[PREFIX.len()..], 16).unwrap_or(0);
            let mut segment = Segment { name: name.clone(), number, bytes: 0, made: data.len(), last_index: 0 };
            let mut at = 0;
            loop {
                match record::next(&data, at) {
                    Next::End => break,
                    Next::Record(payload, after) => {
                        if !found.take(payload, &mut segment, name)? {
                            return Err(LogError::Damaged { file: name.clone(), offset: at });
                        }
                        at = after;
                    }
                    Next::Bad if i + 1 == names.len() && record::is_torn_tail(&data, at) => {
                        found.torn_bytes = data.len() - at;
                        if cut && !bug!("torn_tail_kept") {
                            disk.truncate(name, at as u64).map_err(io_error(name))?;
                        }
                        break;
                    }
                    Next::Bad => return Err(LogError::Damaged { file: name.clone(), offset: at }),
                }
            }
            segment.bytes = if bug!("torn_tail_kept") { at + found.torn_bytes } else { at };
            log.segments.push(segment);
        }
        log.hard_state = found.hard_state.clone();
        Ok((log, found))
    }

    /// Appends and syncs: when this returns, all of it is on the medium. After an error that [`is_full`] the same may be tried
    /// again: nothing counts as written yet. Any other error is final.
    pub fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> io::Result<()> {
        // The bug: term and vote stand where they changed only, so that they go with the segment.
        let known = (self.hard_state.term, self.hard_state.vote);
        let hard_state = hard_state.filter(|hs| !bug!("hard_state_not_in_new_segment") || (hs.term, hs.vote) != known);
        if let Some(hs) = hard_state {
            self.hard_state = hs.clone();
            if bug!("vote_not_persisted") {
                self.hard_state.vote = 0;
            }
        }
        let bytes: usize = entries.iter().map(|e| e.data.len() + ITEM_BYTES).sum();
        if self.is_next_due(bytes) {
            self.begin_segment()?;
        }
        let new = self.segments.last().is_some_and(|segment| segment.bytes == 0);
        self.buffer.clear();
        record::push_with(&mut self.buffer, |buffer| {
            if (new && !bug!("hard_state_not_in_new_segment")) || hard_state.is_some() {
                push(buffer, KIND_HARD_STATE, &self.hard_state);
            }
            entries.iter().for_each(|entry| push(buffer, KIND_ENTRY, entry));
        });
        if bug!("hard_state_not_in_new_segment") && entries.is_empty() && hard_state.is_none() {
            return Ok(());
        }
        let Some(segment) = self.segments.last_mut() else { return Ok(()) };
        if let Err(e) = self.disk.write_at(&segment.name, segment.bytes as u64, &self.buffer) {
            if is_full(&e) && !bug!("part_of_a_batch_left_behind") {
                // What did fit must not stand there if the next attempt goes into another segment.
                self.disk.truncate(&segment.name, segment.bytes as u64).map_err(uncertain)?;
                segment.made = segment.bytes;
            }
            return Err(e);
        }
        if !bug!("append_without_sync") {
            self.disk.sync(&segment.name).map_err(uncertain)?;
        }
        segment.bytes += self.buffer.len();
        // One large batch must not keep its memory for ever.
        self.buffer.shrink_to(BUFFER_BYTES);
        if let Some(last) = entries.last() {
            segment.last_index = last.index;
        }
        Ok(())
    }

    /// Whether `bytes` more belong into a new segment: when this one's zeros are used up, as soon as the next one is ready; however
    /// that is, when this one has grown too large.
    fn is_next_due(&mut self, bytes: usize) -> bool {
        let Some(segment) = self.segments.last() else { return true };
        if segment.bytes + bytes <= segment.made {
            return false;
        }
        let too_large = segment.bytes >= self.sizes.segment_bytes();
        match &self.ahead {
            Ahead::None => {
                self.prepare_ahead();
                too_large
            }
            Ahead::Ready => true,
            Ahead::Making(made) => match made.try_recv() {
                Ok(Ok(())) => {
                    (self.ahead, self.short) = (Ahead::Ready, false);
                    true
                }
                Err(TryRecvError::Empty) => too_large,
                Ok(Err(e)) => {
                    self.ahead = Ahead::None;
                    self.short = is_full(&e);
                    too_large
                }
                Err(TryRecvError::Disconnected) => {
                    self.ahead = Ahead::None;
                    too_large
                }
            },
        }
    }

    /// Whether the disk has no room for the next segment. What is left of this one still takes batches.
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// Tries to make the next segment again, if there was no room for it; its outcome shows in a later call.
    pub fn look_for_room(&mut self) {
        match &self.ahead {
            Ahead::Making(made) => match made.try_recv() {
                Ok(Ok(())) => (self.ahead, self.short) = (Ahead::Ready, false),
                Ok(Err(e)) => (self.ahead, self.short) = (Ahead::None, is_full(&e)),
                Err(TryRecvError::Disconnected) => self.ahead = Ahead::None,
                Err(TryRecvError::Empty) => {}
            },
            Ahead::None => self.prepare_ahead(),
            Ahead::Ready => self.short = false,
        }
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let number = self.segments.last().map_or(1, |s| s.number + 1);
        let name = format!("{PREFIX}{number:016x}");
        let ready = match std::mem::replace(&mut self.ahead, Ahead::None) {
            Ahead::Ready => true,
            Ahead::Making(made) => background::wait(&made).is_some_and(|made| made.is_ok()),
            Ahead::None => false,
        };
        let made = if ready { self.sizes.segment_bytes() } else { self.sizes.first_segment_bytes };
        if ready {
            self.disk.rename(AHEAD, &name)?;
        } else {
            // The first of all, or one that could not be made ahead.
            self.disk.make_zeroed(&name, self.sizes.first_segment_bytes).inspect_err(|e| self.short = is_full(e))?;
        }
        self.segments.push(Segment { name, number, bytes: 0, made, last_index: 0 });
        self.prepare_ahead();
        Ok(())
    }

    fn prepare_ahead(&mut self) {
        let (done, made) = std::sync::mpsc::channel();
        let disk = self.disk.clone();
        let bytes = self.sizes.segment_bytes();
        let started = background::run("store-segment", move || {
            let _ = done.send(disk.make_zeroed(AHEAD, bytes));
        });
        if started.is_ok() {
            self.ahead = Ahead::Making(made);
        }
    }

    /// Removes the segments whose entries are all at or before `index`.
    pub fn drop_until(&mut self, index: u64) -> io::Result<()> {
        while self.segments.len() > 1
            && self.segments[0].last_index <= index + if bug!("log_dropped_too_far") { 40 } else { 0 }
        {
            self.disk.remove(&self.segments[0].name)?;
            self.segments.remove(0);
        }
        Ok(())
    }

    /// Forgets everything: a snapshot from the leader took the place of the whole log. May be tried again as [`Log::append`] may.
    pub fn reset(&mut self) -> io::Result<()> {
        // A fresh segment first, so that a crash in between never leaves a folder without the hard state.
        if self.segments.last().is_none_or(|segment| segment.bytes > 0) {
            self.begin_segment()?;
        }
        let hard_state = if bug!("hard_state_lost_on_reset") { HardState::default() } else { self.hard_state.clone() };
        self.append_to_new(&hard_state)?;
        while self.segments.len() > 1 {
            self.disk.remove(&self.segments[0].name).map_err(uncertain)?;
            self.segments.remove(0);
        }
        Ok(())
    }

    fn append_to_new(&mut self, hard_state: &HardState) -> io::Result<()> {
        let mut buffer = Vec::new();
        record::push_with(&mut buffer, |buffer| push(buffer, KIND_HARD_STATE, hard_state));
        let Some(segment) = self.segments.last_mut() else { return Ok(()) };
        self.disk.write_at(&segment.name, 0, &buffer)?;
        self.disk.sync(&segment.name).map_err(uncertain)?;
        segment.bytes = buffer.len();
        Ok(())
    }
}

/// Whether an error says that the disk is full, and nothing worse.
pub fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// An error after which nobody knows what is on the medium, whatever its reason.
fn uncertain(e: io::Error) -> io::Error {
    io::Error::other(e)
}

/// Appends an item to a batch: its length, its kind, itself.
fn push(buffer: &mut Vec<u8>, kind: u8, message: &impl prost::Message) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    buffer.push(kind);
    message.encode_raw(buffer);
    let len = (buffer.len() - start - 4) as u32;
    buffer[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

impl Recovered {
    /// Whether the log goes on where the newest snapshot ends, or before.
    pub fn check_joins(&self, snapshot_index: u64) -> Result<(), LogError> {
        match self.entries.first().map(|e| e.index) {
            Some(next) if next > snapshot_index + 1 => {
                Err(LogError::Gap { file: "the log".into(), last: snapshot_index, next })
            }
            _ => Ok(()),
        }
    }

    /// Takes in one batch; false if it makes no sense.
    fn take(&mut self, mut payload: &[u8], segment: &mut Segment, file: &str) -> Result<bool, LogError> {
        while !payload.is_empty() {
            let Some((len, rest)) = payload.split_first_chunk::<4>() else { return Ok(false) };
            let Some((item, rest)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else { return Ok(false) };
            if !self.take_item(item, segment, file)? {
                return Ok(false);
            }
            payload = rest;
        }
        Ok(true)
    }

    fn take_item(&mut self, payload: &[u8], segment: &mut Segment, file: &str) -> Result<bool, LogError> {
        match payload.split_first() {
            Some((&KIND_HARD_STATE, body)) => match HardState::decode(body) {
                Ok(hs) => self.hard_state = hs,
                Err(_) => return Ok(false),
            },
            Some((&KIND_ENTRY, body)) => {
                let Ok(entry) = Entry::decode(body) else { return Ok(false) };
                segment.last_index = entry.index;
                if bug!("log_suffix_not_replaced") && self.entries.last().is_some_and(|e| e.index >= entry.index) {
                    return Ok(true);
                }
                while self.entries.last().is_some_and(|e| e.index >= entry.index) {
                    self.entries.pop();
                }
                if self.entries.last().is_some_and(|last| last.index + 1 != entry.index) {
                    if bug!("log_gap_under_snapshot_refused") {
                        return Err(LogError::Gap { file: file.to_owned(), last: 0, next: entry.index });
                    }
                    // A snapshot from the leader took the place of what stands before; a crash may keep that log from being removed.
                    self.entries.clear();
                }
                self.entries.push(entry);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![7; 100].into(), ..Default::default() }
    }

    fn indexes(disk: &MemoryDisk) -> Vec<(u64, u64)> {
        let (_, found) = Log::open(Arc::new(disk.clone())).unwrap();
        found.entries.iter().map(|e| (e.index, e.term)).collect()
    }

    #[test]
    fn what_was_appended_is_read_back_and_a_new_suffix_replaces_the_old() {
        let disk = MemoryDisk::default();
        let (mut log, _) = Log::open(Arc::new(disk.clone())).unwrap();
        let hs = HardState { term: 3, vote: 1, commit: 2 };
        log.append(&[entry(1, 1), entry(2, 1), entry(3, 1)], Some(&hs)).unwrap();
        log.append(&[entry(2, 2)], None).unwrap();
        assert_eq!(indexes(&disk), [(1, 1), (2, 2)]);
        assert_eq!(Log::open(Arc::new(disk)).unwrap().1.hard_state, hs);
    }

    #[test]
    fn a_torn_tail_is_cut_and_damage_before_it_is_an_error() {
        let disk = MemoryDisk::default();
        let (mut log, _) = Log::open(Arc::new(disk.clone())).unwrap();
        log.append(&[entry(1, 1)], None).unwrap();
        let first = log.segments[0].bytes;
        log.append(&[entry(2, 1), entry(3, 1)], None).unwrap();
        let (name, end) = (log.segments[0].name.clone(), log.segments[0].bytes);
        let whole = disk.read(&name).unwrap();
        // Any page of the last batch may be missing.
        for (from, to) in [(end - 5, end), (first, first + 20), (first + 60, first + 70)] {
            let mut torn = whole.clone();
            torn[from..to].fill(0);
            disk.make_zeroed(&name, 0).unwrap();
            disk.append(&name, &torn).unwrap();
            assert_eq!(indexes(&disk), [(1, 1)], "{from}..{to}");
        }
        let mut damaged = whole;
        damaged[30] ^= 1;
        disk.make_zeroed(&name, 0).unwrap();
        disk.append(&name, &damaged).unwrap();
        assert!(matches!(Log::open(Arc::new(disk)), Err(LogError::Damaged { .. })));
    }
}
