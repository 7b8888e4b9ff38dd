//! The Kubernetes API over the store.
//!
//! ```text
//!   http, TLS            server        one connection, one task; gRPC of the agents goes elsewhere
//!   who, may they        auth          certificates, tokens, impersonation; RBAC, nodes
//!   which function       dispatch      the table of kinds (skiff_api::kinds) says what is served
//!   the verbs            verbs         get list watch create update patch delete, the same for every kind
//!   below objects        sub           scale, binding, eviction, token, reviews, logs
//!   into containers      stream        exec, attach, port-forward over WebSocket and SPDY
//!   rules of the cluster admission     namespaces, service accounts, priorities, nodes, grants
//!   bytes and keys       storage       objects are encoded once, and spliced into answers
//! ```
//!
//! [`Client`] is the same API from inside the process. What is an object's own (defaults, validation, patches, tables) is in
//! `skiff_api`; this crate brings it together with users, versions and the store.

#![allow(
    clippy::result_large_err,
    reason = "a Status is made once for a refused request; boxing it would only clutter"
)]

mod admission;
mod auth;
mod bounds;
mod budget;
mod call;
mod client;
mod config;
mod connection;
mod decode;
mod dispatch;
mod endpoints;
pub mod feed;
mod gate;
mod http;
mod kubernetes;
mod metrics;
pub mod node;
mod rules;
mod server;
mod services;
mod state;
mod storage;
mod stream;
mod sub;
mod under_way;
mod verbs;

pub use admission::NODE_KEY_HASH;
pub use auth::jwt::TokenSigner;
pub use auth::user::UserInfo;
pub use bounds::Bounds;
pub use client::{Client, Event, Listed, PatchType, Select, next_event};
pub use config::{CertificateCheck, Cidr, Config, FurtherMetrics, OwnPaths};
pub use endpoints::version;
pub use http::yaml::write as write_yaml;
pub use node::NodeConnector;
pub use server::{ApiServer, GrpcService, PeerCertificate, PeerSource};
pub use state::store_status;
pub use storage::objects::{Following, Objects, Sealing};
pub use verbs::delete::DeleteOptions;
pub use verbs::watch::WatchStream;
