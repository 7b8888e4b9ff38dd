//! The peers' service: what other members send here.

use crate::command::{Kind, Proposal, member_to_pb};
use crate::driver::{Shared, lock};
use crate::incoming::{Begun, Identity, Offer, Refused, check_part};
use crate::replica::Input;
use crate::role::{Keys, PeerKey};
use crate::store::Store;
use crate::types::{LeaseTime, MemberId};
use prost::Message as _;
use raft::eraftpb::Message;
use skiff_proto::store as pb;
use skiff_proto::store::peer_server::Peer;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How often it is looked whether a peer still belongs to the group.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What a member is told that is no member any more; it stops then.
pub const REMOVED: &str = "this member was removed from the store's group";

/// A transfer of a snapshot in which nothing comes for so long is over.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// While a large snapshot is checked, the sender hears that it goes on.
const CHECKING_SAID_EVERY: Duration = Duration::from_secs(2);

/// Serves a store to its peers.
pub struct PeerService {
    store: Store,
}

impl PeerService {
    pub fn new(store: Store) -> Self {
        PeerService { store }
    }

    fn shared(&self) -> &Shared {
        self.store.shared()
    }

    /// Whether a request that came by `key` may speak as member `id`.
    fn check_speaks_as(&self, key: Option<&PeerKey>, id: MemberId) -> Result<(), Status> {
        self.check(key, |keys, key| keys.may_speak_as(key, id))
    }

    /// Whether a request that came by `key` is a member's.
    fn check_member(&self, key: Option<&PeerKey>) -> Result<(), Status> {
        self.check(key, |keys, key| keys.may_speak(key))
    }

    fn check(
        &self,
        key: Option<&PeerKey>,
        decide: impl Fn(&Keys<'_>, &str) -> Result<(), String>,
    ) -> Result<(), Status> {
        let Some(PeerKey(key)) = key else { return Ok(()) };
        let machine = self.shared().look();
        let keys = Keys { members: &machine.members, removed: &machine.removed_keys };
        decide(&keys, key).map_err(Status::permission_denied)
    }
}

fn key_of<T>(request: &Request<T>) -> Option<PeerKey> {
    request.extensions().get::<PeerKey>().cloned()
}

fn decode(bytes: &[u8]) -> Result<Box<Message>, Status> {
    Message::decode(bytes).map(Box::new).map_err(|e| Status::invalid_argument(format!("not a Raft message: {e}")))
}

type Answers = mpsc::Sender<Result<pb::SnapshotAnswer, Status>>;

async fn answer(answers: &Answers, have: u64, done: bool) -> Result<(), Status> {
    match tokio::time::timeout(IDLE_MAX, answers.send(Ok(pb::SnapshotAnswer { have, done }))).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Status::cancelled("the sender is gone")),
    }
}

async fn next(stream: &mut Streaming<pb::SnapshotChunk>) -> Result<pb::SnapshotChunk, Status> {
    let silent = |_| Status::deadline_exceeded(format!("nothing came for {} s", IDLE_MAX.as_secs()));
    let chunk = tokio::time::timeout(IDLE_MAX, stream.message()).await.map_err(silent)??;
    chunk.ok_or_else(|| Status::aborted("the snapshot ended before its end"))
}

/// Decides with the disk in hand, off the threads that answer the others.
async fn decide<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, Refused> + Send + 'static,
) -> Result<T, Status> {
    let shared = shared.clone();
    let done = tokio::task::spawn_blocking(move || work(&shared)).await.map_err(|e| Status::internal(e.to_string()))?;
    done.map_err(|refused| match refused {
        Refused::Cluster | Refused::Older => Status::failed_precondition(refused.to_string()),
        Refused::Superseded => Status::aborted(refused.to_string()),
        Refused::TooMuch { .. } | Refused::Wrong { .. } => Status::data_loss(refused.to_string()),
        Refused::Io(_) => Status::internal(refused.to_string()),
    })
}

impl PeerService {
    async fn receive(
        &self,
        key: Option<&PeerKey>,
        mut stream: Streaming<pb::SnapshotChunk>,
        answers: &Answers,
    ) -> Result<(), Status> {
        let offer =
            next(&mut stream).await?.offer.ok_or_else(|| Status::invalid_argument("a snapshot without an offer"))?;
        let offer =
            Offer::from_pb(&offer).map_err(|e| Status::invalid_argument(format!("not an offer of a snapshot: {e}")))?;
        self.check_speaks_as(key, offer.message.from)?;
        receive(self.store.shared(), offer, stream, answers).await
    }
}

/// A member says by which key it is known: the one that it shows.
fn check_says_own_key(key: Option<&PeerKey>, said: &str) -> Result<(), Status> {
    match key {
        Some(PeerKey(shown)) if !said.is_empty() && said != shown => {
            Err(Status::permission_denied("a member is known by the key that it shows, and says another"))
        }
        _ => Ok(()),
    }
}

/// Takes in what is lacking of the snapshot that is offered, and gives Raft its message when it is whole.
async fn receive(
    shared: &Arc<Shared>,
    offer: Offer,
    mut stream: Streaming<pb::SnapshotChunk>,
    answers: &Answers,
) -> Result<(), Status> {
    let (identity, message) = (offer.identity, Box::new(offer.message.clone()));
    let begin = move |shared: &Shared| {
        let applied = shared.applied_index.load(Ordering::Acquire);
        lock(&shared.incoming).begin(&*shared.disk, &offer, shared.cluster_id, applied)
    };
    if let Begun::From { ticket, have } = decide(shared, begin).await? {
        let taken = take_in(shared, &mut stream, answers, &identity, (ticket, have)).await;
        lock(&shared.incoming).leave(ticket);
        taken?;
    }
    shared.input(Input::Message(message));
    answer(answers, identity.size, true).await
}

async fn take_in(
    shared: &Arc<Shared>,
    stream: &mut Streaming<pb::SnapshotChunk>,
    answers: &Answers,
    identity: &Identity,
    (ticket, mut have): (u64, u64),
) -> Result<(), Status> {
    answer(answers, have, false).await?;
    while have < identity.size {
        let data = next(stream).await?.data;
        shared.counters.snapshot_received_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        have = decide(shared, move |s| lock(&s.incoming).take(&*s.disk, ticket, &data)).await?;
        answer(answers, have, false).await?;
    }
    let identity = *identity;
    let mut finish = std::pin::pin!(decide(shared, move |s| {
        // Not under the lock: this may take seconds.
        let checked = check_part(&*s.disk, &identity, s.cluster_id);
        lock(&s.incoming).finish(&*s.disk, ticket, checked)
    }));
    loop {
        match tokio::time::timeout(CHECKING_SAID_EVERY, &mut finish).await {
            Ok(finished) => return finished,
            Err(_) => answer(answers, have, false).await?,
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn messages(&self, request: Request<Streaming<pb::RaftMessages>>) -> Result<Response<pb::Empty>, Status> {
        let key = key_of(&request);
        let mut stream = request.into_inner();
        let (mut from, mut looked) = (0, None::<Instant>);
        loop {
            match stream.message().await {
                Ok(Some(item)) => {
                    if item.cluster_id != self.shared().cluster_id {
                        return Err(Status::failed_precondition("these messages are of another cluster"));
                    }
                    if item.from != from || looked.is_none_or(|at| at.elapsed() > LOOK_EVERY) {
                        looked = Some(Instant::now());
                        if self.store.was_removed(item.from) {
                            return Err(Status::permission_denied(REMOVED));
                        }
                        self.check_speaks_as(key.as_ref(), item.from)?;
                        from = item.from;
                    }
                    for message in item.messages {
                        let message = decode(&message)?;
                        // Raft hands on some of what it hears under the name that it came by: such a one is asked again, to whom it was meant for.
                        if key.is_none() || message.from == from {
                            self.shared().input(Input::Message(message));
                        }
                    }
                }
                Ok(None) => break,
                Err(_) => break,
            }
        }
        // The stream of a live peer never ends: if that peer led, an election need not wait for the silence to be long enough.
        if from != 0 {
            self.store.peer_closed(from);
        }
        Ok(Response::new(pb::Empty {}))
    }

    type SnapshotStream = ReceiverStream<Result<pb::SnapshotAnswer, Status>>;

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        let key = key_of(&request);
        let service = PeerService::new(self.store.clone());
        tokio::spawn(async move {
            if let Err(status) = service.receive(key.as_ref(), request.into_inner(), &answers).await {
                let _ = tokio::time::timeout(IDLE_MAX, answers.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn forward(&self, request: Request<pb::Forwarded>) -> Result<Response<pb::ForwardAnswer>, Status> {
        let accepted = self.store.leadership().borrow().is_leader();
        let key = key_of(&request);
        if accepted {
            self.check_member(key.as_ref())?;
            let proposals: Result<Vec<_>, _> =
                request.into_inner().commands.into_iter().map(|c| Proposal::decode(c).map(Arc::new)).collect();
            let proposals = proposals.map_err(|e| Status::invalid_argument(e.to_string()))?;
            // A member says its own name and addresses, and no other's.
            for proposal in &proposals {
                if let Kind::Member(member) = &proposal.command.kind {
                    self.check_speaks_as(key.as_ref(), member.id)?;
                    check_says_own_key(key.as_ref(), &member.key_hash)?;
                }
            }
            self.shared().input(Input::Propose(proposals));
        }
        Ok(Response::new(pb::ForwardAnswer { accepted }))
    }

    async fn leases(&self, request: Request<pb::LeasesRequest>) -> Result<Response<pb::LeasesAnswer>, Status> {
        self.check_member(key_of(&request).as_ref())?;
        let request = request.into_inner();
        let answer = match self.store.lead_leases(&request.ids, request.renew).await {
            Ok(times) => {
                let gone = LeaseTime { left_ms: -1, granted_s: 0 };
                let times = times.into_iter().map(|t| t.unwrap_or(gone));
                let times = times.map(|t| pb::LeaseTime { left_ms: t.left_ms, granted_s: t.granted_s }).collect();
                pb::LeasesAnswer { refused: false, times }
            }
            Err(_) => pb::LeasesAnswer { refused: true, times: Vec::new() },
        };
        Ok(Response::new(answer))
    }

    async fn change(&self, request: Request<pb::ChangeRequest>) -> Result<Response<pb::ChangeAnswer>, Status> {
        let key = key_of(&request);
        let request = request.into_inner();
        match &request.change {
            Some(pb::change_request::Change::Update(member)) => {
                let known = self.shared().look().members.contains_key(&member.id);
                // Who is not there any more hears that, by whatever key it is known.
                if known {
                    self.check_speaks_as(key.as_ref(), member.id)?;
                    check_says_own_key(key.as_ref(), &member.key_hash)?;
                }
            }
            _ => self.check_member(key.as_ref())?,
        }
        Ok(Response::new(self.store.answer_change(request).await))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinAnswer>, Status> {
        let key = key_of(&request);
        let record = request.into_inner().member.ok_or_else(|| Status::invalid_argument("no member named"))?;
        let leadership = self.store.leadership().borrow().clone();
        if !leadership.is_leader() {
            let leader = self.store.members().into_iter().find(|m| Some(m.id) == leadership.leader);
            let leader = leader.ok_or_else(|| Status::unavailable("the store has no leader at the moment"))?;
            return Ok(Response::new(pb::JoinAnswer { leader_addr: leader.peer_addr, ..Default::default() }));
        }
        let mut member = crate::command::member_from_pb(record);
        // Added by its address before it was started: it takes that member's place.
        let awaited = self.store.awaited(&member.peer_addr);
        let member_id = awaited.as_ref().map_or(0, |m| m.id);
        if let Some(awaited) = awaited {
            (member.id, member.learner) = (awaited.id, awaited.learner);
        }
        if let Some(PeerKey(hash)) = &key {
            self.check_speaks_as(key.as_ref(), member.id)?;
            member.key_hash = hash.clone();
        }
        self.store.add_member(member).await.map_err(|e| match e {
            crate::error::Error::Member { .. } => Status::failed_precondition(e.to_string()),
            other => Status::unavailable(other.to_string()),
        })?;
        let members = self.store.members().iter().map(member_to_pb).collect();
        let cluster_id = self.shared().cluster_id;
        Ok(Response::new(pb::JoinAnswer { cluster_id, members, leader_addr: String::new(), member_id }))
    }
}
