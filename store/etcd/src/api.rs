//! What every service shares: the store, the limits, and the header of answers.

use skiff_proto::etcd::etcdserverpb::ResponseHeader;
use skiff_store::{Revision, Store};
use std::time::Duration;

/// Limits that an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of one request; etcd's default is 1.5 MiB.
    pub request_bytes_max: usize,
    /// Operations in one branch of a transaction, and comparisons; etcd's default is 128.
    pub txn_ops_max: usize,
    /// How often a watch that asked for it is told how far it has come.
    pub progress_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { request_bytes_max: 3 << 19, txn_ops_max: 128, progress_every: Duration::from_secs(600) }
    }
}

/// All services: one value that is cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub(crate) store: Store,
    pub(crate) settings: Settings,
    cluster_id: u64,
    member_id: u64,
}

impl Api {
    pub fn new(store: Store, settings: Settings) -> Self {
        let (cluster_id, member_id) = (store.cluster_id(), store.id());
        Api { store, settings, cluster_id, member_id }
    }

    /// The header of an answer that holds at a revision.
    pub(crate) fn header_at(&self, revision: Revision) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision: revision as i64,
            raft_term: self.store.term(),
        })
    }

    /// The header of an answer that concerns no revision in particular.
    pub(crate) fn header(&self) -> Option<ResponseHeader> {
        self.header_at(self.store.revision())
    }
}
