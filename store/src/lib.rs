//! The replicated key-value store: etcd v3's data model over Raft, with watch.
//!
//! ```text
//!   Store (handle)  -- commands -->  replica (Raft, a function)  -- committed entries -->  machine (kv, members)
//!     pending                          |  ^                                                  |
//!                                  transport, log, snapshot                                 hub (watches), lessor
//! ```
//!
//! What decides is synchronous and takes the time as an argument if at all: `kv` and `machine` apply, `replica` replicates, `pending` says
//! what to send again, `lessor` which leases are due. What acts is thin: `driver`, `writer` and `apply` (threads), `transport` and `peer` (gRPC
//! between members), `membership`, `reconfigure` (changes of members) and `keeper` (what a leader does by itself), `disk`, `clock`. `offline` works on the data of a
//! member that does not run. The store knows nothing of Kubernetes or HTTP.

#[macro_use]
mod bugs;

mod apply;
mod background;
mod claim;
mod clock;
mod command;
mod config;
mod disk;
mod driver;
mod error;
mod handshakes;
mod hub;
mod incoming;
mod keeper;
mod kv;
mod leases;
mod lessor;
mod log;
mod machine;
mod membership;
mod offline;
mod outgoing;
mod patience;
mod peer;
mod peer_tls;
mod pending;
mod raftlog;
mod reconfigure;
mod record;
mod replica;
mod role;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod sizes;
mod snapshot;
mod store;
mod transport;
mod types;
mod writer;

pub use config::{Config, Limits, Peer, has_data};
pub use error::{Error, MemberCode, WatchError};
pub use hub::{CatchUp, Feed, Parcel, Published, Token, Watcher};
pub use membership::MemberChange;
pub use offline::{Recovery, Report, RestoreOptions, SnapshotStatus, recover, restore, snapshot_status, verify};
pub use peer_tls::{PeerPem, PeerTls};
pub use store::Store;
pub use types::*;

/// An id for a new member.
pub fn new_id() -> MemberId {
    rand::random_range(1..MemberId::MAX)
}
