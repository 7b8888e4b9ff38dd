//! What the log drives: the key-value map, the members, the alarms, and which commands have been applied already.
//!
//! A command may reach the log twice, because its sender tries again when a leader is lost. Each carries its origin (a number
//! drawn when the sending process started) and a sequence; the machine remembers them, so that the second one changes nothing.

use crate::command::{COMMAND_FORMAT, Command, Kind, alarm_from_pb, alarm_to_pb, member_from_pb, member_to_pb};
use crate::error::{Error, MemberCode};
use crate::kv::Kv;
use crate::types::*;
use prost::Message as _;
use raft::eraftpb::ConfState;
use skiff_proto::store as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Sequences remembered above a session's floor: four times what a sender may have under way at once.
const SESSION_WINDOW: usize = 16384;
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
        if sequence <= self.floor {
            return false;
        }
        if sequence == self.floor + 1 && self.above.is_empty() {
            self.floor = sequence;
            return true;
        }
        if !self.above.insert(sequence) {
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
    pub lease: Option<LeaseNews>,
}

/// What whoever counts the leases' time must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseNews {
    Granted(Lease),
    Ended(LeaseId),
}

/// The replicated state.
#[derive(Default)]
pub struct Machine {
    pub kv: Kv,
    pub members: BTreeMap<MemberId, Member>,
    pub alarms: BTreeSet<Alarm>,
    /// The keys of members that were removed (see `role`).
    pub removed_keys: Vec<String>,
    sessions: BTreeMap<u64, Session>,
    /// Index and term of the last applied entry.
    pub index: u64,
    pub term: Term,
    /// The membership as of `index`.
    pub conf_state: ConfState,
}

impl Machine {
    pub fn new() -> Self {
        Machine { kv: Kv::new(), ..Default::default() }
    }

    /// Applies one command of the entry at `index` and `term`. None if it was applied before.
    pub fn apply(&mut self, index: u64, term: Term, command: &Command) -> Option<Outcome> {
        let (origin, sequence) = (command.origin, command.sequence);
        if origin != 0 && !self.note(origin, sequence, index) && !bug!("commands_applied_twice") {
            return None;
        }
        let mut outcome = Outcome { origin, sequence, result: Err(Error::Stopped), events: Vec::new(), lease: None };
        outcome.result = if command.fence != 0 && command.fence != term && !bug!("fence_ignored") {
            Err(Error::Fenced { fence: command.fence, term })
        } else {
            self.carry_out(&command.kind, &mut outcome)
        };
        Some(outcome)
    }

    fn carry_out(&mut self, kind: &Kind, outcome: &mut Outcome) -> Result<TxnResponse, Error> {
        match kind {
            Kind::Txn(txn) => {
                if self.is_full() && txn.may_put() {
                    return Err(Error::NoSpace);
                }
                let (response, events) = self.kv.txn(txn)?;
                outcome.events = events;
                return Ok(response);
            }
            Kind::Compact(at) => self.kv.compact(*at)?,
            // Said by it before, or for it by who did not know yet: it stays removed.
            Kind::Member(member) if self.removed_keys.contains(&member.key_hash) => {
                let problem = "its key is one of a member that was removed from the group".to_owned();
                return Err(Error::Member { id: member.id, code: MemberCode::NotFound, problem });
            }
            Kind::Member(member) => {
                self.members.insert(member.id, member.clone());
            }
            Kind::LeaseGrant(_) if self.is_full() => return Err(Error::NoSpace),
            Kind::LeaseGrant(lease) => {
                self.kv.grant(*lease)?;
                outcome.lease = Some(LeaseNews::Granted(*lease));
            }
            Kind::LeaseRevoke(id) => {
                outcome.events = self.kv.revoke(*id)?;
                outcome.lease = Some(LeaseNews::Ended(*id));
            }
            Kind::Alarm { alarm, raise: true } => {
                self.alarms.insert(*alarm);
            }
            Kind::Alarm { alarm, raise: false } => {
                self.alarms.remove(alarm);
            }
            Kind::Nothing => {}
        }
        Ok(TxnResponse { revision: self.kv.revision(), succeeded: true, responses: Vec::new() })
    }

    /// Whether only deletes, reads and compaction are accepted.
    pub fn is_full(&self) -> bool {
        self.alarms.iter().any(|a| a.kind == AlarmKind::NoSpace)
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
            leases: self.kv.leases().map(|l| pb::LeaseGrant { id: l.id, ttl_s: l.ttl_s }).collect(),
            alarms: self.alarms.iter().map(|a| alarm_to_pb(a, true)).collect(),
            removed_keys: self.removed_keys.clone(),
        }
    }

    /// The machine that a snapshot's header and pairs describe.
    pub fn restore(header: pb::SnapshotHeader, pairs: Vec<KeyValue>) -> Self {
        let kept = if bug!("snapshot_without_sessions") { Vec::new() } else { header.sessions };
        let sessions = kept.into_iter().map(|s| {
            let session = Session { floor: s.floor, above: s.above.into_iter().collect(), last_index: s.last_index };
            (s.origin, session)
        });
        let leases = header.leases.into_iter().map(|l| Lease { id: l.id, ttl_s: l.ttl_s });
        Machine {
            kv: Kv::restore(
                header.revision - bug!("snapshot_restores_wrong_revision") as u64,
                header.compacted,
                leases,
                pairs.into_iter(),
            ),
            members: header.members.into_iter().map(|m| (m.id, member_from_pb(m))).collect(),
            alarms: header.alarms.iter().map(alarm_from_pb).collect(),
            removed_keys: header.removed_keys,
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

    fn put(sequence: u64, fence: Term) -> Command {
        Command { origin: 9, sequence, fence, kind: Kind::Txn(Txn::of(Op::put("k", sequence.to_string()))) }
    }

    #[test]
    fn a_command_that_comes_twice_is_applied_once() {
        let mut m = Machine::new();
        assert!(m.apply(1, 1, &put(1, 0)).is_some());
        assert!(m.apply(2, 1, &put(3, 0)).is_some());
        assert!(m.apply(3, 1, &put(1, 0)).is_none());
        assert!(m.apply(4, 1, &put(3, 0)).is_none());
        assert!(m.apply(5, 1, &put(2, 0)).is_some());
        assert!(m.apply(5, 1, &put(4, 0)).is_some());
        assert!(m.apply(6, 1, &put(4, 0)).is_none());
        assert_eq!(m.kv.revision(), 5);
    }

    #[test]
    fn leader_only_work_of_an_older_term_is_refused() {
        let mut m = Machine::new();
        let outcome = m.apply(1, 5, &put(1, 4)).unwrap();
        assert!(matches!(outcome.result, Err(Error::Fenced { fence: 4, term: 5 })));
        assert!(m.apply(2, 5, &put(2, 5)).unwrap().result.is_ok());
    }

    #[test]
    fn a_member_that_was_removed_does_not_come_back_by_its_key() {
        let mut m = Machine::new();
        let mut sequence = 0;
        let mut say = |m: &mut Machine, id, key: &str| {
            sequence += 1;
            let kind = Kind::Member(Member { id, key_hash: key.into(), ..Default::default() });
            m.apply(sequence, 1, &Command { origin: 1, sequence, fence: 0, kind }).unwrap().result
        };
        say(&mut m, 1, "a").unwrap();
        m.removed_keys.push("gone".into());
        let mut m = Machine::restore(m.header(5), Vec::new());
        assert_eq!((m.members[&1].key_hash.as_str(), &m.removed_keys[..]), ("a", &["gone".to_owned()][..]));
        assert!(matches!(say(&mut m, 2, "gone"), Err(Error::Member { id: 2, code: MemberCode::NotFound, .. })));
        assert!(!m.members.contains_key(&2));
        say(&mut m, 2, "other").unwrap();
        // Where keys stand for nobody, nobody is kept out.
        say(&mut m, 3, "").unwrap();
    }

    #[test]
    fn a_full_store_takes_deletes_and_compaction_only() {
        let mut m = Machine::new();
        let mut sequence = 0;
        let mut run = |m: &mut Machine, kind: Kind| {
            sequence += 1;
            m.apply(sequence, 1, &Command { origin: 1, sequence, fence: 0, kind }).unwrap().result
        };
        let alarm = Alarm { member: 1, kind: AlarmKind::NoSpace };
        run(&mut m, Kind::Txn(Txn::of(Op::put("a", "1")))).unwrap();
        run(&mut m, Kind::Alarm { alarm, raise: true }).unwrap();
        assert!(matches!(run(&mut m, Kind::Txn(Txn::of(Op::put("b", "1")))), Err(Error::NoSpace)));
        assert!(matches!(run(&mut m, Kind::LeaseGrant(Lease { id: 1, ttl_s: 9 })), Err(Error::NoSpace)));
        run(&mut m, Kind::Txn(Txn::of(Op::delete("a")))).unwrap();
        let revision = m.kv.revision();
        run(&mut m, Kind::Compact(revision)).unwrap();
        let mut m = Machine::restore(m.header(5), Vec::new());
        assert!(m.is_full(), "a snapshot carries the alarm");
        run(&mut m, Kind::Alarm { alarm, raise: false }).unwrap();
        run(&mut m, Kind::Txn(Txn::of(Op::put("b", "1")))).unwrap();
    }
}
