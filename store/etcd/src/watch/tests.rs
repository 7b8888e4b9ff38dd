//! The service over a real connection: every watch is told each of its events once, in order, however it began and however slow its client.

use super::*;
use crate::Settings;
use pb::watch_client::WatchClient;
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

struct Client {
    store: Store,
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
    created: i64,
    /// What each watch was told since `told` was called.
    told: HashMap<i64, Vec<Revision>>,
}

/// A store in memory, served, with a stream open to it.
async fn client(settings: Settings) -> Client {
    let store = Store::in_memory().await;
    store.barrier().await.unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(crate::serve(listener, Api::new(store.clone(), settings), None));
    let mut client =
        WatchClient::connect(format!("http://{addr}")).await.unwrap().max_decoding_message_size(usize::MAX);
    let (requests, stream) = mpsc::channel(64);
    let answers = client.watch(ReceiverStream::new(stream)).await.unwrap().into_inner();
    Client { store, requests, answers, created: 0, told: HashMap::new() }
}

impl Client {
    async fn create(&self, create: pb::WatchCreateRequest) {
        let request_union = Some(RequestUnion::CreateRequest(create));
        self.requests.send(pb::WatchRequest { request_union }).await.unwrap();
    }

    async fn put(&self, key: &str, value: Vec<u8>) -> Revision {
        self.store.txn(Txn::of(Op::put(key.to_owned(), value))).await.unwrap().revision
    }

    async fn read(&mut self) {
        let answer = self.answers.message().await.unwrap().unwrap();
        assert!(!answer.canceled, "{}", answer.cancel_reason);
        self.created += i64::from(answer.created);
        let revisions = answer.events.iter().map(|e| e.kv.as_ref().unwrap().mod_revision as Revision);
        self.told.entry(answer.watch_id).or_default().extend(revisions);
    }

    /// Reads answers until so many watches have begun: what is put from then on, they are told.
    async fn begun(&mut self, count: i64) {
        while self.created < count {
            self.read().await;
        }
    }

    /// Reads answers until each of these watches has been told of its last revision; what each was told.
    async fn told(&mut self, last: &HashMap<i64, Revision>) -> HashMap<i64, Vec<Revision>> {
        while last.iter().any(|(id, last)| self.told.get(id).and_then(|told| told.last()) < Some(last)) {
            self.read().await;
        }
        std::mem::take(&mut self.told)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_of_one_stream_are_each_told_what_they_asked_for() {
    let mut client = client(Settings { request_bytes_max: 2000, ..Settings::default() }).await;
    let mut changes = Vec::new();
    for i in 0..300 {
        changes.push(("a", client.put("a", vec![1; i]).await, false));
        changes.push(("ab", client.put("ab", vec![2; 9]).await, false));
    }
    let middle = changes[300].1;
    let last = client.store.revision();
    let watch = |key: &str, end: &str, from: Revision| pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        start_revision: from as i64,
        ..Default::default()
    };
    let filter = |f: FilterType, create| pb::WatchCreateRequest { filters: vec![f as i32], ..create };
    let fragment = |create| pb::WatchCreateRequest { fragment: true, ..create };
    let creates = [
        watch("a", "", 1),
        watch("a", "", middle),
        watch("a", "b", 1),
        fragment(watch("a", "b", 1)),
        filter(FilterType::Noput, watch("a", "b", 1)),
        filter(FilterType::Nodelete, watch("a", "b", middle)),
        watch("a", "", last + 50),
        watch("ab", "", 0),
    ];
    for create in &creates {
        client.create(create.clone()).await;
    }
    // While they begin, the store goes on; what watches that begin now are told begins somewhere in this.
    for i in 0..400 {
        changes.push(("a", client.put("a", vec![1; 50]).await, false));
        if i % 10 == 0 {
            let done = client.store.txn(Txn::of(Op::delete("ab"))).await.unwrap();
            changes.push(("ab", done.revision, true));
            changes.push(("ab", client.put("ab", vec![3; 9]).await, false));
        }
    }
    client.begun(creates.len() as i64).await;
    for key in ["a", "ab"] {
        changes.push((key, client.put(key, Vec::new()).await, false));
        changes.push((key, client.store.txn(Txn::of(Op::delete(key))).await.unwrap().revision, true));
        changes.push((key, client.put(key, Vec::new()).await, false));
    }
    let expect = |create: &pb::WatchCreateRequest| -> Vec<Revision> {
        let wanted = |(key, revision, deleted): &&(&str, Revision, bool)| {
            let without = if *deleted { FilterType::Nodelete } else { FilterType::Noput };
            (create.range_end == "b" || create.key == *key)
                && *revision >= create.start_revision as Revision
                && !create.filters.contains(&(without as i32))
        };
        changes.iter().filter(wanted).map(|(_, revision, _)| *revision).collect()
    };
    let expected: Vec<_> = creates.iter().map(expect).collect();
    let ends = expected.iter().enumerate().map(|(id, revisions)| (id as i64, *revisions.last().unwrap())).collect();
    let told = client.told(&ends).await;
    for (id, (create, expect)) in creates.iter().zip(expected).enumerate() {
        let told = &told[&(id as i64)];
        // Where a watch of now begins is the server's to say; from there on nothing is missing.
        let expect = if create.start_revision == 0 { &expect[expect.len() - told.len()..] } else { &expect[..] };
        assert_eq!(told, expect, "{create:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_for_a_while_misses_nothing() {
    let mut client = client(Settings::default()).await;
    for (key, end) in [("slow", ""), ("slow", ""), ("a", "z")] {
        let (key, range_end) = (key.into(), end.into());
        client.create(pb::WatchCreateRequest { key, range_end, ..Default::default() }).await;
    }
    client.begun(3).await;
    let first = client.put("slow", Vec::new()).await;
    let told = client.told(&(0..3).map(|id| (id, first)).collect()).await;
    assert!(told.values().all(|told| told[..] == [first]));
    // More than the windows, the pieces and the queue hold together.
    let mut revisions = Vec::new();
    for _ in 0..6000 {
        revisions.push(client.put("slow", vec![7; 1500]).await);
    }
    let last = *revisions.last().unwrap();
    let told = client.told(&(0..3).map(|id| (id, last)).collect()).await;
    assert!(told.values().all(|told| *told == revisions));
    client
        .requests
        .send(pb::WatchRequest { request_union: Some(RequestUnion::ProgressRequest(Default::default())) })
        .await
        .unwrap();
    let progress = client.answers.message().await.unwrap().unwrap();
    assert_eq!((progress.watch_id, progress.header.unwrap().revision as Revision), (WHOLE_STREAM, last));
}
