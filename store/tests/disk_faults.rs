//! A member alone, with its real threads, on a disk with each fault there is: it recovers, waits, or stops with a word that says what and
//! where; it never shows wrong data, and never loses what it acknowledged. The table is in `docs/faults.md`.

use skiff_store::simulation::{Disk, MemoryDisk, Next, next_record};
use skiff_store::{Config, Error, KeyRange, Op, RangeRequest, Revision, Store, Txn};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Long enough for anything that a busy machine does.
const SOON: Duration = Duration::from_secs(20);

/// Files in memory, with faults that are switched on and off.
#[derive(Default, Clone)]
struct Faulty {
    files: MemoryDisk,
    syncs_fail: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
    stall_ms: Arc<AtomicU64>,
    short: Arc<AtomicBool>,
}

impl Faulty {
    fn on(files: MemoryDisk) -> Self {
        Faulty { files, ..Default::default() }
    }

    /// Another disk with the same contents.
    fn copy(&self) -> Faulty {
        let copy = MemoryDisk::default();
        for name in self.files.list().unwrap() {
            copy.append(&name, &self.files.read(&name).unwrap()).unwrap();
        }
        Faulty::on(copy)
    }

    fn put(&self, name: &str, contents: &[u8]) {
        self.files.remove(name).unwrap();
        self.files.append(name, contents).unwrap();
    }

    fn file(&self, prefix: &str) -> (String, Vec<u8>) {
        let names = self.files.list().unwrap();
        let name = names.into_iter().rfind(|n| n.starts_with(prefix)).expect("a file of this kind");
        let contents = self.files.read(&name).unwrap();
        (name, contents)
    }

    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

struct Short(Box<dyn Read + Send>);

impl Read for Short {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(3);
        self.0.read(&mut into[..most])
    }
}

impl Disk for Faulty {
    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.files.read(name)
    }
    fn open_read(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let whole = self.files.open_read(name)?;
        Ok(if self.short.load(Ordering::Relaxed) { Box::new(Short(whole)) } else { whole })
    }
    fn size(&self, name: &str) -> io::Result<u64> {
        self.files.size(name)
    }
    fn append(&self, name: &str, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.files.append(name, data)
    }
    fn make_zeroed(&self, name: &str, len: usize) -> io::Result<()> {
        self.room()?;
        self.files.make_zeroed(name, len)
    }
    fn write_at(&self, name: &str, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.room().is_err() {
            // As much as there was room for.
            self.files.write_at(name, offset, &data[..data.len() / 2])?;
        }
        self.room()?;
        self.files.write_at(name, offset, data)
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(self.stall_ms.load(Ordering::Relaxed)));
        match self.syncs_fail.load(Ordering::Relaxed) {
            true => Err(io::Error::other(format!("syncing {name}: input/output error"))),
            false => self.files.sync(name),
        }
    }
    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        self.files.truncate(name, len)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }
}

async fn start(disk: &Faulty) -> anyhow::Result<Store> {
    Store::start_on(Arc::new(disk.clone()), Config::default()).await
}

async fn put(store: &Store, key: &str, value: &str) -> Result<Revision, Error> {
    let txn = Txn { success: vec![Op::put(key.to_owned(), value.to_owned())], ..Default::default() };
    store.txn(txn).await.map(|done| done.revision)
}

async fn delete(store: &Store, key: &str) -> Result<(), Error> {
    let txn = Txn { success: vec![Op::delete(key.to_owned())], ..Default::default() };
    store.txn(txn).await.map(|_| ())
}

/// All there is, in order.
async fn all(store: &Store) -> Vec<(String, String)> {
    let request = RangeRequest { range: KeyRange::prefix(""), ..Default::default() };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    store.range(request).await.unwrap().kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

/// What a store holds after so many of its writes.
fn expected(count: usize) -> Vec<(String, String)> {
    (0..count).map(|n| (format!("key-{n:02}"), format!("value {n}"))).collect()
}

const WRITES: usize = 12;

/// A stopped member that acknowledged some writes, each in a record of its own.
async fn written() -> Faulty {
    let disk = Faulty::default();
    let store = start(&disk).await.unwrap();
    for (key, value) in expected(WRITES) {
        put(&store, &key, &value).await.unwrap();
    }
    store.stop().await;
    let copy = disk.copy();
    // Room that was taken beforehand costs every start of these tests some time.
    let (name, log) = copy.file("log-");
    copy.put(&name, &log[..records(&log).last().unwrap() + 4096]);
    copy
}

/// Where the records of a log file begin, and where the last one ends.
fn records(log: &[u8]) -> Vec<usize> {
    let mut ends = vec![0];
    while let Next::Record(_, after) = next_record(log, ends[ends.len() - 1]) {
        ends.push(after);
    }
    ends
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_cut_off() {
    let disk = written().await;
    let (name, log) = disk.file("log-");
    let ends = records(&log);
    let (from, to) = (ends[ends.len() - 4], ends[ends.len() - 1]);
    let mut fewest = WRITES;
    for cut in from..=to {
        let torn = disk.copy();
        let mut contents = log.clone();
        contents[cut..].fill(0);
        torn.put(&name, &contents);
        let store = start(&torn).await.unwrap_or_else(|e| panic!("cut at {cut}: {e:#}"));
        let found = all(&store).await;
        assert_eq!(found, expected(found.len()), "cut at {cut}");
        // What is whole is there, and it can go on.
        let whole = ends.iter().filter(|end| **end <= cut).count();
        assert!(found.len() + ends.len() >= WRITES + whole, "cut at {cut}: {} writes of {whole} records", found.len());
        put(&store, "more", "more").await.unwrap();
        fewest = fewest.min(found.len());
        store.stop().await;
    }
    assert!((WRITES - 3..WRITES).contains(&fewest), "{fewest}");
}

#[tokio::test]
async fn a_flipped_bit_is_named_by_file_and_byte() {
    let disk = written().await;
    let (log, contents) = disk.file("log-");
    let ends = records(&contents);
    let (last, end) = (ends[ends.len() - 2], ends[ends.len() - 1]);
    let (snapshot, whole) = disk.file("snap-");
    let places = (0..end).map(|at| (&log, at)).chain((0..whole.len()).map(|at| (&snapshot, at)));
    for (name, at) in places {
        let damaged = disk.copy();
        let mut contents = damaged.files.read(name).unwrap();
        contents[at] ^= 1 << (at % 8);
        damaged.put(name, &contents);
        let started = start(&damaged).await;
        // A damaged last record is what a torn write looks like.
        if name == &log && at >= last {
            let store = started.unwrap_or_else(|e| panic!("{name}, byte {at}: {e:#}"));
            let found = all(&store).await;
            assert_eq!(found, expected(found.len()), "{name}, byte {at}");
            assert!(found.len() >= WRITES - 1, "{name}, byte {at}");
            store.stop().await;
            continue;
        }
        let Err(why) = started else { panic!("{name}, byte {at}: it started") };
        let why = format!("{why:#}");
        assert!(why.contains(name.as_str()) && why.contains("byte"), "{name}, byte {at}: {why}");
    }
}

#[tokio::test]
async fn a_sync_that_fails_stops_the_member() {
    let disk = Faulty::default();
    let store = start(&disk).await.unwrap();
    put(&store, "key-00", "value 0").await.unwrap();
    disk.syncs_fail.store(true, Ordering::Relaxed);
    let refused = tokio::time::timeout(SOON, put(&store, "key-01", "value 1")).await.expect("an answer");
    let Err(Error::Failed(why) | Error::Unknown(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("syncing log-") || why.contains("stopped"), "{why}");
    // For good: nobody knows what is on the medium.
    disk.syncs_fail.store(false, Ordering::Relaxed);
    assert!(put(&store, "key-02", "value 2").await.is_err());
    store.stop().await;
    // What was acknowledged is there; the other may be.
    let again = start(&disk.copy()).await.unwrap();
    let found = all(&again).await;
    assert!(found == expected(1) || found == expected(2), "{found:?}");
    again.stop().await;
}

#[tokio::test]
async fn a_full_disk_is_waited_for() {
    let disk = Faulty::default();
    let store = start(&disk).await.unwrap();
    put(&store, "key-00", "value 0").await.unwrap();
    put(&store, "key-01", "value 1").await.unwrap();
    disk.full.store(true, Ordering::Relaxed);
    // The first may be under way when the disk is found full; it is written later then.
    let waits = tokio::spawn({
        let store = store.clone();
        async move { put(&store, "waits", "yes").await }
    });
    let begun = Instant::now();
    while !matches!(tokio::time::timeout(SOON, put(&store, "refused", "yes")).await, Ok(Err(Error::NoSpace))) {
        assert!(begun.elapsed() < SOON, "puts are refused");
    }
    assert_eq!(all(&store).await[..2], expected(2), "reads go on");
    disk.full.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    while tokio::time::timeout(SOON, put(&store, "again", "yes")).await.expect("an answer").is_err() {
        assert!(begun.elapsed() < SOON, "it goes on by itself");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let waited = tokio::time::timeout(SOON, waits).await.expect("an answer").unwrap();
    delete(&store, "key-01").await.unwrap();
    let found = all(&store).await;
    let is_there = found.iter().any(|(key, _)| key == "waits");
    match waited {
        Ok(_) => assert!(is_there),
        Err(Error::NoSpace) => assert!(!is_there),
        // It waited for longer than its caller did.
        Err(e) => assert!(matches!(e, Error::Unknown(_)), "{e}"),
    }
    store.stop().await;
    let again = start(&disk.copy()).await.unwrap();
    assert_eq!(all(&again).await, found);
    again.stop().await;
}

#[tokio::test]
async fn a_slow_disk_makes_slow_writes_and_nothing_else() {
    let disk = Faulty::default();
    let store = start(&disk).await.unwrap();
    put(&store, "key-00", "value 0").await.unwrap();
    let term = store.leadership().borrow().term;
    disk.stall_ms.store(1000, Ordering::Relaxed);
    let begun = Instant::now();
    put(&store, "key-01", "value 1").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "not before it is on the disk");
    disk.stall_ms.store(0, Ordering::Relaxed);
    put(&store, "key-02", "value 2").await.unwrap();
    assert_eq!((all(&store).await, store.leadership().borrow().term), (expected(3), term));
    store.stop().await;
}

#[tokio::test]
async fn short_reads_are_read_on() {
    let disk = written().await;
    disk.short.store(true, Ordering::Relaxed);
    let store = start(&disk).await.unwrap();
    assert_eq!(all(&store).await, expected(WRITES));
    store.stop().await;
}
