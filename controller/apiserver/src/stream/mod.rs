//! Exec, attach and port-forward between a client and a container: two transports, three protocols.
//!
//! ```text
//!   WebSocket  v5.channel.k8s.io and older    remote, ports        one message, one frame of a channel (channels)
//!   WebSocket  SPDY/3.1+portforward.k8s.io    tunnel -> spdy       a byte stream inside messages
//!   Upgrade    SPDY/3.1                       spdy                 the byte stream itself
//! ```
//!
//! Logs and watches can come in a WebSocket's messages too (`body`).
//!
//! All others become frames of a [`crate::node::NodeStream`].

pub mod body;
mod channels;
mod forward;
mod ports;
mod remote;
pub mod spdy;
mod upgrade;

use crate::call::Call;
use crate::node::NodeRequest;
use crate::state::State;
use axum::response::Response;
use http::request::Parts;
use skiff_api::status::Status;
use std::time::Duration;
use upgrade::Upgrade;

/// How often a client is asked for a sign of life. While a full queue keeps us from reading what a client sends, it is the failing
/// write that tells that the client is gone; and middle boxes see that the connection is in use.
const PING_EVERY: Duration = Duration::from_secs(10);
/// What is passed on as one piece of a stream; the queues on the way hold so many pieces.
const PIECE_BYTES_MAX: usize = 32 << 10;

/// Answers the request with an upgrade; the streams live on in a task of their own.
pub async fn handle(state: &State, call: &Call, parts: &mut Parts) -> Result<Response, Status> {
    let (pod, node) = crate::sub::connect::scheduled_pod(state, call).await?;
    if call.info.subresource == "portforward" {
        let target = crate::sub::connect::target(&pod, "");
        let ports = forward::ports(call)?;
        let upgrade = Upgrade::take(parts, forward::WEBSOCKET, &[forward::PROTOCOL]).await?;
        return forward::start(upgrade, forward::Way { nodes: state.nodes.clone(), node, target }, ports);
    }
    let container = crate::sub::connect::choose_container(call, &pod)?;
    let (stdin, stdout, tty) = (call.query.flag("stdin"), call.query.flag("stdout"), call.query.flag("tty"));
    // A terminal has one output.
    let stderr = call.query.flag("stderr") && !tty;
    if !(stdin || stdout || stderr) {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let target = crate::sub::connect::target(&pod, &container);
    let request = match call.info.subresource.as_str() {
        "attach" => NodeRequest::Attach { target, tty, stdin, stdout, stderr },
        _ => {
            let command: Vec<String> = call.query.all("command").map(String::from).collect();
            if command.is_empty() {
                return Err(Status::bad_request("you must specify a command to run in the container"));
            }
            NodeRequest::Exec { target, command, tty, stdin, stdout, stderr }
        }
    };
    let upgrade = Upgrade::take(parts, remote::WEBSOCKET, remote::SPDY).await?;
    let stream = state.nodes.open(&node, request).await?;
    let wanted = remote::Wanted { stdin, stdout, stderr, tty };
    Ok(remote::start(upgrade, stream, wanted))
}
