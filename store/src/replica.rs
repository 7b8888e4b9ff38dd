//! One member's Raft, as a function: an input goes in, and out comes what must be written, sent and applied.
//!
//! Nothing here does I/O or looks at a clock; threads around it do (see `driver`), or a simulator. The rule that keeps Raft safe is
//! in the shape of [`Output`]: `send` may go out at once, `persist.then_send` only after that batch is on disk.

use crate::raftlog::RaftLog;
use crate::types::{MemberId, Term};
use prost::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot,
    SnapshotMetadata,
};
use raft::{RawNode, SnapshotStatus, StateRole};
use raft_proto::ConfChangeI as _;
use skiff_proto::store as pb;
use std::collections::VecDeque;

/// Entries that stay in memory behind a snapshot, for followers that are a little behind.
const CATCH_UP_ENTRIES: u64 = 2000;
/// Commands of one entry together hold at most this many bytes (a bigger command has an entry to itself).
const ENTRY_BYTES: usize = 512 << 10;

/// How often things happen, in ticks. One tick is the driver's period.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat_ticks: usize,
    /// An election starts after a silence of this many ticks, up to twice as many.
    pub election_ticks: usize,
}

/// What can happen to a replica.
pub enum Input {
    Tick,
    /// From another member.
    Message(Box<Message>),
    /// Commands to put in the log; refused (see [`Output::refused`]) unless this is the leader.
    Propose(Vec<pb::Command>),
    /// A membership change; refused likewise. The context comes back in [`Committed::conf_change`].
    Change(ConfChangeV2),
    /// Ask for an index that covers every write acknowledged so far; answered in [`Output::reads`] by the same number.
    ReadIndex(u64),
    /// The batch of this number, and all before it, are on disk.
    Persisted(u64),
    /// The machine has applied everything up to this index.
    Applied(u64),
    Unreachable(MemberId),
    /// The connection to this member was closed by its end: if it led, it is likely dead.
    Closed(MemberId),
    SnapshotSent(MemberId, bool),
    /// A snapshot of the machine is on disk here.
    SnapshotTaken(SnapshotMetadata),
    /// Stand for election now.
    Campaign,
    TransferTo(MemberId),
}

/// What must be on disk before anything in it counts.
#[derive(Default)]
pub struct Persist {
    pub number: u64,
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
    /// A snapshot from the leader, received beforehand: it takes the place of log and machine.
    pub snapshot: Option<Snapshot>,
}

/// An entry that the group has agreed on.
pub struct Committed {
    pub index: u64,
    pub term: Term,
    pub batch: Option<pb::Batch>,
    /// For a membership change: the membership from here on.
    pub conf_state: Option<ConfState>,
}

/// What one round of inputs came to.
#[derive(Default)]
pub struct Output {
    pub send: Vec<Message>,
    pub persist: Option<Persist>,
    pub committed: Vec<Committed>,
    /// (number of the request, index to wait for).
    pub reads: Vec<(u64, u64)>,
    /// Commands that were not put in the log because this is not the leader.
    pub refused: Vec<pb::Command>,
    /// The leader or the term changed: (term, leader or 0, whether this member leads).
    pub leadership: Option<(Term, MemberId, bool)>,
    /// Another member needs a snapshot newer than the one on disk.
    pub snapshot_wanted: bool,
    /// An entry that cannot be decoded: the replica must stop.
    pub broken: Option<String>,
}

/// The state of one member.
pub struct Replica {
    node: RawNode<RaftLog>,
    /// Messages that wait for a batch to be on disk.
    waiting: VecDeque<(u64, Vec<Message>)>,
    refused: Vec<pb::Command>,
    queued: Vec<pb::Command>,
    persisted_next: u64,
    last_seen: (Term, MemberId, bool),
}

impl Replica {
    pub fn new(id: MemberId, log: RaftLog, timing: Timing) -> Result<Self, raft::Error> {
        let config = raft::Config {
            id,
            election_tick: timing.election_ticks,
            heartbeat_tick: timing.heartbeat_ticks,
            applied: log.snapshot_index(),
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 8 << 20,
            ..Default::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut node = RawNode::new(&config, log, &logger)?;
        node.set_batch_append(true);
        let mut replica = Replica {
            node,
            waiting: VecDeque::new(),
            refused: Vec::new(),
            queued: Vec::new(),
            persisted_next: 0,
            last_seen: (0, 0, false),
        };
        // Alone, there is nobody to wait for.
        if replica.voters() == [id] {
            let _ = replica.node.campaign();
        }
        Ok(replica)
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn voters(&self) -> Vec<MemberId> {
        self.node.raft.prs().conf().to_conf_state().voters
    }

    /// For each member as the leader sees it: (id, highest entry that it has, whether it votes).
    pub fn progress(&self) -> Vec<(MemberId, u64, bool)> {
        let voters = self.voters();
        self.node.raft.prs().iter().map(|(id, p)| (*id, p.matched, voters.contains(id))).collect()
    }

    /// Index before which the disk log may be dropped.
    pub fn base_index(&self) -> u64 {
        self.node.store().base_index()
    }

    /// Takes one input. Call [`Replica::drain`] after some of them.
    pub fn take(&mut self, input: Input) {
        match input {
            Input::Tick => {
                self.node.tick();
            }
            Input::Message(message) => self.message(*message),
            Input::Propose(commands) => self.queued.extend(commands),
            Input::Change(change) => {
                let _ = self.node.propose_conf_change(Vec::new(), change);
            }
            Input::ReadIndex(number) => self.node.read_index(number.to_be_bytes().to_vec()),
            Input::Persisted(number) => {
                self.node.on_persist_ready(number);
                self.persisted_next = self.persisted_next.max(number + 1);
            }
            Input::Applied(index) => self.node.advance_apply_to(index),
            Input::Unreachable(id) => self.node.report_unreachable(id),
            Input::Closed(id) => {
                // Pre-votes are refused while a leader is believed alive; the closed connection says that it is not.
                if self.node.raft.leader_id == id && !self.is_leader() {
                    self.node.raft.leader_id = raft::INVALID_ID;
                }
            }
            Input::SnapshotSent(id, ok) => {
                let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.node.report_snapshot(id, status);
            }
            Input::SnapshotTaken(metadata) => {
                let keep_from = metadata.index.saturating_sub(CATCH_UP_ENTRIES);
                self.node.mut_store().snapshot_taken(metadata, keep_from);
            }
            Input::Campaign => {
                let _ = self.node.campaign();
            }
            Input::TransferTo(id) => self.node.transfer_leader(id),
        }
    }

    fn message(&mut self, message: Message) {
        // An error here means a message that does not concern this member (a stale term, an unknown sender).
        let _ = self.node.step(message);
    }

    /// Puts the queued commands in the log, as few entries as their size allows.
    fn propose_queued(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let commands = std::mem::take(&mut self.queued);
        if !self.is_leader() {
            self.refused.extend(commands);
            return;
        }
        let mut batch = pb::Batch::default();
        let mut bytes = 0;
        for command in commands {
            let size = command.encoded_len();
            if bytes > 0 && bytes + size > ENTRY_BYTES {
                self.propose(std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += size;
            batch.commands.push(command);
        }
        self.propose(batch);
    }

    fn propose(&mut self, batch: pb::Batch) {
        if self.node.propose(Vec::new(), batch.encode_to_vec()).is_err() {
            self.refused.extend(batch.commands);
        }
    }

    /// What the inputs since the last call came to. Repeat until it is empty.
    pub fn drain(&mut self) -> Output {
        self.propose_queued();
        let mut output = Output { refused: std::mem::take(&mut self.refused), ..Default::default() };
        while self.waiting.front().is_some_and(|(number, _)| *number < self.persisted_next) {
            if let Some((_, messages)) = self.waiting.pop_front() {
                output.send.extend(messages);
            }
        }
        if self.node.has_ready() {
            self.ready(&mut output);
        }
        output.snapshot_wanted = self.node.store().take_snapshot_wanted();
        let leadership = (self.node.raft.term, self.node.raft.leader_id, self.is_leader());
        if leadership != self.last_seen {
            self.last_seen = leadership;
            output.leadership = Some(leadership);
        }
        output
    }

    /// Whether [`Replica::drain`] has more to say.
    pub fn has_output(&self) -> bool {
        self.node.has_ready() || self.waiting.front().is_some_and(|(number, _)| *number < self.persisted_next)
    }

    fn ready(&mut self, output: &mut Output) {
        let mut ready = self.node.ready();
        output.send.extend(ready.take_messages());
        for state in ready.take_read_states() {
            if let Ok(number) = state.request_ctx[..].try_into() {
                output.reads.push((u64::from_be_bytes(number), state.index));
            }
        }
        let mut persist = Persist { number: ready.number(), ..Default::default() };
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            self.node.mut_store().install(snapshot.get_metadata().clone());
            persist.snapshot = Some(snapshot);
        }
        persist.entries = ready.take_entries();
        self.node.mut_store().append(&persist.entries);
        if let Some(hs) = ready.hs() {
            self.node.mut_store().set_hard_state(hs.clone());
            persist.hard_state = Some(hs.clone());
        }
        let committed = ready.take_committed_entries();
        let after = ready.take_persisted_messages();
        let nothing_to_write = persist.entries.is_empty() && persist.snapshot.is_none() && !ready.must_sync();
        let number = ready.number();
        self.node.advance_append_async(ready);
        if nothing_to_write && self.waiting.is_empty() && number == self.persisted_next.max(1) {
            // Only the commit index moved (or nothing did): it need not be on disk before anything is said.
            self.node.on_persist_ready(number);
            self.persisted_next = number + 1;
            output.send.extend(after);
        } else {
            self.waiting.push_back((number, after));
            output.persist = Some(persist);
        }
        for entry in committed {
            match self.commit(entry) {
                Ok(committed) => output.committed.push(committed),
                Err(problem) => output.broken = Some(problem),
            }
        }
    }

    fn commit(&mut self, entry: Entry) -> Result<Committed, String> {
        let undecodable = |e: prost::DecodeError| format!("entry {} of the log cannot be decoded: {e}", entry.index);
        let mut committed = Committed { index: entry.index, term: entry.term, batch: None, conf_state: None };
        let change = match entry.get_entry_type() {
            EntryType::EntryNormal => {
                if !entry.data.is_empty() {
                    committed.batch = Some(pb::Batch::decode(entry.data.clone()).map_err(undecodable)?);
                }
                return Ok(committed);
            }
            EntryType::EntryConfChange => ConfChange::decode(entry.data.clone()).map_err(undecodable)?.into_v2(),
            EntryType::EntryConfChangeV2 => ConfChangeV2::decode(entry.data.clone()).map_err(undecodable)?,
        };
        // A refused change (one that makes no sense for this membership) leaves the membership as it was, on every member alike.
        committed.conf_state =
            Some(self.node.apply_conf_change(&change).unwrap_or_else(|_| self.node.raft.prs().conf().to_conf_state()));
        Ok(committed)
    }
}

/// A change of one member.
pub fn single_change(id: MemberId, change: ConfChangeType) -> ConfChangeV2 {
    let step = raft_proto::new_conf_change_single(id, change);
    ConfChangeV2 { changes: vec![step], ..Default::default() }
}

/// Whether a message is a snapshot, which travels on a stream of its own.
pub fn is_snapshot(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgSnapshot
}
