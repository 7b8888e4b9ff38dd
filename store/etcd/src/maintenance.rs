//! The Maintenance service.

use crate::api::Api;
use crate::{ETCD_VERSION, error};
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_store::{Alarm, AlarmKind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

fn alarm_type(kind: AlarmKind) -> pb::AlarmType {
    match kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    }
}

fn alarm(a: &Alarm) -> pb::AlarmMember {
    pb::AlarmMember { member_id: a.member, alarm: alarm_type(a.kind) as i32 }
}

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for Api {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction;
        let request = request.into_inner();
        let wanted = request.alarm();
        let there: Vec<_> = {
            self.store.barrier().await.map_err(error::status)?;
            let all = self.store.alarms();
            let fits = |a: &Alarm| {
                (request.member_id == 0 || a.member == request.member_id)
                    && (wanted == pb::AlarmType::None || alarm_type(a.kind) == wanted)
            };
            all.into_iter().filter(fits).collect()
        };
        let alarms = match request.action() {
            AlarmAction::Get => there,
            AlarmAction::Deactivate => {
                for a in &there {
                    self.store.alarm(*a, false).await.map_err(error::status)?;
                }
                there
            }
            AlarmAction::Activate => {
                let kind = match wanted {
                    pb::AlarmType::None => return Ok(Response::new(pb::AlarmResponse::default())),
                    pb::AlarmType::Nospace => AlarmKind::NoSpace,
                    pb::AlarmType::Corrupt => AlarmKind::Corrupt,
                };
                let a = Alarm { member: request.member_id, kind };
                self.store.alarm(a, true).await.map_err(error::status)?;
                vec![a]
            }
        };
        let alarms = alarms.iter().map(alarm).collect();
        Ok(Response::new(pb::AlarmResponse { header: self.header(), alarms }))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.store.status();
        let mut errors: Vec<_> = status
            .alarms
            .iter()
            .map(|a| format!("memberID:{} alarm:{} ", a.member, alarm_type(a.kind).as_str_name()))
            .collect();
        if status.leadership.leader.is_none() {
            errors.push("etcdserver: no leader".into());
        }
        Ok(Response::new(pb::StatusResponse {
            header: self.header_at(status.revision),
            version: ETCD_VERSION.into(),
            db_size: status.size_bytes as i64,
            leader: status.leadership.leader.unwrap_or(0),
            raft_index: status.committed_index,
            raft_term: status.leadership.term,
            raft_applied_index: status.applied_index,
            errors,
            db_size_in_use: status.size_bytes as i64,
            is_learner: status.learner,
            storage_version: String::new(),
            db_size_quota: status.quota_bytes as i64,
        }))
    }

    /// The store's memory is given back by compaction itself; there is no file with holes.
    async fn defragment(&self, _: Request<pb::DefragmentRequest>) -> Result<Response<pb::DefragmentResponse>, Status> {
        Ok(Response::new(pb::DefragmentResponse { header: self.header() }))
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let (hash, ..) = self.store.hash_kv(0).await.map_err(error::status)?;
        Ok(Response::new(pb::HashResponse { header: self.header(), hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let revision = request.into_inner().revision.max(0) as u64;
        let (hash, compacted, at) = self.store.hash_kv(revision).await.map_err(error::status)?;
        Ok(Response::new(pb::HashKvResponse {
            header: self.header(),
            hash,
            compact_revision: compacted as i64,
            hash_revision: at as i64,
        }))
    }

    type SnapshotStream = ReceiverStream<Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let mut chunks = self.store.export().await.map_err(error::status)?;
        let (answers, stream) = mpsc::channel(4);
        let header = self.header();
        tokio::spawn(async move {
            while let Some(chunk) = chunks.recv().await {
                let failed = chunk.is_err();
                let answer = chunk
                    .map(|(remaining_bytes, blob)| pb::SnapshotResponse {
                        header,
                        remaining_bytes,
                        blob,
                        version: ETCD_VERSION.into(),
                    })
                    .map_err(|e| Status::internal(format!("etcdserver: taking the snapshot failed: {e}")));
                if answers.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.store.move_leader(request.into_inner().target_id).await.map_err(error::status)?;
        Ok(Response::new(pb::MoveLeaderResponse { header: self.header() }))
    }

    async fn downgrade(&self, _: Request<pb::DowngradeRequest>) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(Status::unimplemented(
            "etcdserver: Skiff's store has one version of its API, so there is nothing to downgrade to",
        ))
    }
}
