//! The threads around a replica: one runs Raft, one writes the disk, one applies.
//!
//! ```text
//!   requests, messages, ticks -> [raft] -> messages out
//!                                  | entries to write  -> [disk]  -> "persisted up to n"  -> [raft]
//!                                  | entries agreed on -> [apply] -> answers, events, "applied up to i" -> [raft]
//! ```
//!
//! The disk is in nobody's way: heartbeats are answered while a sync runs, and the entries that arrive meanwhile form the next
//! batch by themselves. A member without others has nobody to answer: it writes and applies on the raft thread, which saves four
//! changes of thread a write. A thread that meets an error it cannot continue after stops the replica; the process goes
//! on without it.

use crate::apply::{Applier, ToApply, apply_thread};
use crate::claim::Claim;
use crate::clock::Clock;
use crate::command::Proposal;
use crate::disk::Disk;
use crate::error::Error;
use crate::hub::Hub;
use crate::incoming::Incoming;
use crate::lessor::Lessor;
use crate::log::{Log, is_full};
use crate::machine::Machine;
use crate::outgoing::Sending;
use crate::pending::Pending;
use crate::replica::{Authority, Input, Output, Persist, Progress, Replica};
use crate::sizes::Sizes;
use crate::snapshot;
use crate::types::*;
use crate::writer::{DiskWriter, ToDisk, disk_thread, write_failed};
use raft::eraftpb::{Message, MessageType};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};

/// Inputs taken in before their output is looked at: the more wait, the better they share a write.
const INPUTS_A_ROUND: usize = 2048;
/// So many writes in one round are a crowd, and so often the processor is given away for the sake of more.
const CROWD: usize = 4;
const YIELDS_MAX: usize = 16;
/// How often a leader asks the others for a new lease, and how long it lasts from the asking. Whoever answers votes for nobody for
/// 18 ticks of 25 ms at least (20, less one that was nearly over and one that a late thread made up for).
const LEASE_EVERY: Duration = Duration::from_millis(100);
pub const LEASE: Duration = Duration::from_millis(350);
/// Numbers of reads that are the driver's own, for its lease.
const LEASE_READ: u64 = 1 << 63;
/// The lease of a member that has nobody to lose its office to.
const FOREVER: u64 = u64::MAX;

/// Where messages to other members go. Never blocks; a message that cannot go is dropped (Raft sends it again).
pub trait Outbox: Send + Sync + 'static {
    fn send(&self, message: Message);
}

/// What goes into the raft thread.
pub enum Wake {
    Input(Input),
    Propose(Arc<Proposal>),
    Progress(oneshot::Sender<Vec<Progress>>),
    Stop,
}

/// State that the threads and the handles share.
pub struct Shared {
    pub id: MemberId,
    pub cluster_id: u64,
    pub machine: RwLock<Machine>,
    pub hub: Hub,
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub inbox: Sender<Wake>,
    pub leadership: watch::Sender<Leadership>,
    /// (index, revision) applied here.
    pub applied: watch::Sender<(u64, Revision)>,
    /// The same index, to be looked at without a lock.
    pub applied_index: AtomicU64,
    pub committed_index: AtomicU64,
    /// Until when (by `clock`, in nanoseconds) reads may be answered from the state as it is; 0 = they may not.
    pub lease_until: AtomicU64,
    /// The last compaction that has given back its memory.
    pub swept: watch::Sender<Revision>,
    pub lessor: Mutex<Lessor>,
    /// Leases may have become due sooner than was thought.
    pub lessor_changed: Notify,
    /// Why the replica stopped, once it has.
    pub failure: watch::Sender<Option<String>>,
    pub failed: AtomicBool,
    /// Commands of this process that wait for their outcome.
    pub pending: Mutex<Pending>,
    /// Something in `pending` has to be sent (again).
    pub pending_changed: Notify,
    pub reads: Mutex<HashMap<u64, oneshot::Sender<u64>>>,
    /// The last number that was used in `reads`.
    pub read_numbers: AtomicU64,
    pub origin: u64,
    /// The disk had no room for the next piece of the log when that was last tried.
    pub disk_full: AtomicBool,
    /// How much is done at a time.
    pub sizes: Sizes,
    /// Snapshots that come from another member, and those that go to one.
    pub incoming: Mutex<Incoming>,
    pub sending: Sending,
    pub counters: Counters,
}

#[derive(Default)]
pub struct Counters {
    pub proposals: AtomicU64,
    pub syncs: AtomicU64,
    pub entries: AtomicU64,
    pub elections: AtomicU64,
    pub snapshots_sent: AtomicU64,
    pub snapshots_broken: AtomicU64,
    pub snapshot_sent_bytes: AtomicU64,
    pub snapshot_resumed_bytes: AtomicU64,
    pub snapshot_received_bytes: AtomicU64,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    /// The state machine, to look at.
    pub fn look(&self) -> RwLockReadGuard<'_, Machine> {
        self.machine.read().unwrap_or_else(|e| e.into_inner())
    }

    /// Stops the replica: everyone who waits is told, and the member goes silent, as a dead one would.
    pub fn fail(&self, why: String) {
        tracing::error!(member = format_args!("{:x}", self.id), "the store's replica stopped: {why}");
        self.failed.store(true, Ordering::Release);
        self.lease_until.store(0, Ordering::Release);
        self.failure.send_replace(Some(why.clone()));
        let _ = self.inbox.send(Wake::Stop);
        lock(&self.pending).fail_all(&Error::Failed(why));
        lock(&self.reads).clear();
        self.hub.close();
    }

    /// Notes whether the disk has room for the log, and says so when that changes.
    pub fn note_room(&self, full: bool) {
        if self.disk_full.swap(full, Ordering::AcqRel) == full {
            return;
        }
        let member = format_args!("{:x}", self.id);
        match full {
            true => tracing::error!(
                member,
                "the disk of the store's log is full: new values are refused while this member leads, and what the log still has room for goes on. Make room: nothing else need be done"
            ),
            false => tracing::info!(member, "the disk of the store's log has room again"),
        }
    }

    pub fn input(&self, input: Input) {
        let _ = self.inbox.send(Wake::Input(input));
    }

    /// Whether everything up to `index` is in the state that reads look at.
    pub fn has_applied(&self, index: u64) -> bool {
        self.applied_index.load(Ordering::Acquire) >= index || bug!("read_index_before_apply")
    }

    /// What the numbers of a process that drew this begin at. Members send their questions to the leader, which tells them apart by
    /// nothing else: an answer to another's would release one that nobody has confirmed.
    pub fn first_read(drawn: u64) -> u64 {
        if bug!("read_numbers_are_not_unique") { 0 } else { (drawn & !LEASE_READ) >> 1 }
    }

    /// A number for a question to Raft.
    pub fn next_read(&self) -> u64 {
        self.read_numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether this member may answer reads from its state as it is, now.
    pub fn has_lease(&self) -> bool {
        match self.lease_until.load(Ordering::Acquire) {
            0 => false,
            FOREVER => true,
            until => self.clock.now_ns() < until,
        }
    }
}

/// Starts the threads. They end after `Wake::Stop`.
pub fn start(
    shared: Arc<Shared>,
    replica: Replica,
    log: Log,
    inbox: Receiver<Wake>,
    outbox: Arc<dyn Outbox>,
    tick: Duration,
    claim: Option<Claim>,
) -> std::io::Result<()> {
    // The directory is claimed for as long as the log may be written.
    let claim = Arc::new(claim);
    let (for_raft, for_disk) = (claim.clone(), claim);
    let (raft, queues) = assemble(shared.clone(), replica, log, outbox);
    let spawn = |name: &str, shared: Arc<Shared>, body: Box<dyn FnOnce() -> Result<(), String> + Send>| {
        std::thread::Builder::new().name(name.into()).stack_size(1 << 20).spawn(move || match std::panic::catch_unwind(
            std::panic::AssertUnwindSafe(body),
        ) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => shared.fail(why),
            Err(_) => shared.fail("a broken invariant (see the panic message above)".into()),
        })
    };
    let Queues { disk, to_disk, applier, to_apply } = queues;
    spawn(
        "store-disk",
        shared.clone(),
        Box::new(move || {
            let _claim = for_disk;
            disk_thread(disk, &to_disk)
        }),
    )?;
    spawn("store-apply", shared.clone(), Box::new(move || apply_thread(&applier, &to_apply)))?;
    spawn(
        "store-raft",
        shared,
        Box::new(move || {
            let _claim = for_raft;
            raft.run(&inbox, tick)
        }),
    )?;
    Ok(())
}

/// The other ends of what the raft thread hands on: for the two threads beside it, or for a simulator in their place.
pub struct Queues {
    pub disk: DiskWriter,
    pub to_disk: Receiver<ToDisk>,
    pub applier: Arc<Mutex<Applier>>,
    pub to_apply: Receiver<ToApply>,
}

/// Puts a replica's parts together; nothing runs yet.
pub fn assemble(shared: Arc<Shared>, replica: Replica, log: Log, outbox: Arc<dyn Outbox>) -> (RaftThread, Queues) {
    let (to_disk, disk_queue) = channel();
    let (to_apply, apply_queue) = channel();
    let log = Arc::new(Mutex::new(log));
    let applier = Applier::new(shared.clone(), to_apply.clone());
    let apply_busy = applier.busy();
    let applier = Arc::new(Mutex::new(applier));
    let disk = DiskWriter::new(shared.clone(), log.clone());
    let raft = RaftThread {
        shared,
        replica,
        outbox,
        log,
        applier: applier.clone(),
        to_disk,
        to_apply,
        disk_busy: disk.busy(),
        apply_busy,
        installing: Vec::new(),
        lease: LeaseRounds::default(),
        crowded: false,
    };
    (raft, Queues { disk, to_disk: disk_queue, applier, to_apply: apply_queue })
}

pub struct RaftThread {
    shared: Arc<Shared>,
    replica: Replica,
    outbox: Arc<dyn Outbox>,
    log: Arc<Mutex<Log>>,
    applier: Arc<Mutex<Applier>>,
    to_disk: Sender<ToDisk>,
    to_apply: Sender<ToApply>,
    /// Work that the other two threads have not done yet. While there is some, this thread does none of it out of turn.
    disk_busy: Arc<AtomicUsize>,
    apply_busy: Arc<AtomicUsize>,
    /// Snapshots from the leader that are being written: (batch, file).
    installing: Vec<(u64, String)>,
    lease: LeaseRounds,
    /// Many wrote at once in the last round.
    crowded: bool,
}

impl Drop for RaftThread {
    fn drop(&mut self) {
        let _ = self.to_apply.send(ToApply::Stop);
    }
}

/// What one turn of the raft thread took in.
#[derive(Default)]
pub struct Round {
    taken: usize,
    proposals: usize,
    yields: usize,
}

/// The rounds of heartbeats that a leader counts its lease from.
#[derive(Default)]
struct LeaseRounds {
    number: u64,
    /// (number, term, when it was sent).
    under_way: Vec<(u64, Term, u64)>,
    next: Option<Instant>,
}

impl RaftThread {
    fn run(mut self, inbox: &Receiver<Wake>, tick: Duration) -> Result<(), String> {
        let mut next_tick = Instant::now() + tick;
        self.flush()?;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let mut wake = match inbox.recv_timeout(wait) {
                Ok(wake) => Some(wake),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let mut round = Round::default();
            while let Some(now) = wake {
                if self.take_wake(now, &mut round) {
                    return Ok(());
                }
                if round.taken == INPUTS_A_ROUND {
                    break;
                }
                wake = match inbox.try_recv() {
                    Ok(wake) => Some(wake),
                    Err(TryRecvError::Empty) => self.let_others_in(inbox, &mut round),
                    Err(TryRecvError::Disconnected) => return Ok(()),
                };
            }
            self.crowded = round.proposals >= CROWD;
            let now = Instant::now();
            if now >= next_tick {
                // After a pause (SIGSTOP, a busy machine) ticks are not made up for: the silence was ours.
                next_tick = (next_tick + tick).max(now);
                self.tick(now);
            }
            self.flush()?;
        }
    }

    /// A period of the driver is over.
    pub fn tick(&mut self, now: Instant) {
        self.replica.take(Input::Tick);
        self.ask_for_lease(now);
    }

    /// What Raft stands at, to look at.
    #[cfg(feature = "simulation")]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Takes one thing in; true if it was the word to stop.
    pub fn take_wake(&mut self, wake: Wake, round: &mut Round) -> bool {
        round.taken += 1;
        match wake {
            Wake::Stop => {
                self.shared.lease_until.store(0, Ordering::Release);
                return true;
            }
            Wake::Input(input) => self.take(input),
            Wake::Propose(proposal) => {
                round.proposals += 1;
                self.replica.propose_one(proposal);
            }
            Wake::Progress(answer) => {
                let _ = answer.send(self.replica.progress());
            }
        }
        false
    }

    /// While many write at once, whoever is about to gets the processor before the disk is asked: a sync costs the same for one write
    /// as for a hundred. There is no waiting in it: when nobody else can run, this returns at once.
    fn let_others_in(&self, inbox: &Receiver<Wake>, round: &mut Round) -> Option<Wake> {
        if !(self.crowded || round.proposals >= CROWD) || round.yields == YIELDS_MAX {
            return None;
        }
        round.yields += 1;
        std::thread::yield_now();
        inbox.try_recv().ok()
    }

    fn take(&mut self, input: Input) {
        if let Input::Message(message) = &input
            && message.get_msg_type() == MessageType::MsgTimeoutNow
            && self.shared.disk_full.load(Ordering::Acquire)
        {
            // Who leads needs room for every put. The leader that wanted to hand over goes on, or asks another.
            return;
        }
        if let Input::Persisted(number) = &input {
            let done: Vec<_> = self.installing.extract_if(.., |(n, _)| *n <= *number).collect();
            for (_, file) in done {
                self.apply_later(ToApply::Install(file));
            }
        }
        if let Input::TransferTo(_) = &input
            && !bug!("lease_read_after_transfer")
        {
            self.shared.lease_until.store(0, Ordering::Release);
        }
        let taken = matches!(input, Input::SnapshotTaken(_));
        self.replica.take(input);
        if taken {
            self.write_later(ToDisk::DropUntil(self.replica.base_index()));
        }
    }

    fn apply_later(&self, work: ToApply) {
        self.apply_busy.fetch_add(1, Ordering::AcqRel);
        let _ = self.to_apply.send(work);
    }

    fn write_later(&self, work: ToDisk) {
        self.disk_busy.fetch_add(1, Ordering::AcqRel);
        let _ = self.to_disk.send(work);
    }

    /// Sends a round of heartbeats whose answers will make a new lease.
    fn ask_for_lease(&mut self, now: Instant) {
        let Authority::Quorum(term) = self.replica.authority() else { return };
        if self.lease.next.is_some_and(|next| now < next) {
            return;
        }
        self.lease.next = Some(now + LEASE_EVERY);
        self.lease.number += 1;
        let number = LEASE_READ | self.lease.number;
        // The time is taken before anything is sent: others count from when they receive it.
        self.lease.under_way.push((number, term, self.shared.clock.now_ns()));
        if self.lease.under_way.len() > 16 {
            self.lease.under_way.remove(0);
        }
        self.replica.take(Input::ReadIndex(number));
    }

    /// A majority has answered a round.
    fn lease_answered(&mut self, number: u64) {
        let Some(at) = self.lease.under_way.iter().position(|(n, ..)| *n == number) else { return };
        let (_, term, sent_ns) = self.lease.under_way[at];
        self.lease.under_way.drain(..=at);
        if self.replica.authority() == Authority::Quorum(term) {
            self.shared.lease_until.store(sent_ns + LEASE.as_nanos() as u64, Ordering::Release);
        }
    }

    /// Keeps what readers look at in step with the replica; before any message leaves.
    fn publish(&mut self) {
        self.shared.committed_index.store(self.replica.committed(), Ordering::Release);
        match self.replica.authority() {
            Authority::Sole => self.shared.lease_until.store(FOREVER, Ordering::Release),
            Authority::None => self.shared.lease_until.store(0, Ordering::Release),
            Authority::Quorum(_) if bug!("lease_read_without_quorum") => {
                self.shared.lease_until.store(FOREVER, Ordering::Release);
            }
            Authority::Quorum(_) => {
                // It was alone until now; the others have promised nothing yet.
                let _ = self.shared.lease_until.compare_exchange(FOREVER, 0, Ordering::AcqRel, Ordering::Acquire);
            }
        }
    }

    /// Carries out what the inputs so far came to.
    pub fn flush(&mut self) -> Result<(), String> {
        loop {
            let output = self.replica.drain();
            self.publish();
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
            self.persist(persist)?;
        }
        if output.snapshot_wanted {
            self.apply_later(ToApply::TakeSnapshot);
        }
        if !output.committed.is_empty() {
            if self.replica.is_alone() && self.apply_busy.load(Ordering::Acquire) == 0 {
                let last = lock(&self.applier).apply(output.committed)?;
                self.replica.take(Input::Applied(last));
            } else {
                self.apply_later(ToApply::Committed(output.committed));
            }
        }
        for (number, index) in output.reads {
            if number & LEASE_READ != 0 {
                self.lease_answered(number);
            } else if let Some(waiter) = lock(&self.shared.reads).remove(&number) {
                let _ = waiter.send(index);
            }
        }
        if !output.refused.is_empty() {
            let mut pending = lock(&self.shared.pending);
            for proposal in output.refused.iter().filter(|p| p.command.origin == self.shared.origin) {
                pending.send_again(proposal.command.sequence);
            }
            drop(pending);
            self.shared.pending_changed.notify_one();
        }
        Ok(())
    }

    fn persist(&mut self, persist: Persist) -> Result<(), String> {
        if let Some(snapshot) = &persist.snapshot {
            self.installing.push((persist.number, snapshot::file_name(snapshot.get_metadata().index)));
        } else if self.replica.is_alone() && self.disk_busy.load(Ordering::Acquire) == 0 {
            let mut log = lock(&self.log);
            let (entries, written) = (persist.entries.len(), log.append(&persist.entries, persist.hard_state.as_ref()));
            let short = log.is_short();
            drop(log);
            if short && !self.shared.disk_full.load(Ordering::Acquire) {
                self.shared.note_room(true);
                self.write_later(ToDisk::LookForRoom);
            }
            match written {
                Ok(()) => {
                    self.count(entries);
                    self.take(Input::Persisted(persist.number));
                    return Ok(());
                }
                // The disk's own thread waits for room.
                Err(e) if is_full(&e) => {}
                Err(e) => return Err(write_failed(e)),
            }
        }
        let number = persist.number;
        let early = bug!("acknowledge_before_write") && persist.snapshot.is_none();
        self.write_later(ToDisk::Persist(Box::new(persist)));
        if early {
            self.take(Input::Persisted(number));
        }
        Ok(())
    }

    fn count(&self, entries: usize) {
        self.shared.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.shared.counters.entries.fetch_add(entries as u64, Ordering::Relaxed);
    }
}
