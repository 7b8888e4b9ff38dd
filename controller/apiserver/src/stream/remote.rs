//! Remote commands (exec, attach): the channels of a WebSocket, or the streams of SPDY, joined to those of a node.
//!
//! Source: the v4 and v5.channel.k8s.io protocols. A WebSocket message is a channel number and data; v5 adds channel 255, by which a
//! client closes another. How the command ended is a `Status` on the error channel, after all output.

use super::channels::Dialect;
use super::spdy::session::CLOSE_WAIT_MAX;
use super::spdy::{Inbox, Incoming, Session, Stream, session};
use super::upgrade::{Upgrade, switch_to_spdy};
use super::{PIECE_BYTES_MAX, PING_EVERY};
use crate::node::{Frame, NodeStream, channel};
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use skiff_api::status::Status;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Protocols over WebSocket, best first; the last is what a client speaks that names none.
pub const WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
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

impl Wanted {
    /// Whether a frame from the node is for the client; what it did not ask for is dropped.
    fn hears(self, channel: u8) -> bool {
        match channel {
            channel::STDOUT => self.stdout,
            channel::STDERR => self.stderr,
            _ => true,
        }
    }
}

pub fn start(upgrade: Upgrade, node: NodeStream, wanted: Wanted) -> Response {
    match upgrade {
        Upgrade::WebSocket(upgrade, protocol) => {
            upgrade.on_upgrade(move |socket| websocket(socket, node, wanted, Dialect::of(protocol)))
        }
        Upgrade::Spdy(on_upgrade, protocol) => {
            switch_to_spdy(on_upgrade, protocol, move |session| spdy(session, node, wanted))
        }
    }
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

async fn websocket(mut socket: WebSocket, node: NodeStream, wanted: Wanted, dialect: Dialect) {
    // An empty message on the first channel that the client reads says that the command is connected.
    let first = if wanted.stdout {
        channel::STDOUT
    } else if wanted.stderr {
        channel::STDERR
    } else {
        channel::ERROR
    };
    if socket.send(dialect.encode(first, &[])).await.is_err() {
        return;
    }
    // Both directions run by themselves: a command that waits until its output is read must not keep us from reading it.
    let (mut sink, mut source) = socket.split();
    let NodeStream { send, mut receive } = node;
    let input = async {
        while let Some(Ok(received)) = source.next().await {
            if matches!(received, Message::Close(_)) {
                return;
            }
            let Some((channel, mut data)) = dialect.decode(received) else { continue };
            // In pieces, so that the queues' lengths bound their bytes; an empty one is passed on too.
            loop {
                let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
                let frame = Frame { channel, data: piece };
                if accepts(&frame, wanted, dialect.closes) {
                    // A command that reads no more ends by its status.
                    let _ = send.send(frame).await;
                }
                if data.is_empty() {
                    break;
                }
            }
        }
    };
    let output = async {
        let mut pings = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        loop {
            let frame = tokio::select! {
                frame = receive.recv() => frame.unwrap_or_else(|| Frame { channel: channel::ERROR, data: lost() }),
                _ = pings.tick() => {
                    if sink.send(Message::Ping(Bytes::new())).await.is_err() {
                        return false;
                    }
                    continue;
                }
            };
            let over = frame.channel == channel::ERROR;
            let data = if over && !dialect.status { failure(&frame.data) } else { Some(frame.data) };
            if let Some(data) = data
                && wanted.hears(frame.channel)
                && sink.send(dialect.encode(frame.channel, &data)).await.is_err()
            {
                return false;
            }
            if over {
                let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
                return sink.send(Message::Close(Some(close))).await.is_ok();
            }
        }
    };
    // Whichever ends first ends the other; dropping the node's stream ends what runs there.
    let whole = tokio::select! { () = input => false, whole = output => whole };
    drop(send);
    if whole {
        // A connection that is closed with something unread is reset, and takes back what the client has not read yet.
        let rest = async { while let Some(Ok(_)) = source.next().await {} };
        let _ = tokio::time::timeout(CLOSE_WAIT_MAX, rest).await;
    }
}

/// How the oldest protocols tell the end: a failure by its message, success by nothing.
fn failure(status: &[u8]) -> Option<Bytes> {
    match serde_json::from_slice::<Status>(status) {
        Ok(status) if status.status == "Success" => None,
        Ok(status) => Some(status.message.into()),
        Err(_) => Some(Bytes::copy_from_slice(status)),
    }
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
    let mut pings = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        tokio::select! {
            // No stream is opened later; the end of the connection is what this waits for.
            stream = session.accept() => if stream.is_none() { return },
            _ = pings.tick() => {
                if session.is_broken() {
                    return;
                }
                session.ping();
            }
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
    drop((inputs, node));
    session.close().await;
}

/// Passes on what the client sends on one stream, and that it ended.
async fn feed(channel: u8, mut receive: Inbox, node: mpsc::Sender<Frame>) {
    while let Some(Incoming::Data(data)) = receive.recv().await {
        if node.send(Frame { channel, data }).await.is_err() {
            return;
        }
    }
    let _ = node.send(Frame { channel: channel::CLOSE, data: Bytes::copy_from_slice(&[channel]) }).await;
}
