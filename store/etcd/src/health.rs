//! Whether this member can serve: gRPC's health protocol, and the same over HTTP.

use crate::api::Api;
use skiff_proto::health as pb;
use skiff_store::AlarmKind;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// A read that takes longer than this says that the member cannot serve.
const READ_MAX: Duration = Duration::from_secs(2);

impl Api {
    /// None if the member can serve, or why it cannot.
    pub(crate) async fn unhealthy(&self) -> Option<String> {
        if let Some(alarm) = self.store.alarms().first() {
            let kind = match alarm.kind {
                AlarmKind::NoSpace => "NOSPACE",
                AlarmKind::Corrupt => "CORRUPT",
            };
            return Some(format!("ALARM {kind}"));
        }
        if self.store.leadership().borrow().leader.is_none() {
            return Some("RAFT NO LEADER".into());
        }
        match tokio::time::timeout(READ_MAX, self.store.barrier()).await {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(format!("READ {e}")),
            Err(_) => Some("READ took too long".into()),
        }
    }

    pub(crate) async fn check_health(
        &self,
        _: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        Ok(Response::new(self.serving()))
    }

    fn serving(&self) -> pb::HealthCheckResponse {
        use pb::health_check_response::ServingStatus;
        let serves = self.store.leadership().borrow().leader.is_some() && self.store.failure().borrow().is_none();
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        pb::HealthCheckResponse { status: status as i32 }
    }
}

#[tonic::async_trait]
impl pb::health_server::Health for Api {
    async fn check(&self, r: Request<pb::HealthCheckRequest>) -> Result<Response<pb::HealthCheckResponse>, Status> {
        self.check_health(r).await
    }

    type WatchStream = ReceiverStream<Result<pb::HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<pb::HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        let api = self.clone();
        tokio::spawn(async move {
            let (mut leadership, mut failure) = (api.store.leadership(), api.store.failure());
            let mut told = None;
            loop {
                let now = api.serving();
                if told != Some(now.status) {
                    told = Some(now.status);
                    if answers.send(Ok(now)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = leadership.changed() => if changed.is_err() { return },
                    changed = failure.changed() => if changed.is_err() { return },
                    () = answers.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
