//! The requests that a kube-apiserver (1.36) makes of its etcd, one test a pattern, in the shape that its client gives them.

#[allow(dead_code, reason = "the etcdctl tests use all of it")]
#[path = "etcdctl/support.rs"]
mod support;

use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::kv_client::KvClient;
use skiff_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use skiff_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use skiff_proto::etcd::etcdserverpb::watch_client::WatchClient;
use skiff_proto::etcd::mvccpb::{self, event::EventType};
use support::{Dir, Member, WAIT_MAX};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

/// A member, and a channel to it.
struct Server {
    member: Member,
    channel: Channel,
    _dir: Dir,
}

impl Server {
    async fn new() -> Server {
        let dir = Dir::new().unwrap();
        let member = Member::alone(&dir).await.unwrap();
        let channel = Endpoint::from_shared(format!("http://{}", member.endpoint)).unwrap().connect().await.unwrap();
        Server { member, channel, _dir: dir }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    async fn txn(&self, txn: pb::TxnRequest) -> pb::TxnResponse {
        self.kv().txn(txn).await.unwrap().into_inner()
    }

    async fn range(&self, range: pb::RangeRequest) -> pb::RangeResponse {
        self.kv().range(range).await.unwrap().into_inner()
    }

    /// Writes if the key's last change was at this revision; else reads it. (Whether it was written, the revision, what was read.)
    async fn put_if(&self, key: &str, value: &str, expected: i64, lease: i64) -> (bool, i64, Option<mvccpb::KeyValue>) {
        let put = pb::PutRequest { key: bytes(key), value: bytes(value), lease, ..Default::default() };
        self.write_if(key, expected, pb::request_op::Request::RequestPut(put)).await
    }

    async fn delete_if(&self, key: &str, expected: i64) -> (bool, i64, Option<mvccpb::KeyValue>) {
        let delete = pb::DeleteRangeRequest { key: bytes(key), ..Default::default() };
        self.write_if(key, expected, pb::request_op::Request::RequestDeleteRange(delete)).await
    }

    async fn write_if(
        &self,
        key: &str,
        expected: i64,
        write: pb::request_op::Request,
    ) -> (bool, i64, Option<mvccpb::KeyValue>) {
        let txn = pb::TxnRequest {
            compare: vec![compare_mod(key, expected)],
            success: vec![op(write)],
            failure: vec![op(pb::request_op::Request::RequestRange(get(key)))],
        };
        let answer = self.txn(txn).await;
        let revision = answer.header.as_ref().unwrap().revision;
        (answer.succeeded, revision, read(&answer))
    }

    fn watch(&self) -> Watching {
        let (asks, requests) = mpsc::channel(16);
        let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(requests));
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let mut client = WatchClient::new(self.channel.clone());
        let (answers, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut stream = client.watch(request).await.unwrap().into_inner();
            while let Ok(Some(answer)) = stream.message().await {
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Watching { asks, answers: receiver }
    }
}

struct Watching {
    asks: mpsc::Sender<pb::WatchRequest>,
    answers: mpsc::Receiver<pb::WatchResponse>,
}

impl Watching {
    async fn ask(&self, request: pb::watch_request::RequestUnion) {
        self.asks.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    /// Watches everything below a prefix, with what was there before each change.
    async fn create(&mut self, prefix: &str, start_revision: i64) -> i64 {
        let create = pb::WatchCreateRequest {
            key: bytes(prefix),
            range_end: after_prefix(prefix),
            start_revision,
            prev_kv: true,
            progress_notify: true,
            ..Default::default()
        };
        self.ask(pb::watch_request::RequestUnion::CreateRequest(create)).await;
        let answer = self.next().await;
        assert!(answer.created && !answer.canceled, "{answer:?}");
        answer.watch_id
    }

    async fn next(&mut self) -> pb::WatchResponse {
        tokio::time::timeout(WAIT_MAX, self.answers.recv()).await.expect("no answer").expect("the stream ended")
    }
}

fn bytes(text: &str) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

fn after_prefix(prefix: &str) -> bytes::Bytes {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    end.into()
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), ..Default::default() }
}

fn page(from: &[u8], prefix: &str, limit: i64, revision: i64) -> pb::RangeRequest {
    let key = bytes::Bytes::copy_from_slice(from);
    pb::RangeRequest { key, range_end: after_prefix(prefix), limit, revision, ..Default::default() }
}

fn compare_mod(key: &str, revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Mod as i32,
        key: bytes(key),
        target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

/// What the range in a transaction's branch found.
fn read(answer: &pb::TxnResponse) -> Option<mvccpb::KeyValue> {
    answer.responses.iter().find_map(|r| match r.response.as_ref()? {
        pb::response_op::Response::ResponseRange(range) => range.kvs.first().cloned(),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_created_updated_and_deleted_by_their_last_revision() {
    let server = Server::new().await;
    let key = "/registry/configmaps/default/a";
    let (created, first, _) = server.put_if(key, "1", 0, 0).await;
    assert!(created);
    // It is there already: told with what is there.
    let (created, revision, there) = server.put_if(key, "other", 0, 0).await;
    let there = there.unwrap();
    assert!(!created && revision == first, "a refused write takes no revision");
    assert_eq!((&there.value[..], there.mod_revision, there.version), (&b"1"[..], first, 1));
    let (updated, second, _) = server.put_if(key, "2", first, 0).await;
    assert!(updated && second == first + 1);
    let (updated, _, there) = server.put_if(key, "3", first, 0).await;
    assert!(!updated && there.unwrap().mod_revision == second, "a conflict shows the newest");
    let (deleted, _, there) = server.delete_if(key, first).await;
    assert!(!deleted && there.is_some());
    let (deleted, third, _) = server.delete_if(key, second).await;
    assert!(deleted && third == second + 1);
    let (deleted, _, there) = server.delete_if(key, second).await;
    assert!(!deleted && there.is_none(), "gone already");
    // The same read in both branches.
    let both = pb::TxnRequest {
        compare: vec![compare_mod(key, 0)],
        success: vec![op(pb::request_op::Request::RequestRange(get(key)))],
        failure: vec![op(pb::request_op::Request::RequestRange(get(key)))],
    };
    let answer = server.txn(both).await;
    assert!(answer.succeeded && read(&answer).is_none());
    server.member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_comes_in_pages_of_one_revision_and_says_what_is_left() {
    let server = Server::new().await;
    let prefix = "/registry/pods/";
    for i in 0..25 {
        server.put_if(&format!("{prefix}p{i:02}"), "v", 0, 0).await;
    }
    server.put_if("/registry/pods0", "not in the list", 0, 0).await;
    let first = server.range(page(prefix.as_bytes(), prefix, 10, 0)).await;
    let revision = first.header.as_ref().unwrap().revision;
    assert_eq!((first.kvs.len(), first.more, first.count), (10, true, 25));
    // What changes meanwhile does not show in the pages that follow.
    server.put_if(&format!("{prefix}p20a"), "new", 0, 0).await;
    let there = server.range(get(&format!("{prefix}p15"))).await.kvs.remove(0);
    server.delete_if(&format!("{prefix}p15"), there.mod_revision).await;
    let (mut names, mut last) = (first.kvs.len(), first);
    while last.more {
        let mut from = last.kvs.last().unwrap().key.to_vec();
        from.push(0);
        last = server.range(page(&from, prefix, 10, revision)).await;
        assert_eq!(last.count as usize, 25 - names, "what is left, this page too");
        assert!(last.header.as_ref().unwrap().revision > revision, "the header is the store's revision");
        names += last.kvs.len();
    }
    assert_eq!(names, 25);
    let count = pb::RangeRequest { count_only: true, ..page(prefix.as_bytes(), prefix, 0, 0) };
    let counted = server.range(count).await;
    assert_eq!((counted.count, counted.kvs.len()), (25, 0));
    // A page at a revision that was compacted, or is not there yet.
    let compact = pb::CompactionRequest { revision: revision + 1, physical: false };
    server.kv().compact(compact).await.unwrap();
    let gone = server.kv().range(page(prefix.as_bytes(), prefix, 10, revision)).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::OutOfRange);
    assert_eq!(gone.message(), "etcdserver: mvcc: required revision has been compacted");
    let early = server.kv().range(page(prefix.as_bytes(), prefix, 10, revision + 1000)).await.unwrap_err();
    assert_eq!(early.message(), "etcdserver: mvcc: required revision is a future revision");
    server.member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_brings_what_was_there_before_and_answers_how_far_it_is() {
    let server = Server::new().await;
    let (_, first, _) = server.put_if("/registry/pods/a", "1", 0, 0).await;
    let mut watch = server.watch();
    let id = watch.create("/registry/pods/", first + 1).await;
    let (_, second, _) = server.put_if("/registry/pods/a", "2", first, 0).await;
    let (_, third, _) = server.delete_if("/registry/pods/a", second).await;
    let (_, fourth, _) = server.put_if("/registry/other", "x", 0, 0).await;
    let mut events = Vec::new();
    while events.len() < 2 {
        let answer = watch.next().await;
        assert_eq!(answer.watch_id, id);
        events.extend(answer.events);
    }
    let (put, delete) = (&events[0], &events[1]);
    assert_eq!(put.r#type(), EventType::Put);
    assert_eq!(put.prev_kv.as_ref().map(|kv| (&kv.value[..], kv.mod_revision)), Some((&b"1"[..], first)));
    assert_eq!(delete.r#type(), EventType::Delete);
    assert_eq!(delete.kv.as_ref().map(|kv| kv.mod_revision), Some(third));
    assert_eq!(delete.prev_kv.as_ref().map(|kv| (&kv.value[..], kv.mod_revision)), Some((&b"2"[..], second)));
    // A watch that is quiet learns that it has missed nothing: a consistent read from a cache waits for this.
    watch.ask(pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = watch.next().await;
    assert_eq!((progress.watch_id, progress.events.len(), progress.canceled), (-1, 0, false));
    assert!(progress.header.unwrap().revision >= fourth);
    // From a revision that is gone: the watch ends with the word from where one can begin, the stream goes on.
    server.kv().compact(pb::CompactionRequest { revision: fourth, physical: false }).await.unwrap();
    let create = pb::WatchCreateRequest { key: bytes("/registry/pods/a"), start_revision: first, ..Default::default() };
    watch.ask(pb::watch_request::RequestUnion::CreateRequest(create)).await;
    let mut ended = watch.next().await;
    while !ended.canceled {
        ended = watch.next().await;
    }
    assert!(ended.compact_revision >= fourth, "{ended:?}");
    assert_eq!(ended.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
    server.put_if("/registry/pods/b", "still", 0, 0).await;
    let more = watch.next().await;
    assert_eq!((more.watch_id, more.events.len()), (id, 1));
    server.member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_servers_compacts() {
    let server = Server::new().await;
    const KEY: &str = "compact_rev_key";
    // Each remembers how often the key was written, and what it should have compacted.
    let attempt = |version: i64, revision: i64| {
        let same = pb::Compare {
            result: pb::compare::CompareResult::Equal as i32,
            target: pb::compare::CompareTarget::Version as i32,
            key: bytes(KEY),
            target_union: Some(pb::compare::TargetUnion::Version(version)),
            ..Default::default()
        };
        let put = pb::PutRequest { key: bytes(KEY), value: bytes(&revision.to_string()), ..Default::default() };
        pb::TxnRequest {
            compare: vec![same],
            success: vec![op(pb::request_op::Request::RequestPut(put))],
            failure: vec![op(pb::request_op::Request::RequestRange(get(KEY)))],
        }
    };
    let won = server.txn(attempt(0, 0)).await;
    assert!(won.succeeded);
    let lost = server.txn(attempt(0, 0)).await;
    assert!(!lost.succeeded);
    assert_eq!(read(&lost).unwrap().version, 1, "who comes too late learns where it stands");
    let (_, revision, _) = server.put_if("/registry/x", "1", 0, 0).await;
    let won = server.txn(attempt(1, revision)).await;
    assert!(won.succeeded);
    let compact = pb::CompactionRequest { revision, physical: false };
    server.kv().compact(compact).await.unwrap();
    let again = server.kv().compact(compact).await.unwrap_err();
    assert_eq!(again.message(), "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(&read(&server.txn(attempt(1, 0)).await).unwrap().value[..], revision.to_string().as_bytes());
    server.member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_share_a_lease_and_end_together() {
    let server = Server::new().await;
    let mut leases = LeaseClient::new(server.channel.clone());
    let granted = leases.lease_grant(pb::LeaseGrantRequest { ttl: 2, id: 0 }).await.unwrap().into_inner();
    let mut watch = server.watch();
    watch.create("/registry/events/", 0).await;
    for i in 0..3 {
        assert!(server.put_if(&format!("/registry/events/e{i}"), "v", 0, granted.id).await.0);
    }
    // One that is written again without the lease stays.
    let kept = server.range(get("/registry/events/e1")).await.kvs.remove(0);
    assert_eq!(kept.lease, granted.id);
    server.put_if("/registry/events/e1", "kept", kept.mod_revision, 0).await;
    let mut deleted = Vec::new();
    while deleted.len() < 2 {
        let answer = watch.next().await;
        let gone = answer.events.into_iter().filter(|e| e.r#type() == EventType::Delete);
        deleted.extend(gone.map(|e| (e.kv.unwrap().key, e.prev_kv.is_some())));
    }
    deleted.sort();
    assert_eq!(deleted, [(bytes("/registry/events/e0"), true), (bytes("/registry/events/e2"), true)]);
    let txn = pb::TxnRequest {
        compare: vec![compare_mod("/registry/events/e9", 0)],
        success: vec![op(pb::request_op::Request::RequestPut(pb::PutRequest {
            key: bytes("/registry/events/e9"),
            lease: granted.id,
            ..Default::default()
        }))],
        failure: Vec::new(),
    };
    assert_eq!(server.kv().txn(txn).await.unwrap_err().message(), "etcdserver: requested lease not found");
    server.member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_version_says_that_progress_can_be_asked_for() {
    let server = Server::new().await;
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
    let parts: Vec<u32> = status.version.split('.').map(|part| part.parse().unwrap()).collect();
    assert!(parts >= vec![3, 5, 13], "{}", status.version);
    assert!(status.leader == server.member.store.id() && status.errors.is_empty() && status.db_size_quota == 0);
    server.put_if("/registry/x", "some bytes", 0, 0).await;
    let later = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert!(later.db_size > status.db_size && later.db_size_in_use > 0);
    server.member.stop().await;
}
