//! The log on disk: segments of checksummed records, appended to, and synced once for a whole batch.
//!
//! A record is a Raft entry or the hard state. An entry at an index that is there already replaces it and all that follow, so
//! nothing in a segment is ever written over. Every segment begins with the hard state, which lets old ones simply go.

use crate::disk::Disk;
use crate::record::{self, Next};
use prost::Message as _;
use raft::eraftpb::{Entry, HardState};
use std::io;
use std::sync::Arc;

/// A segment that has grown to this many bytes is closed and another begun.
const SEGMENT_BYTES: usize = 16 << 20;
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
    #[error("{file} jumps from entry {last} to entry {next}: part of the log is missing")]
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
    last_index: u64,
}

/// The writer.
pub struct Log {
    disk: Arc<dyn Disk>,
    segments: Vec<Segment>,
    hard_state: HardState,
}

impl Log {
    /// Reads every segment and cuts off a torn tail.
    pub fn open(disk: Arc<dyn Disk>) -> Result<(Log, Recovered), LogError> {
        Log::read(disk, true)
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
        let mut log = Log { disk: disk.clone(), segments: Vec::new(), hard_state: HardState::default() };
        let mut found = Recovered { hard_state: HardState::default(), entries: Vec::new(), torn_bytes: 0 };
        for (i, name) in names.iter().enumerate() {
            let data = disk.read(name).map_err(io_error(name))?;
            let number = u64::from_str_radix(&name[PREFIX.len()..], 16).unwrap_or(0);
            let mut segment = Segment { name: name.clone(), number, bytes: data.len(), last_index: 0 };
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
                        if cut {
                            disk.truncate(name, at as u64).map_err(io_error(name))?;
                        }
                        segment.bytes = at;
                        break;
                    }
                    Next::Bad => return Err(LogError::Damaged { file: name.clone(), offset: at }),
                }
            }
            log.segments.push(segment);
        }
        log.hard_state = found.hard_state.clone();
        Ok((log, found))
    }

    /// Appends and syncs: when this returns, all of it is on the medium. An error is final.
    pub fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(entries.iter().map(|e| e.data.len() + 64).sum::<usize>() + 64);
        if let Some(hs) = hard_state {
            self.hard_state = hs.clone();
        }
        if self.segments.last().is_none_or(|s| s.bytes >= SEGMENT_BYTES) {
            let number = self.segments.last().map_or(1, |s| s.number + 1);
            let name = format!("{PREFIX}{number:016x}");
            self.segments.push(Segment { name, number, bytes: 0, last_index: 0 });
            push(&mut buffer, KIND_HARD_STATE, &self.hard_state);
        } else if hard_state.is_some() {
            push(&mut buffer, KIND_HARD_STATE, &self.hard_state);
        }
        for entry in entries {
            push(&mut buffer, KIND_ENTRY, entry);
        }
        let Some(segment) = self.segments.last_mut() else { return Ok(()) };
        self.disk.append(&segment.name, &buffer)?;
        self.disk.sync(&segment.name)?;
        segment.bytes += buffer.len();
        if let Some(last) = entries.last() {
            segment.last_index = last.index;
        }
        Ok(())
    }

    /// Removes the segments whose entries are all at or before `index`.
    pub fn drop_until(&mut self, index: u64) -> io::Result<()> {
        while self.segments.len() > 1 && self.segments[0].last_index <= index {
            self.disk.remove(&self.segments[0].name)?;
            self.segments.remove(0);
        }
        Ok(())
    }

    /// Forgets everything: a snapshot from the leader took the place of the whole log.
    pub fn reset(&mut self) -> io::Result<()> {
        // A fresh segment first, so that a crash in between never leaves a folder without the hard state.
        let number = self.segments.last().map_or(1, |s| s.number + 1);
        let name = format!("{PREFIX}{number:016x}");
        let mut buffer = Vec::new();
        push(&mut buffer, KIND_HARD_STATE, &self.hard_state);
        self.disk.append(&name, &buffer)?;
        self.disk.sync(&name)?;
        for old in std::mem::take(&mut self.segments) {
            self.disk.remove(&old.name)?;
        }
        self.segments.push(Segment { name, number, bytes: buffer.len(), last_index: 0 });
        Ok(())
    }
}

fn push(buffer: &mut Vec<u8>, kind: u8, message: &impl prost::Message) {
    record::push_with(buffer, |buffer| {
        buffer.push(kind);
        message.encode_raw(buffer);
    });
}

impl Recovered {
    /// Takes in one record; false if it makes no sense.
    fn take(&mut self, payload: &[u8], segment: &mut Segment, file: &str) -> Result<bool, LogError> {
        match payload.split_first() {
            Some((&KIND_HARD_STATE, body)) => match HardState::decode(body) {
                Ok(hs) => self.hard_state = hs,
                Err(_) => return Ok(false),
            },
            Some((&KIND_ENTRY, body)) => {
                let Ok(entry) = Entry::decode(body) else { return Ok(false) };
                segment.last_index = entry.index;
                while self.entries.last().is_some_and(|e| e.index >= entry.index) {
                    self.entries.pop();
                }
                if let Some(last) = self.entries.last().map(|e| e.index)
                    && last + 1 != entry.index
                {
                    return Err(LogError::Gap { file: file.to_owned(), last, next: entry.index });
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
        log.append(&[entry(1, 1), entry(2, 1)], None).unwrap();
        let name = disk.list().unwrap().remove(0);
        let whole = disk.read(&name).unwrap();
        disk.truncate(&name, whole.len() as u64 - 5).unwrap();
        assert_eq!(indexes(&disk), [(1, 1)]);
        disk.truncate(&name, 0).unwrap();
        let mut damaged = whole;
        damaged[30] ^= 1;
        disk.append(&name, &damaged).unwrap();
        assert!(matches!(Log::open(Arc::new(disk)), Err(LogError::Damaged { .. })));
    }
}
