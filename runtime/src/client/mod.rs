//! The agent's side: a handle on the runtime, one on each pod, and the streams of programs in it.

mod connection;
mod pod;
mod runtime;
mod streams;

pub use pod::Pod;
pub use runtime::{Recovered, Runtime, RuntimeConfig};
pub use streams::{Attached, ExecIo, ExecSession, Terminal};
