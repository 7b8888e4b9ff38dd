//! A log or a watch in the messages of a WebSocket: what browsers ask for, who cannot read an answer while it grows.
//!
//! Source: binary.k8s.io and base64.binary.k8s.io for logs, where a message is a piece of the log as it is or in base64; a watch has
//! no protocol, and each event is a message of text.

use super::PING_EVERY;
use super::upgrade::Upgrade;
use axum::body::Body;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use http::request::Parts;
use skiff_api::status::Status;
use tokio::time::Instant;

const LOG: &[&str] = &["binary.k8s.io", "base64.binary.k8s.io", ""];
const WATCH: &[&str] = &["binary.k8s.io", "base64.binary.k8s.io", ""];

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Bytes,
    Base64,
    /// A whole line, which in a watch is an event.
    Line,
}

impl Form {
    fn message(self, data: Bytes) -> Message {
        match self {
            Form::Bytes => Message::Binary(data),
            Form::Base64 => Message::Text(BASE64_STANDARD.encode(&data).into()),
            Form::Line => Message::Text(String::from_utf8_lossy(&data).into_owned().into()),
        }
    }
}

/// Whether the client asks for an answer in messages.
pub fn is_asked(parts: &Parts) -> bool {
    super::upgrade::asks(parts, "websocket")
}

/// Sends the body of a good answer in messages; another answer stays as it is.
pub async fn in_messages(parts: &mut Parts, answer: Response, is_watch: bool) -> Result<Response, Status> {
    if !answer.status().is_success() {
        return Ok(answer);
    }
    let known = if is_watch { WATCH } else { LOG };
    let Upgrade::WebSocket(upgrade, protocol) = Upgrade::take(parts, known, &[]).await? else {
        return Ok(answer);
    };
    let form = match protocol {
        "base64.binary.k8s.io" => Form::Base64,
        _ if is_watch => Form::Line,
        _ => Form::Bytes,
    };
    Ok(upgrade.on_upgrade(move |socket| send(socket, answer.into_body(), form, is_watch)))
}

async fn send(socket: WebSocket, body: Body, form: Form, by_line: bool) {
    let (mut sink, mut source) = socket.split();
    let listening = async {
        // Nothing that it says matters, but that it is still there.
        while let Some(Ok(message)) = source.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
        }
    };
    let sending = async {
        let mut pieces = body.into_data_stream();
        let mut pending = BytesMut::new();
        let mut pings = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        loop {
            let piece = tokio::select! {
                piece = pieces.next() => piece,
                _ = pings.tick() => {
                    if sink.send(Message::Ping(Bytes::new())).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let Some(Ok(piece)) = piece else { break };
            for message in messages(&mut pending, piece, by_line) {
                if sink.send(form.message(message)).await.is_err() {
                    return;
                }
            }
        }
        let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        let _ = sink.send(Message::Close(Some(close))).await;
    };
    tokio::select! { () = listening => {}, () = sending => {} }
}

/// What a piece of the body completes: itself, or the lines that end in it. A watch's piece ends with an event, so that no more than
/// one piece waits.
fn messages(pending: &mut BytesMut, piece: Bytes, by_line: bool) -> Vec<Bytes> {
    if !by_line {
        return vec![piece];
    }
    pending.extend_from_slice(&piece);
    let mut lines = Vec::new();
    while let Some(at) = pending.iter().position(|byte| *byte == b'\n') {
        lines.push(pending.split_to(at + 1).freeze());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_message() {
        let mut pending = BytesMut::new();
        let mut check = |piece: &'static str, by_line: bool, expect: &[&'static str]| {
            let expect: Vec<Bytes> = expect.iter().map(|text| Bytes::from_static(text.as_bytes())).collect();
            assert_eq!(messages(&mut pending, Bytes::from_static(piece.as_bytes()), by_line), expect, "{piece:?}");
        };
        check("a\nb", false, &["a\nb"]);
        check("a\nb\nc", true, &["a\n", "b\n"]);
        check("d\n", true, &["cd\n"]);
        assert_eq!(Form::Base64.message(Bytes::from_static(b"hi")), Message::Text("aGk=".into()));
    }
}
