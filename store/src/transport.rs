//! Messages to the other members: a task a peer, each with one stream out.
//!
//! Queues are bounded and a message that does not fit is dropped: Raft sends it again, and a slow peer costs nobody memory. Snapshots
//! take a connection of their own, in chunks, and go on where the last attempt ended (see `incoming`). An address comes from the replicated list of members, so it may change under a
//! running connection; the task then dials the new one.

use crate::command::member_to_pb;
use crate::driver::{Outbox, Shared, lock};
use crate::error::MemberCode;
use crate::membership::removed;
use crate::outgoing::read_chunk;
use crate::peer::REMOVED;
use crate::peer_tls::PeerTls;
use crate::replica::{Input, is_snapshot};
use crate::snapshot;
use crate::types::*;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use raft::eraftpb::Message;
use skiff_proto::store as pb;
use skiff_proto::store::peer_client::PeerClient;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::transport::{Channel, Endpoint};

const QUEUE_MAX: usize = 4096;
/// Bytes of a snapshot that are under way without the word that they arrived.
const WINDOW_BYTES: u64 = 2 << 20;
/// A transfer in which nothing moves for so long is broken off: it goes on later on another connection.
const PROGRESS: Duration = Duration::from_secs(10);
/// Until the receiver has looked through what a restart left of the snapshot.
const FIRST_ANSWER: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// A stream that lasted as long reached its peer.
const UP_MIN: Duration = Duration::from_secs(3);
/// gRPC's limit on one message; an entry is far smaller.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Members of the group that are dialled. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: tokio::runtime::Handle,
    tls: Option<PeerTls>,
    shared: OnceLock<Weak<Shared>>,
    peers: Mutex<HashMap<MemberId, Peer>>,
    /// Addresses known before the replicated list is (from the answer to a join).
    seeds: Mutex<HashMap<MemberId, String>>,
}

#[derive(Clone)]
struct Peer {
    addr: String,
    queue: mpsc::Sender<Message>,
    channel: Channel,
}

/// A channel to a peer's address; it connects when it is used, and is closed when the peer is silent.
pub fn channel(addr: &str, tls: Option<&PeerTls>) -> Result<Channel, tonic::transport::Error> {
    let endpoint = endpoint(addr)?.http2_keep_alive_interval(Duration::from_secs(2));
    Ok(connect(endpoint.keep_alive_timeout(Duration::from_secs(2)), addr, tls))
}

fn endpoint(addr: &str) -> Result<Endpoint, tonic::transport::Error> {
    // Whether there is TLS is the connector's to know, so the scheme says nothing.
    Ok(Endpoint::from_shared(format!("http://{addr}"))?.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true))
}

/// A channel that dials when it is used, by the certificate that is current then.
fn connect(endpoint: Endpoint, addr: &str, tls: Option<&PeerTls>) -> Channel {
    let Some(tls) = tls.cloned() else { return endpoint.connect_lazy() };
    let addr = addr.to_owned();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
        let (tls, addr) = (tls.clone(), addr.clone());
        async move { tls.dial(&addr).await.map(TokioIo::new) }
    }))
}

/// A client of a peer's service.
pub fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

impl Transport {
    pub fn new(tls: Option<PeerTls>, seeds: HashMap<MemberId, String>) -> Self {
        let inner = Inner {
            runtime: tokio::runtime::Handle::current(),
            tls,
            shared: OnceLock::new(),
            peers: Mutex::default(),
            seeds: Mutex::new(seeds),
        };
        Transport { inner: Arc::new(inner) }
    }

    /// Ties the transport to its replica, once that exists.
    pub fn attach(&self, shared: &Arc<Shared>) {
        let _ = self.inner.shared.set(Arc::downgrade(shared));
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        self.inner.shared.get().and_then(Weak::upgrade)
    }

    fn address(&self, shared: &Shared, id: MemberId) -> Option<String> {
        let machine = shared.machine.read().unwrap_or_else(|e| e.into_inner());
        match machine.members.get(&id) {
            Some(member) => Some(member.peer_addr.clone()),
            None => self.inner.seeds.lock().unwrap_or_else(|e| e.into_inner()).get(&id).cloned(),
        }
    }

    /// The channel to a member; None if its address is not known.
    pub fn channel_to(&self, id: MemberId) -> Option<Channel> {
        self.peer(id).map(|p| p.channel)
    }

    fn peer(&self, id: MemberId) -> Option<Peer> {
        let shared = self.shared()?;
        let addr = self.address(&shared, id)?;
        let mut peers = self.inner.peers.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(peer) = peers.get(&id).filter(|p| p.addr == addr) {
            return Some(peer.clone());
        }
        // Called from the raft thread too, which is none of tokio's.
        let _guard = self.inner.runtime.enter();
        let channel = channel(&addr, self.inner.tls.as_ref())
            .inspect_err(|e| tracing::warn!("member {id:x} has an address that cannot be dialled, {addr}: {e}"))
            .ok()?;
        let (queue, messages) = mpsc::channel(QUEUE_MAX);
        self.inner.runtime.spawn(send_messages(
            id,
            addr.clone(),
            (shared.id, shared.cluster_id),
            channel.clone(),
            messages,
            Arc::downgrade(&shared),
        ));
        let peer = Peer { addr, queue, channel };
        peers.insert(id, peer.clone());
        Some(peer)
    }
}

impl Outbox for Transport {
    fn send(&self, message: Message) {
        let to = message.to;
        let Some(peer) = self.peer(to) else { return };
        if is_snapshot(&message) {
            let Some(shared) = self.shared() else { return };
            let _guard = self.inner.runtime.enter();
            // A connection of its own: heartbeats do not wait behind it, and a probe behind it would be late on a slow link.
            match endpoint(&peer.addr) {
                Ok(endpoint) => {
                    let channel = connect(endpoint, &peer.addr, self.inner.tls.as_ref());
                    drop(self.inner.runtime.spawn(send_snapshot(shared, channel, message)));
                }
                Err(_) => shared.input(Input::SnapshotSent(to, false)),
            }
            return;
        }
        if peer.queue.try_send(message).is_err()
            && let Some(shared) = self.shared()
        {
            shared.input(Input::Unreachable(to));
        }
    }
}

/// What a failed call says, down to its first cause: "transport error" alone helps nobody.
fn why(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Keeps a stream of messages to one peer open until the transport forgets the peer.
async fn send_messages(
    to: MemberId,
    addr: String,
    (from, cluster_id): (MemberId, u64),
    channel: Channel,
    mut messages: mpsc::Receiver<Message>,
    shared: Weak<Shared>,
) {
    let (mut retry, mut told) = (RETRY_MIN, None);
    while let Some(first) = messages.recv().await {
        let (stream, items) = mpsc::channel::<pb::RaftMessages>(16);
        let begun = tokio::time::Instant::now();
        let call = async {
            let stream = tokio_stream::wrappers::ReceiverStream::new(items);
            client(channel.clone()).messages(stream).await
        };
        let mut next = Some(first);
        let pump = async {
            while let Some(message) = next {
                let mut item = pb::RaftMessages { from, cluster_id, messages: vec![message.encode_to_vec().into()] };
                while item.messages.len() < 256
                    && let Ok(more) = messages.try_recv()
                {
                    item.messages.push(more.encode_to_vec().into());
                }
                if stream.send(item).await.is_err() {
                    return;
                }
                retry = RETRY_MIN;
                next = messages.recv().await;
            }
        };
        let ended = tokio::select! {
            ended = call => ended.err(),
            () = pump => None,
        };
        let Some(shared) = shared.upgrade() else { return };
        if ended.as_ref().is_some_and(|s| s.code() == tonic::Code::PermissionDenied && s.message() == REMOVED) {
            return shared.fail(removed(&format!("member {to:x} at {addr}")));
        }
        let ended = ended.map(|status| why(&status));
        // A peer that is down is tried for ever; each reason is told once, and anew after it was up.
        if begun.elapsed() > UP_MIN {
            told = None;
        }
        if let Some(problem) = ended.filter(|p| told.as_ref() != Some(p)) {
            tracing::warn!("member {to:x} at {addr} takes no messages: {problem}");
            told = Some(problem);
        }
        shared.input(Input::Unreachable(to));
        drop(shared);
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY_MAX);
        // What waited meanwhile is stale; Raft repeats what still matters.
        while messages.try_recv().is_ok() {}
    }
}

/// Sends the snapshot that Raft names to a peer, what that does not have yet, and reports how it went.
async fn send_snapshot(shared: Arc<Shared>, channel: Channel, message: Message) {
    let (to, index) = (message.to, message.get_snapshot().get_metadata().index);
    shared.sending.hold(index);
    let sent = send_what_lacks(&shared, channel, message).await;
    let held = shared.clone();
    let let_go = tokio::task::spawn_blocking(move || held.sending.let_go(&*held.disk, index)).await;
    if let Ok(Err(e)) = let_go {
        tracing::warn!("removing old snapshots of the store failed: {e}; it is tried again with the next one");
    }
    let counter = if sent.is_ok() { &shared.counters.snapshots_sent } else { &shared.counters.snapshots_broken };
    counter.fetch_add(1, Ordering::Relaxed);
    if let Err(e) = &sent {
        tracing::info!(
            "sending the snapshot at index {index} to member {to:x} failed: {e}; it goes on from what has arrived"
        );
    }
    shared.input(Input::SnapshotSent(to, sent.is_ok()));
}

async fn send_what_lacks(shared: &Arc<Shared>, channel: Channel, message: Message) -> Result<(), String> {
    let asked = shared.clone();
    let offer = blocking(move || asked.sending.offer(&*asked.disk, message, asked.cluster_id)).await?;
    let (index, size) = (offer.identity.index, offer.identity.size);
    // One waits here and some in the connection: what a slow link cannot take yet stays on the disk.
    let (chunks, stream) = mpsc::channel(1);
    let first = pb::SnapshotChunk { offer: Some(offer.to_pb()), data: bytes::Bytes::new() };
    chunks.try_send(first).map_err(|e| e.to_string())?;
    let mut client = client(channel);
    let call = client.snapshot(tokio_stream::wrappers::ReceiverStream::new(stream));
    let mut answers = in_time(FIRST_ANSWER, call).await?.map_err(|e| why(&e))?.into_inner();
    let mut answer = next_answer(&mut answers, FIRST_ANSWER).await?;
    let mut sent = answer.have;
    shared.counters.snapshot_resumed_bytes.fetch_add(sent, Ordering::Relaxed);
    let (disk, from) = (shared.disk.clone(), sent);
    let mut file = blocking(move || disk.open_read_at(&snapshot::file_name(index), from)).await?;
    while !answer.done {
        if sent < size && sent < answer.have + WINDOW_BYTES {
            let most = shared.sizes.snapshot_chunk_bytes;
            let (back, data) = blocking(move || read_chunk(&mut *file, most).map(|data| (file, data))).await?;
            file = back;
            let count = data.len() as u64;
            if count == 0 {
                return Err(format!("its file ends at byte {sent} of {size}"));
            }
            let chunk = pb::SnapshotChunk { offer: None, data: data.into() };
            if in_time(PROGRESS, chunks.send(chunk)).await?.is_ok() {
                sent += count;
                shared.counters.snapshot_sent_bytes.fetch_add(count, Ordering::Relaxed);
                continue;
            }
        }
        answer = next_answer(&mut answers, PROGRESS).await?;
    }
    Ok(())
}

async fn next_answer(
    answers: &mut tonic::Streaming<pb::SnapshotAnswer>,
    max: Duration,
) -> Result<pb::SnapshotAnswer, String> {
    let answer = in_time(max, answers.message()).await?.map_err(|e| why(&e))?;
    answer.ok_or_else(|| "the receiver ended without an answer".to_owned())
}

/// No time-out is on the whole: a slow link may take as long as it likes, if only it moves.
async fn in_time<T>(max: Duration, work: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(max, work).await.map_err(|_| format!("nothing moved for {} s", max.as_secs()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// How long an attempt waits before the same command is sent again.
const ATTEMPT: Duration = Duration::from_millis(1500);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Batches on their way to the leader at once.
const FORWARDS_MAX: usize = 4;

/// Brings the commands that wait in this process to whoever leads, again whenever that changes.
pub async fn carry(shared: Arc<Shared>, transport: Transport, mut stopped: watch::Receiver<bool>) {
    let under_way = Arc::new(Semaphore::new(FORWARDS_MAX));
    let mut leadership = shared.leadership.subscribe();
    let mut led_by = None;
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = stopped.wait_for(|s| *s) => return lock(&shared.pending).fail_all(&crate::error::Error::Stopped),
            _ = leadership.changed() => {}
            () = shared.pending_changed.notified() => {}
            _ = look.tick() => {
                let mut pending = lock(&shared.pending);
                if !pending.is_empty() {
                    pending.look(shared.clock.now_ms(), ATTEMPT.as_millis() as u64);
                }
            }
        }
        let now = leadership.borrow_and_update().clone();
        if led_by != Some((now.term, now.leader)) {
            led_by = Some((now.term, now.leader));
            lock(&shared.pending).send_all_again();
        }
        let Some(leader) = now.leader else { continue };
        if !lock(&shared.pending).has_unsent() {
            continue;
        }
        let proposals = lock(&shared.pending).take_unsent(now.term, shared.clock.now_ms());
        if now.is_leader() {
            shared.input(Input::Propose(proposals));
            continue;
        }
        let Ok(slot) = under_way.clone().acquire_owned().await else { return };
        let (shared, channel) = (shared.clone(), transport.channel_to(leader));
        tokio::spawn(async move {
            if !forward(channel, &proposals).await {
                // Not taken, or nobody knows: a little later there may be another leader.
                tokio::time::sleep(RETRY_MIN).await;
                let mut pending = lock(&shared.pending);
                proposals.iter().for_each(|p| pending.send_again(p.command.sequence));
                drop(pending);
                shared.pending_changed.notify_one();
            }
            drop(slot);
        });
    }
}

/// Hands commands to the leader; whether it took them. Their outcomes come through the log.
async fn forward(channel: Option<Channel>, proposals: &[Arc<crate::command::Proposal>]) -> bool {
    let Some(channel) = channel else { return false };
    let commands = proposals.iter().map(|p| p.encoded.clone()).collect();
    let mut client = client(channel);
    let call = client.forward(pb::Forwarded { commands });
    matches!(tokio::time::timeout(ATTEMPT, call).await, Ok(Ok(answer)) if answer.get_ref().accepted)
}

/// Asks a member of a running group to take this one in; follows it to the leader. Gives the group's id, its members, and
/// the id to use: another than the member's own where the group knew its address already.
pub async fn join(
    seeds: &[String],
    tls: Option<&PeerTls>,
    member: &Member,
) -> Result<(u64, Vec<Member>, MemberId), crate::error::Error> {
    let mut problem = String::from("no address to join was given");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let mut addrs: Vec<String> = seeds.to_vec();
    while tokio::time::Instant::now() < deadline {
        for addr in addrs.clone() {
            let channel = match channel(&addr, tls) {
                Ok(channel) => channel,
                Err(e) => {
                    problem = format!("{addr}: {e}");
                    continue;
                }
            };
            let request = pb::JoinRequest { member: Some(member_to_pb(member)) };
            match client(channel).join(request).await.map(tonic::Response::into_inner) {
                Ok(answer) if answer.leader_addr.is_empty() => {
                    let members = answer.members.into_iter().map(crate::command::member_from_pb).collect();
                    let id = if answer.member_id == 0 { member.id } else { answer.member_id };
                    return Ok((answer.cluster_id, members, id));
                }
                Ok(answer) => {
                    problem = format!("{addr} sends us to the leader at {}", answer.leader_addr);
                    addrs = vec![answer.leader_addr];
                    addrs.extend(seeds.iter().cloned());
                    break;
                }
                Err(e) if e.code() == tonic::Code::FailedPrecondition => {
                    let (code, problem) = (MemberCode::NameTaken, e.message().to_owned());
                    return Err(crate::error::Error::Member { id: member.id, code, problem });
                }
                Err(e) => {
                    problem = format!("{addr}: {}", why(&e));
                    // In TLS 1.3 whoever is turned away often hears nothing but the end of the connection.
                    if std::error::Error::source(&e).is_some() && !problem.contains("refused") {
                        problem.push_str(" (do both sides use TLS for peers, with certificates of one authority?)");
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (code, problem) = (MemberCode::Undecided, format!("could not join the store: {problem}"));
    Err(crate::error::Error::Member { id: member.id, code, problem })
}
