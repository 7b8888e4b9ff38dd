//! The gRPC health service (`grpc.health.v1.Health/Check`), the one call that gRPC probes make.
//!
//! Its two messages have one field each, so they are written and read here by hand rather than generated.

use std::sync::Mutex;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::check::{Target, connect};

const SERVING: u64 = 1;
/// The answer is one small number; a container that sends more is not healthy.
const ANSWER_BYTES_MAX: usize = 1024;

/// Asks for a service's health.
pub async fn check(target: &Target, port: u16, service: &str) -> Result<String, String> {
    let stream = connect(target, "", port).await?;
    let fail = |error: String| format!("grpc {}:{port}: {error}", target.ip);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| fail(error.to_string()))?;
    let driver = AbortOnDrop(Mutex::new(Some(tokio::spawn(connection))));
    let request = Request::post(format!("http://{}:{port}/grpc.health.v1.Health/Check", target.ip))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(bytes::Bytes::from(encode(service))))
        .map_err(|error| fail(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|error| fail(error.to_string()))?;
    let early = answer.headers().get("grpc-status").cloned();
    let body =
        Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| fail(error.to_string()))?;
    let late = body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
    drop(driver);
    match late.or(early).as_ref().and_then(|status| status.to_str().ok()) {
        Some("0") => {}
        other => {
            return Err(format!(
                "service unhealthy: the health call ended with gRPC status {}",
                other.unwrap_or("unknown")
            ));
        }
    }
    match decode(&body.to_bytes()) {
        Some(SERVING) => Ok("service healthy".into()),
        other => Err(format!("service unhealthy (responded with status {})", other.unwrap_or_default())),
    }
}

struct AbortOnDrop<T>(Mutex<Option<tokio::task::JoinHandle<T>>>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        if let Ok(Some(task)) = self.0.get_mut().map(Option::take) {
            task.abort();
        }
    }
}

/// A frame (no compression, length) around `HealthCheckRequest { string service = 1 }`.
fn encode(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

/// The status of a framed `HealthCheckResponse { enum status = 1 }`; an absent field is 0, unknown.
fn decode(frame: &[u8]) -> Option<u64> {
    let message = frame.get(5..)?;
    match message {
        [] => Some(0),
        [0x08, value, ..] => Some(u64::from(*value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(encode(""), [0, 0, 0, 0, 0]);
        assert_eq!(encode("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(encode(&"x".repeat(200))[5..8], [0x0a, 200, 1]);
        for (frame, expect) in [(&[0, 0, 0, 0, 2, 8, 1][..], Some(1)), (&[0, 0, 0, 0, 0], Some(0)), (&[0], None)] {
            assert_eq!(decode(frame), expect);
        }
    }
}
