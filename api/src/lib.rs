//! Kubernetes objects as pure functions over JSON values.
//!
//! Everything here is a synchronous, deterministic function: no tokio, no sockets, no files, no clock (a caller
//! passes `now`). The API server, the reconcilers and the agents share these rules, so they cannot drift apart.
//!
//! An object is a [`serde_json::Value`]. The crate reads downwards:
//!
//! | module | answers |
//! |---|---|
//! | [`kinds`] | which kinds exist, under which names, with which verbs and subresources |
//! | [`schema`] | which fields a kind has, of which type; unknown fields, type errors, OpenAPI |
//! | [`defaults`] | what a field is when nobody set it |
//! | [`strategy`] | what a write may change, and what the server sets itself |
//! | [`validate`] | what is wrong with an object or with a change of it |
//! | [`patch`], [`apply`] | how a document changes, and who owns which field |
//! | [`admission`] | what a namespace allows: limits, quotas, security levels |
//! | [`selector`], [`quantity`], [`expand`], [`meta`] | the small languages inside objects |
//! | [`table`] | what `kubectl get` prints |
//! | [`warnings`] | what the writer of a valid object should hear |
//! | [`status`] | how each failure is told |
//!
//! A write passes through them in this order: [`schema::TypeDef::type_error`] and [`schema::TypeDef::prune`] read the
//! document, [`defaults::apply_defaults`] completes it, [`apply::track_update`] notes who wrote what (or
//! [`apply::apply`] merges), admission and allocation have their say, [`strategy`] keeps what the path may not change,
//! [`validate`] judges the outcome.

#![allow(
    clippy::result_large_err,
    reason = "a Status is made once, on the way out of a request: boxing it buys nothing"
)]

pub mod admission;
pub mod apply;
pub mod autoscaling;
pub mod base64;
pub mod defaults;
pub mod expand;
pub mod kinds;
pub mod meta;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod table;
pub mod taints;
pub mod validate;
pub mod view;
pub mod warnings;

pub use kinds::Kind;
pub use status::Status;
