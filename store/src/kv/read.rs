//! Reads: ranges with all their options, at any revision that is not compacted, and comparisons.

use super::Kv;
use super::blocks::At;
use super::record::Record;
use crate::error::Error;
use crate::types::*;
use bytes::Bytes;

impl Kv {
    /// The versions of each key within a range, in order of key.
    fn walk<'a>(&'a self, range: &KeyRange) -> Walk<'a, impl Iterator<Item = &'a [At]> + use<'a>> {
        if range.is_single() {
            return Walk::One(Some(self.index.get(&self.blocks, &range.start)));
        }
        let end = (range.end[..] != [0]).then_some(&range.end[..]);
        Walk::Many(self.index.range(&self.blocks, &range.start, end))
    }

    /// The pairs of a range as of `at`.
    pub(super) fn read<'a>(
        &'a self,
        range: &KeyRange,
        at: Revision,
    ) -> impl Iterator<Item = (At, Record<'a>)> + use<'a> {
        self.walk(range).filter_map(move |versions| {
            let mut newest_first = versions.iter().rev().map(|at| (*at, self.blocks.get(*at)));
            newest_first.find(|(_, record)| record.mod_revision <= at).filter(|(_, record)| !record.is_tombstone())
        })
    }

    /// Whether `revision` (0 = the latest) can be read.
    pub(super) fn check_revision(&self, revision: Revision) -> Result<(), Error> {
        match revision {
            0 => Ok(()),
            r if r > self.revision => Err(Error::Future { asked: r, current: self.revision }),
            r if r < self.compacted => Err(Error::Compacted { asked: r, oldest: self.compacted }),
            _ => Ok(()),
        }
    }

    /// Answers a read; errors for a revision that is compacted or not yet there.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        self.check_revision(request.revision)?;
        Ok(self.range_unchecked(request))
    }

    /// A read at a revision that was checked, or the latest: inside a transaction that includes the writes so far.
    pub(super) fn range_unchecked(&self, request: &RangeRequest) -> RangeResponse {
        let at = if request.revision == 0 { Revision::MAX } else { request.revision };
        let mut response = RangeResponse { revision: self.revision, ..Default::default() };
        let pairs = self.read(&request.range, at);
        if request.count_only {
            response.count = pairs.count();
            return response;
        }
        let natural = request.sort == SortTarget::Key && !request.descending;
        // In the map's own order the limit can be applied on the way; otherwise all must be seen first.
        let keep = if natural && request.limit > 0 { request.limit } else { usize::MAX };
        for (at, record) in pairs {
            response.count += 1;
            if !request.bounds.admit(record.create_revision, record.mod_revision) {
                continue;
            }
            if response.kvs.len() == keep {
                response.more = true;
                continue;
            }
            response.kvs.push(self.blocks.pair(at, record));
        }
        if !natural {
            sort(&mut response.kvs, request.sort, request.descending);
            if request.limit > 0 && response.kvs.len() > request.limit {
                response.kvs.truncate(request.limit);
                response.more = true;
            }
        }
        if request.keys_only {
            for kv in &mut response.kvs {
                kv.value = Bytes::new();
            }
        }
        response
    }

    /// Whether a comparison holds; with a range, for every key in it. A key that is not there counts as one whose numbers are all 0.
    pub(super) fn holds(&self, compare: &Compare) -> bool {
        let mut any = false;
        let all = self.read(&compare.range, Revision::MAX).all(|(_, record)| {
            any = true;
            compares(compare, Some(&record))
        });
        if any { all } else { compares(compare, None) }
    }
}

/// The versions of a single key or of a range, without a box around them.
enum Walk<'a, I> {
    One(Option<&'a [At]>),
    Many(I),
}

impl<'a, I: Iterator<Item = &'a [At]>> Iterator for Walk<'a, I> {
    type Item = &'a [At];
    fn next(&mut self) -> Option<&'a [At]> {
        match self {
            Walk::One(one) => one.take(),
            Walk::Many(all) => all.next(),
        }
    }
}

fn sort(kvs: &mut [KeyValue], target: SortTarget, descending: bool) {
    match target {
        SortTarget::Key => kvs.sort_by(|a, b| a.key.cmp(&b.key)),
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::CreateRevision => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::ModRevision => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if descending {
        kvs.reverse();
    }
}

fn compares(compare: &Compare, kv: Option<&Record>) -> bool {
    fn cmp<T: Ord + ?Sized>(op: CompareOp, a: &T, b: &T) -> bool {
        match op {
            CompareOp::Equal => a == b,
            CompareOp::NotEqual => a != b,
            CompareOp::Greater => a > b,
            CompareOp::Less => a < b,
        }
    }
    let op = compare.op;
    match &compare.target {
        CompareTarget::Version(v) => cmp(op, &kv.map_or(0, |k| k.version), v),
        CompareTarget::CreateRevision(v) => cmp(op, &kv.map_or(0, |k| k.create_revision), v),
        CompareTarget::ModRevision(v) => cmp(op, &kv.map_or(0, |k| k.mod_revision), v),
        CompareTarget::Lease(v) => cmp(op, &kv.map_or(0, |k| k.lease), v),
        CompareTarget::Value(v) => kv.is_some_and(|k| cmp(op, k.value, &v[..])),
    }
}
