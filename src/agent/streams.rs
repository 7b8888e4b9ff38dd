//! Streams that a server asked for: logs, exec, attach and port-forward of a pod on this node, over a gRPC stream that the agent opens.

use super::link::Link;
use super::wire;
use bytes::Bytes;
use serde_json::json;
use skiff_pods::{Directory, ExecRequest, ExecStream, LogRange, LogRequest, Output, StreamError};
use skiff_proto::fleet as pb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const STATUS: u32 = 3;
const RESIZE: u32 = 4;
const CLOSE: u32 = 255;
/// How long a server may take to read what was sent to it.
const DRAIN_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// Answers calls, each in a task of its own.
pub async fn serve(link: Link, pods: Directory) {
    let Some(mut calls) = link.take_calls() else { return };
    while let Some((channel, call)) = calls.recv().await {
        let pods = pods.clone();
        tokio::spawn(async move {
            if let Err(e) = answer(channel, call, pods).await {
                tracing::debug!("a stream ended: {e:#}");
            }
        });
    }
}

async fn answer(channel: Channel, call: pb::Call, pods: Directory) -> anyhow::Result<()> {
    let (send, outgoing) = mpsc::channel(32);
    send.send(pb::Frame { id: call.id, ..Default::default() }).await?;
    let mut incoming = wire::client(channel).attach(ReceiverStream::new(outgoing)).await?.into_inner();
    let result = match call.kind {
        Some(pb::call::Kind::Logs(request)) => logs(&pods, request, &send, &mut incoming).await,
        Some(pb::call::Kind::Exec(request)) => {
            let stream = pods.exec(&exec_request(&request)).await;
            run(stream, request.tty, &send, &mut incoming).await
        }
        Some(pb::call::Kind::Attach(request)) => {
            let stream = pods.attach(&exec_request(&request)).await;
            run(stream, request.tty, &send, &mut incoming).await
        }
        Some(pb::call::Kind::PortForward(request)) => forward(&pods, request, &send, &mut incoming).await,
        None => Err(StreamError::Failed("this agent does not know the call; upgrade it".into())),
    };
    if let Err(e) = result {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": "InternalError", "message": e.to_string(), "code": 500});
        let _ = send.send(frame(STATUS, status.to_string())).await;
    }
    // Our half ends; the server ends the other when it has read everything. To drop the stream before would take back what is still under way.
    drop(send);
    let drain = async { while let Ok(Some(_)) = incoming.message().await {} };
    let _ = tokio::time::timeout(DRAIN_MAX, drain).await;
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

fn exec_request(request: &pb::Exec) -> ExecRequest {
    ExecRequest {
        namespace: request.namespace.clone(),
        name: request.pod.clone(),
        container: request.container.clone(),
        command: request.command.clone(),
        stdin: request.stdin,
        tty: request.tty,
    }
}

async fn run(
    stream: Result<ExecStream, StreamError>,
    tty: bool,
    send: &mpsc::Sender<pb::Frame>,
    incoming: &mut Streaming<pb::Frame>,
) -> Result<(), StreamError> {
    let ExecStream { stdin, mut output, resize, exit } = stream?;
    // Each way on its own: a program that does not read its input must still be heard.
    let down = async {
        while let Some(out) = output.recv().await {
            let out = match out {
                Output::Stdout(bytes) => frame(STDOUT, bytes),
                Output::Stderr(bytes) => frame(if tty { STDOUT } else { STDERR }, bytes),
            };
            if send.send(out).await.is_err() {
                return false;
            }
        }
        true
    };
    let up = async {
        let mut stdin = stdin;
        while let Ok(Some(input)) = incoming.message().await {
            match input.channel {
                STDIN => {
                    if let Some(stdin) = &stdin {
                        let _ = stdin.send(input.data).await;
                    }
                }
                RESIZE => {
                    if let Some(size) = size(&input.data) {
                        let _ = resize.send(size).await;
                    }
                }
                CLOSE => stdin = None,
                _ => {}
            }
        }
        // The server dropped the stream: nobody listens any more.
        false
    };
    let ended = tokio::select! { ended = down => ended, gone = up => gone };
    if !ended {
        return Ok(());
    }
    let status = match exit.await {
        Ok(Ok(0)) => json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
        Ok(Ok(code)) => {
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
        }
        Ok(Err(why)) => return Err(StreamError::Failed(why)),
        Err(_) => return Ok(()),
    };
    let _ = send.send(frame(STATUS, status.to_string())).await;
    Ok(())
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
        let mut buffer = vec![0; 32 << 10];
        loop {
            match read.read(&mut buffer).await {
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
                return;
            }
        }
    };
    tokio::select! { () = down => {}, () = up => {} }
    Ok(())
}
