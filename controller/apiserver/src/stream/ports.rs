//! Port-forward in the channels of a WebSocket, as clients in browsers, Python and JavaScript do it: two channels for each port of
//! the request, data both ways and errors from the pod.
//!
//! Source: the v4.channel.k8s.io protocol of port-forward. Each channel begins with the number of its port, two bytes, the low one
//! first. One WebSocket is one connection to each port; there is no end of one direction alone.

use super::channels::Dialect;
use super::forward::{Way, ended};
use super::{PIECE_BYTES_MAX, PING_EVERY};
use crate::node::{Frame, NodeRequest, NodeStream, channel};
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use skiff_api::status::Status;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Messages that wait in each direction.
const QUEUE: usize = 8;
/// Ports of one request: a channel's number is a byte, or one digit.
pub const PORTS_MAX: usize = 16;

/// Serves all ports until the client goes or every connection has ended.
pub async fn serve(socket: WebSocket, dialect: Dialect, way: Arc<Way>, ports: Vec<u16>) {
    let (mut sink, mut source) = socket.split();
    let (out, mut messages) = mpsc::channel(QUEUE);
    let mut inputs = Vec::new();
    let mut connections = JoinSet::new();
    for (index, port) in (0u8..).zip(ports) {
        let (input, received) = mpsc::channel(QUEUE);
        inputs.push(input);
        let side = Side { dialect, data: index * 2, out: out.clone() };
        connections.spawn(connection(way.clone(), port, side, received));
    }
    drop(out);
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
            let Some((number, mut data)) = dialect.decode(message) else { continue };
            let Some(input) = inputs.get(usize::from(number / 2)).filter(|_| number % 2 == 0) else { continue };
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
                if input.send(piece).await.is_err() {
                    break;
                }
            }
        }
    };
    let writing = async {
        let mut pings = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        loop {
            let message = tokio::select! {
                message = messages.recv() => message,
                _ = pings.tick() => Some(Message::Ping(Bytes::new())),
            };
            let over = message.is_none();
            let close = || Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }));
            if sink.send(message.unwrap_or_else(close)).await.is_err() || over {
                return;
            }
        }
    };
    // The connections end with this, as they are dropped.
    tokio::select! { () = reading => {}, () = writing => {} }
}

/// Where a connection's messages go.
struct Side {
    dialect: Dialect,
    data: u8,
    out: mpsc::Sender<Message>,
}

impl Side {
    async fn say(&self, number: u8, data: &[u8]) -> bool {
        self.out.send(self.dialect.encode(number, data)).await.is_ok()
    }
}

async fn connection(way: Arc<Way>, port: u16, side: Side, received: mpsc::Receiver<Bytes>) {
    for number in [side.data, side.data + 1] {
        if !side.say(number, &port.to_le_bytes()).await {
            return;
        }
    }
    if let Err(status) = relay(&way, port, &side, received).await {
        side.say(side.data + 1, status.message.as_bytes()).await;
    }
}

async fn relay(way: &Way, port: u16, side: &Side, mut received: mpsc::Receiver<Bytes>) -> Result<(), Status> {
    let request = NodeRequest::PortForward { target: way.target.clone(), port };
    let NodeStream { send, mut receive } = way.nodes.open(&way.node, request).await?;
    let up = async {
        while let Some(data) = received.recv().await {
            if send.send(Frame { channel: channel::DATA, data }).await.is_err() {
                // The pod reads no more; what it wrote is still to be told.
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let down = async {
        while let Some(frame) = receive.recv().await {
            match frame.channel {
                channel::DATA if !side.say(side.data, &frame.data).await => return Ok(()),
                channel::ERROR => return ended(&frame.data),
                _ => {}
            }
        }
        Ok(())
    };
    tokio::select! { () = up => Ok(()), outcome = down => outcome }
}
