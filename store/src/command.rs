//! Commands: what the log holds, to and from their wire form.
//!
//! A command is encoded once, where it was asked for, and those bytes go into the log of every member. The leader keeps the decoded
//! form of what it proposed beside the log (see `replica`), so that it does not decode what it has just encoded.

use crate::types::*;
use bytes::Bytes;
use prost::Message as _;
use skiff_proto::store as pb;

/// The format of the commands that this version writes, and the newest that it understands.
pub const COMMAND_FORMAT: u32 = 2;

/// One change of the replicated state.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Who proposed it (drawn at each start; 0 = nobody who would ask again) and the how-manieth it is.
    pub origin: u64,
    pub sequence: u64,
    /// The term that leader-only work belongs to; 0 = any.
    pub fence: Term,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Txn(Txn),
    Compact(Revision),
    Member(Member),
    LeaseGrant(Lease),
    LeaseRevoke(LeaseId),
    Alarm {
        alarm: Alarm,
        raise: bool,
    },
    /// Of a kind that says nothing: changes nothing.
    Nothing,
}

/// A command and its bytes.
#[derive(Debug)]
pub struct Proposal {
    pub command: Command,
    pub encoded: Bytes,
}

/// A command that this version must not guess at: to guess would be to diverge, so the replica stops.
#[derive(Debug, thiserror::Error)]
pub enum BadCommand {
    #[error("a command of format {0}; this version of Skiff knows formats up to {COMMAND_FORMAT}: upgrade this server")]
    UnknownFormat(u32),
    #[error("bytes that are no command: {0}")]
    Undecodable(#[from] prost::DecodeError),
}

impl Proposal {
    pub fn new(command: Command) -> Self {
        let encoded = to_pb(&command).encode_to_vec().into();
        Proposal { command, encoded }
    }

    /// From bytes that another member encoded.
    pub fn decode(encoded: Bytes) -> Result<Self, BadCommand> {
        let command = from_pb(pb::Command::decode(encoded.clone())?)?;
        Ok(Proposal { command, encoded })
    }
}

/// The commands of an entry, from its bytes.
pub fn decode_batch(data: Bytes) -> Result<Vec<Command>, BadCommand> {
    pb::Batch::decode(data)?.commands.into_iter().map(from_pb).collect()
}

/// Appends one encoded command to the bytes of a batch.
pub fn push_to_batch(batch: &mut Vec<u8>, encoded: &[u8]) {
    prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, batch);
    prost::encoding::encode_varint(encoded.len() as u64, batch);
    batch.extend_from_slice(encoded);
}

fn to_pb(command: &Command) -> pb::Command {
    use pb::command::Kind as P;
    let kind = match &command.kind {
        Kind::Txn(txn) => Some(P::Txn(txn_to_pb(txn))),
        Kind::Compact(at) => Some(P::Compact(*at)),
        Kind::Member(member) => Some(P::Member(member_to_pb(member))),
        Kind::LeaseGrant(lease) => Some(P::LeaseGrant(pb::LeaseGrant { id: lease.id, ttl_s: lease.ttl_s })),
        Kind::LeaseRevoke(id) => Some(P::LeaseRevoke(*id)),
        Kind::Alarm { alarm, raise } => Some(P::Alarm(alarm_to_pb(alarm, *raise))),
        Kind::Nothing => None,
    };
    let Command { origin, sequence, fence, .. } = *command;
    pb::Command { format: COMMAND_FORMAT, origin, sequence, fence, kind }
}

fn from_pb(command: pb::Command) -> Result<Command, BadCommand> {
    use pb::command::Kind as P;
    if command.format > COMMAND_FORMAT {
        return Err(BadCommand::UnknownFormat(command.format));
    }
    let kind = match command.kind {
        Some(P::Txn(txn)) => Kind::Txn(txn_from_pb(txn)),
        Some(P::Compact(at)) => Kind::Compact(at),
        Some(P::Member(member)) => Kind::Member(member_from_pb(member)),
        Some(P::LeaseGrant(lease)) => Kind::LeaseGrant(Lease { id: lease.id, ttl_s: lease.ttl_s }),
        Some(P::LeaseRevoke(id)) => Kind::LeaseRevoke(id),
        Some(P::Alarm(alarm)) => Kind::Alarm { alarm: alarm_from_pb(&alarm), raise: alarm.raise },
        None => Kind::Nothing,
    };
    Ok(Command { origin: command.origin, sequence: command.sequence, fence: command.fence, kind })
}

pub fn alarm_to_pb(alarm: &Alarm, raise: bool) -> pb::Alarm {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    };
    pb::Alarm { member: alarm.member, kind, raise }
}

pub fn alarm_from_pb(alarm: &pb::Alarm) -> Alarm {
    let kind = if alarm.kind == 2 { AlarmKind::Corrupt } else { AlarmKind::NoSpace };
    Alarm { member: alarm.member, kind }
}

fn range_to_pb(range: &KeyRange) -> Option<pb::KeyRange> {
    Some(pb::KeyRange { start: range.start.clone(), end: range.end.clone() })
}

fn range_from_pb(range: Option<pb::KeyRange>) -> KeyRange {
    range.map_or_else(KeyRange::default, |r| KeyRange { start: r.start, end: r.end })
}

/// A transaction as it goes into the log. The fence travels beside it, in the command.
fn txn_to_pb(txn: &Txn) -> pb::Txn {
    let ops = |ops: &[Op]| ops.iter().map(op_to_pb).collect();
    pb::Txn {
        compare: txn.compare.iter().map(compare_to_pb).collect(),
        success: ops(&txn.success),
        failure: ops(&txn.failure),
    }
}

fn txn_from_pb(txn: pb::Txn) -> Txn {
    let ops = |ops: Vec<pb::Op>| ops.into_iter().filter_map(op_from_pb).collect();
    Txn {
        compare: txn.compare.into_iter().filter_map(compare_from_pb).collect(),
        success: ops(txn.success),
        failure: ops(txn.failure),
        fence: None,
    }
}

fn compare_to_pb(compare: &Compare) -> pb::Compare {
    use pb::compare::Target;
    pb::Compare {
        range: range_to_pb(&compare.range),
        op: compare.op as u32,
        target: Some(match &compare.target {
            CompareTarget::Version(v) => Target::Version(*v),
            CompareTarget::CreateRevision(v) => Target::CreateRevision(*v),
            CompareTarget::ModRevision(v) => Target::ModRevision(*v),
            CompareTarget::Value(v) => Target::Value(v.clone()),
            CompareTarget::Lease(v) => Target::Lease(*v),
        }),
    }
}

fn compare_from_pb(compare: pb::Compare) -> Option<Compare> {
    use pb::compare::Target;
    Some(Compare {
        range: range_from_pb(compare.range),
        op: match compare.op {
            0 => CompareOp::Equal,
            1 => CompareOp::NotEqual,
            2 => CompareOp::Greater,
            _ => CompareOp::Less,
        },
        target: match compare.target? {
            Target::Version(v) => CompareTarget::Version(v),
            Target::CreateRevision(v) => CompareTarget::CreateRevision(v),
            Target::ModRevision(v) => CompareTarget::ModRevision(v),
            Target::Value(v) => CompareTarget::Value(v),
            Target::Lease(v) => CompareTarget::Lease(v),
        },
    })
}

fn op_to_pb(op: &Op) -> pb::Op {
    use pb::op::Op as P;
    pb::Op {
        op: Some(match op {
            Op::Put(p) => P::Put(pb::Put {
                key: p.key.clone(),
                value: p.value.clone(),
                lease: p.lease,
                prev_kv: p.prev_kv,
                ignore_value: p.ignore_value,
                ignore_lease: p.ignore_lease,
            }),
            Op::Delete(d) => P::Delete(pb::Delete { range: range_to_pb(&d.range), prev_kv: d.prev_kv }),
            Op::Range(r) => P::Range(pb::Range {
                range: range_to_pb(&r.range),
                limit: r.limit as u64,
                keys_only: r.keys_only,
                count_only: r.count_only,
                revision: r.revision,
                sort_target: r.sort as u32,
                descending: r.descending,
                min_mod_revision: r.bounds.min_mod,
                max_mod_revision: r.bounds.max_mod,
                min_create_revision: r.bounds.min_create,
                max_create_revision: r.bounds.max_create,
            }),
            Op::Txn(t) => P::Txn(txn_to_pb(t)),
        }),
    }
}

fn op_from_pb(op: pb::Op) -> Option<Op> {
    use pb::op::Op as P;
    Some(match op.op? {
        P::Put(p) => Op::Put(Put {
            key: p.key,
            value: p.value,
            lease: p.lease,
            prev_kv: p.prev_kv,
            ignore_value: p.ignore_value,
            ignore_lease: p.ignore_lease,
        }),
        P::Delete(d) => Op::Delete(Delete { range: range_from_pb(d.range), prev_kv: d.prev_kv }),
        P::Range(r) => Op::Range(RangeRequest {
            range: range_from_pb(r.range),
            limit: r.limit as usize,
            keys_only: r.keys_only,
            count_only: r.count_only,
            revision: r.revision,
            serializable: false,
            sort: match r.sort_target {
                0 => SortTarget::Key,
                1 => SortTarget::Version,
                2 => SortTarget::CreateRevision,
                3 => SortTarget::ModRevision,
                _ => SortTarget::Value,
            },
            descending: r.descending,
            bounds: Bounds {
                min_mod: r.min_mod_revision,
                max_mod: r.max_mod_revision,
                min_create: r.min_create_revision,
                max_create: r.max_create_revision,
            },
        }),
        P::Txn(t) => Op::Txn(Box::new(txn_from_pb(t))),
    })
}

pub fn member_to_pb(m: &Member) -> pb::MemberRecord {
    pb::MemberRecord {
        id: m.id,
        name: m.name.clone(),
        peer_addr: m.peer_addr.clone(),
        client_addr: m.client_addr.clone(),
        learner: m.learner,
        key_hash: m.key_hash.clone(),
    }
}

pub fn member_from_pb(m: pb::MemberRecord) -> Member {
    Member {
        id: m.id,
        name: m.name,
        peer_addr: m.peer_addr,
        client_addr: m.client_addr,
        learner: m.learner,
        key_hash: m.key_hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind) {
        let command = Command { origin: 7, sequence: 8, fence: 9, kind };
        let there = Proposal::new(command.clone());
        assert_eq!(Proposal::decode(there.encoded.clone()).unwrap().command, command);
        let mut batch = Vec::new();
        push_to_batch(&mut batch, &there.encoded);
        push_to_batch(&mut batch, &there.encoded);
        assert_eq!(decode_batch(batch.into()).unwrap(), [command.clone(), command]);
    }

    #[test]
    fn commands_survive_the_log() {
        let bounds = Bounds { min_mod: 1, max_mod: 2, min_create: 3, max_create: 4 };
        let range = RangeRequest {
            range: KeyRange::prefix("r"),
            limit: 3,
            revision: 9,
            keys_only: true,
            sort: SortTarget::Value,
            descending: true,
            bounds,
            ..Default::default()
        };
        check(Kind::Txn(Txn {
            compare: vec![
                Compare::mod_revision("a", 7),
                Compare {
                    range: KeyRange::prefix("b/"),
                    op: CompareOp::Greater,
                    target: CompareTarget::Value("x".into()),
                },
            ],
            success: vec![
                Op::put("a", "1"),
                Op::Txn(Box::new(Txn { success: vec![Op::Range(range)], ..Default::default() })),
            ],
            failure: vec![Op::delete("c")],
            fence: None,
        }));
        check(Kind::Compact(5));
        check(Kind::LeaseGrant(Lease { id: 3, ttl_s: 60 }));
        check(Kind::LeaseRevoke(3));
        check(Kind::Alarm { alarm: Alarm { member: 4, kind: AlarmKind::Corrupt }, raise: true });
        check(Kind::Nothing);
    }

    #[test]
    fn a_newer_format_is_refused() {
        let newer = pb::Command { format: COMMAND_FORMAT + 1, ..Default::default() }.encode_to_vec();
        assert!(matches!(Proposal::decode(newer.into()), Err(BadCommand::UnknownFormat(_))));
    }
}
