//! SPDY/3.1, the multiplexing that kubectl's exec, attach and port-forward were built on.
//!
//! Browsers and servers left it long ago; clients of the Kubernetes API still speak it, by an HTTP upgrade or inside a WebSocket. Only what
//! they use is here: streams opened by the client, data both ways, pings.

mod dictionary;
pub mod frame;
pub mod headers;
pub mod session;

pub use session::{Inbox, Incoming, Session, Stream};
