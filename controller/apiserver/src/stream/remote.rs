//! Remote commands (exec, attach): the channels of a WebSocket, or the streams of SPDY, joined to those of a node.
//!
//! Source: the v4 and v5.channel.k8s.io protocols. A WebSocket message is a channel number and data; v5 adds channel 255, by which a
//! client closes another. How the command ended is a `Status` on the error channel, after all output.

use super::spdy::{Incoming, Session, Stream, session};
use super::upgrade::{Upgrade, switch_to_spdy};
use crate::node::{Frame, NodeStream, channel};
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use skiff_api::status::Status;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Protocols over WebSocket, best first.
pub const WEBSOCKET: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Protocols over SPDY.
pub const SPDY: &[&str] = &["v4.channel.k8s.io"];
/// How long a client may take to open its streams.
const STREAMS_WAIT_MAX: Duration = Duration::from_secs(30);

/// Which channels the client uses.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

pub fn start(upgrade: Upgrade, node: NodeStream, wanted: Wanted) -> Response {
    match upgrade {
        Upgrade::WebSocket(upgrade, protocol) => {
            let closes = protocol == WEBSOCKET[0];
            upgrade.on_upgrade(move |socket| websocket(socket, node, wanted, closes))
        }
        Upgrade::Spdy(on_upgrade, protocol) => {
            switch_to_spdy(on_upgrade, protocol, move |session| spdy(session, node, wanted))
        }
    }
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(1 + data.len());
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

/// What the client is told when the node says no more, but not how the command ended.
fn lost() -> Bytes {
    let status = Status::internal_error("the stream to the node ended before the command did");
    Bytes::from(status.to_value().to_string())
}

/// Whether a frame from the client is for the node. `closes` says whether the protocol has channel 255.
fn accepts(frame: &Frame, wanted: Wanted, closes: bool) -> bool {
    match frame.channel {
        channel::STDIN => wanted.stdin,
        channel::RESIZE => wanted.tty,
        channel::CLOSE => closes && frame.data.as_ref() == [channel::STDIN],
        _ => false,
    }
}

async fn websocket(mut socket: WebSocket, node: NodeStream, wanted: Wanted, closes: bool) {
    // An empty message on the first channel that the client reads says that the command is connected.
    let first = if wanted.stdout {
        channel::STDOUT
    } else if wanted.stderr {
        channel::STDERR
    } else {
        channel::ERROR
    };
    if socket.send(message(first, &[])).await.is_err() {
        return;
    }
    // Both directions run by themselves: a command that waits until its output is read must not keep us from reading it.
    let (mut sink, mut source) = socket.split();
    let NodeStream { send, mut receive } = node;
    let input = async {
        while let Some(Ok(received)) = source.next().await {
            let mut data = match received {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text),
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(_) => return,
            };
            if data.is_empty() {
                continue;
            }
            let frame = Frame { channel: data.split_to(1)[0], data };
            if accepts(&frame, wanted, closes) {
                // A command that reads no more ends by its status.
                let _ = send.send(frame).await;
            }
        }
    };
    let output = async {
        loop {
            let frame = receive.recv().await;
            let frame = frame.unwrap_or_else(|| Frame { channel: channel::ERROR, data: lost() });
            let over = frame.channel == channel::ERROR;
            if sink.send(message(frame.channel, &frame.data)).await.is_err() {
                return;
            }
            if over {
                let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
                let _ = sink.send(Message::Close(Some(close))).await;
                return;
            }
        }
    };
    // Whichever ends first ends the other; dropping the node's stream ends what runs there.
    tokio::select! { () = input => {}, () = output => {} }
}

/// The streams that a SPDY client opened, by channel.
async fn streams(session: &mut Session, wanted: Wanted) -> Option<HashMap<u8, Stream>> {
    let expected = [
        ("error", channel::ERROR, true),
        ("stdin", channel::STDIN, wanted.stdin),
        ("stdout", channel::STDOUT, wanted.stdout),
        ("stderr", channel::STDERR, wanted.stderr),
        ("resize", channel::RESIZE, wanted.tty),
    ];
    let count = expected.iter().filter(|(_, _, wanted)| *wanted).count();
    let mut found = HashMap::new();
    while found.len() < count {
        let stream = session.accept().await?;
        let row = expected.iter().find(|(name, _, wanted)| *wanted && *name == stream.header("streamtype"));
        if let Some((_, channel, _)) = row {
            found.insert(*channel, stream);
        }
    }
    Some(found)
}

async fn spdy(mut session: Session, mut node: NodeStream, wanted: Wanted) {
    let Ok(Some(streams)) = tokio::time::timeout(STREAMS_WAIT_MAX, streams(&mut session, wanted)).await else { return };
    let mut outputs: HashMap<u8, session::Sender> = HashMap::new();
    let mut inputs = JoinSet::new();
    for (channel, stream) in streams {
        let Stream { receive, send, .. } = stream;
        outputs.insert(channel, send);
        if matches!(channel, channel::STDIN | channel::RESIZE) {
            inputs.spawn(feed(channel, receive, node.send.clone()));
        }
    }
    loop {
        tokio::select! {
            // No stream is opened later; the end of the connection is what this waits for.
            stream = session.accept() => if stream.is_none() { return },
            frame = node.receive.recv() => {
                let frame = frame.unwrap_or_else(|| Frame { channel: channel::ERROR, data: lost() });
                if let Some(output) = outputs.get(&frame.channel)
                    && output.data(frame.data).await.is_err()
                {
                    return;
                }
                if frame.channel == channel::ERROR {
                    break;
                }
            }
        }
    }
    for (_, output) in outputs {
        output.finish().await;
    }
    session.close().await;
}

/// Passes on what the client sends on one stream, and that it ended.
async fn feed(channel: u8, mut receive: mpsc::Receiver<Incoming>, node: mpsc::Sender<Frame>) {
    while let Some(Incoming::Data(data)) = receive.recv().await {
        if node.send(Frame { channel, data }).await.is_err() {
            return;
        }
    }
    let _ = node.send(Frame { channel: channel::CLOSE, data: Bytes::copy_from_slice(&[channel]) }).await;
}
