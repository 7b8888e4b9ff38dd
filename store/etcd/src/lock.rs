//! The v3lock service.

use crate::api::Api;
use crate::error;
use crate::queue::Waiting;
use skiff_proto::etcd::v3lockpb as pb;
use skiff_store::{Op, Txn};
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl pb::lock_server::Lock for Api {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Result<Response<pb::LockResponse>, Status> {
        let pb::LockRequest { name, lease } = request.into_inner();
        let place = self.queue_up(&name, lease, Default::default()).await?;
        let waiting = Waiting::new(self, &place);
        self.wait_for_turn(&name, &place).await?;
        waiting.done();
        Ok(Response::new(pb::LockResponse { header: self.header(), key: place.key }))
    }

    async fn unlock(&self, request: Request<pb::UnlockRequest>) -> Result<Response<pb::UnlockResponse>, Status> {
        let key = request.into_inner().key;
        if key.is_empty() {
            return Err(error::empty_key());
        }
        let done = self.store.txn(Txn::of(Op::delete(key))).await.map_err(error::status)?;
        Ok(Response::new(pb::UnlockResponse { header: self.header_at(done.revision) }))
    }
}
