//! The invariants, each with a name. What breaks one ends the run.

use crate::model::{Model, digest_of};
use raft::eraftpb::{HardState, Message, MessageType};
use skiff_store::simulation::*;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher as _};

pub const ELECTION_SAFETY: &str = "election safety";
pub const PROMISES: &str = "votes and terms outlast a restart";
pub const ONE_AUTHORITY: &str = "no leader beside a read lease";
pub const LOG_MATCHING: &str = "log matching";
pub const AGREEMENT: &str = "agreement on what is committed";
pub const LEADER_COMPLETENESS: &str = "leader completeness";
pub const MEMBERSHIP: &str = "only voters lead, and nobody stands two memberships behind";
pub const QUESTIONS: &str = "questions to a leader are told apart";
pub const STATE_EQUALITY: &str = "state-machine equality";
pub const LINEARIZABILITY: &str = "linearizability";
pub const ACKNOWLEDGED: &str = "no acknowledged write lost";
pub const WATCH: &str = "watch = the history";
pub const LEASES: &str = "leases never end early";
pub const RECOVERY: &str = "recovery, or an error that says what is damaged";
/// Also: the file is there while it is sent.
pub const TRANSFERS: &str = "a snapshot that arrives in pieces is the one that was offered";
pub const LIVENESS: &str = "progress after healing";
pub const NO_PANIC: &str = "no broken assertion";

/// What went wrong.
#[derive(Debug, Clone)]
pub struct Violation {
    pub invariant: &'static str,
    pub detail: String,
}

pub fn violated<T>(invariant: &'static str, detail: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { invariant, detail: detail.into() })
}

/// What all members together have shown so far.
pub struct Checks {
    pub model: Model,
    /// The committed log: (term, hash of its commands) by index; it begins after the snapshot at 1 that members start with.
    log: BTreeMap<u64, (Term, u64)>,
    digests: HashMap<u64, u64>,
    headers: HashMap<u64, u64>,
    leaders: HashMap<Term, MemberId>,
    /// By member: the newest term in which it has said anything, and whom it voted for in it.
    promises: HashMap<MemberId, (Term, Option<MemberId>)>,
    /// By member: the leader that it answered last, in which term, and until when (ms) it votes for nobody else.
    pub silent: HashMap<MemberId, (MemberId, Term, u64)>,
    /// Who asked with this number.
    questions: HashMap<Vec<u8>, MemberId>,
    /// By (index, term): the hash of the entry, and the term of the one before it.
    entries: HashMap<(u64, Term), (u64, Option<Term>)>,
    /// Leases: the earliest time at which each may end, by what was promised to clients; None = a client asked for its end.
    pub promised: HashMap<LeaseId, Option<u64>>,
    pub ended: HashMap<LeaseId, u64>,
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The members of a membership; the order in which they are written down means nothing.
fn sorted(conf: &raft::eraftpb::ConfState) -> [Vec<u64>; 4] {
    let mut all =
        [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next].map(|members| members.to_vec());
    all.iter_mut().for_each(|members| members.sort_unstable());
    all
}

impl Checks {
    pub fn new() -> Self {
        Checks {
            model: Model::new(),
            log: BTreeMap::from([(1, (1, 0))]),
            digests: HashMap::new(),
            headers: HashMap::new(),
            leaders: HashMap::new(),
            promises: HashMap::new(),
            silent: HashMap::new(),
            questions: HashMap::new(),
            entries: HashMap::new(),
            promised: HashMap::new(),
            ended: HashMap::new(),
        }
    }

    pub fn last(&self) -> u64 {
        self.log.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// A member is about to apply these entries.
    pub fn committed(&mut self, member: MemberId, entries: &[Applied], now_ms: u64) -> Result<(), Violation> {
        for entry in entries {
            let commands = &entry.commands;
            let seen = (entry.term, hash(format!("{commands:?}{:?}", entry.conf_state.as_ref().map(sorted))));
            let last = self.last();
            if entry.index > last + 1 {
                return violated(AGREEMENT, format!("member {member:x} applies entry {} after {last}", entry.index));
            }
            if let Some(known) = self.log.get(&entry.index) {
                if *known != seen {
                    let detail =
                        format!("member {member:x} has another entry {} than others: {commands:?}", entry.index);
                    return violated(AGREEMENT, detail);
                }
                continue;
            }
            self.log.insert(entry.index, seen);
            commands.iter().for_each(|c| self.model.apply(entry.term, c));
            self.digests.insert(entry.index, self.model.digest());
            for lease in std::mem::take(&mut self.model.ended) {
                self.ended.insert(lease, now_ms);
                self.lease(lease)?;
            }
        }
        Ok(())
    }

    /// A client was promised that a lease lasts until then; None: it asked for its end.
    pub fn promise(&mut self, lease: LeaseId, until_ms: Option<u64>) -> Result<(), Violation> {
        let promised = self.promised.entry(lease).or_insert(Some(0));
        *promised = match (*promised, until_ms) {
            (Some(before), Some(until)) => Some(before.max(until)),
            _ => None,
        };
        self.lease(lease)
    }

    fn lease(&self, lease: LeaseId) -> Result<(), Violation> {
        match (self.promised.get(&lease), self.ended.get(&lease)) {
            // The clocks count whole milliseconds.
            (Some(Some(until)), Some(ended)) if *ended + 2 < *until => {
                violated(LEASES, format!("lease {lease} ended at {ended} ms, promised until {until} ms"))
            }
            _ => Ok(()),
        }
    }

    /// A member has this state now.
    pub fn state(&mut self, member: MemberId, machine: &Machine) -> Result<(), Violation> {
        let index = machine.index;
        if let Some(expected) = self.digests.get(&index)
            && *expected != digest_of(machine)
        {
            return violated(STATE_EQUALITY, format!("member {member:x} differs from the log's meaning at {index}"));
        }
        let mut header = machine.header(1);
        header.conf_state.clear();
        let header = format!("{header:?} {:?}", sorted(&machine.conf_state));
        if *self.headers.entry(index).or_insert(hash(&header)) != hash(&header) {
            return violated(STATE_EQUALITY, format!("member {member:x} differs from another at {index}: {header}"));
        }
        Ok(())
    }

    /// A member leads.
    pub fn leads(&mut self, member: MemberId, term: Term, log: &RaftLog) -> Result<(), Violation> {
        let first = *self.leaders.entry(term).or_insert(member);
        if first != member {
            return violated(ELECTION_SAFETY, format!("members {first:x} and {member:x} both lead in term {term}"));
        }
        let (base, terms) = log.terms();
        for (index, (entry_term, _)) in self.log.range(base + 1..) {
            let own = terms.get((index - base - 1) as usize);
            if *entry_term < term && own != Some(entry_term) {
                let detail = format!(
                    "member {member:x} leads in term {term} and has {own:?} at {index}, committed in {entry_term}"
                );
                return violated(LEADER_COMPLETENESS, detail);
            }
        }
        Ok(())
    }

    /// A member sends this.
    pub fn said(&mut self, member: MemberId, message: &Message, now_ms: u64) -> Result<(), Violation> {
        use MessageType::{
            MsgAppend, MsgHeartbeatResponse, MsgReadIndex, MsgRequestPreVote, MsgRequestPreVoteResponse,
            MsgRequestVote, MsgRequestVoteResponse,
        };
        match message.get_msg_type() {
            MsgAppend => self.sent(member, &message.entries)?,
            MsgHeartbeatResponse => {
                self.silent.insert(member, (message.to, message.term, now_ms + LEASE.as_millis() as u64));
            }
            MsgReadIndex => {
                let question = message.entries.first().map(|e| e.data.to_vec()).unwrap_or_default();
                // Passed on by a member that leads no more, it still names who asked.
                let asker = *self.questions.entry(question).or_insert(message.from);
                if asker != message.from {
                    return violated(QUESTIONS, format!("{asker:x} and {member:x} ask with the same number"));
                }
            }
            _ => {}
        }
        let vote = match message.get_msg_type() {
            // These name a term that may never begin.
            MsgRequestPreVote | MsgRequestPreVoteResponse => return Ok(()),
            MsgRequestVote => Some(member),
            MsgRequestVoteResponse if !message.reject => Some(message.to),
            _ => None,
        };
        let (term, voted) = self.promises.entry(member).or_default();
        if message.term > *term {
            (*term, *voted) = (message.term, vote);
        } else if message.term == *term {
            *voted = voted.or(vote);
        }
        Ok(())
    }

    /// For whom this message is a vote, and in which term.
    pub fn grants(message: &Message) -> Option<(MemberId, Term)> {
        let granted = message.get_msg_type() == MessageType::MsgRequestVoteResponse && !message.reject;
        granted.then_some((message.to, message.term))
    }

    /// A member stands for election, having applied the log up to an index.
    pub fn stands(&self, member: MemberId, log: &RaftLog, applied: u64) -> Result<(), Violation> {
        let behind = log.changes_after(applied);
        if behind > 1 {
            return violated(MEMBERSHIP, format!("{member:x} stands for election {behind} memberships behind its log"));
        }
        Ok(())
    }

    /// A member leads, and has applied this membership.
    pub fn is_voter(&self, member: MemberId, now: &raft::eraftpb::ConfState) -> Result<(), Violation> {
        let voters = sorted(now);
        if voters[0].contains(&member) || voters[2].contains(&member) || voters[0].is_empty() {
            return Ok(());
        }
        violated(MEMBERSHIP, format!("{member:x} leads and has no vote: {voters:x?}"))
    }

    /// A member starts with this on its disk.
    pub fn starts(&self, member: MemberId, found: &HardState) -> Result<(), Violation> {
        let Some((term, voted)) = self.promises.get(&member) else { return Ok(()) };
        let forgot_vote = found.term == *term && voted.is_some_and(|v| v != found.vote);
        if found.term < *term || forgot_vote {
            let detail = format!("member {member:x} spoke in term {term}, vote {voted:x?}; it starts with {found:?}");
            return violated(PROMISES, detail);
        }
        Ok(())
    }

    /// A member sends these entries. (What a leader wrote and nobody was sent may be lost, and be another in its next life.)
    fn sent(&mut self, member: MemberId, entries: &[raft::eraftpb::Entry]) -> Result<(), Violation> {
        let mut before = None;
        for entry in entries {
            let data = hash(&entry.data[..]);
            let known = self.entries.entry((entry.index, entry.term)).or_insert((data, before));
            known.1 = known.1.or(before);
            if known.0 != data || (before.is_some() && known.1 != before) {
                let detail = format!("member {member:x} has another entry {} of term {}", entry.index, entry.term);
                return violated(LOG_MATCHING, detail);
            }
            before = Some(entry.term);
        }
        Ok(())
    }

    /// A watch delivered these events, having delivered everything up to `delivered` before.
    pub fn watched(&self, range: &KeyRange, delivered: Revision, batch: &WatchBatch) -> Result<(), Violation> {
        let expected = self.model.history.range(delivered + 1..=batch.revision.max(delivered + 1));
        let mut expected: Vec<_> = expected
            .filter(|(revision, _)| **revision <= batch.revision)
            .flat_map(|(revision, (changes, _))| changes.iter().map(move |c| (*revision, c)))
            .filter(|(_, (key, ..))| range.contains(key))
            .map(|(revision, (key, deleted, value))| (revision, key.clone(), *deleted, value.clone()))
            .collect();
        let mut seen: Vec<_> = batch
            .events
            .iter()
            .map(|e| (e.kv.mod_revision, e.kv.key.to_vec(), e.kind == EventKind::Delete, e.kv.value.to_vec()))
            .collect();
        // Within a revision, a member that began from a snapshot has the order of the keys, others that of the operations.
        if !seen.is_sorted_by_key(|e| e.0) {
            return violated(WATCH, format!("revisions out of order: {seen:?}"));
        }
        expected.sort();
        seen.sort();
        if seen != expected {
            return violated(
                WATCH,
                format!("after {delivered}, up to {}: {seen:?}; expected {expected:?}", batch.revision),
            );
        }
        Ok(())
    }
}
