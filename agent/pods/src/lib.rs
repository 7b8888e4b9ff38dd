//! The life of pods on their node.
//!
//! ```text
//! Desired (the level) -> manager -> one task a pod:  plan(wanted, observed, now) -> actions
//!                                       |                 ^            |
//!                                       |                 |            v
//!                                       |              observed <- tasks: sandbox, files, start, kill, probes
//!                                       v
//!                                  Report (status, events, gone)
//! ```
//!
//! What decides is plain functions of values: [`plan`](plan::plan), [`status`](status::status), and everything that turns a pod's
//! object into what the runtime takes. What acts is the [`actor`] and the small tasks that it starts. The network, tokens
//! and images come in through three traits. The agent may end and come back: a small record a pod and the runtime's own
//! state tell the next one where things stand.
//!
//! Deliberately absent: the API, its streams, and any knowledge of other nodes.

mod actor;
mod admit;
mod atomic;
mod backoff;
mod caught;
mod check;
mod context;
mod desired;
mod env;
mod events;
mod fields;
mod files;
mod health;
mod images;
mod kill;
mod logs;
mod manager;
mod netns;
pub mod observed;
pub mod plan;
mod prepare;
mod probe;
mod record;
mod relay;
mod resources;
mod start;
pub mod status;
mod streams;
mod tls;
mod traits;
mod translate;
mod visible;
mod volumes;

pub use context::{PodsConfig, PodsDeps};
pub use desired::{Desired, Key, PodEvent, Report};
pub use fields::Situation;
pub use images::RegistryImages;
pub use logs::LogRange;
pub use manager::Pods;
pub use resources::{NodeCapacity, qos_class};
pub use streams::{ExecRequest, ExecStream, LogRequest, Output, StreamError};
pub use traits::{
    EnsuredImage, HostPort, ImageError, ImageSource, PodIdentity, PodNetwork, PullPolicy, TokenRequest, TokenSource,
};
pub use visible::{Directory, VisibleContainer, VisiblePod};
