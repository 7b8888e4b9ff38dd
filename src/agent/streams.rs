//! Streams that a server asked for: logs, exec, attach and port-forward of a pod on this node, over a gRPC stream that the agent opens.

use super::link::Link;
use super::wire;
use bytes::Bytes;
use serde_json::{Value, json};
use skiff_pods::{Directory, ExecRequest, ExecStream, LogRange, LogRequest, Output, StreamError};
use skiff_proto::fleet as pb;
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const STATUS: u32 = 3;
const RESIZE: u32 = 4;
const CLOSE: u32 = 255;
/// A client tells its window's size first, if it has one; a program with a terminal waits this long for it.
const WINDOW_WAIT_MAX: Duration = Duration::from_millis(300);
/// One frame of a forwarded port.
const CHUNK_BYTES: usize = 32 << 10;

/// Streams that are served now, by call.
type Served = HashMap<String, CancellationToken>;

/// Answers calls, each in a task of its own, until it is done or the server says that nobody listens any more.
pub async fn serve(link: Link, pods: Directory) {
    let Some(mut calls) = link.take_calls() else { return };
    let mut served = Served::new();
    let mut answers = JoinSet::new();
    loop {
        let (channel, call) = tokio::select! {
            call = calls.recv() => match call {
                Some(call) => call,
                None => return,
            },
            Some(ended) = answers.join_next() => {
                if let Ok(Some(id)) = ended {
                    served.remove(&id);
                }
                continue;
            }
        };
        if call.over {
            // What is dropped with the answer ends the program.
            if let Some(token) = served.remove(&call.id) {
                token.cancel();
            }
            continue;
        }
        let (pods, token, id) = (pods.clone(), CancellationToken::new(), call.id.clone());
        served.insert(id.clone(), token.clone());
        answers.spawn(async move {
            if let Some(Err(e)) = token.run_until_cancelled(answer(channel, call, pods)).await {
                tracing::debug!("a stream ended: {e:#}");
            }
            Some(id)
        });
    }
}

async fn answer(channel: Channel, call: pb::Call, pods: Directory) -> anyhow::Result<()> {
    let (send, outgoing) = mpsc::channel(32);
    send.send(pb::Frame { id: call.id, ..Default::default() }).await?;
    let mut incoming = wire::client(channel).attach(ReceiverStream::new(outgoing)).await?.into_inner();
    let result = match call.kind {
        Some(pb::call::Kind::Logs(request)) => logs(&pods, request, &send, &mut incoming).await,
        Some(pb::call::Kind::Exec(request)) => exec(&pods, &request, &send, &mut incoming).await,
        Some(pb::call::Kind::Attach(request)) => match pods.attach(&exec_request(&request, None)).await {
            Ok(stream) => run(stream, None, request.tty, &send, &mut incoming).await,
            Err(e) => Err(e),
        },
        Some(pb::call::Kind::PortForward(request)) => forward(&pods, request, &send, &mut incoming).await,
        None => Err(StreamError::Failed("this agent does not know the call; upgrade it".into())),
    };
    if let Err(e) = result {
        let _ = send.send(frame(STATUS, failed(&e.to_string()).to_string())).await;
    }
    // Our half ends; the server ends the other when its client has read everything, however long that takes. To drop the
    // stream before would take back what is still under way.
    drop(send);
    while let Ok(Some(_)) = incoming.message().await {}
    Ok(())
}

fn frame(channel: u32, data: impl Into<Bytes>) -> pb::Frame {
    pb::Frame { id: String::new(), channel, data: data.into() }
}

async fn logs(
    pods: &Directory,
    request: pb::Logs,
    send: &mpsc::Sender<pb::Frame>,
    incoming: &mut Streaming<pb::Frame>,
) -> Result<(), StreamError> {
    let since: Option<jiff::Timestamp> = request.since_time.parse().ok();
    let mut lines = pods.logs(&LogRequest {
        namespace: request.namespace,
        name: request.pod,
        container: request.container,
        previous: request.previous,
        range: LogRange {
            tail_lines: usize::try_from(request.tail_lines).ok(),
            since_ms: since.and_then(|t| u64::try_from(t.as_millisecond()).ok()),
            limit_bytes: u64::try_from(request.limit_bytes).ok().filter(|n| *n > 0),
            timestamps: request.timestamps,
            follow: request.follow,
        },
    })?;
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(Ok(bytes)) => {
                    if send.send(frame(STDOUT, bytes)).await.is_err() {
                        return Ok(());
                    }
                }
                Some(Err(e)) => return Err(StreamError::Failed(format!("reading the log: {e}"))),
                None => return Ok(()),
            },
            // The client went away.
            message = incoming.message() => if !matches!(message, Ok(Some(_))) { return Ok(()) },
        }
    }
}

fn exec_request(request: &pb::Exec, window: Option<(u16, u16)>) -> ExecRequest {
    ExecRequest {
        namespace: request.namespace.clone(),
        name: request.pod.clone(),
        container: request.container.clone(),
        command: request.command.clone(),
        stdin: request.stdin,
        tty: request.tty,
        window,
    }
}

/// Starts the program, with a terminal of the right size from its first moment if the client tells it first.
async fn exec(
    pods: &Directory,
    request: &pb::Exec,
    send: &mpsc::Sender<pb::Frame>,
    incoming: &mut Streaming<pb::Frame>,
) -> Result<(), StreamError> {
    let mut first = None;
    if request.tty
        && let Ok(message) = tokio::time::timeout(WINDOW_WAIT_MAX, incoming.message()).await
    {
        // The client went away before anything ran.
        let Ok(Some(frame)) = message else { return Ok(()) };
        first = Some(frame);
    }
    let window = first.as_ref().filter(|frame| frame.channel == RESIZE).and_then(|frame| size(&frame.data));
    let stream = pods.exec(&exec_request(request, window)).await?;
    run(stream, first, request.tty, send, incoming).await
}

/// Joins a program to the stream until both its output and itself ended, or nobody listens. `first` came already.
async fn run(
    stream: ExecStream,
    first: Option<pb::Frame>,
    tty: bool,
    send: &mpsc::Sender<pb::Frame>,
    incoming: &mut Streaming<pb::Frame>,
) -> Result<(), StreamError> {
    let ExecStream { stdin, mut output, resize, exit, interest: _interest } = stream;
    // Each way on its own: a program that does not read its input must still be heard.
    let down = async {
        while let Some(out) = output.recv().await {
            let out = match out {
                Output::Stdout(bytes) => frame(STDOUT, bytes),
                Output::Stderr(bytes) => frame(if tty { STDOUT } else { STDERR }, bytes),
            };
            if send.send(out).await.is_err() {
                return None;
            }
        }
        exit.await.ok()
    };
    let up = async {
        let (mut stdin, mut first) = (stdin, first);
        loop {
            let input = match first.take() {
                Some(frame) => frame,
                None => match incoming.message().await {
                    Ok(Some(frame)) => frame,
                    // The server dropped the stream: nobody listens any more.
                    _ => return None,
                },
            };
            match input.channel {
                STDIN => {
                    if let Some(to) = &stdin
                        && to.send(input.data).await.is_err()
                    {
                        stdin = None;
                    }
                }
                RESIZE => {
                    if let Some(size) = size(&input.data) {
                        let _ = resize.send(size).await;
                    }
                }
                CLOSE if input.data.first().is_none_or(|channel| u32::from(*channel) == STDIN) => stdin = None,
                _ => {}
            }
        }
    };
    let Some(exit) = (tokio::select! { ended = down => ended, gone = up => gone }) else { return Ok(()) };
    let code = exit.map_err(StreamError::Failed)?;
    let _ = send.send(frame(STATUS, ended(code).to_string())).await;
    Ok(())
}

/// What a client is told of a program that ended with this code.
fn ended(code: i32) -> Value {
    if code == 0 {
        return json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
}

/// What a client is told when there is no exit code. A failure always has its cause among the details: there the Python client looks for it.
fn failed(why: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "InternalError",
        "message": why, "details": {"causes": [{"message": why}]}, "code": 500})
}

/// `{"Width":80,"Height":24}` as columns and rows.
fn size(data: &[u8]) -> Option<(u16, u16)> {
    let size: serde_json::Value = serde_json::from_slice(data).ok()?;
    Some((size["Width"].as_u64()?.try_into().ok()?, size["Height"].as_u64()?.try_into().ok()?))
}

async fn forward(
    pods: &Directory,
    request: pb::PortForward,
    send: &mpsc::Sender<pb::Frame>,
    incoming: &mut Streaming<pb::Frame>,
) -> Result<(), StreamError> {
    let port =
        u16::try_from(request.port).map_err(|_| StreamError::Failed(format!("{} is not a port", request.port)))?;
    let (mut read, mut write) = pods.port_forward(&request.namespace, &request.pod, port).await?.into_split();
    let down = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match read.read(&mut buffer).await {
                // A reset is an end like another: told as an error it would make kubectl give up its other connections too.
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    if send.send(frame(STDIN, Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    let up = async {
        while let Ok(Some(input)) = incoming.message().await {
            if input.channel == CLOSE {
                let _ = write.shutdown().await;
            } else if write.write_all(&input.data).await.is_err() {
                // It reads no more, but what it wrote is still to be told.
                return std::future::pending().await;
            }
        }
    };
    tokio::select! { () = down => {}, () = up => {} }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_is_told_at_the_end() {
        let check = |status: Value, result: &str, reason: &str, cause: &str| {
            assert_eq!(status["status"], result);
            assert_eq!(status["reason"].as_str().unwrap_or_default(), reason);
            let causes = status.pointer("/details/causes/0/message").and_then(Value::as_str);
            assert_eq!(causes.unwrap_or_default(), cause, "{status}");
        };
        check(ended(0), "Success", "", "");
        check(ended(7), "Failure", "NonZeroExitCode", "7");
        check(
            failed("exec: \"x\": executable file not found in $PATH"),
            "Failure",
            "InternalError",
            "exec: \"x\": executable file not found in $PATH",
        );
    }
}
