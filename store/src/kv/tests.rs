//! The map as its users see it: reads, transactions, compaction, leases.

use super::sweep::Hasher;
use super::*;
use crate::error::Error;
use bytes::Bytes;

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
    assert!(kv.changes_from(at).is_none());
    assert_eq!(kv.changes_from(at + 1).unwrap().count(), 2);
    kv.compact(kv.revision()).unwrap();
    while kv.sweep(1) {}
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
    let back = Kv::restore(kv.revision(), kv.compacted(), kv.leases(), pairs.iter().map(|p| (**p).clone()));
    assert_eq!(hash(&back), hash(&kv));
    assert_eq!(back.changes_from(21).unwrap().count(), kv.changes_from(21).unwrap().count());
    let before = hash(&kv);
    while kv.sweep(3) {}
    assert_eq!(hash(&kv), before, "how far a replica has swept does not show");
    assert_eq!(back.size(), kv.size(), "what was not swept yet is not taken along");
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

fn hash(kv: &Kv) -> u32 {
    let mut hasher = Hasher::new(kv.compacted(), kv.revision());
    kv.chunk_after(None, usize::MAX, kv.revision()).0.iter().for_each(|pair| hasher.feed(pair));
    hasher.finish()
}

#[test]
fn ranges_with_every_option() {
    let mut kv = Kv::new();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("b", "9"), ("d", "0")] {
        put(&mut kv, key, value);
    }
    // Created at 2, 3, 4, 6; changed at 2, 5, 4, 6.
    let all = || RangeRequest { range: KeyRange::prefix(""), ..Default::default() };
    let check = |request: RangeRequest, expect: &str, more: bool, count: usize| {
        let found = kv.range(&request).unwrap();
        let keys: String = found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
        assert_eq!((keys.as_str(), found.more, found.count), (expect, more, count), "{request:?}");
    };
    check(all(), "abcd", false, 4);
    check(RangeRequest { limit: 2, ..all() }, "ab", true, 4);
    check(RangeRequest { limit: 4, ..all() }, "abcd", false, 4);
    check(RangeRequest { count_only: true, ..all() }, "", false, 4);
    check(RangeRequest { descending: true, limit: 3, ..all() }, "dcb", true, 4);
    check(RangeRequest { sort: SortTarget::Value, keys_only: true, ..all() }, "dcab", false, 4);
    check(RangeRequest { sort: SortTarget::ModRevision, ..all() }, "acbd", false, 4);
    check(RangeRequest { sort: SortTarget::CreateRevision, descending: true, ..all() }, "dcba", false, 4);
    check(RangeRequest { sort: SortTarget::Version, descending: true, limit: 1, ..all() }, "b", true, 4);
    check(RangeRequest { bounds: Bounds { min_mod: 4, max_mod: 5, ..Default::default() }, ..all() }, "bc", false, 4);
    check(RangeRequest { bounds: Bounds { min_create: 4, ..Default::default() }, ..all() }, "cd", false, 4);
    check(RangeRequest { revision: 4, ..all() }, "abc", false, 3);
    let from_c = KeyRange { start: "c".into(), end: Bytes::from_static(&[0]) };
    check(RangeRequest { range: from_c, ..all() }, "cd", false, 2);
    check(RangeRequest { range: KeyRange { start: "c".into(), end: "a".into() }, ..all() }, "", false, 0);
}

#[test]
fn comparisons_of_every_target() {
    let mut kv = Kv::new();
    put(&mut kv, "k1", "m");
    put(&mut kv, "k2", "x");
    use CompareOp::*;
    use CompareTarget::*;
    let check = |range: KeyRange, op, target, expect: bool| {
        let compare = Compare { range, op, target };
        assert_eq!(kv.holds(&compare), expect, "{compare:?}");
    };
    let (one, none, both) = (|| KeyRange::key("k1"), || KeyRange::key("no"), || KeyRange::prefix("k"));
    check(one(), Equal, Version(1), true);
    check(one(), Greater, CreateRevision(1), true);
    check(one(), Less, ModRevision(2), false);
    check(one(), NotEqual, Value("m".into()), false);
    check(one(), Equal, Lease(0), true);
    check(none(), Equal, CreateRevision(0), true);
    check(none(), NotEqual, Value("m".into()), false);
    check(both(), Greater, Value("l".into()), true);
    check(both(), Greater, Value("m".into()), false);
    check(KeyRange::prefix("no"), Equal, ModRevision(0), true);
}

#[test]
fn nested_comparisons_see_the_state_before_the_first_write() {
    let mut kv = Kv::new();
    let nested = Txn {
        compare: vec![Compare::mod_revision("a", 0)],
        success: vec![Op::put("b", "absent"), Op::get("a")],
        failure: vec![Op::put("b", "present")],
        fence: None,
    };
    let txn = Txn { success: vec![Op::put("a", "1"), Op::Txn(Box::new(nested))], ..Default::default() };
    let (response, events) = kv.txn(&txn).unwrap();
    assert_eq!(events.len(), 2);
    let OpResponse::Txn(inner) = &response.responses[1] else { panic!("{response:?}") };
    assert!(inner.succeeded);
    let OpResponse::Range(range) = &inner.responses[1] else { panic!("{inner:?}") };
    assert_eq!(range.kvs[0].value, "1", "reads see the writes before them");
}

#[test]
fn leases_hold_keys_and_take_them_along() {
    let mut kv = Kv::new();
    let leased = |key: &str, lease| {
        Txn::of(Op::Put(Put { key: key.to_owned().into(), value: "v".into(), lease, ..Default::default() }))
    };
    assert!(matches!(kv.txn(&leased("a", 7)), Err(Error::LeaseNotFound(7))));
    kv.grant(Lease { id: 7, ttl_s: 10 }).unwrap();
    kv.grant(Lease { id: 8, ttl_s: 20 }).unwrap();
    assert!(matches!(kv.grant(Lease { id: 7, ttl_s: 10 }), Err(Error::LeaseExists(7))));
    for key in ["a", "b", "c", "d"] {
        kv.txn(&leased(key, 7)).unwrap();
    }
    kv.txn(&leased("b", 8)).unwrap();
    put(&mut kv, "c", "free");
    delete(&mut kv, "d");
    let keep = Put { key: "a".into(), value: "w".into(), ignore_lease: true, ..Default::default() };
    kv.txn(&Txn::of(Op::Put(keep))).unwrap();
    assert_eq!(kv.lease_keys(7), ["a"]);
    assert_eq!(kv.lease_keys(8), ["b"]);
    let (pairs, _) = kv.chunk_after(None, usize::MAX, kv.revision());
    let back = Kv::restore(kv.revision(), kv.compacted(), kv.leases(), pairs.iter().map(|p| (**p).clone()));
    assert_eq!((back.lease_keys(7), back.lease_keys(8)), (kv.lease_keys(7), kv.lease_keys(8)));
    let before = kv.revision();
    let events = kv.revoke(7).unwrap();
    assert_eq!((events.len(), events[0].kind, kv.revision()), (1, EventKind::Delete, before + 1));
    assert!(matches!(kv.revoke(7), Err(Error::LeaseNotFound(7))));
    assert_eq!(get(&kv, "c", 0).unwrap().as_deref(), Some("free"));
}

/// Every version there was, to be read in the plainest way.
#[derive(Default)]
struct Plain {
    versions: Vec<KeyValue>,
    compacted: Revision,
}

impl Plain {
    fn read(&self, at: Revision) -> Vec<KeyValue> {
        let mut newest = std::collections::BTreeMap::new();
        for kv in self.versions.iter().filter(|kv| kv.mod_revision <= at) {
            newest.insert(&kv.key, kv);
        }
        newest.into_values().filter(|kv| kv.version > 0).cloned().collect()
    }

    fn check(&self, kv: &Kv) {
        let all = KeyRange::prefix("");
        for revision in self.compacted.max(1)..=kv.revision() {
            let found = kv.range(&RangeRequest { range: all.clone(), revision, ..Default::default() }).unwrap();
            assert_eq!(found.kvs, self.read(revision), "at {revision}");
        }
        let changes: Vec<_> = kv.changes_from(self.compacted + 1).unwrap().map(|change| change.event()).collect();
        let expect = self.versions.iter().filter(|v| v.mod_revision > self.compacted);
        assert!(changes.iter().map(|event| &*event.kv).eq(expect));
        for event in changes {
            let before = self.read(event.kv.mod_revision - 1).into_iter().find(|kv| kv.key == event.kv.key);
            assert_eq!(event.prev.as_deref(), before.as_ref());
        }
    }
}

/// With blocks and leaves that are full, settled, cleaned and split all the time.
#[test]
fn memory_is_moved_and_given_back_and_nothing_shows() {
    let mut kv = Kv { index: Index::with_leaf_keys(4), blocks: Blocks::with_block_bytes(400), ..Kv::new() };
    let mut plain = Plain::default();
    let mut lots = 7_u64;
    let mut draw = |below: u64| {
        lots = lots.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (lots >> 33) % below
    };
    for _ in 0..120 {
        for _ in 0..draw(20) {
            let key = Bytes::from(format!("k{:02}", draw(40)));
            let value = Bytes::from(vec![b'v'; [3, 20, 50, 500][draw(4) as usize]]);
            let op = match draw(4) {
                0 => Op::delete(key),
                _ => Op::put(key, value),
            };
            let (_, events) = kv.txn(&Txn::of(op)).unwrap();
            plain.versions.extend(events.iter().map(|event| (*event.kv).clone()));
        }
        if draw(3) == 0 && kv.revision() > plain.compacted + 5 {
            plain.compacted = kv.revision() - draw(5);
            kv.compact(plain.compacted).unwrap();
        }
        for _ in 0..draw(4) {
            kv.sweep(3);
        }
        plain.check(&kv);
        if draw(20) == 0 {
            let (pairs, _) = kv.chunk_after(None, usize::MAX, kv.revision());
            let pairs = pairs.iter().map(|pair| (**pair).clone());
            let back = Kv::restore(kv.revision(), kv.compacted(), kv.leases(), pairs);
            plain.check(&back);
            while kv.sweep(100) {}
            assert_eq!((back.size(), back.history_size()), (kv.size(), kv.history_size()));
        }
    }
    put(&mut kv, "last", "v");
    kv.compact(kv.revision()).unwrap();
    while kv.sweep(100) {}
    assert_eq!(kv.size(), plain_size(&kv));
    assert_eq!(kv.history_size(), 0);
    kv.txn(&Txn::of(Op::delete_range(KeyRange::prefix("")))).unwrap();
    kv.compact(kv.revision()).unwrap();
    while kv.sweep(100) {}
    assert_eq!((kv.size(), kv.key_count()), (0, 0));
}

fn plain_size(kv: &Kv) -> usize {
    let (pairs, _) = kv.chunk_after(None, usize::MAX, kv.revision());
    pairs.iter().map(|pair| pair.key.len() + pair.value.len()).sum()
}
