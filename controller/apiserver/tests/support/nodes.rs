//! Nodes whose containers run a handful of made-up commands, so that streams can be tested without containers.
//!
//! `echo WORDS`, `warn WORDS` (to stderr), `cat`, `exit CODE`, `size` (prints the terminal's first size). Attach is `cat`. A log is two lines,
//! the second of which comes only when the log is followed and [`MORE`] is told. Forwarded ports answer in upper case; port 9 refuses.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::json;
use skiff_api::status::Status;
use skiff_apiserver::node::{Frame, NodeConnector, NodeRequest, NodeStream, channel};
use tokio::sync::Notify;

/// Lets the log that is followed go on.
pub static MORE: Notify = Notify::const_new();

pub struct Scripted;

impl NodeConnector for Scripted {
    fn open(&self, node: &str, request: NodeRequest) -> BoxFuture<'static, Result<NodeStream, Status>> {
        let connected = node == "n1";
        Box::pin(async move {
            if !connected {
                return Err(Status::service_unavailable("the node is not connected"));
            }
            if matches!(request, NodeRequest::PortForward { port: 9, .. }) {
                return Err(Status::internal_error("connection refused"));
            }
            let (ours, theirs) = NodeStream::pair();
            tokio::spawn(run(theirs, request));
            Ok(ours)
        })
    }
}

async fn run(mut stream: NodeStream, request: NodeRequest) {
    let code = match request {
        NodeRequest::Logs { options, .. } => {
            send(&stream, channel::STDOUT, "first\n".into()).await;
            if options.follow {
                MORE.notified().await;
                send(&stream, channel::STDOUT, "second\n".into()).await;
            }
            return;
        }
        NodeRequest::Exec { command, .. } => {
            let words = command[1..].join(" ");
            match command[0].as_str() {
                "echo" => send(&stream, channel::STDOUT, format!("{words}\n").into()).await,
                "warn" => send(&stream, channel::STDERR, format!("{words}\n").into()).await,
                "cat" => echo(&mut stream, false).await,
                "size" => size(&mut stream).await,
                _ => {}
            }
            if command[0] == "exit" { words.parse().unwrap_or(1) } else { 0 }
        }
        NodeRequest::Attach { .. } => {
            echo(&mut stream, false).await;
            0
        }
        NodeRequest::PortForward { .. } => {
            echo(&mut stream, true).await;
            return;
        }
    };
    let status = match code {
        0 => json!({"metadata": {}, "status": "Success"}),
        code => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
    };
    send(&stream, channel::ERROR, status.to_string().into()).await;
}

async fn send(stream: &NodeStream, channel: u8, data: Bytes) {
    let _ = stream.send.send(Frame { channel, data }).await;
}

/// Gives back what comes, until the client's half ends. Standard output and the data of a port have different numbers.
async fn echo(stream: &mut NodeStream, port: bool) {
    while let Some(frame) = stream.receive.recv().await {
        match frame.channel {
            channel::CLOSE => return,
            0 if port => send(stream, channel::DATA, frame.data.to_ascii_uppercase().into()).await,
            0 => send(stream, channel::STDOUT, frame.data).await,
            _ => {}
        }
    }
}

async fn size(stream: &mut NodeStream) {
    while let Some(frame) = stream.receive.recv().await {
        if frame.channel == channel::RESIZE {
            return send(stream, channel::STDOUT, frame.data).await;
        }
    }
}
