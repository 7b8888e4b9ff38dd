//! One to three members in one process, over real sockets on loopback and real files.

use skiff_store::*;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A folder that goes when the test ends, however it ends.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("skiff-store-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }
    fn sub(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn member(dir: &Path, name: &str, join: &[String]) -> (Store, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer_addr = listener.local_addr().unwrap().to_string();
    let config = Config {
        dir: Some(dir.to_owned()),
        name: name.into(),
        peer_addr: peer_addr.clone(),
        listener: Some(listener),
        join: join.to_vec(),
        ..Default::default()
    };
    (Store::start(config).await.unwrap(), peer_addr)
}

async fn put(store: &Store, key: &str, value: &str) -> Revision {
    let txn = Txn { success: vec![Op::put(key.to_owned(), value.to_owned())], ..Default::default() };
    store.txn(txn).await.unwrap().revision
}

async fn get(store: &Store, key: &str) -> Option<String> {
    let request = RangeRequest { range: KeyRange::key(key.to_owned()), ..Default::default() };
    let response = store.range(request).await.unwrap();
    response.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_alone_writes_reads_and_watches() {
    let store = Store::in_memory().await;
    let mut watch = store.watch(WatchRequest { range: KeyRange::prefix("a"), start_revision: 0 }).await.unwrap();
    assert_eq!(put(&store, "a", "1").await, 2);
    assert_eq!(put(&store, "b", "1").await, 3);
    assert_eq!(put(&store, "a", "2").await, 4);
    assert_eq!(get(&store, "a").await.as_deref(), Some("2"));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(watch.next().await.unwrap().events.iter().map(|e| e.kv.mod_revision));
    }
    assert_eq!(seen, [2, 4]);
    let mut past = store.watch(WatchRequest { range: KeyRange::prefix(""), start_revision: 3 }).await.unwrap();
    assert_eq!(past.next().await.unwrap().events[0].kv.key, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = Dir::new("restart");
    let (store, _) = member(&dir.sub("1"), "one", &[]).await;
    for i in 0..200 {
        put(&store, &format!("k{i}"), "v").await;
    }
    let (revision, id) = (store.revision(), store.id());
    store.stop().await;
    drop(store);
    let (store, _) = member(&dir.sub("1"), "one", &[]).await;
    assert_eq!(get(&store, "k199").await.as_deref(), Some("v"));
    assert_eq!((store.revision(), store.id()), (revision, id));
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_grows_to_three_and_outlives_its_leader() {
    let dir = Dir::new("three");
    let (one, addr) = member(&dir.sub("1"), "one", &[]).await;
    put(&one, "before", "1").await;
    let (two, _) = member(&dir.sub("2"), "two", std::slice::from_ref(&addr)).await;
    let (three, _) = member(&dir.sub("3"), "three", &[addr]).await;
    for store in [&one, &two, &three] {
        assert_eq!(get(store, "before").await.as_deref(), Some("1"));
    }
    let voters = |s: &Store| s.members().iter().filter(|m| !m.learner).count();
    while voters(&three) < 3 || voters(&one) < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut watch = three.watch(WatchRequest { range: KeyRange::prefix("w"), start_revision: 0 }).await.unwrap();
    // A write through a follower is readable there at once.
    let revision = put(&two, "w", "two").await;
    assert!(two.revision() >= revision);
    assert_eq!(watch.next().await.unwrap().events[0].kv.value, "two");
    one.stop().await;
    let acknowledged = put(&two, "w", "after").await;
    assert!(acknowledged > revision);
    assert_eq!(get(&three, "w").await.as_deref(), Some("after"));
    assert_eq!(watch.next().await.unwrap().events[0].kv.value, "after");
    two.stop().await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_of_a_past_term_is_fenced_off() {
    let store = Store::in_memory().await;
    put(&store, "a", "1").await;
    let term = store.leadership().borrow().term;
    let fenced = |fence| Txn { success: vec![Op::put("a", "2")], fence: Some(fence), ..Default::default() };
    assert!(store.txn(fenced(term)).await.is_ok());
    assert!(matches!(store.txn(fenced(term - 1)).await, Err(Error::Fenced { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_the_one_that_is_left_needs_nobody_after_a_restart() {
    let dir = Dir::new("left");
    let (one, addr) = member(&dir.sub("1"), "one", &[]).await;
    let (two, _) = member(&dir.sub("2"), "two", &[addr]).await;
    while one.members().iter().filter(|m| !m.learner).count() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    put(&one, "a", "1").await;
    one.change_members(MemberChange::Remove(two.id())).await.unwrap();
    two.stop().await;
    one.stop().await;
    drop(one);
    let (one, _) = member(&dir.sub("1"), "one", &[]).await;
    assert_eq!(get(&one, "a").await.as_deref(), Some("1"));
    put(&one, "a", "2").await;
    one.stop().await;
}
