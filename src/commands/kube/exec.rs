//! `skiff exec`: a command in a container, over a WebSocket.
//!
//! Source: the v5.channel.k8s.io protocol. A message is a channel's number and data: 0 in, 1 out, 2 err, 3 the closing Status,
//! 4 the window's size; 255 closes the channel that its data names.

use super::target::{Cluster, encode, flag, query};
use super::terminal::{Raw, size};
use super::{names, output};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// A message of input: what kubectl sends at most.
const INPUT_BYTES_MAX: usize = 32 << 10;

/// Run a command in a container
#[derive(clap::Args, Debug)]
pub struct Options {
    /// POD, or TYPE/NAME for one of its pods
    pod: String,
    /// The container [default: the only one, or the annotated one]
    #[arg(short, long, default_value = "")]
    container: String,
    /// Pass stdin on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// With a terminal
    #[arg(short, long)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
    #[command(flatten)]
    cluster: Cluster,
}

fn message(channel: u8, data: &[u8]) -> Message {
    Message::Binary(Bytes::from([&[channel], data].concat()))
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let api = options.cluster.api()?;
    let pod = names::pod(&api, &options.pod).await?;
    let mut query = query(&[
        ("container", options.container.as_str()),
        ("stdin", flag(options.stdin)),
        ("stdout", "true"),
        ("stderr", flag(!options.tty)),
        ("tty", flag(options.tty)),
    ]);
    for word in &options.command {
        let _ = write!(query, "&command={}", encode(word));
    }
    let path = format!("/api/v1/namespaces/{}/pods/{}/exec{query}", encode(&api.namespace), encode(&pod));
    let socket = api.websocket(&path, PROTOCOL).await?;
    let _raw = if options.tty && options.stdin { Raw::enter()? } else { None };
    let (mut sink, mut stream) = socket.split();
    let (send, mut outgoing) = mpsc::channel(8);
    if options.stdin {
        let send = send.clone();
        std::thread::spawn(move || feed_input(&send));
    }
    if options.tty {
        tokio::spawn(feed_size(send.clone()));
    }
    // Kept, so that the queue stays open when nothing feeds it.
    let _send = send;
    loop {
        tokio::select! {
            Some(message) = outgoing.recv() => sink.send(message).await.context("sending to the container")?,
            message = stream.next() => {
                let message = message.context("the server closed the connection before the command ended")?;
                match message.context("the connection to the container was lost")? {
                    Message::Binary(data) if !data.is_empty() => match data[0] {
                        STDOUT => output::say_bytes(&data[1..])?,
                        STDERR => std::io::stderr().lock().write_all(&data[1..])?,
                        STATUS => return ended(&serde_json::from_slice(&data[1..]).context("the closing status is not JSON")?),
                        _ => {}
                    },
                    Message::Close(_) => bail!("the server closed the connection before the command ended"),
                    _ => {}
                }
            }
        }
    }
}

/// How the command ended: its exit code is ours.
fn ended(status: &Value) -> anyhow::Result<ExitCode> {
    if status["status"] == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|c| c["reason"] == "ExitCode").and_then(|c| c["message"].as_str());
    match code.and_then(|c| c.parse::<i32>().ok()) {
        Some(code) => {
            eprintln!("command terminated with exit code {code}");
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
        }
        None => {
            bail!("{}", status["message"].as_str().unwrap_or("the command failed, and the server does not say why"))
        }
    }
}

/// On a thread of its own: a read of stdin cannot be called off, and must not hold up the end of the command.
fn feed_input(send: &mpsc::Sender<Message>) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; INPUT_BYTES_MAX];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) | Err(_) => {
                let _ = send.blocking_send(message(CLOSE, &[STDIN]));
                return;
            }
            Ok(count) => {
                if send.blocking_send(message(STDIN, &buffer[..count])).is_err() {
                    return;
                }
            }
        }
    }
}

/// Tells the window's size now and whenever it changes.
async fn feed_size(send: mpsc::Sender<Message>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Some((width, height)) = size() {
            let text = json!({"Width": width, "Height": height}).to_string();
            if send.send(message(RESIZE, text.as_bytes())).await.is_err() {
                return;
            }
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_end_is_ours() {
        let check = |status: Value, expect: Result<ExitCode, &str>| {
            let found = ended(&status).map_err(|e| e.to_string());
            assert_eq!(format!("{found:?}"), format!("{expect:?}"));
        };
        check(json!({"status": "Success"}), Ok(ExitCode::SUCCESS));
        let causes = json!({"causes": [{"reason": "ExitCode", "message": "7"}]});
        check(json!({"status": "Failure", "reason": "NonZeroExitCode", "details": causes}), Ok(ExitCode::from(7)));
        check(json!({"status": "Failure", "message": "no such container"}), Err("no such container"));
    }
}
