//! A cluster on one machine: namespaces, links, processes. `skiff demo`, `skiff up` and the tests share it.
//!
//! ```text
//! root namespaces                     PID and mount namespace of the instance
//!   skiff up, demo, tests   socket      supervisor (PID 1; stays in the root network namespace)
//!        Host  ------------------------>  |- s1   in its own network namespace  --veth--+
//!   127.0.0.1:PORT  <--- forward ------>  |- a1   in its own network namespace  --veth--+-- bridge in the switch namespace
//!                                         |- pods' helpers, adopted from agents that died
//! ```
//!
//! All that an instance makes is held by its processes: when the supervisor ends, however it ends, the kernel kills every process of its PID
//! namespace, and with them go the network namespaces and mounts. Only cgroups and files stay, and [`registry::sweep`] removes those of dead
//! instances at the next start.
//!
//! - [`Host`] is what the parent holds: spawn, kill, cut, heal, status, shutdown.
//! - [`supervisor_main`] is what the hidden subcommand runs; the caller's program must dispatch to it before it starts any thread.
//! - [`plan`] names addresses and chooses the instance's subnet. Pure.

mod children;
mod client;
mod forward;
mod frame;
pub mod groups;
mod host;
mod launch;
pub mod plan;
pub mod registry;
mod spec;
mod supervisor;
mod switch;

pub use host::{Host, LocalConfig};
pub use spec::{Direction, NodeSpec, NodeStatus, Status};
pub use supervisor::supervisor_main;
