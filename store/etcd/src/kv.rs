//! The KV service. `server` and `unary` lead its calls here, without gRPC's general way.

use crate::api::Api;
use crate::{check, convert, error};
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_store::{Op, OpResponse, Txn};
use tonic::{Request, Response, Status};

impl Api {
    fn check_size(&self, request: &impl prost::Message) -> Result<(), Status> {
        match request.encoded_len() > self.settings.request_bytes_max {
            true => Err(error::request_too_large()),
            false => Ok(()),
        }
    }

    pub(crate) async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let request = request.into_inner();
        check::range(&request)?;
        let found = self.store.range(convert::range(request)).await.map_err(error::status)?;
        Ok(Response::new(self.range_response(found)))
    }

    pub(crate) async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let request = request.into_inner();
        check::put(&request)?;
        self.check_size(&request)?;
        let done = self.store.txn(Txn::of(Op::Put(convert::put(request)))).await.map_err(error::status)?;
        let prev_kv = match done.responses.first() {
            Some(OpResponse::Put { prev }) => prev.as_deref().map(convert::pair),
            _ => None,
        };
        Ok(Response::new(pb::PutResponse { header: self.header_at(done.revision), prev_kv }))
    }

    pub(crate) async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        check::delete(&request)?;
        let done = self.store.txn(Txn::of(Op::Delete(convert::delete(request)))).await.map_err(error::status)?;
        let (deleted, prev_kvs) = match done.responses.first() {
            Some(OpResponse::Delete { deleted, prev }) => (*deleted, prev.iter().map(|kv| convert::pair(kv)).collect()),
            _ => (0, Vec::new()),
        };
        let header = self.header_at(done.revision);
        Ok(Response::new(pb::DeleteRangeResponse { header, deleted: deleted as i64, prev_kvs }))
    }

    pub(crate) async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let request = request.into_inner();
        check::txn(&request, self.settings.txn_ops_max)?;
        self.check_size(&request)?;
        let done = self.store.txn(convert::txn(request)).await.map_err(error::status)?;
        Ok(Response::new(self.txn_response(done)))
    }

    pub(crate) async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let request = request.into_inner();
        let revision = request.revision.max(0) as u64;
        self.store.compact(revision, request.physical).await.map_err(error::status)?;
        Ok(Response::new(pb::CompactionResponse { header: self.header() }))
    }
}
