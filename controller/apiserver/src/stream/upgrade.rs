//! From an HTTP request to a connection of another protocol: WebSocket (RFC 6455) or SPDY/3.1, whichever the client asks for.

use axum::body::Body;
use axum::extract::FromRequestParts as _;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skiff_api::status::Status;
use std::io;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::spdy::Session;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The largest message that a client may send: kubectl's are 32 KiB.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// An upgrade that the client asked for, with the protocol that both sides know.
pub enum Upgrade {
    WebSocket(Box<WebSocketUpgrade>, &'static str),
    Spdy(OnUpgrade, &'static str),
}

impl Upgrade {
    /// Settles the protocol; each list is in order of preference.
    pub async fn take(parts: &mut Parts, websocket: &[&'static str], spdy: &[&'static str]) -> Result<Self, Status> {
        if asks(parts, "websocket") {
            let upgrade = WebSocketUpgrade::from_request_parts(parts, &()).await;
            let upgrade = upgrade.map_err(|e| Status::bad_request(format!("the WebSocket cannot be opened: {e}")))?;
            let asked: Vec<&str> = upgrade.requested_protocols().filter_map(|v| v.to_str().ok()).collect();
            let asked = if asked.is_empty() { vec![""] } else { asked };
            let protocol = choose(&asked, websocket)?;
            let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX);
            let upgrade = if protocol.is_empty() { upgrade } else { upgrade.protocols([protocol]) };
            return Ok(Upgrade::WebSocket(Box::new(upgrade), protocol));
        }
        if asks(parts, "SPDY/3.1") {
            let values = parts.headers.get_all(STREAM_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
            let asked: Vec<&str> = values.flat_map(|v| v.split(',')).map(str::trim).collect();
            let protocol = choose(&asked, spdy)?;
            let on_upgrade = parts.extensions.remove::<OnUpgrade>();
            let on_upgrade = on_upgrade.ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
            return Ok(Upgrade::Spdy(on_upgrade, protocol));
        }
        Err(Status::bad_request("Upgrade request required"))
    }
}

/// Whether the client asks for an upgrade to this protocol.
pub fn asks(parts: &Parts, protocol: &str) -> bool {
    let values = parts.headers.get_all(UPGRADE).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(protocol))
}

fn choose(asked: &[&str], known: &[&'static str]) -> Result<&'static str, Status> {
    let found = known.iter().find(|k| asked.contains(k));
    found.copied().ok_or_else(|| {
        let message = format!("unable to negotiate protocol: client supports {asked:?}, server supports {known:?}");
        Status::failure(403, "Forbidden", message)
    })
}

/// The answer to a SPDY upgrade; `run` gets the connection.
pub fn switch_to_spdy<F>(
    on_upgrade: OnUpgrade,
    protocol: &'static str,
    run: impl FnOnce(Session) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        match on_upgrade.await {
            Ok(upgraded) => {
                let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
                run(Session::start(reader, writer)).await;
            }
            Err(error) => tracing::debug!(%error, "an upgrade to SPDY failed"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    response
}

/// SPDY inside the binary messages of a WebSocket.
pub fn tunnel(socket: WebSocket) -> Session {
    let (sink, stream) = socket.split();
    let pieces = stream.filter_map(|message| async {
        match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(io::Error::other(error))),
        }
    });
    let sink =
        sink.sink_map_err(io::Error::other).with(|bytes: Bytes| async { Ok::<_, io::Error>(Message::Binary(bytes)) });
    Session::start(StreamReader::new(Box::pin(pieces)), SinkWriter::new(CopyToBytes::new(Box::pin(sink))))
}
