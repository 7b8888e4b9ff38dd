//! The peers' service: what other members send here.

use crate::command::{Proposal, member_to_pb};
use crate::driver::Shared;
use crate::replica::Input;
use crate::snapshot;
use crate::store::Store;
use crate::types::LeaseTime;
use prost::Message as _;
use raft::eraftpb::Message;
use skiff_proto::store as pb;
use skiff_proto::store::peer_server::Peer;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status, Streaming};

/// How often it is looked whether a peer still belongs to the group.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What a member is told that is no member any more; it stops then.
pub const REMOVED: &str = "this member was removed from the store's group";

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
}

fn decode(bytes: &[u8]) -> Result<Box<Message>, Status> {
    Message::decode(bytes).map(Box::new).map_err(|e| Status::invalid_argument(format!("not a Raft message: {e}")))
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn messages(&self, request: Request<Streaming<pb::RaftMessages>>) -> Result<Response<pb::Empty>, Status> {
        let mut stream = request.into_inner();
        let (mut from, mut looked) = (0, None::<Instant>);
        loop {
            match stream.message().await {
                Ok(Some(item)) => {
                    if item.cluster_id != self.shared().cluster_id {
                        return Err(Status::failed_precondition("these messages are of another cluster"));
                    }
                    from = item.from;
                    if looked.is_none_or(|at| at.elapsed() > LOOK_EVERY) {
                        looked = Some(Instant::now());
                        if self.store.was_removed(from) {
                            return Err(Status::permission_denied(REMOVED));
                        }
                    }
                    for message in item.messages {
                        self.shared().input(Input::Message(decode(&message)?));
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

    async fn snapshot(&self, request: Request<Streaming<pb::SnapshotChunk>>) -> Result<Response<pb::Empty>, Status> {
        let _only_one = self.store.receiving().await;
        let mut stream = request.into_inner();
        let disk = self.shared().disk.clone();
        let failed = |e: std::io::Error| Status::internal(format!("storing the snapshot: {e}"));
        disk.remove(snapshot::INCOMING).map_err(failed)?;
        let mut message = None;
        while let Some(chunk) = stream.message().await? {
            if !chunk.message.is_empty() {
                message = Some(decode(&chunk.message)?);
            }
            disk.append(snapshot::INCOMING, &chunk.data).map_err(failed)?;
        }
        let message = message.ok_or_else(|| Status::invalid_argument("a snapshot without its Raft message"))?;
        let (cluster_id, index) = (self.shared().cluster_id, message.get_snapshot().get_metadata().index);
        let checked = tokio::task::spawn_blocking(move || snapshot::received(&*disk, cluster_id, index));
        checked.await.map_err(|e| Status::internal(e.to_string()))?.map_err(Status::data_loss)?;
        self.shared().input(Input::Message(message));
        Ok(Response::new(pb::Empty {}))
    }

    async fn forward(&self, request: Request<pb::Forwarded>) -> Result<Response<pb::ForwardAnswer>, Status> {
        let accepted = self.store.leadership().borrow().is_leader();
        if accepted {
            let proposals: Result<_, _> =
                request.into_inner().commands.into_iter().map(|c| Proposal::decode(c).map(Arc::new)).collect();
            let proposals = proposals.map_err(|e| Status::invalid_argument(e.to_string()))?;
            self.shared().input(Input::Propose(proposals));
        }
        Ok(Response::new(pb::ForwardAnswer { accepted }))
    }

    async fn leases(&self, request: Request<pb::LeasesRequest>) -> Result<Response<pb::LeasesAnswer>, Status> {
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
        Ok(Response::new(self.store.answer_change(request.into_inner()).await))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinAnswer>, Status> {
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
        self.store.add_member(member).await.map_err(|e| match e {
            crate::error::Error::Member { .. } => Status::failed_precondition(e.to_string()),
            other => Status::unavailable(other.to_string()),
        })?;
        let members = self.store.members().iter().map(member_to_pb).collect();
        let cluster_id = self.shared().cluster_id;
        Ok(Response::new(pb::JoinAnswer { cluster_id, members, leader_addr: String::new(), member_id }))
    }
}
