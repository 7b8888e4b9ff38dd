//! The disk's thread: what the raft thread hands on is written in order, all that is there at once with one sync.
//!
//! A full disk is waited for, because nothing is lost by that: what does not fit is not acknowledged, the group goes on without this
//! member, and removing old segments is work that needs no room. Any other error ends the replica, for nobody knows what is on the medium.

use crate::driver::{Shared, lock};
use crate::incoming;
use crate::log::{Log, is_full};
use crate::replica::{Input, Persist};

use raft::eraftpb::{Entry, HardState};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Work for the disk.
pub enum ToDisk {
    Persist(Box<Persist>),
    DropUntil(u64),
    /// The disk was full: look whether it still is, now and then.
    LookForRoom,
}

/// Writes what the raft thread hands on.
pub struct DiskWriter {
    shared: Arc<Shared>,
    log: Arc<Mutex<Log>>,
    busy: Arc<AtomicUsize>,
    /// What the last round did not get done, because the disk was full.
    left: VecDeque<Step>,
    /// The batch that is on the medium once `left` is empty.
    number: u64,
    /// Pieces of work that are in `left`.
    works: usize,
}

/// Work of the disk that can be tried again while the disk is full.
enum Step {
    Append(Vec<Entry>, Option<HardState>),
    /// The snapshot that was received of this index and term gets its name.
    Name(u64, u64),
    /// The log begins anew behind it.
    Reset,
}

/// While the disk is full, it is looked for room so often.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);

pub fn disk_thread(mut writer: DiskWriter, queue: &Receiver<ToDisk>) -> Result<(), String> {
    loop {
        let first = match writer.is_waiting() {
            false => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            true => queue.recv_timeout(LOOK_EVERY),
        };
        match first {
            Ok(first) => writer.round(Some(first), queue)?,
            Err(RecvTimeoutError::Timeout) => writer.round(None, queue)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

impl DiskWriter {
    pub fn new(shared: Arc<Shared>, log: Arc<Mutex<Log>>) -> Self {
        DiskWriter { shared, log, busy: Arc::default(), left: VecDeque::new(), number: 0, works: 0 }
    }

    /// Pieces of work that were handed on and are not done.
    pub fn busy(&self) -> Arc<AtomicUsize> {
        self.busy.clone()
    }

    /// Whether there is something to try again, or to look for, without new work.
    pub fn is_waiting(&self) -> bool {
        !self.left.is_empty() || self.shared.disk_full.load(Ordering::Acquire)
    }

    /// Writes all the work that is there, with one sync; what a full disk has no room for stays for the next round.
    pub fn round(&mut self, first: Option<ToDisk>, queue: &Receiver<ToDisk>) -> Result<(), String> {
        let log = self.log.clone();
        let mut log = lock(&log);
        let mut next = first.or_else(|| queue.try_recv().ok());
        while let Some(work) = next {
            self.works += 1;
            match work {
                // Even on a full disk: it makes room.
                ToDisk::DropUntil(index) => log.drop_until(index).map_err(write_failed)?,
                ToDisk::LookForRoom => {}
                ToDisk::Persist(persist) => self.plan(*persist),
            }
            next = queue.try_recv().ok();
        }
        while let Some(step) = self.left.front() {
            match self.carry_out(step, &mut log) {
                Ok(()) => drop(self.left.pop_front()),
                Err(e) if is_full(&e) => {
                    self.shared.note_room(true);
                    return Ok(());
                }
                Err(e) => return Err(write_failed(e)),
            }
        }
        if log.is_short() {
            log.look_for_room();
        }
        self.shared.note_room(log.is_short());
        drop(log);
        let number = std::mem::take(&mut self.number);
        if number > 0 {
            self.shared.input(Input::Persisted(number));
        }
        self.busy.fetch_sub(std::mem::take(&mut self.works), Ordering::AcqRel);
        Ok(())
    }

    /// Adds a batch to what is to be done; one append for as many as possible.
    fn plan(&mut self, persist: Persist) {
        self.number = persist.number;
        if let Some(snapshot) = persist.snapshot {
            let place = snapshot.get_metadata();
            self.left.push_back(Step::Name(place.index, place.term));
            self.left.push_back(Step::Reset);
        }
        if persist.entries.is_empty() && persist.hard_state.is_none() {
            return;
        }
        match self.left.back_mut() {
            Some(Step::Append(entries, hard_state)) => {
                entries.extend(persist.entries);
                *hard_state = persist.hard_state.or(hard_state.take());
            }
            _ => self.left.push_back(Step::Append(persist.entries, persist.hard_state)),
        }
    }

    fn carry_out(&self, step: &Step, log: &mut Log) -> std::io::Result<()> {
        match step {
            Step::Append(entries, hard_state) => {
                log.append(entries, hard_state.as_ref())?;
                self.shared.counters.syncs.fetch_add(1, Ordering::Relaxed);
                self.shared.counters.entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
                Ok(())
            }
            Step::Name(index, term) => incoming::name_whole(&*self.shared.disk, *index, *term),
            Step::Reset => log.reset(),
        }
    }
}

/// What a replica says when it stops over a write.
pub fn write_failed(e: std::io::Error) -> String {
    format!(
        "writing the log failed: {e}. What is on the disk is uncertain now, so nothing more is written; check the disk and restart this server"
    )
}
