//! The etcd v3 API over Skiff's store: what etcd's own clients call, answered as they expect.
//!
//! ```text
//!   etcdctl, kube-apiserver, client libraries
//!        |  gRPC (and /health, /metrics, /version over HTTP) on one port
//!   kv  watch  lease  cluster  maintenance  lock  election  auth  health      one file a service
//!        |  convert, check, error: etcd's messages, limits and error texts to and from the store's
//!   skiff_store::Store
//! ```
//!
//! The messages and the texts of errors are etcd's, because clients match on them; the rest is the store's.

mod api;
mod auth;
mod authority;
mod check;
mod cluster;
mod convert;
mod election;
mod error;
mod health;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod queue;
mod server;
mod unary;
mod watch;

pub use api::{Api, Settings};
pub use server::{ClientTls, serve};

/// The version of etcd whose API this is. Clients decide by it what they may rely on.
pub const ETCD_VERSION: &str = "3.5.16";
