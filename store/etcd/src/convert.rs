//! etcd's messages to and from the store's types. Bytes are shared, not copied.

use crate::api::Api;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::mvccpb;
use skiff_store::*;

pub fn pair(kv: &KeyValue) -> mvccpb::KeyValue {
    own_pair(kv.clone())
}

fn own_pair(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision as i64,
        mod_revision: kv.mod_revision as i64,
        version: kv.version as i64,
        value: kv.value,
        lease: kv.lease,
    }
}

pub fn range(r: pb::RangeRequest) -> RangeRequest {
    let revision = |r: i64| r.max(0) as Revision;
    let target = r.sort_target();
    // A sort by anything but the key is ascending unless it says otherwise.
    let descending = r.sort_order() == pb::range_request::SortOrder::Descend;
    RangeRequest {
        range: KeyRange { start: r.key, end: r.range_end },
        limit: r.limit.max(0) as usize,
        revision: revision(r.revision),
        keys_only: r.keys_only,
        count_only: r.count_only,
        serializable: r.serializable,
        sort: match target {
            pb::range_request::SortTarget::Key => SortTarget::Key,
            pb::range_request::SortTarget::Version => SortTarget::Version,
            pb::range_request::SortTarget::Create => SortTarget::CreateRevision,
            pb::range_request::SortTarget::Mod => SortTarget::ModRevision,
            pb::range_request::SortTarget::Value => SortTarget::Value,
        },
        descending,
        bounds: Bounds {
            min_mod: revision(r.min_mod_revision),
            max_mod: revision(r.max_mod_revision),
            min_create: revision(r.min_create_revision),
            max_create: revision(r.max_create_revision),
        },
    }
}

pub fn put(p: pb::PutRequest) -> Put {
    Put {
        key: p.key,
        value: p.value,
        lease: p.lease,
        prev_kv: p.prev_kv,
        ignore_value: p.ignore_value,
        ignore_lease: p.ignore_lease,
    }
}

pub fn delete(d: pb::DeleteRangeRequest) -> Delete {
    Delete { range: KeyRange { start: d.key, end: d.range_end }, prev_kv: d.prev_kv }
}

pub fn txn(t: pb::TxnRequest) -> Txn {
    Txn {
        compare: t.compare.into_iter().map(compare).collect(),
        success: t.success.into_iter().filter_map(op).collect(),
        failure: t.failure.into_iter().filter_map(op).collect(),
        fence: None,
    }
}

fn op(op: pb::RequestOp) -> Option<Op> {
    use pb::request_op::Request;
    Some(match op.request? {
        Request::RequestRange(r) => Op::Range(range(r)),
        Request::RequestPut(p) => Op::Put(put(p)),
        Request::RequestDeleteRange(d) => Op::Delete(delete(d)),
        Request::RequestTxn(t) => Op::Txn(Box::new(txn(t))),
    })
}

fn compare(c: pb::Compare) -> Compare {
    use pb::compare::{CompareResult, CompareTarget as Target, TargetUnion};
    let op = match c.result() {
        CompareResult::Equal => CompareOp::Equal,
        CompareResult::Greater => CompareOp::Greater,
        CompareResult::Less => CompareOp::Less,
        CompareResult::NotEqual => CompareOp::NotEqual,
    };
    // A number that is 0 or an empty value may be left out on the wire.
    let number = match c.target_union {
        Some(
            TargetUnion::Version(n)
            | TargetUnion::CreateRevision(n)
            | TargetUnion::ModRevision(n)
            | TargetUnion::Lease(n),
        ) => n,
        _ => 0,
    };
    let target = match c.target() {
        Target::Version => CompareTarget::Version(number as u64),
        Target::Create => CompareTarget::CreateRevision(number as u64),
        Target::Mod => CompareTarget::ModRevision(number as u64),
        Target::Lease => CompareTarget::Lease(number),
        Target::Value => match c.target_union {
            Some(TargetUnion::Value(value)) => CompareTarget::Value(value),
            _ => CompareTarget::Value(Default::default()),
        },
    };
    Compare { range: KeyRange { start: c.key, end: c.range_end }, op, target }
}

impl Api {
    pub(crate) fn range_response(&self, r: RangeResponse) -> pb::RangeResponse {
        pb::RangeResponse {
            header: self.header_at(r.revision),
            kvs: r.kvs.into_iter().map(own_pair).collect(),
            more: r.more,
            count: r.count as i64,
        }
    }

    pub(crate) fn txn_response(&self, t: TxnResponse) -> pb::TxnResponse {
        pb::TxnResponse {
            header: self.header_at(t.revision),
            succeeded: t.succeeded,
            responses: t.responses.into_iter().map(|r| self.op_response(r, t.revision)).collect(),
        }
    }

    fn op_response(&self, response: OpResponse, revision: Revision) -> pb::ResponseOp {
        use pb::response_op::Response;
        // Within a transaction only the revision is told in the headers.
        let header = Some(pb::ResponseHeader { revision: revision as i64, ..Default::default() });
        let response = match response {
            OpResponse::Put { prev } => {
                Response::ResponsePut(pb::PutResponse { header, prev_kv: prev.as_deref().map(pair) })
            }
            OpResponse::Delete { deleted, prev } => Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                header,
                deleted: deleted as i64,
                prev_kvs: prev.iter().map(|kv| pair(kv)).collect(),
            }),
            OpResponse::Range(r) => Response::ResponseRange(pb::RangeResponse { header, ..self.range_response(r) }),
            OpResponse::Txn(t) => Response::ResponseTxn(pb::TxnResponse { header, ..self.txn_response(t) }),
        };
        pb::ResponseOp { response: Some(response) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_whose_number_is_left_out() {
        use pb::compare::{CompareResult, CompareTarget as Target};
        let check = |target: Target, expect: CompareTarget| {
            let wire = pb::Compare {
                result: CompareResult::Less as i32,
                target: target as i32,
                key: "k".into(),
                ..Default::default()
            };
            assert_eq!(compare(wire), Compare { range: KeyRange::key("k"), op: CompareOp::Less, target: expect });
        };
        check(Target::Version, CompareTarget::Version(0));
        check(Target::Create, CompareTarget::CreateRevision(0));
        check(Target::Mod, CompareTarget::ModRevision(0));
        check(Target::Lease, CompareTarget::Lease(0));
        check(Target::Value, CompareTarget::Value("".into()));
    }
}
