//! What a request must fulfil before the store sees it: etcd's rules, with etcd's errors.

use crate::error;
use bytes::Bytes;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_store::KeyRange;
use std::collections::HashSet;
use tonic::Status;

pub fn range(r: &pb::RangeRequest) -> Result<(), Status> {
    if r.key.is_empty() {
        return Err(error::empty_key());
    }
    let known = pb::range_request::SortOrder::try_from(r.sort_order).is_ok()
        && pb::range_request::SortTarget::try_from(r.sort_target).is_ok();
    if known { Ok(()) } else { Err(error::invalid_sort()) }
}

pub fn put(p: &pb::PutRequest) -> Result<(), Status> {
    if p.key.is_empty() {
        return Err(error::empty_key());
    }
    if p.ignore_value && !p.value.is_empty() {
        return Err(error::value_provided());
    }
    if p.ignore_lease && p.lease != 0 {
        return Err(error::lease_provided());
    }
    Ok(())
}

pub fn delete(d: &pb::DeleteRangeRequest) -> Result<(), Status> {
    if d.key.is_empty() { Err(error::empty_key()) } else { Ok(()) }
}

/// A transaction, with those nested in it. What the outer one has used up of `ops_max` the inner ones may not use.
pub fn txn(t: &pb::TxnRequest, ops_max: usize) -> Result<(), Status> {
    shape(t, ops_max)?;
    changes(&t.success)?;
    changes(&t.failure).map(|_| ())
}

fn shape(t: &pb::TxnRequest, ops_max: usize) -> Result<(), Status> {
    use pb::request_op::Request;
    let used = t.compare.len().max(t.success.len()).max(t.failure.len());
    if used > ops_max {
        return Err(error::too_many_ops());
    }
    if t.compare.iter().any(|c| c.key.is_empty()) {
        return Err(error::empty_key());
    }
    for op in t.success.iter().chain(&t.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(r)?,
            Some(Request::RequestPut(p)) => put(p)?,
            Some(Request::RequestDeleteRange(d)) => delete(d)?,
            Some(Request::RequestTxn(t)) => shape(t, ops_max - used)?,
            // An operation of no kind: etcd finds no key in it.
            None => return Err(error::key_not_found()),
        }
    }
    Ok(())
}

/// The keys that a branch may change, whichever way its inner transactions go.
#[derive(Default)]
struct Changes {
    puts: HashSet<Bytes>,
    deletes: Vec<KeyRange>,
}

/// Refuses a branch that could change a key twice.
fn changes(ops: &[pb::RequestOp]) -> Result<Changes, Status> {
    use pb::request_op::Request;
    let mut all = Changes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(d)) = &op.request {
            all.deletes.push(KeyRange { start: d.key.clone(), end: d.range_end.clone() });
        }
    }
    for op in ops {
        if let Some(Request::RequestTxn(t)) = &op.request {
            let (mut inner, other) = (changes(&t.success)?, changes(&t.failure)?);
            inner.puts.extend(other.puts);
            inner.deletes.extend(other.deletes);
            let twice = inner.puts.iter().any(|key| all.puts.contains(key) || covered(&all.deletes, key))
                || all.puts.iter().any(|key| covered(&inner.deletes, key));
            if twice {
                return Err(error::duplicate_key());
            }
            all.puts.extend(inner.puts);
            all.deletes.extend(inner.deletes);
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(p)) = &op.request
            && (covered(&all.deletes, &p.key) || !all.puts.insert(p.key.clone()))
        {
            return Err(error::duplicate_key());
        }
    }
    Ok(all)
}

fn covered(ranges: &[KeyRange], key: &[u8]) -> bool {
    ranges.iter().any(|range| range.contains(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::request_op::Request;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }
    fn put_op(key: &str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest { key: key.to_owned().into(), ..Default::default() }))
    }
    fn delete_op(key: &str, end: &str) -> pb::RequestOp {
        let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: false }))
    }
    fn nested(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(pb::TxnRequest { compare: Vec::new(), success, failure }))
    }

    #[test]
    fn transactions() {
        let check = |success: Vec<pb::RequestOp>, expect: &str| {
            let found = txn(&pb::TxnRequest { success, ..Default::default() }, 4);
            let text = found.err().map_or(String::new(), |s| s.message().to_owned());
            assert!(text.ends_with(expect) && text.is_empty() == expect.is_empty(), "{text:?}, not {expect:?}");
        };
        check(vec![put_op("a"), put_op("b"), delete_op("c", "d")], "");
        check(vec![put_op("a"), put_op("a")], "duplicate key given in txn request");
        check(vec![put_op("c"), delete_op("c", "d")], "duplicate key given in txn request");
        check(vec![delete_op("c", "e"), put_op("d")], "duplicate key given in txn request");
        check(vec![nested(vec![put_op("a")], vec![put_op("a")])], "");
        check(vec![put_op("a"), nested(vec![], vec![put_op("a")])], "duplicate key given in txn request");
        check(
            vec![nested(vec![put_op("a")], vec![]), nested(vec![delete_op("a", "")], vec![])],
            "duplicate key given in txn request",
        );
        check(vec![put_op("")], "key is not provided");
        check((0..5).map(|i| put_op(&i.to_string())).collect(), "too many operations in txn request");
        check(
            vec![nested((0..4).map(|i| put_op(&i.to_string())).collect(), vec![])],
            "too many operations in txn request",
        );
        check(vec![pb::RequestOp { request: None }], "key not found");
    }
}
