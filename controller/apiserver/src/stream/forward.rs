//! Port-forward: each connection that a client accepts is a pair of streams, one for data and one for what went wrong.
//!
//! Source: the portforward.k8s.io protocol. Streams carry the headers `streamtype` (`data` or `error`), `port` and `requestid`, which
//! pairs them. The pair becomes one [`NodeRequest::PortForward`].

use super::channels::Dialect;
use super::spdy::{Incoming, Session, Stream};
use super::upgrade::{Upgrade, switch_to_spdy, tunnel};
use super::{PING_EVERY, ports};
use crate::call::Call;
use crate::node::{Frame, NodeConnector, NodeRequest, NodeStream, Target, channel};
use axum::response::Response;
use bytes::Bytes;
use skiff_api::status::Status;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The protocol, and its name when it comes through a WebSocket.
pub const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Everything that is spoken over a WebSocket, best first: the tunnel, or ports as channels.
pub const WEBSOCKET: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// Streams whose other half has not come yet.
const HALVES_MAX: usize = 256;

/// Where the pod is.
pub struct Way {
    pub nodes: Arc<dyn NodeConnector>,
    pub node: String,
    pub target: Target,
}

/// The ports of the query: `ports=80&ports=81` or `ports=80,81`. Only clients that use channels name them here.
pub fn ports(call: &Call) -> Result<Vec<u16>, Status> {
    let words = call.query.all("ports").flat_map(|list| list.split(',')).filter(|word| !word.is_empty());
    let ports: Vec<u16> = words.map(port).collect::<Result<_, _>>()?;
    if ports.len() > ports::PORTS_MAX {
        let message =
            format!("{} ports are more than one request forwards; the most is {}", ports.len(), ports::PORTS_MAX);
        return Err(Status::bad_request(message));
    }
    Ok(ports)
}

fn port(word: &str) -> Result<u16, Status> {
    match word.parse::<u16>() {
        Ok(0) => Err(Status::bad_request(format!("port {word:?} must be > 0"))),
        Ok(port) => Ok(port),
        Err(_) => Err(Status::bad_request(format!("unable to parse {word:?} as a port"))),
    }
}

pub fn start(upgrade: Upgrade, way: Way, ports: Vec<u16>) -> Result<Response, Status> {
    let way = Arc::new(way);
    Ok(match upgrade {
        Upgrade::WebSocket(upgrade, TUNNEL) => upgrade.on_upgrade(move |socket| serve(tunnel(socket), way)),
        Upgrade::WebSocket(..) if ports.is_empty() => {
            return Err(Status::bad_request("query parameter \"ports\" is required"));
        }
        Upgrade::WebSocket(upgrade, protocol) => {
            upgrade.on_upgrade(move |socket| ports::serve(socket, Dialect::of(protocol), way, ports))
        }
        Upgrade::Spdy(on_upgrade, protocol) => switch_to_spdy(on_upgrade, protocol, move |session| serve(session, way)),
    })
}

/// Pairs streams until the client goes away; what it left open is dropped with it.
async fn serve(mut session: Session, way: Arc<Way>) {
    let mut halves: HashMap<String, Stream> = HashMap::new();
    let mut running = JoinSet::new();
    let mut pings = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        let stream = tokio::select! {
            stream = session.accept() => stream,
            Some(_) = running.join_next() => continue,
            _ = pings.tick() => {
                if session.is_broken() {
                    return;
                }
                session.ping();
                continue;
            }
        };
        let Some(stream) = stream else { return };
        let id = stream.header("requestid").to_string();
        let is_data = stream.header("streamtype") == "data";
        match halves.remove(&id) {
            Some(other) if (other.header("streamtype") == "data") != is_data => {
                let (data, error) = if is_data { (stream, other) } else { (other, stream) };
                running.spawn(forward(way.clone(), data, error));
            }
            // An unpaired or surplus stream is reset by being dropped.
            _ if halves.len() >= HALVES_MAX => {}
            _ => {
                halves.insert(id, stream);
            }
        }
    }
}

/// One connection. A failure is told on the error stream; then both streams end.
async fn forward(way: Arc<Way>, data: Stream, error: Stream) {
    let problem = match port(data.header("port")) {
        Ok(port) => connect(&way, port, data).await.err(),
        Err(status) => Some(status),
    };
    if let Some(status) = problem {
        let _ = error.send.data(Bytes::from(status.message)).await;
    }
    error.send.finish().await;
}

async fn connect(way: &Way, port: u16, data: Stream) -> Result<(), Status> {
    let request = NodeRequest::PortForward { target: way.target.clone(), port };
    let NodeStream { send: to_node, receive: mut from_node } = way.nodes.open(&way.node, request).await?;
    let Stream { mut receive, send, .. } = data;
    // Both directions run by themselves: a pod that waits until its answer is read must not keep us from reading it.
    let up = async {
        loop {
            let (frame, over) = match receive.recv().await {
                Some(Incoming::Data(data)) => (Frame { channel: channel::DATA, data }, false),
                Some(Incoming::Reset) => return,
                None => (Frame { channel: channel::CLOSE, data: Bytes::from_static(&[channel::DATA]) }, true),
            };
            if to_node.send(frame).await.is_err() || over {
                // The client's half is over; the pod's goes on.
                return std::future::pending().await;
            }
        }
    };
    let down = async {
        while let Some(frame) = from_node.recv().await {
            match frame.channel {
                channel::DATA if send.data(frame.data.clone()).await.is_err() => return Ok(()),
                channel::ERROR => return ended(&frame.data),
                _ => {}
            }
        }
        Ok(())
    };
    let outcome = tokio::select! {
        () = up => return Ok(()),
        outcome = down => outcome,
    };
    send.finish().await;
    outcome
}

/// What the node's last word means.
pub fn ended(status: &[u8]) -> Result<(), Status> {
    match serde_json::from_slice::<Status>(status) {
        Ok(status) if status.status == "Success" => Ok(()),
        Ok(status) => Err(status),
        Err(_) => Err(Status::internal_error(String::from_utf8_lossy(status))),
    }
}
