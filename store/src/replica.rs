//! One member's Raft, as a function: an input goes in, and out comes what must be written, sent and applied.
//!
//! Nothing here does I/O or looks at a clock; threads around it do (see `driver`), or a simulator. The rule that keeps Raft safe is
//! in the shape of [`Output`]: `send` may go out at once, `persist.then_send` only after that batch is on disk.

use crate::command::{self, Command, Proposal};
use crate::patience;
use crate::raftlog::RaftLog;
use crate::sizes::Sizes;
use crate::types::{MemberId, Term};
use prost::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot,
    SnapshotMetadata,
};
use raft::{RawNode, SnapshotStatus, StateRole};
use raft_proto::ConfChangeI as _;
use std::collections::VecDeque;
use std::sync::Arc;

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
    Propose(Vec<Arc<Proposal>>),
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
    pub commands: Commands,
    /// Of the entry's data.
    pub bytes: usize,
    /// For a membership change: the membership from here on.
    pub conf_state: Option<ConfState>,
}

/// The commands of an entry.
pub enum Commands {
    /// Proposed by this member in this term: it has them decoded already.
    Own(Vec<Arc<Proposal>>),
    Decoded(Vec<Command>),
}

impl Commands {
    pub fn iter(&self) -> impl Iterator<Item = &Command> {
        let (own, decoded) = match self {
            Commands::Own(own) => (&own[..], &[][..]),
            Commands::Decoded(decoded) => (&[][..], &decoded[..]),
        };
        own.iter().map(|p| &p.command).chain(decoded)
    }
}

/// A member as the leader sees it.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub id: MemberId,
    /// The highest entry that it has.
    pub matched: u64,
    /// Whether it votes (in the newer half, while a change of several members is under way).
    pub votes: bool,
}

/// Of the members that fit, the one with most of the log: who can lead soonest.
pub fn foremost(group: &[Progress], fits: impl Fn(&Progress) -> bool) -> Option<MemberId> {
    group.iter().filter(|m| fits(m)).max_by_key(|m| m.matched).map(|m| m.id)
}

/// What makes this member's state the newest there is, so that it may answer reads by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    None,
    /// It is the only voter and has applied what earlier terms left.
    Sole,
    /// It leads in this term, and may count a lease from each round of heartbeats that a majority answers.
    Quorum(Term),
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
    pub refused: Vec<Arc<Proposal>>,
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
    refused: Vec<Arc<Proposal>>,
    queued: Vec<Arc<Proposal>>,
    /// What this member has proposed and not seen committed: (index, term, commands).
    proposed: VecDeque<(u64, Term, Vec<Arc<Proposal>>)>,
    /// Ticks that are left in which this member votes for nobody: before it was restarted it may have promised a leader its silence.
    mute_ticks: usize,
    /// The term in which leadership was handed over: no lease is counted in it any more.
    handed_over: Term,
    persisted_next: u64,
    /// The newest term and vote, and the batch that brings them to the disk.
    promised: (Term, MemberId),
    promised_in: u64,
    last_seen: (Term, MemberId, bool),
    /// How long this member bears silence, in ticks, as it was set last.
    patience_ticks: usize,
    sizes: Sizes,
    #[cfg(feature = "simulation")]
    lots: crate::simulation::Lots,
}

impl Replica {
    pub fn new(id: MemberId, log: RaftLog, timing: Timing, sizes: Sizes) -> Result<Self, raft::Error> {
        let config = raft::Config {
            id,
            election_tick: timing.election_ticks,
            heartbeat_tick: timing.heartbeat_ticks,
            applied: log.snapshot_index(),
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            read_only_option: match bug!("read_index_without_quorum") {
                true => raft::ReadOnlyOption::LeaseBased,
                false => raft::ReadOnlyOption::Safe,
            },
            pre_vote: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 8 << 20,
            ..Default::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let has_past = log.has_past();
        let promised = log.promised();
        let mut node = RawNode::new(&config, log, &logger)?;
        // Raft's own batching stays off: it adds entries to an empty message whatever that message's place in the log, and the follower then
        // acknowledges what it never got (raft 0.7.0, `is_continuous_ents`; found by the simulation, seed 12 at the time).
        node.set_batch_append(bug!("append_batched_by_raft"));
        let mut replica = Replica {
            node,
            waiting: VecDeque::new(),
            refused: Vec::new(),
            queued: Vec::new(),
            proposed: VecDeque::new(),
            mute_ticks: if has_past && !bug!("restart_forgets_promise") { timing.election_ticks } else { 0 },
            handed_over: 0,
            persisted_next: 0,
            promised,
            promised_in: 0,
            last_seen: (0, 0, false),
            patience_ticks: 0,
            sizes,
            #[cfg(feature = "simulation")]
            lots: crate::simulation::Lots::of(id),
        };
        // Alone, there is nobody to wait for.
        if replica.is_alone() {
            let _ = replica.node.campaign();
        }
        replica.be_patient();
        Ok(replica)
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether this member is the only voter, in both halves of the membership while a change of several members is under way.
    pub fn is_alone(&self) -> bool {
        let conf = self.node.raft.prs().conf().to_conf_state();
        let other_half = &conf.voters_outgoing;
        conf.voters == [self.node.raft.id] && (other_half.is_empty() || bug!("alone_in_one_half"))
    }

    /// The highest index that this member knows to be agreed on.
    pub fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// On what this member's own reads may rest.
    pub fn authority(&self) -> Authority {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader
            || !raft.commit_to_current_term()
            || (raft.term == self.handed_over && !bug!("lease_read_after_transfer"))
        {
            return Authority::None;
        }
        // A learner that is about to vote does not count yet.
        if raft.prs().iter().len() == 1 || self.is_alone() { Authority::Sole } else { Authority::Quorum(raft.term) }
    }

    fn voters(&self) -> Vec<MemberId> {
        self.node.raft.prs().conf().to_conf_state().voters
    }

    /// Each member as the leader sees it.
    pub fn progress(&self) -> Vec<Progress> {
        let voters = self.voters();
        let seen = |id: &MemberId, matched| Progress { id: *id, matched, votes: voters.contains(id) };
        self.node.raft.prs().iter().map(|(id, p)| seen(id, p.matched)).collect()
    }

    /// Raft's log as it stands in memory (see [`RaftLog::terms`]).
    #[cfg(feature = "simulation")]
    pub fn log(&self) -> &RaftLog {
        self.node.store()
    }

    /// Index before which the disk log may be dropped.
    pub fn base_index(&self) -> u64 {
        self.node.store().base_index()
    }

    /// As [`Input::Propose`] of one command.
    pub fn propose_one(&mut self, proposal: Arc<Proposal>) {
        self.queued.push(proposal);
    }

    /// Takes one input. Call [`Replica::drain`] after some of them.
    pub fn take(&mut self, input: Input) {
        self.take_one(input);
        self.be_patient();
    }

    /// Puts this member's patience in the place of the one that Raft drew.
    fn be_patient(&mut self) {
        #[cfg(feature = "simulation")]
        if crate::simulation::is_running() {
            return self.lots.draw(&mut self.node.raft);
        }
        if self.node.raft.randomized_election_timeout() != self.patience_ticks {
            let voters = self.voters();
            let raft = &mut self.node.raft;
            let dice = rand::random_range(0..usize::MAX);
            self.patience_ticks = patience::ticks(raft.election_timeout(), raft.id, raft.leader_id, &voters, dice);
            raft.set_randomized_election_timeout(self.patience_ticks);
        }
    }

    fn take_one(&mut self, input: Input) {
        match input {
            Input::Tick => {
                self.mute_ticks = self.mute_ticks.saturating_sub(1);
                #[cfg(feature = "simulation")]
                self.lots.tick();
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
            // Word of older entries may come late: a lone member applies newer ones itself while it is on its way.
            Input::Applied(index) if index <= self.node.raft.raft_log.applied => {}
            Input::Applied(index) => {
                self.node.advance_apply_to(index);
                let others = self.node.raft.prs().iter().len() > 1;
                let kept_bytes = if others { self.sizes.log_bytes } else { self.sizes.log_bytes_alone };
                self.node.mut_store().trim(index, kept_bytes);
            }
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
                let keep_from = metadata.index.saturating_sub(self.sizes.catch_up_entries);
                self.node.mut_store().snapshot_taken(metadata, keep_from);
            }
            // A member that has no vote (yet) cannot win; Raft would take the empty membership of a new one for a majority.
            Input::Campaign if !self.node.raft.promotable() && !bug!("everybody_stands_for_election") => {}
            Input::Campaign => {
                let _ = self.node.campaign();
            }
            Input::TransferTo(id) => {
                // Whoever is told to stand for election does so whatever was promised to this leader.
                self.handed_over = self.node.raft.term;
                self.node.transfer_leader(id);
            }
        }
    }

    fn message(&mut self, mut message: Message) {
        use MessageType::{MsgRequestPreVote, MsgRequestVote};
        if self.mute_ticks > 0 && matches!(message.get_msg_type(), MsgRequestVote | MsgRequestPreVote) {
            return;
        }
        if bug!("follower_commits_what_it_has") && message.get_msg_type() == MessageType::MsgAppend {
            message.commit = message.index + message.entries.len() as u64;
        }
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
        let (mut entry, mut bytes) = (Vec::new(), 0);
        for command in commands {
            let size = command.encoded.len() + 6;
            if bytes > 0 && bytes + size > ENTRY_BYTES {
                self.propose(std::mem::take(&mut entry), bytes);
                bytes = 0;
            }
            bytes += size;
            entry.push(command);
        }
        self.propose(entry, bytes);
    }

    fn propose(&mut self, commands: Vec<Arc<Proposal>>, bytes: usize) {
        let mut data = Vec::with_capacity(bytes);
        commands.iter().for_each(|c| command::push_to_batch(&mut data, &c.encoded));
        if self.node.propose(Vec::new(), data).is_err() {
            self.refused.extend(commands);
            return;
        }
        let (index, term) = (self.node.raft.raft_log.last_index(), self.node.raft.term);
        self.proposed.push_back((index, term, commands));
    }

    /// The commands of an entry that this member proposed itself.
    fn take_proposed(&mut self, entry: &Entry) -> Option<Vec<Arc<Proposal>>> {
        while let Some((index, term, commands)) = self.proposed.pop_front() {
            if (index, term) == (entry.index, entry.term)
                || (index == entry.index && bug!("own_proposal_of_another_term"))
            {
                return Some(commands);
            }
            // A leader that lost its office may find its entries replaced; what is committed later stays.
            if index > entry.index {
                self.proposed.push_front((index, term, commands));
                return None;
            }
        }
        None
    }

    /// What the inputs since the last call came to. Repeat until it is empty.
    pub fn drain(&mut self) -> Output {
        self.propose_queued();
        self.be_patient();
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
        let number = ready.number();
        if let Some(hs) = ready.hs()
            && (hs.term, hs.vote) != self.promised
        {
            (self.promised, self.promised_in) = ((hs.term, hs.vote), number);
        }
        let mut now = ready.take_messages();
        for state in ready.take_read_states() {
            if let Ok(number) = state.request_ctx[..].try_into() {
                output.reads.push((u64::from_be_bytes(number), state.index));
            }
        }
        let mut persist = Persist { number, ..Default::default() };
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
        let members_change = committed.iter().any(|e| e.get_entry_type() != EntryType::EntryNormal);
        if members_change && !bug!("restart_forgets_agreed_changes") {
            // A member that restarts believes in the members of what it knows to be committed. Of two of which one was removed, and is
            // gone, the other must not wait for that one's vote.
            persist.hard_state = Some(self.node.raft.hard_state());
        }
        let mut after = ready.take_persisted_messages();
        if self.promised_in >= self.persisted_next.max(1) && !bug!("speaks_before_its_term_is_written") {
            // A member that votes alone leads at once. In its next life it would lead in the same term again, with other entries.
            now.append(&mut after);
            after = std::mem::take(&mut now);
        }
        output.send.append(&mut now);
        let only_commit = persist.entries.is_empty() && persist.snapshot.is_none() && !ready.must_sync();
        let nothing_to_write = only_commit && !members_change;
        self.node.advance_append_async(ready);
        if let Some(snapshot) = &persist.snapshot
            && !bug!("snapshot_not_applied_for_raft")
        {
            // What it covers counts as applied for Raft from here on: when Raft stands for election it looks at what is not applied, and
            // those entries are gone. Answers wait for the disk all the same, and the machine takes the snapshot in before what follows.
            let index = snapshot.get_metadata().index;
            self.node.raft.on_persist_snap(index);
            self.node.advance_apply_to(index);
        }
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
        let own = self.take_proposed(&entry);
        let undecodable = |e: prost::DecodeError| format!("entry {} of the log cannot be decoded: {e}", entry.index);
        let mut committed = Committed {
            index: entry.index,
            term: entry.term,
            commands: Commands::Decoded(Vec::new()),
            bytes: entry.data.len(),
            conf_state: None,
        };
        #[cfg_attr(not(feature = "simulation"), allow(unused_mut))]
        let mut change = match entry.get_entry_type() {
            EntryType::EntryNormal => {
                committed.commands = match own {
                    Some(own) => Commands::Own(own),
                    None => Commands::Decoded(
                        command::decode_batch(entry.data.clone())
                            .map_err(|e| format!("entry {} of the log holds {e}", entry.index))?,
                    ),
                };
                return Ok(committed);
            }
            EntryType::EntryConfChange => ConfChange::decode(entry.data.clone()).map_err(undecodable)?.into_v2(),
            EntryType::EntryConfChangeV2 => ConfChangeV2::decode(entry.data.clone()).map_err(undecodable)?,
        };
        if bug!("membership_not_applied_by_followers") && !self.is_leader() {
            committed.conf_state = Some(self.node.raft.prs().conf().to_conf_state());
            return Ok(committed);
        }
        if bug!("many_changes_without_a_joint_step") && change.changes.len() > 1 {
            for step in change.changes.drain(1..) {
                let _ = self.node.apply_conf_change(&change_of(&[(step.node_id, step.get_change_type())]));
            }
        }
        // A refused change (one that makes no sense for this membership) leaves the membership as it was, on every member alike.
        committed.conf_state =
            Some(self.node.apply_conf_change(&change).unwrap_or_else(|_| self.node.raft.prs().conf().to_conf_state()));
        // A leader may find its own removal in what earlier leaders left. Raft cannot count the votes of a leader that is no member.
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() && !bug!("removed_leader_goes_on") {
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        Ok(committed)
    }
}

/// A change of members, all at once. Of more than one, Raft makes two: in between, what is agreed on needs a majority of the old and one
/// of the new, and the leader ends that by itself (Raft's joint consensus; dissertation, section 4.3).
pub fn change_of(steps: &[(MemberId, ConfChangeType)]) -> ConfChangeV2 {
    let changes = steps.iter().map(|(id, change)| raft_proto::new_conf_change_single(*id, *change));
    ConfChangeV2 { changes: changes.collect(), ..Default::default() }
}

/// Whether a message is a snapshot, which travels on a stream of its own.
pub fn is_snapshot(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgSnapshot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_word_of_applied_entries_is_no_news() {
        let conf_state = Some(ConfState { voters: vec![1], ..Default::default() });
        let metadata = SnapshotMetadata { conf_state, index: 1, term: 1 };
        let log = RaftLog::new(metadata, HardState::default(), Vec::new());
        let mut replica =
            Replica::new(1, log, Timing { heartbeat_ticks: 4, election_ticks: 20 }, Sizes::default()).unwrap();
        let mut applied = 0;
        while replica.has_output() {
            let output = replica.drain();
            if let Some(persist) = output.persist {
                replica.take(Input::Persisted(persist.number));
            }
            if let Some(last) = output.committed.last() {
                applied = last.index;
                replica.take(Input::Applied(applied));
            }
        }
        assert!(replica.is_leader() && applied > 1);
        replica.take(Input::Applied(applied - 1));
        assert_eq!(replica.node.raft.raft_log.applied, applied);
    }

    /// Carries everything out at once: what is written, the messages, what is applied. The last hard state that each wrote is in `written`.
    fn settle(replicas: &mut [Replica], written: &mut [HardState]) {
        while replicas.iter().any(Replica::has_output) {
            for at in 0..replicas.len() {
                let output = replicas[at].drain();
                if let Some(persist) = output.persist {
                    written[at] = persist.hard_state.unwrap_or(written[at].clone());
                    replicas[at].take(Input::Persisted(persist.number));
                }
                if let Some(last) = output.committed.last() {
                    replicas[at].take(Input::Applied(last.index));
                }
                for message in output.send {
                    replicas[message.to as usize - 1].take(Input::Message(Box::new(message)));
                }
            }
        }
    }

    #[test]
    fn that_a_change_of_members_is_agreed_on_is_written_down() {
        let replica = |id| {
            let conf_state = Some(ConfState { voters: vec![1, 2], ..Default::default() });
            let metadata = SnapshotMetadata { conf_state, index: 1, term: 1 };
            let log = RaftLog::new(metadata, HardState::default(), Vec::new());
            Replica::new(id, log, Timing { heartbeat_ticks: 4, election_ticks: 20 }, Sizes::default()).unwrap()
        };
        let mut replicas = [replica(1), replica(2)];
        let mut written = [HardState::default(), HardState::default()];
        replicas[0].take(Input::Campaign);
        settle(&mut replicas, &mut written);
        assert!(replicas[0].is_leader());
        replicas[0].take(Input::Change(change_of(&[(2, ConfChangeType::RemoveNode)])));
        settle(&mut replicas, &mut written);
        assert!(replicas[0].is_alone());
        assert_eq!(written[0].commit, replicas[0].committed());
    }
}
