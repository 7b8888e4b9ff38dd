//! The threads around a replica: one runs Raft, one writes the disk, one applies.
//!
//! ```text
//!   requests, messages, ticks -> [raft] -> messages out
//!                                  | entries to write  -> [disk]  -> "persisted up to n"  -> [raft]
//!                                  | entries agreed on -> [apply] -> answers, events, "applied up to i" -> [raft]
//! ```
//!
//! The disk is in nobody's way: heartbeats are answered while a sync runs, and the entries that arrive meanwhile form the next
//! batch by themselves. A thread that meets an error it cannot continue after stops the replica; the process goes on without it.

use crate::disk::Disk;
use crate::error::Error;
use crate::hub::Hub;
use crate::log::Log;
use crate::machine::{Machine, Outcome};
use crate::replica::{Committed, Input, Output, Persist, Replica};
use crate::snapshot;
use crate::types::*;
use raft::eraftpb::{ConfState, Message};
use skiff_proto::store as pb;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Inputs taken in before their output is looked at: the more wait, the better they share a write.
const INPUTS_A_ROUND: usize = 2048;
/// A snapshot is taken after this many entries, or this many bytes of them.
const SNAPSHOT_ENTRIES: u64 = 20_000;
const SNAPSHOT_BYTES: usize = 32 << 20;

/// Where messages to other members go. Never blocks; a message that cannot go is dropped (Raft sends it again).
pub trait Outbox: Send + Sync + 'static {
    fn send(&self, message: Message);
}

/// What goes into the raft thread.
pub enum Wake {
    Input(Input),
    Progress(oneshot::Sender<Vec<(MemberId, u64, bool)>>),
    Stop,
}

/// State that the threads and the handles share.
pub struct Shared {
    pub id: MemberId,
    pub cluster_id: u64,
    pub machine: RwLock<Machine>,
    pub hub: Hub,
    pub disk: Arc<dyn Disk>,
    pub inbox: Sender<Wake>,
    pub leadership: watch::Sender<Leadership>,
    /// (index, revision) applied here.
    pub applied: watch::Sender<(u64, Revision)>,
    /// Why the replica stopped, once it has.
    pub failure: watch::Sender<Option<String>>,
    /// Commands of this process that wait for their outcome.
    pub waiters: Mutex<HashMap<u64, oneshot::Sender<Result<TxnResponse, Error>>>>,
    /// Refused commands: whoever sent them tries again.
    pub refused: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    pub reads: Mutex<HashMap<u64, oneshot::Sender<u64>>>,
    pub origin: u64,
    pub counters: Counters,
}

#[derive(Default)]
pub struct Counters {
    pub proposals: std::sync::atomic::AtomicU64,
    pub syncs: std::sync::atomic::AtomicU64,
    pub entries: std::sync::atomic::AtomicU64,
    pub elections: std::sync::atomic::AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    /// Stops the replica: everyone who waits is told, and the member goes silent, as a dead one would.
    pub fn fail(&self, why: String) {
        tracing::error!(member = format_args!("{:x}", self.id), "the store's replica stopped: {why}");
        self.failure.send_replace(Some(why.clone()));
        let _ = self.inbox.send(Wake::Stop);
        for (_, waiter) in lock(&self.waiters).drain() {
            let _ = waiter.send(Err(Error::Failed(why.clone())));
        }
        lock(&self.reads).clear();
        self.hub.close();
    }

    pub fn input(&self, input: Input) {
        let _ = self.inbox.send(Wake::Input(input));
    }
}

enum ToApply {
    Committed(Vec<Committed>),
    /// A snapshot file takes the machine's place.
    Install(String),
    /// A snapshot is due, whatever its age.
    TakeSnapshot,
}

/// Starts the threads. They end after `Wake::Stop`.
pub fn start(
    shared: Arc<Shared>,
    replica: Replica,
    log: Log,
    inbox: Receiver<Wake>,
    outbox: Arc<dyn Outbox>,
    tick: Duration,
) -> std::io::Result<()> {
    let (to_disk, disk_queue) = channel();
    let (to_apply, apply_queue) = channel();
    let spawn = |name: &str, shared: Arc<Shared>, body: Box<dyn FnOnce() -> Result<(), String> + Send>| {
        std::thread::Builder::new().name(name.into()).stack_size(1 << 20).spawn(move || match std::panic::catch_unwind(
            std::panic::AssertUnwindSafe(body),
        ) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => shared.fail(why),
            Err(_) => shared.fail("a broken invariant (see the panic message above)".into()),
        })
    };
    let s = shared.clone();
    spawn("store-disk", shared.clone(), Box::new(move || disk_thread(&s, log, disk_queue)))?;
    let s = shared.clone();
    spawn("store-apply", shared.clone(), Box::new(move || apply_thread(&s, apply_queue)))?;
    let raft = RaftThread { shared: shared.clone(), replica, outbox, to_disk, to_apply, installing: Vec::new() };
    spawn("store-raft", shared, Box::new(move || raft.run(inbox, tick)))?;
    Ok(())
}

struct RaftThread {
    shared: Arc<Shared>,
    replica: Replica,
    outbox: Arc<dyn Outbox>,
    to_disk: Sender<ToDisk>,
    to_apply: Sender<ToApply>,
    /// Snapshots from the leader that are being written: (batch, file).
    installing: Vec<(u64, String)>,
}

enum ToDisk {
    Persist(Box<Persist>),
    DropUntil(u64),
}

impl RaftThread {
    fn run(mut self, inbox: Receiver<Wake>, tick: Duration) -> Result<(), String> {
        let mut next_tick = Instant::now() + tick;
        self.flush()?;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let mut wake = match inbox.recv_timeout(wait) {
                Ok(wake) => Some(wake),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let mut taken = 0;
            while let Some(now) = wake {
                match now {
                    Wake::Stop => return Ok(()),
                    Wake::Input(input) => self.take(input),
                    Wake::Progress(answer) => {
                        let _ = answer.send(self.replica.progress());
                    }
                }
                taken += 1;
                if taken == INPUTS_A_ROUND {
                    break;
                }
                wake = match inbox.try_recv() {
                    Ok(wake) => Some(wake),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                };
            }
            let now = Instant::now();
            if now >= next_tick {
                // After a pause (SIGSTOP, a busy machine) ticks are not made up for: the silence was ours.
                self.replica.take(Input::Tick);
                next_tick = (next_tick + tick).max(now);
            }
            self.flush()?;
        }
    }

    fn take(&mut self, input: Input) {
        if let Input::Persisted(number) = &input {
            let done: Vec<_> = self.installing.extract_if(.., |(n, _)| *n <= *number).collect();
            for (_, file) in done {
                let _ = self.to_apply.send(ToApply::Install(file));
            }
        }
        let taken = matches!(input, Input::SnapshotTaken(_));
        self.replica.take(input);
        if taken {
            let _ = self.to_disk.send(ToDisk::DropUntil(self.replica.base_index()));
        }
    }

    fn flush(&mut self) -> Result<(), String> {
        loop {
            let output = self.replica.drain();
            self.dispatch(output)?;
            if !self.replica.has_output() {
                return Ok(());
            }
        }
    }

    fn dispatch(&mut self, output: Output) -> Result<(), String> {
        for message in output.send {
            self.outbox.send(message);
        }
        if let Some(why) = output.broken {
            return Err(why);
        }
        if let Some((term, leader, leads)) = output.leadership {
            if leads {
                self.shared.counters.elections.fetch_add(1, Ordering::Relaxed);
            }
            let leader = (leader != 0).then_some(leader);
            self.shared.leadership.send_replace(Leadership { term, leader, this: self.shared.id });
        }
        if let Some(persist) = output.persist {
            if let Some(snapshot) = &persist.snapshot {
                self.installing.push((persist.number, snapshot::file_name(snapshot.get_metadata().index)));
            }
            let _ = self.to_disk.send(ToDisk::Persist(Box::new(persist)));
        }
        if output.snapshot_wanted {
            let _ = self.to_apply.send(ToApply::TakeSnapshot);
        }
        if !output.committed.is_empty() {
            let _ = self.to_apply.send(ToApply::Committed(output.committed));
        }
        if !output.reads.is_empty() {
            let mut reads = lock(&self.shared.reads);
            for (number, index) in output.reads {
                if let Some(waiter) = reads.remove(&number) {
                    let _ = waiter.send(index);
                }
            }
        }
        if !output.refused.is_empty() {
            let mut refused = lock(&self.shared.refused);
            for command in output.refused.iter().filter(|c| c.origin == self.shared.origin) {
                if let Some(waiter) = refused.remove(&command.sequence) {
                    let _ = waiter.send(());
                }
            }
        }
        Ok(())
    }
}

fn disk_thread(shared: &Shared, mut log: Log, queue: Receiver<ToDisk>) -> Result<(), String> {
    let failed = |e: std::io::Error| {
        format!(
            "writing the log failed: {e}. What is on the disk is uncertain now, so nothing more is written; check the disk and restart this server"
        )
    };
    while let Ok(first) = queue.recv() {
        let mut number = 0;
        let (mut entries, mut hard_state) = (Vec::new(), None);
        let mut next = Some(first);
        while let Some(work) = next {
            match work {
                ToDisk::DropUntil(index) => log.drop_until(index).map_err(failed)?,
                ToDisk::Persist(persist) => {
                    let persist = *persist;
                    if let Some(snapshot) = persist.snapshot {
                        log.append(&std::mem::take(&mut entries), hard_state.take().as_ref()).map_err(failed)?;
                        let name = snapshot::file_name(snapshot.get_metadata().index);
                        shared.disk.rename(snapshot::INCOMING, &name).map_err(failed)?;
                        log.reset().map_err(failed)?;
                    }
                    entries.extend(persist.entries);
                    hard_state = persist.hard_state.or(hard_state);
                    number = persist.number;
                }
            }
            next = queue.try_recv().ok();
        }
        if !entries.is_empty() || hard_state.is_some() {
            log.append(&entries, hard_state.as_ref()).map_err(failed)?;
            shared.counters.syncs.fetch_add(1, Ordering::Relaxed);
            shared.counters.entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
        }
        if number > 0 {
            shared.input(Input::Persisted(number));
        }
    }
    Ok(())
}

fn apply_thread(shared: &Arc<Shared>, queue: Receiver<ToApply>) -> Result<(), String> {
    let snapshotting = Arc::new(AtomicBool::new(false));
    let mut since_snapshot = (0u64, 0usize);
    while let Ok(work) = queue.recv() {
        let mut wanted = false;
        match work {
            ToApply::TakeSnapshot => wanted = true,
            ToApply::Install(file) => install(shared, &file)?,
            ToApply::Committed(entries) => {
                for entry in &entries {
                    since_snapshot.0 += 1;
                    since_snapshot.1 += entry.batch.as_ref().map_or(0, prost::Message::encoded_len);
                }
                apply(shared, entries)?;
            }
        }
        let due = wanted || since_snapshot.0 >= SNAPSHOT_ENTRIES || since_snapshot.1 >= SNAPSHOT_BYTES;
        if due && !snapshotting.swap(true, Ordering::AcqRel) {
            since_snapshot = (0, 0);
            let (shared, done) = (shared.clone(), snapshotting.clone());
            let _ = std::thread::Builder::new().name("store-snapshot".into()).spawn(move || {
                take_snapshot(&shared);
                done.store(false, Ordering::Release);
            });
        }
    }
    Ok(())
}

/// Applies some entries under one lock, then tells everyone who cares.
fn apply(shared: &Shared, entries: Vec<Committed>) -> Result<(), String> {
    let Some(last) = entries.last().map(|e| e.index) else { return Ok(()) };
    let mut outcomes = Vec::new();
    let revision = {
        let mut machine = shared.machine.write().unwrap_or_else(|e| e.into_inner());
        let mut events = Vec::new();
        for entry in entries {
            for command in entry.batch.map(|b| b.commands).unwrap_or_default() {
                let outcome = machine.apply(entry.index, entry.term, command).map_err(|e| e.to_string())?;
                if let Some(mut outcome) = outcome {
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
        revision
    };
    shared.applied.send_replace((last, revision));
    shared.input(Input::Applied(last));
    answer(shared, outcomes);
    Ok(())
}

/// Members that are in no half of the membership any more leave the list too.
fn forget_removed(machine: &mut Machine, now: &ConfState) {
    let all = |c: &ConfState| -> Vec<MemberId> {
        [&c.voters, &c.learners, &c.voters_outgoing, &c.learners_next].into_iter().flatten().copied().collect()
    };
    let (before, now) = (all(&machine.conf_state), all(now));
    machine.members.retain(|id, _| now.contains(id) || !before.contains(id));
}

fn answer(shared: &Shared, outcomes: Vec<Outcome>) {
    let mut waiters = lock(&shared.waiters);
    for outcome in outcomes.into_iter().filter(|o| o.origin == shared.origin) {
        if let Some(waiter) = waiters.remove(&outcome.sequence) {
            let _ = waiter.send(outcome.result);
        }
    }
}

fn install(shared: &Shared, file: &str) -> Result<(), String> {
    let (header, pairs) = snapshot::read(&*shared.disk, file).map_err(|e| e.to_string())?;
    let (index, revision) = (header.index, header.revision);
    {
        let mut machine = shared.machine.write().unwrap_or_else(|e| e.into_inner());
        *machine = Machine::restore(header, pairs);
        shared.hub.interrupt();
    }
    shared.applied.send_replace((index, revision));
    shared.input(Input::Applied(index));
    snapshot::tidy(&*shared.disk).map_err(|e| e.to_string())
}

fn take_snapshot(shared: &Shared) {
    let result = snapshot::write(&*shared.disk, &shared.machine, shared.cluster_id)
        .and_then(|header| snapshot::tidy(&*shared.disk).map(|()| header));
    match result {
        Ok(header) => shared.input(Input::SnapshotTaken(snapshot::metadata(&header))),
        // Not fatal: the log goes on growing, and the next attempt may have room.
        Err(e) => tracing::warn!("taking a snapshot of the store failed: {e}; it is tried again later"),
    }
}

/// A command of this process, as it goes to the leader.
pub fn command(origin: u64, sequence: u64, fence: Term, kind: pb::command::Kind) -> pb::Command {
    pb::Command { format: crate::command::COMMAND_FORMAT, origin, sequence, fence, kind: Some(kind) }
}
