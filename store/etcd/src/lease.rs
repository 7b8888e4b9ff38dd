//! The Lease service.

use crate::api::Api;
use crate::error;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_store::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Seconds; etcd's bounds. A lease shorter than an election would end with every one of those.
const TTL_MIN_S: i64 = 1;
const TTL_MAX_S: i64 = 9_000_000_000;

#[tonic::async_trait]
impl pb::lease_server::Lease for Api {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let pb::LeaseGrantRequest { ttl, id } = request.into_inner();
        if ttl > TTL_MAX_S {
            return Err(error::ttl_too_large());
        }
        let lease = self.store.grant_lease(id, ttl.max(TTL_MIN_S)).await.map_err(error::status)?;
        let header = self.header();
        Ok(Response::new(pb::LeaseGrantResponse { header, id: lease.id, ttl: lease.ttl_s, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let done = self.store.revoke_lease(request.into_inner().id).await.map_err(error::status)?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: self.header_at(done.revision) }))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(16);
        let api = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let id = request.id;
                let answer = match api.store.keep_alive(id).await {
                    Ok(time) => Ok(time.granted_s),
                    // A lease that is gone has no time left: that is an answer, not an error.
                    Err(Error::LeaseNotFound(_)) => Ok(0),
                    Err(e) => Err(error::status(e)),
                };
                let failed = answer.is_err();
                let answer = answer.map(|ttl| pb::LeaseKeepAliveResponse { header: api.header(), id, ttl });
                if answers.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let time = match self.store.time_to_live(id).await {
            Ok(time) => time,
            Err(Error::LeaseNotFound(_)) => {
                let header = self.header();
                return Ok(Response::new(pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() }));
            }
            Err(e) => return Err(error::status(e)),
        };
        let keys = if keys { self.store.lease_keys(id).await.map_err(error::status)? } else { Vec::new() };
        Ok(Response::new(pb::LeaseTimeToLiveResponse {
            header: self.header(),
            id,
            ttl: time.left_ms / 1000,
            granted_ttl: time.granted_s,
            keys,
        }))
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let leases = self.store.leases().await.map_err(error::status)?;
        let leases = leases.into_iter().map(|l| pb::LeaseStatus { id: l.id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: self.header(), leases }))
    }
}
