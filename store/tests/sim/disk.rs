//! A disk that loses, tears and flips what real ones do, and nothing else.
//!
//! What was written and not synced may be there after a crash, or not, or in part, cut at any byte. A removal that no sync of the
//! folder followed may be undone. Names that `rename` and the making of files gave are safe, as they are with `RealDisk`.

use crate::rng::Rng;
use crate::tally;
use skiff_store::simulation::{Disk, Next, next_record};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Mutex, MutexGuard};

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

pub struct SimDisk {
    inner: Mutex<Inner>,
}

struct Inner {
    files: BTreeMap<String, File>,
    /// Removals that may be undone by a crash.
    removed: Vec<(String, File)>,
    rng: Rng,
    /// The process dies at the operation after so many.
    dies_after: Option<u64>,
    dead: bool,
    syncs_fail: bool,
    full: bool,
}

fn write(into: &mut Vec<u8>, at: usize, data: &[u8]) {
    if into.len() < at + data.len() {
        into.resize(at + data.len(), 0);
    }
    into[at..at + data.len()].copy_from_slice(data);
}

impl Inner {
    /// Whether the process dies in this operation; an error once it has.
    fn begin(&mut self) -> io::Result<bool> {
        if self.dead {
            return Err(io::Error::other("the process is dead"));
        }
        match &mut self.dies_after {
            Some(0) => {
                self.dead = true;
                Ok(true)
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// Half of the last operations before a death are carried out.
    fn is_lost(&mut self, dies: bool) -> bool {
        dies && self.rng.chance(500)
    }

    fn done(dies: bool) -> io::Result<()> {
        if dies { Err(io::Error::other("the process died")) } else { Ok(()) }
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&mut self, name: &str, offset: Option<u64>, data: &[u8]) -> io::Result<()> {
        let dies = self.begin()?;
        if self.full {
            tally::count("disk: a write refused, full");
            // As much as there was room for.
            let room = self.rng.below(data.len() as u64) as usize;
            if let (Some(at), Some(file)) = (offset, self.files.get_mut(name)) {
                write(&mut file.current, at as usize, &data[..room]);
                file.unsynced.push((at as usize, data[..room].to_vec()));
            }
            return Err(io::ErrorKind::StorageFull.into());
        }
        if offset.is_none() && !self.files.contains_key(name) {
            self.files.insert(name.to_owned(), File::default());
            self.removed.clear();
        }
        let file = self.file(name)?;
        let at = offset.map_or(file.current.len(), |o| o as usize);
        write(&mut file.current, at, data);
        file.unsynced.push((at, data.to_vec()));
        Inner::done(dies)
    }
}

impl SimDisk {
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            files: BTreeMap::new(),
            removed: Vec::new(),
            rng: Rng::new(seed),
            dies_after: None,
            dead: false,
            syncs_fail: false,
            full: false,
        };
        SimDisk { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn die_after(&self, operations: u64) {
        self.lock().dies_after = Some(operations);
    }

    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    pub fn fail_syncs(&self, fail: bool) {
        self.lock().syncs_fail = fail;
    }

    pub fn fill(&self, full: bool) {
        self.lock().full = full;
    }

    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    /// What a crash leaves.
    pub fn crash(&self) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        tally::count(if inner.dead { "process: died in an operation of the disk" } else { "process: killed" });
        (inner.dies_after, inner.dead, inner.syncs_fail, inner.full) = (None, false, false, false);
        for file in inner.files.values_mut() {
            for (at, data) in std::mem::take(&mut file.unsynced) {
                match inner.rng.below(3) {
                    0 => tally::count("disk: a write lost by a crash"),
                    1 => write(&mut file.durable, at, &data),
                    _ => {
                        tally::count("disk: a write torn by a crash");
                        let kept = inner.rng.below(data.len() as u64 + 1) as usize;
                        write(&mut file.durable, at, &data[..kept]);
                    }
                }
            }
            file.current = file.durable.clone();
        }
        let lasting = inner.rng.below(inner.removed.len() as u64 + 1) as usize;
        for (name, mut file) in inner.removed.drain(..).skip(lasting) {
            file.current = file.durable.clone();
            file.unsynced.clear();
            inner.files.entry(name).or_insert(file);
        }
    }

    /// Flips a bit that a reader must notice: in a snapshot, or in the log before its last record (a damaged last record is what a
    /// torn write looks like). Gives the file and the byte.
    pub fn flip(&self, rng: &mut Rng) -> Option<(String, usize)> {
        let mut inner = self.lock();
        let logs: Vec<_> = inner.files.keys().filter(|n| n.starts_with("log-")).cloned().collect();
        let names: Vec<_> =
            inner.files.keys().filter(|n| n.starts_with("log-") || n.starts_with("snap-")).cloned().collect();
        let name = names.get(rng.below(names.len() as u64) as usize)?.clone();
        let file = inner.files.get_mut(&name)?;
        let (mut end, mut last) = (0, 0);
        // Whole ones only: behind a torn one nothing shows that the one before it is not the last.
        while let Next::Record(_, after) = next_record(&file.durable, end) {
            (last, end) = (end, after);
        }
        let end = if logs.last() == Some(&name) { last } else { end };
        if end == 0 || end > file.durable.len() {
            return None;
        }
        let at = rng.below(end as u64) as usize;
        file.durable[at] ^= 1 << rng.below(8);
        file.current = file.durable.clone();
        Some((name, at))
    }
}

/// Gives a few bytes at a time, as a reader may.
struct Short(io::Cursor<Vec<u8>>, usize);

impl Read for Short {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(self.1);
        self.0.read(&mut into[..most])
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().files.keys().cloned().collect())
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.lock().file(name)?.current.clone())
    }
    fn open_read(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let data = self.read(name)?;
        let most = self.lock().rng.between(1, 200) as usize;
        Ok(Box::new(Short(io::Cursor::new(data), most)))
    }
    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(self.lock().file(name)?.current.len() as u64)
    }
    fn append(&self, name: &str, data: &[u8]) -> io::Result<()> {
        self.lock().write(name, None, data)
    }
    fn make_zeroed(&self, name: &str, len: usize) -> io::Result<()> {
        let mut inner = self.lock();
        let dies = inner.begin()?;
        if inner.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if inner.is_lost(dies) {
            return Inner::done(dies);
        }
        let file = File { durable: vec![0; len], current: vec![0; len], unsynced: Vec::new() };
        inner.files.insert(name.to_owned(), file);
        inner.removed.clear();
        Inner::done(dies)
    }
    fn write_at(&self, name: &str, offset: u64, data: &[u8]) -> io::Result<()> {
        self.lock().write(name, Some(offset), data)
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        let dies = inner.begin()?;
        if inner.syncs_fail {
            tally::count("disk: a sync that failed");
            return Err(io::Error::other("input/output error"));
        }
        if inner.is_lost(dies) {
            return Inner::done(dies);
        }
        let file = inner.file(name)?;
        for (at, data) in std::mem::take(&mut file.unsynced) {
            write(&mut file.durable, at, &data);
        }
        Inner::done(dies)
    }
    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        let dies = inner.begin()?;
        if inner.is_lost(dies) {
            return Inner::done(dies);
        }
        let file = inner.file(name)?;
        file.current.truncate(len as usize);
        file.durable = file.current.clone();
        file.unsynced.clear();
        Inner::done(dies)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        let dies = inner.begin()?;
        if inner.is_lost(dies) {
            return Inner::done(dies);
        }
        let file = inner.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.files.insert(to.to_owned(), file);
        inner.removed.clear();
        Inner::done(dies)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        let dies = inner.begin()?;
        if let Some(file) = inner.files.remove(name) {
            inner.removed.push((name.to_owned(), file));
        }
        Inner::done(dies)
    }
}
