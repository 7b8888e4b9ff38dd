//! Cluster DNS, answered on each node from watched state.
//!
//! Every node has the cluster DNS address on its own loopback, so a pod's question never leaves the node, passes no translation and no connection
//! tracking (the cause of five-second stalls elsewhere), and is answered from memory.
//!
//! - [`zone::Zone`] is what the cluster's names mean, built from Services and EndpointSlices. Pure.
//! - [`answer::answer`] turns a question into an answer or into "ask upstream". Pure.
//! - [`Server`] listens on UDP and TCP; [`upstream`] finds and asks the resolvers for all other names.
//!
//! Names follow the Kubernetes DNS-Based Service Discovery specification, version 1.1.0.

pub mod answer;
mod server;
mod shares;
pub mod upstream;
pub mod zone;

pub use server::Server;
pub use upstream::host_upstreams;
pub use zone::Zone;
