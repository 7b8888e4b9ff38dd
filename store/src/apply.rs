//! Applying: what was agreed on goes into the machine, and whoever waits for it is told.
//!
//! One lock for all the entries that are there at once, one answer round after it. Between batches the memory of compacted history is
//! given back, a little at a time, and snapshots are begun.

use crate::background;
use crate::driver::{Shared, lock};
use crate::machine::{Machine, Outcome};
use crate::replica::{Committed, Input};
use crate::role::remember_removed;
use crate::snapshot;
use crate::types::*;
use raft::eraftpb::ConfState;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

/// A snapshot is taken after some entries (see `sizes`), or when their bytes are half as many as the state's: a restart reads the state and
/// at most so much of the log. Not before there are so many, though: writing the whole state for every few changes would be most of
/// the disk's work.
const SNAPSHOT_BYTES_MIN: usize = 64 << 20;

/// How long nothing is done after a snapshot that could not be taken, for want of room most of the time.
const SNAPSHOT_AGAIN_MS: u64 = 1000;

pub enum ToApply {
    Committed(Vec<Committed>),
    /// A snapshot file takes the machine's place.
    Install(String),
    /// A snapshot is due, whatever its age.
    TakeSnapshot,
    /// Give back more of what compaction left.
    Sweep,
    /// Nothing comes any more. (The thread has a sender of its own, so its queue never ends.)
    Stop,
}

pub struct Applier {
    shared: Arc<Shared>,
    later: Sender<ToApply>,
    busy: Arc<AtomicUsize>,
    snapshotting: Arc<AtomicBool>,
    /// When (by the clock) and why the last snapshot could not be taken.
    failed: Arc<Mutex<Option<(u64, String)>>>,
    sweeping: bool,
    entries_since: u64,
    bytes_since: usize,
}

/// Does what the raft thread does not do itself, in order.
pub fn apply_thread(applier: &Mutex<Applier>, queue: &Receiver<ToApply>) -> Result<(), String> {
    while let Ok(work) = queue.recv() {
        if matches!(work, ToApply::Stop) {
            break;
        }
        lock(applier).carry_out(work)?;
    }
    Ok(())
}

impl Applier {
    pub fn new(shared: Arc<Shared>, later: Sender<ToApply>) -> Self {
        Applier {
            shared,
            later,
            busy: Arc::default(),
            snapshotting: Arc::default(),
            failed: Arc::default(),
            sweeping: false,
            entries_since: 0,
            bytes_since: 0,
        }
    }

    /// Does one piece of work that was queued.
    pub fn carry_out(&mut self, work: ToApply) -> Result<(), String> {
        match work {
            ToApply::TakeSnapshot => self.take_snapshot(),
            ToApply::Install(file) => self.install(&file)?,
            ToApply::Committed(entries) => {
                let last = self.apply(entries)?;
                self.shared.input(Input::Applied(last));
            }
            ToApply::Sweep => {
                self.sweeping = false;
                self.sweep();
            }
            ToApply::Stop => return Ok(()),
        }
        self.busy.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }

    /// How much is queued for the apply thread.
    pub fn busy(&self) -> Arc<AtomicUsize> {
        self.busy.clone()
    }

    /// Applies some entries under one lock, then tells everyone who cares. Gives the last index.
    pub fn apply(&mut self, entries: Vec<Committed>) -> Result<u64, String> {
        let shared = self.shared.clone();
        let Some(last) = entries.last().map(|e| e.index) else { return Ok(0) };
        #[cfg(feature = "simulation")]
        crate::simulation::note_applied(&entries);
        let mut outcomes = Vec::new();
        let (revision, size, unswept) = {
            let mut machine = shared.machine.write().unwrap_or_else(|e| e.into_inner());
            let mut events = Vec::new();
            for entry in entries {
                self.entries_since += 1;
                self.bytes_since += entry.bytes;
                for command in entry.commands.iter() {
                    if let Some(mut outcome) = machine.apply(entry.index, entry.term, command) {
                        events.append(&mut outcome.events);
                        outcomes.push(outcome);
                    }
                }
                (machine.index, machine.term) = (entry.index, entry.term);
                if let Some(conf_state) = entry.conf_state {
                    forget_removed(&mut machine, &conf_state);
                    machine.conf_state = conf_state;
                }
            }
            let revision = machine.kv.revision();
            if !events.is_empty() {
                shared.hub.publish(revision, &events);
            }
            self.count_leases(&outcomes);
            (revision, machine.kv.size(), !machine.kv.swept())
        };
        shared.applied_index.store(last, Ordering::Release);
        shared.applied.send_replace((last, revision));
        lock(&shared.pending).answer(outcomes.into_iter().filter(|o| o.origin == shared.origin));
        if unswept {
            self.sweep_later();
        }
        let due =
            self.entries_since >= shared.sizes.snapshot_entries || self.bytes_since >= SNAPSHOT_BYTES_MIN.max(size / 2);
        if due || lock(&self.failed).is_some() {
            self.take_snapshot();
        }
        Ok(last)
    }

    /// While the machine is locked: whoever begins to count meanwhile must miss no lease.
    fn count_leases(&self, outcomes: &[Outcome]) {
        if outcomes.iter().all(|o| o.lease.is_none()) {
            return;
        }
        let now = self.shared.clock.now_ms();
        let mut lessor = lock(&self.shared.lessor);
        outcomes.iter().filter_map(|o| o.lease).for_each(|news| lessor.heard(news, now));
        self.shared.lessor_changed.notify_one();
    }

    fn sweep_later(&mut self) {
        if !self.sweeping {
            self.sweeping = true;
            self.busy.fetch_add(1, Ordering::AcqRel);
            let _ = self.later.send(ToApply::Sweep);
        }
    }

    fn sweep(&mut self) {
        let (more, compacted) = {
            let mut machine = self.shared.machine.write().unwrap_or_else(|e| e.into_inner());
            (machine.kv.sweep(self.shared.sizes.sweep_revisions), machine.kv.compacted())
        };
        if more {
            self.sweep_later();
        } else if self.shared.look().kv.swept() {
            self.shared.swept.send_replace(compacted);
        }
    }

    fn take_snapshot(&mut self) {
        let now = self.shared.clock.now_ms();
        let failed_now = lock(&self.failed).as_ref().is_some_and(|(at, _)| now.abs_diff(*at) < SNAPSHOT_AGAIN_MS);
        if failed_now || self.snapshotting.swap(true, Ordering::AcqRel) {
            return;
        }
        (self.entries_since, self.bytes_since) = (0, 0);
        let (shared, done, later, busy) =
            (self.shared.clone(), self.snapshotting.clone(), self.later.clone(), self.busy.clone());
        let failed = self.failed.clone();
        let thread = background::run("store-snapshot", move || {
            let result = take_snapshot(&shared);
            note_failure(&mut lock(&failed), result.err().map(|why| (shared.clock.now_ms(), why)));
            done.store(false, Ordering::Release);
            // Compaction had to wait for it.
            busy.fetch_add(1, Ordering::AcqRel);
            let _ = later.send(ToApply::Sweep);
        });
        if let Err(e) = thread {
            tracing::warn!("no thread could be started for a snapshot of the store: {e}; it is tried again later");
            self.snapshotting.store(false, Ordering::Release);
        }
    }

    fn install(&mut self, file: &str) -> Result<(), String> {
        let shared = &self.shared;
        let (header, pairs) = snapshot::read(&*shared.disk, file).map_err(|e| e.to_string())?;
        let (index, revision) = (header.index, header.revision);
        {
            let mut machine = shared.machine.write().unwrap_or_else(|e| e.into_inner());
            *machine = Machine::restore(header, pairs);
            if !bug!("install_keeps_watches") {
                shared.hub.interrupt();
            }
        }
        shared.applied_index.store(index, Ordering::Release);
        shared.applied.send_replace((index, revision));
        shared.input(Input::Applied(index));
        tidy(shared, index).map_err(|e| e.to_string())
    }
}

/// Members that are in no half of the membership any more leave the list too.
fn forget_removed(machine: &mut Machine, now: &ConfState) {
    let all = |c: &ConfState| -> Vec<MemberId> {
        [&c.voters, &c.learners, &c.voters_outgoing, &c.learners_next].into_iter().flatten().copied().collect()
    };
    let (before, now) = (all(&machine.conf_state), all(now));
    let leaves = |id: &MemberId| !now.contains(id) && before.contains(id);
    let keys: Vec<_> = machine.members.values().filter(|m| leaves(&m.id)).map(|m| m.key_hash.clone()).collect();
    machine.members.retain(|id, _| !leaves(id));
    remember_removed(&mut machine.removed_keys, keys.into_iter());
    machine.alarms.retain(|alarm| now.contains(&alarm.member));
}

/// With a snapshot at `index`, older ones go, and what was received of older ones.
fn tidy(shared: &Shared, index: u64) -> std::io::Result<()> {
    lock(&shared.incoming).forget_until(&*shared.disk, index)?;
    snapshot::tidy(&*shared.disk, &shared.sending)
}

fn take_snapshot(shared: &Shared) -> Result<(), String> {
    let header = snapshot::write(&*shared.disk, &shared.machine, shared.cluster_id, shared.sizes.snapshot_keys)
        .and_then(|header| tidy(shared, header.index).map(|()| header))
        .map_err(|e| e.to_string())?;
    shared.input(Input::SnapshotTaken(snapshot::metadata(&header)));
    Ok(())
}

/// Remembers whether the last snapshot could be taken, and says so when it could not for a new reason. That is not fatal: the log goes on
/// growing, and the next attempt may have room.
fn note_failure(before: &mut Option<(u64, String)>, now: Option<(u64, String)>) {
    if let Some((_, why)) = &now
        && before.as_ref().is_none_or(|(_, before)| before != why)
    {
        tracing::warn!("taking a snapshot of the store failed: {why}; it is tried again until it can be taken");
    }
    *before = now;
}
