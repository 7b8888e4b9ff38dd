//! What the log drives: the key-value map, the members, and which commands have been applied already.
//!
//! A command may reach the log twice, because its sender tries again when a leader is lost. Each carries its origin (a number
//! drawn when the sending process started) and a sequence; the machine remembers them, so that the second one changes nothing.

use crate::command::{COMMAND_FORMAT, member_from_pb, member_to_pb, txn_from_pb};
use crate::error::Error;
use crate::kv::Kv;
use crate::types::*;
use prost::Message as _;
use raft::eraftpb::ConfState;
use skiff_proto::store as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Sequences remembered above a session's floor. A sender has far fewer commands under way at once.
const SESSION_WINDOW: usize = 4096;
/// Origins remembered; the one that was idle longest goes first.
const SESSIONS_MAX: usize = 64;

/// The applied commands of one origin.
#[derive(Default, Clone)]
struct Session {
    /// Every sequence up to here is settled.
    floor: u64,
    above: BTreeSet<u64>,
    last_index: u64,
}

impl Session {
    /// Notes a sequence; false if it was noted before.
    fn note(&mut self, sequence: u64) -> bool {
        if sequence <= self.floor || !self.above.insert(sequence) {
            return false;
        }
        while self.above.remove(&(self.floor + 1)) {
            self.floor += 1;
        }
        if self.above.len() > SESSION_WINDOW
            && let Some(lowest) = self.above.pop_first()
        {
            self.floor = lowest;
        }
        true
    }
}

/// What a command came to.
pub struct Outcome {
    pub origin: u64,
    pub sequence: u64,
    pub result: Result<TxnResponse, Error>,
    /// The events of the revision that it made, if it changed anything.
    pub events: Vec<Arc<Event>>,
}

/// The replicated state.
#[derive(Default)]
pub struct Machine {
    pub kv: Kv,
    pub members: BTreeMap<MemberId, Member>,
    sessions: BTreeMap<u64, Session>,
    /// Index and term of the last applied entry.
    pub index: u64,
    pub term: Term,
    /// The membership as of `index`.
    pub conf_state: ConfState,
}

/// A command in a format that this version does not know. To guess would be to diverge: the replica stops.
#[derive(Debug, thiserror::Error)]
#[error(
    "entry {index} holds a command of format {format}; this version of Skiff knows formats up to {COMMAND_FORMAT}: upgrade this server"
)]
pub struct UnknownFormat {
    index: u64,
    format: u32,
}

impl Machine {
    pub fn new() -> Self {
        Machine { kv: Kv::new(), ..Default::default() }
    }

    /// Applies one command of the entry at `index` and `term`. None if it was applied before.
    pub fn apply(&mut self, index: u64, term: Term, command: pb::Command) -> Result<Option<Outcome>, UnknownFormat> {
        if command.format > COMMAND_FORMAT {
            return Err(UnknownFormat { index, format: command.format });
        }
        let (origin, sequence) = (command.origin, command.sequence);
        if origin != 0 && !self.note(origin, sequence, index) {
            return Ok(None);
        }
        let mut events = Vec::new();
        let result = if command.fence != 0 && command.fence != term {
            Err(Error::Fenced { fence: command.fence, term })
        } else {
            self.carry_out(command).map(|(response, new)| {
                events = new;
                response
            })
        };
        Ok(Some(Outcome { origin, sequence, result, events }))
    }

    fn carry_out(&mut self, command: pb::Command) -> Result<(TxnResponse, Vec<Arc<Event>>), Error> {
        use pb::command::Kind;
        match command.kind {
            Some(Kind::Txn(txn)) => return self.kv.txn(&txn_from_pb(txn)),
            Some(Kind::Compact(at)) => self.kv.compact(at)?,
            Some(Kind::Member(member)) => {
                let member = member_from_pb(member);
                self.members.insert(member.id, member);
            }
            None => {}
        }
        Ok((TxnResponse { revision: self.kv.revision(), succeeded: true, responses: Vec::new() }, Vec::new()))
    }

    fn note(&mut self, origin: u64, sequence: u64, index: u64) -> bool {
        let session = self.sessions.entry(origin).or_default();
        session.last_index = index;
        let new = session.note(sequence);
        if self.sessions.len() > SESSIONS_MAX
            && let Some(idle) = self.sessions.iter().min_by_key(|(o, s)| (s.last_index, **o)).map(|(o, _)| *o)
        {
            self.sessions.remove(&idle);
        }
        new
    }

    /// Everything but the pairs, as a snapshot's header.
    pub fn header(&self, cluster_id: u64) -> pb::SnapshotHeader {
        pb::SnapshotHeader {
            format: COMMAND_FORMAT,
            cluster_id,
            index: self.index,
            term: self.term,
            conf_state: self.conf_state.encode_to_vec().into(),
            revision: self.kv.revision(),
            compacted: self.kv.compacted(),
            members: self.members.values().map(member_to_pb).collect(),
            sessions: self
                .sessions
                .iter()
                .map(|(origin, s)| pb::Session {
                    origin: *origin,
                    floor: s.floor,
                    above: s.above.iter().copied().collect(),
                    last_index: s.last_index,
                })
                .collect(),
        }
    }

    /// The machine that a snapshot's header and pairs describe.
    pub fn restore(header: pb::SnapshotHeader, pairs: Vec<KeyValue>) -> Self {
        let sessions = header.sessions.into_iter().map(|s| {
            let session = Session { floor: s.floor, above: s.above.into_iter().collect(), last_index: s.last_index };
            (s.origin, session)
        });
        Machine {
            kv: Kv::restore(header.revision, header.compacted, pairs.into_iter()),
            members: header.members.into_iter().map(|m| (m.id, member_from_pb(m))).collect(),
            sessions: sessions.collect(),
            index: header.index,
            term: header.term,
            conf_state: ConfState::decode(&header.conf_state[..]).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::txn_to_pb;

    fn put(sequence: u64, fence: Term) -> pb::Command {
        let txn = Txn { success: vec![Op::put("k", sequence.to_string())], ..Default::default() };
        let kind = Some(pb::command::Kind::Txn(txn_to_pb(&txn)));
        pb::Command { format: 1, origin: 9, sequence, fence, kind }
    }

    #[test]
    fn a_command_that_comes_twice_is_applied_once() {
        let mut m = Machine::new();
        assert!(m.apply(1, 1, put(1, 0)).unwrap().is_some());
        assert!(m.apply(2, 1, put(3, 0)).unwrap().is_some());
        assert!(m.apply(3, 1, put(1, 0)).unwrap().is_none());
        assert!(m.apply(4, 1, put(3, 0)).unwrap().is_none());
        assert!(m.apply(5, 1, put(2, 0)).unwrap().is_some());
        assert_eq!(m.kv.revision(), 4);
    }

    #[test]
    fn leader_only_work_of_an_older_term_is_refused() {
        let mut m = Machine::new();
        let outcome = m.apply(1, 5, put(1, 4)).unwrap().unwrap();
        assert!(matches!(outcome.result, Err(Error::Fenced { fence: 4, term: 5 })));
        assert!(m.apply(2, 5, put(2, 5)).unwrap().unwrap().result.is_ok());
    }

    #[test]
    fn a_newer_format_stops_the_replica() {
        let mut m = Machine::new();
        assert!(m.apply(1, 1, pb::Command { format: 99, ..put(1, 0) }).is_err());
    }
}
