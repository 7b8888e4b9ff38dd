//! What every request needs: the store, who may do what, and the parts that answer.

use crate::auth::pod_graph::PodGraphCache;
use crate::auth::policy::PolicyCache;
use crate::auth::token_file::TokenFile;
use crate::budget::Budget;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::node::NodeConnector;
use crate::storage::encode::Stored;
use crate::storage::keys;
use crate::storage::objects::{Error as ObjectsError, Objects};
use skiff_api::Kind;
use skiff_api::status::Status;
use skiff_store::{Error as StoreError, KeyRange, RangeRequest, RangeResponse};
use std::sync::Arc;

/// The shared state of one API server.
pub struct State {
    pub config: Config,
    pub store: Objects,
    pub policy: PolicyCache,
    /// What nodes may read, because their pods use it.
    pub pods: PodGraphCache,
    pub token_file: TokenFile,
    pub nodes: Arc<dyn NodeConnector>,
    pub metrics: Metrics,
    pub budget: Budget,
    /// The default namespaces and roles are there.
    pub ready: std::sync::atomic::AtomicBool,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// As of now, whichever member answers.
    Linearizable,
    /// What this member has, which may be a little behind.
    Local,
}

impl State {
    /// The object at a key; None when there is none.
    pub async fn read_key(&self, key: &str, fresh: Fresh) -> Result<Option<Stored>, Status> {
        let request = RangeRequest {
            range: KeyRange::key(key.as_bytes().to_vec()),
            serializable: fresh == Fresh::Local,
            ..Default::default()
        };
        let response = self.store.range(request).await.map_err(store_status)?;
        Ok(response.kvs.first().map(Stored::of))
    }

    pub async fn read(&self, kind: &Kind, namespace: &str, name: &str, fresh: Fresh) -> Result<Option<Stored>, Status> {
        self.read_key(&keys::object(kind, namespace, name), fresh).await
    }

    /// As [`State::read`], where absence is an error.
    pub async fn must_read(&self, kind: &Kind, namespace: &str, name: &str, fresh: Fresh) -> Result<Stored, Status> {
        let found = self.read(kind, namespace, name, fresh).await?;
        found.ok_or_else(|| Status::not_found(&kind.group, &kind.plural, name))
    }

    /// Everything below a prefix, at this member's latest.
    pub async fn scan(&self, prefix: &str) -> Result<RangeResponse, Status> {
        let request = RangeRequest { range: keys::range(prefix), serializable: true, ..Default::default() };
        self.store.range(request).await.map_err(store_status)
    }
}

/// What a client is told when the store could not do it.
pub fn store_status(error: impl Into<ObjectsError>) -> Status {
    let error = match error.into() {
        ObjectsError::Store(error) => error,
        sealed => return Status::internal_error(sealed),
    };
    match &error {
        StoreError::Compacted { .. } => Status::expired("The provided resource version is too old."),
        StoreError::Future { asked, current } => too_large_version(*asked, *current),
        StoreError::TooLarge { .. } => Status::too_large(&error.to_string()),
        StoreError::Fenced { .. } => Status::failure(409, "Conflict", error.to_string()),
        StoreError::NoLeader | StoreError::Stopped | StoreError::Failed(_) => {
            Status::service_unavailable(error.to_string())
        }
        StoreError::Unknown(_) => Status::timeout(&error.to_string(), 1),
        StoreError::NoSpace => Status::failure(507, "InsufficientStorage", error.to_string()),
        _ => Status::internal_error(error),
    }
}

/// A version that has not been reached yet: the client may try again.
pub fn too_large_version(asked: u64, current: u64) -> Status {
    let mut status = Status::timeout(&format!("Too large resource version: {asked}, current: {current}"), 1);
    if let Some(details) = &mut status.details {
        let cause = serde_json::json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        details.causes.push(cause);
    }
    status
}
