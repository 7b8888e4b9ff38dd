//! What a million keys cost: run it by hand (docs/store.md says how); times mean something in a release build only.

use super::*;
use bytes::Bytes;
use std::time::Duration;

const KEYS: u64 = 1_000_000;
const VALUE_BYTES: usize = 256;

/// Anonymous memory of this process, in bytes.
fn anonymous() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn key(i: u64) -> Bytes {
    Bytes::from(format!("many/{i:08}"))
}

/// Processor time of this thread: what others do on the machine shows less than in the time of day.
fn now() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|on| on.parse().ok()).unwrap_or(0))
}

#[test]
#[ignore = "a measurement, not a check"]
fn a_million_keys() {
    let before = anonymous();
    let mut kv = Kv::new();
    let begin = now();
    for i in 0..KEYS {
        kv.txn(&Txn::of(Op::put(key(i), vec![b'v'; VALUE_BYTES]))).unwrap();
    }
    let (filled, bytes) = (now() - begin, (anonymous() - before) as f64);
    let each = |bytes: f64| bytes / KEYS as f64;
    let nanoseconds = |time: Duration| time.as_nanos() as f64 / KEYS as f64;
    println!("a put {:.0} ns", nanoseconds(filled));
    println!("in all {:.0} MiB, a key {:.1} bytes", bytes / (1 << 20) as f64, each(bytes));
    println!("its own bytes {:.1}", each(kv.size() as f64));
    let begin = now();
    let found = (0..KEYS).filter(|i| {
        let range = KeyRange::key(key(i * 7_919 % KEYS));
        kv.range(&RangeRequest { range, ..Default::default() }).is_ok_and(|found| found.count == 1)
    });
    assert_eq!(found.count() as u64, KEYS);
    println!("a get of any key {:.0} ns", nanoseconds(now() - begin));
    let begin = now();
    for i in (0..KEYS).step_by(1000) {
        let range = KeyRange { start: key(i), end: key(i + 1000) };
        assert_eq!(kv.range(&RangeRequest { range, ..Default::default() }).unwrap().kvs.len(), 1000);
    }
    println!("a key of a range {:.0} ns", nanoseconds(now() - begin));
    let begin = now();
    let all = RangeRequest { range: KeyRange::prefix(""), count_only: true, ..Default::default() };
    assert_eq!(kv.range(&all).unwrap().count as u64, KEYS);
    println!("a key counted {:.0} ns", nanoseconds(now() - begin));
    let begin = now();
    let told = kv.changes_from(1).unwrap().filter(|change| change.event().prev.is_none());
    assert_eq!(told.count() as u64, KEYS);
    println!("a change of the past {:.0} ns", nanoseconds(now() - begin));
    let begin = now();
    for i in 0..KEYS {
        kv.txn(&Txn::of(Op::put(key(i * 7_919 % KEYS), vec![b'w'; VALUE_BYTES]))).unwrap();
    }
    println!("a put of any key there is {:.0} ns", nanoseconds(now() - begin));
    let begin = now();
    kv.compact(kv.revision()).unwrap();
    let (mut longest, mut last) = (Duration::ZERO, begin);
    while kv.sweep(512) {
        longest = longest.max(now() - last);
        last = now();
    }
    println!("a key swept {:.0} ns, the longest step {longest:.1?}", nanoseconds(now() - begin));
    // SAFETY: malloc_trim(3) may be called at any time; servers do so now and then.
    unsafe {
        libc::malloc_trim(0);
    }
    println!("then in all {:.0} MiB", (anonymous() - before) as f64 / (1 << 20) as f64);
}
