//! Commands as they stand in the log: the store's types to and from their wire form.

use crate::types::*;
use skiff_proto::store as pb;

/// The format of the commands that this version writes, and the newest that it understands.
pub const COMMAND_FORMAT: u32 = 1;

fn range_to_pb(range: &KeyRange) -> Option<pb::KeyRange> {
    Some(pb::KeyRange { start: range.start.clone(), end: range.end.clone() })
}

fn range_from_pb(range: Option<pb::KeyRange>) -> KeyRange {
    range.map_or_else(KeyRange::default, |r| KeyRange { start: r.start, end: r.end })
}

/// A transaction as it goes into the log. The fence travels beside it, in the command.
pub fn txn_to_pb(txn: &Txn) -> pb::Txn {
    let ops = |ops: &[Op]| ops.iter().map(op_to_pb).collect();
    pb::Txn {
        compare: txn.compare.iter().map(compare_to_pb).collect(),
        success: ops(&txn.success),
        failure: ops(&txn.failure),
    }
}

pub fn txn_from_pb(txn: pb::Txn) -> Txn {
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
        P::Range(r) => Op::Range(OpRange {
            range: range_from_pb(r.range),
            limit: r.limit as usize,
            keys_only: r.keys_only,
            count_only: r.count_only,
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
    }
}

pub fn member_from_pb(m: pb::MemberRecord) -> Member {
    Member { id: m.id, name: m.name, peer_addr: m.peer_addr, client_addr: m.client_addr, learner: m.learner }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_survives_the_log() {
        let txn = Txn {
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
                Op::Txn(Box::new(Txn { success: vec![Op::get("q")], ..Default::default() })),
            ],
            failure: vec![Op::delete("c")],
            fence: None,
        };
        assert_eq!(txn_from_pb(txn_to_pb(&txn)), txn);
    }
}
