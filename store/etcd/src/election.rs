//! The v3election service.

use crate::api::Api;
use crate::queue::{Waiting, prefix};
use crate::{convert, error};
use skiff_proto::etcd::v3electionpb as pb;
use skiff_store::{KeyRange, KeyValue, WatchRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

fn missing_leader() -> Status {
    Status::invalid_argument("etcdserver: the request must name the leader's key")
}

fn not_leader() -> Status {
    Status::failed_precondition("election: not leader")
}

impl Api {
    fn leader_response(&self, kv: &KeyValue) -> pb::LeaderResponse {
        pb::LeaderResponse { header: self.header(), kv: Some(convert::pair(kv)) }
    }

    /// Tells everyone who holds the office, whenever that or what they say changes.
    async fn observe_leaders(&self, name: &[u8], answers: &mpsc::Sender<Result<pb::LeaderResponse, Status>>) {
        let mut told: Option<KeyValue> = None;
        loop {
            let (first, revision) = match self.first(name).await {
                Ok(found) => found,
                Err(e) => return drop(answers.send(Err(e)).await),
            };
            if let Some(kv) = first.filter(|kv| told.as_ref() != Some(kv)) {
                if answers.send(Ok(self.leader_response(&kv))).await.is_err() {
                    return;
                }
                told = Some(kv);
            }
            let request = WatchRequest { range: KeyRange::prefix(prefix(name)), start_revision: revision + 1 };
            let Ok(mut watch) = self.store.watch(request).await else {
                return drop(answers.send(Err(error::stopped())).await);
            };
            loop {
                tokio::select! {
                    () = answers.closed() => return,
                    batch = watch.next() => match batch {
                        Ok(batch) if batch.events.is_empty() => {}
                        _ => break,
                    }
                }
            }
        }
    }
}

#[tonic::async_trait]
impl pb::election_server::Election for Api {
    async fn campaign(&self, request: Request<pb::CampaignRequest>) -> Result<Response<pb::CampaignResponse>, Status> {
        let pb::CampaignRequest { name, lease, value } = request.into_inner();
        let place = self.queue_up(&name, lease, value).await?;
        let waiting = Waiting::new(self, &place);
        self.wait_for_turn(&name, &place).await?;
        waiting.done();
        let leader = pb::LeaderKey { name, key: place.key, rev: place.revision as i64, lease: place.lease };
        Ok(Response::new(pb::CampaignResponse { header: self.header(), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<pb::ProclaimRequest>) -> Result<Response<pb::ProclaimResponse>, Status> {
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(missing_leader)?;
        match self.proclaim_at(&leader.key, leader.rev.max(0) as u64, value).await? {
            true => Ok(Response::new(pb::ProclaimResponse { header: self.header() })),
            false => Err(not_leader()),
        }
    }

    async fn leader(&self, request: Request<pb::LeaderRequest>) -> Result<Response<pb::LeaderResponse>, Status> {
        let (first, _) = self.first(&request.into_inner().name).await?;
        let first = first.ok_or_else(|| Status::not_found("election: no leader"))?;
        Ok(Response::new(self.leader_response(&first)))
    }

    type ObserveStream = ReceiverStream<Result<pb::LeaderResponse, Status>>;

    async fn observe(&self, request: Request<pb::LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let (answers, stream) = mpsc::channel(16);
        let (api, name) = (self.clone(), request.into_inner().name);
        tokio::spawn(async move { api.observe_leaders(&name, &answers).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn resign(&self, request: Request<pb::ResignRequest>) -> Result<Response<pb::ResignResponse>, Status> {
        let leader = request.into_inner().leader.ok_or_else(missing_leader)?;
        let revision = self.leave(&leader.key, leader.rev.max(0) as u64).await?;
        Ok(Response::new(pb::ResignResponse { header: self.header_at(revision) }))
    }
}
