//! The agents' side of the control plane: what each node should run and know goes down one stream, what became of it comes up.
//!
//! ```text
//!   view -> interest (what concerns this node)  -> session -> agent
//!   agent -> session -> Upstream (the API)         agent -> beats -> liveness (who is lost), acknowledgements
//!   API server -> calls -> agent opens a stream back (logs, exec, port-forward)
//! ```
//!
//! Agents send heartbeats and take calls from every server, so that whichever leads has heard them all along; the state stream is with one.

pub mod beats;
mod calls;
mod drain;
mod interest;
mod service;
mod upstream;

pub use beats::{Beats, Detector};
pub use calls::{CallError, CallStream, Calls};
pub use service::{FleetService, NodeName, Trusted, removed};
pub use upstream::{Upstream, UpstreamError, Welcome};

use skiff_api::view::View;
use std::sync::{Arc, RwLock};
use tokio::sync::watch;

/// The view as everybody shares it, and the news that it changed.
#[derive(Clone)]
pub struct SharedView {
    pub view: Arc<RwLock<View>>,
    /// The view's revision, after each change.
    pub revision: watch::Receiver<u64>,
}

impl SharedView {
    pub fn read(&self) -> std::sync::RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(|e| e.into_inner())
    }
}
