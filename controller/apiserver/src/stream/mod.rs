//! Exec, attach and port-forward between a client and a container: two transports, three protocols.
//!
//! ```text
//!   WebSocket  v5/v4.channel.k8s.io           remote::websocket    one message, one frame of a channel
//!   WebSocket  SPDY/3.1+portforward.k8s.io    tunnel -> spdy       a byte stream inside messages
//!   Upgrade    SPDY/3.1                       spdy                 the byte stream itself
//! ```
//!
//! All of them become frames of a [`crate::node::NodeStream`].

mod forward;
mod remote;
pub mod spdy;
mod upgrade;

use crate::call::Call;
use crate::node::NodeRequest;
use crate::state::State;
use axum::response::Response;
use http::request::Parts;
use skiff_api::status::Status;
use upgrade::Upgrade;

/// Answers the request with an upgrade; the streams live on in a task of their own.
pub async fn handle(state: &State, call: &Call, parts: &mut Parts) -> Result<Response, Status> {
    let (pod, node) = crate::sub::connect::scheduled_pod(state, call).await?;
    if call.info.subresource == "portforward" {
        let target = crate::sub::connect::target(&pod, "");
        let upgrade = Upgrade::take(parts, &[forward::TUNNEL], &[forward::PROTOCOL]).await?;
        return Ok(forward::start(upgrade, state.nodes.clone(), node, target));
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
