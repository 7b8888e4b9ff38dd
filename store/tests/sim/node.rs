//! One member: its disk, its clock, and, while it runs, the store's own parts, put together as `Store::start` does.

use crate::checks::{RECOVERY, Violation, violated};
use crate::disk::SimDisk;
use crate::rng::Rng;
use crate::tally;
use raft::eraftpb::Message;
use skiff_store::simulation::*;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::{Notify, watch};

pub const TICK_US: u64 = 25_000;
const TIMING: Timing = Timing { heartbeat_ticks: 4, election_ticks: 20 };

/// Virtual time, the same for every member but for where each began to count.
pub struct SimClock(pub Arc<AtomicU64>, pub u64);

impl Clock for SimClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed) * 1000 + self.1
    }
}

/// Messages that wait for the network.
pub struct Out {
    disk: Arc<SimDisk>,
    messages: Mutex<Vec<Message>>,
}

impl Outbox for Out {
    fn send(&self, message: Message) {
        // The dead say nothing.
        if !self.disk.is_dead() {
            lock(&self.messages).push(message);
        }
    }
}

impl Out {
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *lock(&self.messages))
    }
}

pub struct Running {
    pub shared: Arc<Shared>,
    pub raft: RaftThread,
    pub queues: Queues,
    pub inbox: Receiver<Wake>,
    pub out: Arc<Out>,
    pub to_write: Option<ToDisk>,
    pub to_apply: VecDeque<ToApply>,
    pub raft_due: bool,
    pub disk_due: bool,
    pub apply_due: bool,
    pub sequence: u64,
    /// What `transport::carry` remembers.
    pub led_by: Option<(Term, Option<MemberId>)>,
    pub seen: Leadership,
    /// A barrier for the counting of leases is under way.
    pub counting: Option<Term>,
}

pub struct Node {
    pub id: MemberId,
    pub disk: Arc<SimDisk>,
    pub epoch: u64,
    pub incarnation: u64,
    pub run: Option<Running>,
    pub paused_until: u64,
    /// A bit of its disk was flipped.
    pub flipped: Option<(String, usize)>,
    /// Part of the group's machines: its data exists.
    pub exists: bool,
    /// Damaged beyond use, or removed from the group.
    pub gone: bool,
}

impl Node {
    pub fn new(id: MemberId, seed: u64, epoch: u64) -> Self {
        let disk = Arc::new(SimDisk::new(seed));
        Node { id, disk, epoch, incarnation: 0, run: None, paused_until: 0, flipped: None, exists: false, gone: false }
    }

    /// Starts the member from its disk.
    pub fn start(&mut self, now: &Arc<AtomicU64>, sizes: Sizes, rng: &mut Rng) -> Result<(), Violation> {
        self.incarnation += 1;
        match self.open(now, sizes, rng) {
            Ok(run) => self.run = Some(run),
            Err(_) if self.disk.is_dead() => self.disk.crash(),
            Err(why) if self.flipped.as_ref().is_some_and(|(file, _)| why.contains(file) && why.contains("byte")) => {
                tally::count("disk: a flipped bit, refused by file and byte");
                self.gone = true;
            }
            Err(why) => return violated(RECOVERY, format!("member {:x} does not start: {why}", self.id)),
        }
        Ok(())
    }

    fn open(&self, now: &Arc<AtomicU64>, sizes: Sizes, rng: &mut Rng) -> Result<Running, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let disk: Arc<dyn Disk> = self.disk.clone();
        snapshots::sweep_unfinished(&*disk).map_err(|e| text(&e))?;
        let (log, found) = Log::open_sized(disk.clone(), sizes).map_err(|e| text(&e))?;
        let (machine, metadata) = match snapshots::newest(&*disk).map_err(|e| text(&e))? {
            Some(file) => {
                let (header, pairs) = snapshots::read(&*disk, &file).map_err(|e| text(&e))?;
                let metadata = snapshots::metadata(&header);
                (Machine::restore(header, pairs), metadata)
            }
            None => (Machine::new(), Default::default()),
        };
        found.check_joins(machine.index).map_err(|e| text(&e))?;
        snapshots::tidy(&*disk, &Default::default()).map_err(|e| text(&e))?;
        let (index, revision, compacted) = (machine.index, machine.kv.revision(), machine.kv.compacted());
        let log_of_raft = RaftLog::new(metadata, found.hard_state, found.entries);
        let replica = Replica::new(self.id, log_of_raft, TIMING, sizes).map_err(|e| text(&e))?;
        let (inbox, wakes) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared {
            id: self.id,
            cluster_id: 1,
            machine: RwLock::new(machine),
            hub: Hub::default(),
            disk,
            clock: Arc::new(SimClock(now.clone(), self.epoch)),
            inbox,
            leadership: watch::Sender::new(Leadership { this: self.id, ..Default::default() }),
            applied: watch::Sender::new((index, revision)),
            applied_index: AtomicU64::new(index),
            committed_index: AtomicU64::new(index),
            lease_until: AtomicU64::new(0),
            swept: watch::Sender::new(compacted),
            lessor: Mutex::default(),
            lessor_changed: Notify::new(),
            failure: watch::Sender::new(None),
            failed: Default::default(),
            pending: Mutex::default(),
            pending_changed: Notify::new(),
            reads: Mutex::new(HashMap::new()),
            disk_full: AtomicBool::new(false),
            read_numbers: AtomicU64::new(Shared::first_read(rng.next())),
            origin: rng.next() | 1,
            sizes,
            incoming: Mutex::default(),
            sending: Default::default(),
            counters: Counters::default(),
        });
        let out = Arc::new(Out { disk: self.disk.clone(), messages: Mutex::default() });
        let (raft, queues) = assemble(shared.clone(), replica, log, out.clone());
        Ok(Running {
            shared,
            raft,
            queues,
            inbox: wakes,
            out,
            to_write: None,
            to_apply: VecDeque::new(),
            raft_due: false,
            disk_due: false,
            apply_due: false,
            sequence: 0,
            led_by: None,
            seen: Leadership::default(),
            counting: None,
        })
    }

    pub fn is_paused(&self, now: u64) -> bool {
        self.paused_until > now
    }
}

impl Node {
    /// For a report.
    pub fn describe(&self) -> String {
        let state = match &self.run {
            Some(run) => format!(
                "{:?} applied {}, members {:x?}",
                *run.shared.leadership.borrow(),
                run.shared.applied_index.load(Ordering::Relaxed),
                run.shared.look().conf_state
            ),
            None => "down".into(),
        };
        format!("{:x}: {state}, gone {}", self.id, self.gone)
    }
}
