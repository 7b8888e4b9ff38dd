//! What a simulator of whole groups needs of the store's inside (feature `simulation`): its parts, a say in what is random, the turns of
//! background work, and the planted bugs.
//!
//! A simulation runs on one thread, and so does everything here: each thread has its own.

pub use crate::apply::{Applier, ToApply};
pub use crate::clock::Clock;
pub use crate::command::{Command, Kind, Proposal, decode_batch};
pub use crate::config::{Group, read_identity, write_identity};
pub use crate::disk::{Disk, MemoryDisk};
pub use crate::driver::{Counters, LEASE, Outbox, Queues, RaftThread, Round, Shared, Wake, assemble, lock};
pub use crate::hub::Hub;
pub use crate::incoming::{Begun, Identity, Incoming, Offer, Refused, check_part};
pub use crate::kv::Kv;
pub use crate::kv::sweep::Hasher;
pub use crate::lessor::Lessor;
pub use crate::log::Log;
pub use crate::machine::Machine;
pub use crate::outgoing::{Sending, read_chunk};
pub use crate::pending::Pending;
pub use crate::raftlog::RaftLog;
pub use crate::record::{Next, next as next_record};
pub use crate::replica::{Authority, Commands, Committed, Input, Persist, Replica, Timing, change_of, is_snapshot};
pub use crate::sizes::Sizes;
pub mod snapshots {
    //! Snapshot files, as members write and read them.
    pub use crate::snapshot::*;
}
pub use crate::types::*;
pub use crate::writer::{DiskWriter, LOOK_EVERY, ToDisk};
use raft::eraftpb::ConfState;
use raft::{Raft, StateRole};
use std::cell::{Cell, RefCell};

type Work = Box<dyn FnOnce() + Send>;

thread_local! {
    static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
    static APPLIED: RefCell<Vec<Applied>> = const { RefCell::new(Vec::new()) };
    static POSTPONED: RefCell<Vec<Work>> = const { RefCell::new(Vec::new()) };
}

/// An entry that a member of this thread has begun to apply.
pub struct Applied {
    pub index: u64,
    pub term: Term,
    pub commands: Vec<Command>,
    pub conf_state: Option<ConfState>,
}

pub(crate) fn note_applied(entries: &[Committed]) {
    let applied = |e: &Committed| Applied {
        index: e.index,
        term: e.term,
        commands: e.commands.iter().cloned().collect(),
        conf_state: e.conf_state.clone(),
    };
    APPLIED.with_borrow_mut(|all| all.extend(entries.iter().map(applied)));
}

/// What was applied since the last call.
pub fn take_applied() -> Vec<Applied> {
    APPLIED.take()
}

/// Switches a bug on for this thread, or all of them off.
pub fn plant(bug: Option<&'static str>) {
    PLANTED.set(bug);
}

/// Whether this bug is switched on.
pub fn is_planted(bug: &str) -> bool {
    PLANTED.get().is_some_and(|planted| planted == bug)
}

/// This thread runs a simulation from now on, with this seed.
pub fn begin(seed: u64) {
    SEED.set(Some(seed));
    POSTPONED.take();
    APPLIED.take();
}

/// Whether this thread runs a simulation.
pub fn is_running() -> bool {
    SEED.get().is_some()
}

/// Takes background work, if a simulation runs.
pub(crate) fn postpone<W: FnOnce() + Send + 'static>(work: W) -> Result<(), W> {
    if !is_running() {
        return Err(work);
    }
    POSTPONED.with_borrow_mut(|all| all.push(Box::new(work)));
    Ok(())
}

/// The background work that was begun since the last call.
pub fn take_postponed() -> Vec<Work> {
    POSTPONED.take()
}

/// Raft draws its election time-outs from the thread's generator; a simulation gives it others, which depend on its seed only.
pub struct Lots {
    id: MemberId,
    ticks: u64,
}

impl Lots {
    pub(crate) fn of(id: MemberId) -> Self {
        Lots { id, ticks: 0 }
    }

    pub(crate) fn tick(&mut self) {
        self.ticks += 1;
    }

    pub(crate) fn draw<T: raft::Storage>(&self, raft: &mut Raft<T>) {
        let Some(seed) = SEED.get() else { return };
        let role = match raft.state {
            StateRole::Follower => 0,
            StateRole::PreCandidate => 1,
            StateRole::Candidate => 2,
            StateRole::Leader => 3,
        };
        let mut x = seed ^ self.id.rotate_left(17) ^ raft.term.rotate_left(33) ^ role ^ (self.ticks / 40) << 7;
        // SplitMix64's finish: every bit of the input moves every bit of the output.
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let shortest = raft.election_timeout();
        raft.set_randomized_election_timeout(shortest + (x % shortest as u64) as usize);
    }
}
