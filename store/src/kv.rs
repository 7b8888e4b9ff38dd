//! The state machine: a multi-versioned map from keys to values, and the history of its changes.
//!
//! It is deterministic and has no clock: what it does depends on the commands alone, in the order of the log. Every replica that has
//! applied the same entries holds the same bytes. Old versions stay readable until compaction drops them; the events of the
//! same span stay too, so that a watch can begin in the past.

use crate::error::Error;
use crate::types::*;
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// All versions of one key since the last compaction, oldest first. A version with `version == 0` is a deletion.
type History = Vec<Arc<KeyValue>>;

/// The map and its history.
#[derive(Default)]
pub struct Kv {
    keys: BTreeMap<Bytes, History>,
    /// The events of each revision in `compacted + 1 ..= revision`, in order.
    events: VecDeque<(Revision, Vec<Arc<Event>>)>,
    revision: Revision,
    compacted: Revision,
    /// Keys and values of all versions, in bytes.
    size: usize,
    /// While a snapshot is being written, versions stay that compaction would drop; these keys wait for its end.
    pinned: bool,
    unswept: HashSet<Bytes>,
}

fn is_tombstone(kv: &KeyValue) -> bool {
    kv.version == 0
}

impl Kv {
    /// An empty store begins at revision 1, as etcd's does.
    pub fn new() -> Self {
        Kv { revision: 1, ..Default::default() }
    }

    /// A store rebuilt from a snapshot's pairs (all versions, in order of key and revision).
    pub fn restore(revision: Revision, compacted: Revision, pairs: impl Iterator<Item = KeyValue>) -> Self {
        let mut kv = Kv { revision, compacted, ..Default::default() };
        let mut by_revision: BTreeMap<Revision, Vec<Arc<Event>>> = BTreeMap::new();
        for pair in pairs {
            let pair = Arc::new(pair);
            kv.size += pair.key.len() + pair.value.len();
            let history = kv.keys.entry(pair.key.clone()).or_default();
            if pair.mod_revision > compacted {
                let prev = history.last().filter(|p| !is_tombstone(p)).cloned();
                let kind = if is_tombstone(&pair) { EventKind::Delete } else { EventKind::Put };
                let event = Arc::new(Event { kind, kv: pair.clone(), prev });
                by_revision.entry(pair.mod_revision).or_default().push(event);
            }
            history.push(pair);
        }
        kv.events = by_revision.into_iter().collect();
        kv
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Keys and values of all versions, in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many revisions of history a watch can go back.
    pub fn history_len(&self) -> usize {
        self.events.len()
    }

    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// The newest version of a key, unless it is deleted.
    fn latest(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.keys.get(key).and_then(|h| h.last()).filter(|kv| !is_tombstone(kv))
    }

    /// The histories within a range, in order of key.
    fn walk<'a>(&'a self, range: &KeyRange) -> Box<dyn Iterator<Item = &'a History> + 'a> {
        if range.is_single() {
            return Box::new(self.keys.get(&range.start).into_iter());
        }
        let end = if range.end[..] == [0] { Bound::Unbounded } else { Bound::Excluded(range.end.clone()) };
        if let Bound::Excluded(end) = &end
            && *end <= range.start
        {
            return Box::new(std::iter::empty());
        }
        Box::new(self.keys.range((Bound::Included(range.start.clone()), end)).map(|(_, h)| h))
    }

    /// The pairs of a range as of `at`.
    fn read<'a>(&'a self, range: &KeyRange, at: Revision) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        self.walk(range).filter_map(move |history| {
            history.iter().rev().find(|kv| kv.mod_revision <= at).filter(|kv| !is_tombstone(kv))
        })
    }

    /// Answers a read; errors for a revision that is compacted or not yet there.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let at = match request.revision {
            0 => self.revision,
            r if r > self.revision => return Err(Error::Future { asked: r, current: self.revision }),
            r if r < self.compacted => {
                return Err(Error::Compacted { asked: r, oldest: self.compacted });
            }
            r => r,
        };
        let op = OpRange {
            range: request.range.clone(),
            limit: request.limit,
            keys_only: request.keys_only,
            count_only: request.count_only,
        };
        Ok(self.range_at(&op, at))
    }

    fn range_at(&self, op: &OpRange, at: Revision) -> RangeResponse {
        let mut response = RangeResponse { revision: self.revision, ..Default::default() };
        for kv in self.read(&op.range, at) {
            response.count += 1;
            if op.count_only {
                continue;
            }
            if op.limit > 0 && response.kvs.len() == op.limit {
                response.more = true;
                continue;
            }
            response.kvs.push(if op.keys_only {
                Arc::new(KeyValue { value: Bytes::new(), ..(**kv).clone() })
            } else {
                kv.clone()
            });
        }
        response
    }

    fn holds(&self, compare: &Compare) -> bool {
        let test = |kv: Option<&Arc<KeyValue>>| {
            fn cmp<T: Ord>(op: CompareOp, a: T, b: T) -> bool {
                match op {
                    CompareOp::Equal => a == b,
                    CompareOp::NotEqual => a != b,
                    CompareOp::Greater => a > b,
                    CompareOp::Less => a < b,
                }
            }
            match &compare.target {
                CompareTarget::Version(v) => cmp(compare.op, kv.map_or(0, |k| k.version), *v),
                CompareTarget::CreateRevision(v) => cmp(compare.op, kv.map_or(0, |k| k.create_revision), *v),
                CompareTarget::ModRevision(v) => cmp(compare.op, kv.map_or(0, |k| k.mod_revision), *v),
                CompareTarget::Lease(v) => cmp(compare.op, kv.map_or(0, |k| k.lease), *v),
                CompareTarget::Value(v) => kv.is_some_and(|k| cmp(compare.op, &k.value[..], &v[..])),
            }
        };
        if compare.range.is_single() {
            return test(self.latest(&compare.range.start));
        }
        self.read(&compare.range, self.revision).all(|kv| test(Some(kv)))
    }

    /// Carries out a transaction. On an error nothing has changed. The second value holds the events, if there were any; they all
    /// have the new revision.
    pub fn txn(&mut self, txn: &Txn) -> Result<(TxnResponse, Vec<Arc<Event>>), Error> {
        self.check(txn, &mut HashSet::new())?;
        let next = self.revision + 1;
        let mut events = Vec::new();
        let mut response = self.run(txn, next, &mut events);
        if !events.is_empty() {
            self.revision = next;
            self.events.push_back((next, events.clone()));
        }
        response.revision = self.revision;
        Ok((response, events))
    }

    /// Finds what would fail before anything is changed: which branches run depends on the state before the transaction
    /// only, as comparisons of nested transactions see that state too.
    fn check(&self, txn: &Txn, changed: &mut HashSet<Bytes>) -> Result<(), Error> {
        let branch = if txn.compare.iter().all(|c| self.holds(c)) { &txn.success } else { &txn.failure };
        for op in branch {
            match op {
                Op::Put(put) => {
                    let text = || String::from_utf8_lossy(&put.key).into_owned();
                    if (put.ignore_value || put.ignore_lease) && self.latest(&put.key).is_none() {
                        return Err(Error::KeyNotFound(text()));
                    }
                    if !changed.insert(put.key.clone()) {
                        return Err(Error::DuplicateKey(text()));
                    }
                }
                Op::Delete(delete) => {
                    if let Some(key) = changed.iter().find(|k| delete.range.contains(k)) {
                        return Err(Error::DuplicateKey(String::from_utf8_lossy(key).into_owned()));
                    }
                }
                Op::Range(_) => {}
                Op::Txn(nested) => self.check(nested, changed)?,
            }
        }
        Ok(())
    }

    fn run(&mut self, txn: &Txn, revision: Revision, events: &mut Vec<Arc<Event>>) -> TxnResponse {
        let succeeded = txn.compare.iter().all(|c| self.holds(c));
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let responses = branch
            .iter()
            .map(|op| match op {
                Op::Put(put) => {
                    let prev = self.put(put, revision, events);
                    OpResponse::Put { prev: prev.filter(|_| put.prev_kv) }
                }
                Op::Delete(delete) => {
                    let gone = self.delete(&delete.range, revision, events);
                    OpResponse::Delete { deleted: gone.len(), prev: if delete.prev_kv { gone } else { Vec::new() } }
                }
                Op::Range(op) => OpResponse::Range(self.range_at(op, Revision::MAX)),
                Op::Txn(nested) => OpResponse::Txn(self.run(nested, revision, events)),
            })
            .collect();
        TxnResponse { revision, succeeded, responses }
    }

    fn put(&mut self, put: &Put, revision: Revision, events: &mut Vec<Arc<Event>>) -> Option<Arc<KeyValue>> {
        let prev = self.latest(&put.key).cloned();
        let kv = Arc::new(KeyValue {
            // A key keeps the bytes that it was first stored with: versions share them.
            key: prev.as_ref().map_or_else(|| put.key.clone(), |p| p.key.clone()),
            value: match &prev {
                Some(p) if put.ignore_value => p.value.clone(),
                _ => put.value.clone(),
            },
            create_revision: prev.as_ref().map_or(revision, |p| p.create_revision),
            mod_revision: revision,
            version: prev.as_ref().map_or(1, |p| p.version + 1),
            lease: match &prev {
                Some(p) if put.ignore_lease => p.lease,
                _ => put.lease,
            },
        });
        self.size += kv.key.len() + kv.value.len();
        self.keys.entry(kv.key.clone()).or_default().push(kv.clone());
        events.push(Arc::new(Event { kind: EventKind::Put, kv, prev: prev.clone() }));
        prev
    }

    fn delete(&mut self, range: &KeyRange, revision: Revision, events: &mut Vec<Arc<Event>>) -> Vec<Arc<KeyValue>> {
        let gone: Vec<_> = self.read(range, Revision::MAX).cloned().collect();
        for kv in &gone {
            let tombstone = Arc::new(KeyValue {
                key: kv.key.clone(),
                value: Bytes::new(),
                create_revision: 0,
                mod_revision: revision,
                version: 0,
                lease: 0,
            });
            self.size += kv.key.len();
            if let Some(history) = self.keys.get_mut(&kv.key) {
                history.push(tombstone.clone());
            }
            events.push(Arc::new(Event { kind: EventKind::Delete, kv: tombstone, prev: Some(kv.clone()) }));
        }
        gone
    }

    /// Drops what only reads before `at` could see. Reads at `at` and later, and watches from `at + 1` on, still work.
    pub fn compact(&mut self, at: Revision) -> Result<(), Error> {
        if at > self.revision {
            return Err(Error::Future { asked: at, current: self.revision });
        }
        if at <= self.compacted {
            return Err(Error::Compacted { asked: at, oldest: self.compacted });
        }
        // Only keys that changed since the last compaction can have something to drop.
        let mut touched = HashSet::new();
        while self.events.front().is_some_and(|(revision, _)| *revision <= at) {
            if let Some((_, events)) = self.events.pop_front() {
                touched.extend(events.into_iter().map(|e| e.kv.key.clone()));
            }
        }
        self.compacted = at;
        self.unswept.extend(touched);
        if !self.pinned {
            self.sweep();
        }
        Ok(())
    }

    /// Keeps every version until [`Kv::unpin`]: a snapshot is being written.
    pub fn pin(&mut self) {
        self.pinned = true;
    }

    /// Ends a [`Kv::pin`] and drops what compaction left meanwhile.
    pub fn unpin(&mut self) {
        self.pinned = false;
        self.sweep();
    }

    /// Drops the versions that the last compaction made unreadable.
    fn sweep(&mut self) {
        let at = self.compacted;
        for key in std::mem::take(&mut self.unswept) {
            let Some(history) = self.keys.get_mut(&key) else { continue };
            // The newest version at or before the compaction stays, unless it is a deletion.
            let keep_from = match history.iter().rposition(|kv| kv.mod_revision <= at) {
                Some(i) if is_tombstone(&history[i]) => i + 1,
                Some(i) => i,
                None => 0,
            };
            self.size -= history.drain(..keep_from).map(|kv| kv.key.len() + kv.value.len()).sum::<usize>();
            if history.is_empty() {
                self.keys.remove(&key);
            } else {
                history.shrink_to_fit();
            }
        }
    }

    /// The events from `start` on, a batch a revision; None if some of them are compacted.
    pub fn events_from(&self, start: Revision) -> Option<impl Iterator<Item = &(Revision, Vec<Arc<Event>>)>> {
        if start <= self.compacted && start != 0 {
            return None;
        }
        let first = self.events.partition_point(|(revision, _)| *revision < start);
        Some(self.events.range(first..))
    }

    /// Up to `max` keys after `after`, with all their versions up to `at`: how a snapshot walks the map without stopping it.
    pub fn chunk_after(&self, after: Option<&Bytes>, max: usize, at: Revision) -> (Vec<Arc<KeyValue>>, Option<Bytes>) {
        let from = after.map_or(Bound::Unbounded, |k| Bound::Excluded(k.clone()));
        let mut pairs = Vec::new();
        let mut last = None;
        for (key, history) in self.keys.range((from, Bound::Unbounded)).take(max) {
            pairs.extend(history.iter().take_while(|kv| kv.mod_revision <= at).cloned());
            last = Some(key.clone());
        }
        (pairs, last)
    }

    /// A digest of everything readable at `at`: equal on replicas that agree.
    #[cfg(test)]
    pub fn hash(&self, at: Revision) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for history in self.keys.values() {
            for kv in history.iter().filter(|kv| kv.mod_revision <= at) {
                hasher.update(&kv.key);
                hasher.update(&kv.mod_revision.to_be_bytes());
                hasher.update(&kv.version.to_be_bytes());
                hasher.update(&kv.value);
            }
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kv: &mut Kv, key: &str, value: &str) -> Revision {
        let txn = Txn { success: vec![Op::put(key.to_owned(), value.to_owned())], ..Default::default() };
        kv.txn(&txn).unwrap().0.revision
    }

    fn delete(kv: &mut Kv, key: &str) -> Revision {
        let txn = Txn { success: vec![Op::delete(key.to_owned())], ..Default::default() };
        kv.txn(&txn).unwrap().0.revision
    }

    fn get(kv: &Kv, key: &str, revision: Revision) -> Result<Option<String>, Error> {
        let request = RangeRequest { range: KeyRange::key(key.to_owned()), revision, ..Default::default() };
        Ok(kv.range(&request)?.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
    }

    #[test]
    fn reads_see_the_revision_they_ask_for() {
        let mut kv = Kv::new();
        let one = put(&mut kv, "a", "1");
        let two = put(&mut kv, "a", "2");
        let gone = delete(&mut kv, "a");
        assert_eq!((one, two, gone), (2, 3, 4));
        assert_eq!(get(&kv, "a", one).unwrap().as_deref(), Some("1"));
        assert_eq!(get(&kv, "a", two).unwrap().as_deref(), Some("2"));
        assert_eq!(get(&kv, "a", gone).unwrap(), None);
        assert!(matches!(get(&kv, "a", 9), Err(Error::Future { asked: 9, current: 4 })));
    }

    #[test]
    fn compaction_keeps_what_is_readable_from_there_on() {
        let mut kv = Kv::new();
        put(&mut kv, "a", "1");
        let at = put(&mut kv, "b", "1");
        put(&mut kv, "a", "2");
        delete(&mut kv, "b");
        kv.compact(at).unwrap();
        assert_eq!(get(&kv, "a", at).unwrap().as_deref(), Some("1"));
        assert!(matches!(get(&kv, "a", at - 1), Err(Error::Compacted { .. })));
        assert!(kv.events_from(at).is_none());
        assert_eq!(kv.events_from(at + 1).unwrap().count(), 2);
        kv.compact(kv.revision()).unwrap();
        assert_eq!(kv.key_count(), 1, "a deleted key leaves nothing behind");
        assert!(matches!(kv.compact(at), Err(Error::Compacted { .. })));
    }

    #[test]
    fn a_transaction_happens_whole_or_not_at_all() {
        let mut kv = Kv::new();
        let revision = put(&mut kv, "a", "1");
        let twice = Txn { success: vec![Op::put("x", "1"), Op::put("x", "2")], ..Default::default() };
        assert!(matches!(kv.txn(&twice), Err(Error::DuplicateKey(_))));
        assert_eq!(kv.revision(), revision);
        let swap = |expected| Txn {
            compare: vec![Compare::mod_revision("a", expected)],
            success: vec![Op::put("a", "2")],
            failure: vec![Op::get("a")],
            fence: None,
        };
        let (lost, _) = kv.txn(&swap(revision + 7)).unwrap();
        assert!(!lost.succeeded && lost.revision == revision);
        let (won, events) = kv.txn(&swap(revision)).unwrap();
        assert!(won.succeeded && won.revision == revision + 1);
        assert_eq!(events[0].prev.as_ref().unwrap().value, "1");
    }

    #[test]
    fn a_restored_store_is_the_same_store() {
        let mut kv = Kv::new();
        for i in 0..50 {
            put(&mut kv, &format!("k{}", i % 7), &i.to_string());
        }
        delete(&mut kv, "k3");
        kv.compact(20).unwrap();
        let (pairs, _) = kv.chunk_after(None, usize::MAX, kv.revision());
        let back = Kv::restore(kv.revision(), kv.compacted(), pairs.iter().map(|p| (**p).clone()));
        assert_eq!(back.hash(back.revision()), kv.hash(kv.revision()));
        assert_eq!(back.events_from(21).unwrap().count(), kv.events_from(21).unwrap().count());
        assert_eq!(back.size(), kv.size());
    }

    #[test]
    fn prefix_ranges() {
        let check = |prefix: &[u8], key: &[u8], inside: bool| {
            assert_eq!(KeyRange::prefix(prefix.to_vec()).contains(key), inside, "{prefix:?} {key:?}");
        };
        check(b"/a/", b"/a/b", true);
        check(b"/a/", b"/a0", false);
        check(b"a\xff", b"a\xff\xff", true);
        check(b"a\xff", b"b", false);
        check(b"\xff", b"\xff\x01", true);
        check(b"", b"anything", true);
    }
}
