//! The replicated key-value store: etcd v3's data model over Raft, with watch.
//!
//! ```text
//!   Store (handle)  -- commands -->  replica (Raft, a function)  -- committed entries -->  machine (kv, members)
//!                                      |  ^                                                  |
//!                                  transport, log, snapshot                                 hub (watches)
//! ```
//!
//! What decides is synchronous and takes no clock: `kv` and `machine` apply, `replica` replicates. What acts is thin: `driver` (threads),
//! `transport` and `peer` (gRPC between members), `disk`. The store knows nothing of Kubernetes or HTTP.

mod command;
mod config;
mod disk;
mod driver;
mod error;
mod hub;
mod kv;
mod log;
mod machine;
mod membership;
mod peer;
mod raftlog;
mod record;
mod replica;
mod snapshot;
mod store;
mod transport;
mod types;

pub use config::{Config, Limits, has_data};
pub use error::{Error, WatchError};
pub use hub::Watcher;
pub use store::Store;
pub use transport::PeerTls;
pub use types::*;
