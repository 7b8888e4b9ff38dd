//! The protocols that clients in Python, JavaScript and browsers speak over a WebSocket, message by message.

use crate::local::{Local, block_on};
use crate::streams;
use anyhow::{Context as _, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

const POD: &str = "/api/v1/namespaces/default/pods/streams";

pub fn all(local: &Local) -> anyhow::Result<()> {
    streams::target(local)?;
    let api = local.cluster()?.api;
    // A path, a protocol, what is sent, and the messages that must come (among others) in this order.
    let echo = "exec?command=cat&stdin=true&stdout=true";
    let said = "exec?command=sh&command=-c&command=echo+hi;exit+3&stdout=true";
    let rows: &[(&str, &str, Option<Message>, Vec<Message>)] = &[
        (
            "portforward?ports=7000",
            "v4.channel.k8s.io",
            Some(binary(b"\0hi")),
            vec![binary(b"\0\x58\x1b"), binary(b"\x01\x58\x1b"), binary(b"\0hi")],
        ),
        (
            "portforward?ports=7000,7001",
            "v4.base64.channel.k8s.io",
            Some("2aGk=".into()),
            vec!["2WRs=".into(), "2aGk=".into()],
        ),
        ("portforward?ports=7000", "", Some(binary(b"\0hi")), vec![binary(b"\0\x58\x1b"), binary(b"\0hi")]),
        (echo, "channel.k8s.io", Some(binary(b"\0hi")), vec![binary(b"\x01"), binary(b"\x01hi")]),
        (echo, "base64.channel.k8s.io", Some("0aGk=".into()), vec!["1".into(), "1aGk=".into()]),
        (echo, "", Some(binary(b"\0hi")), vec![binary(b"\x01hi")]),
        (
            said,
            "channel.k8s.io",
            None,
            vec![binary(b"\x01hi\n"), binary(b"\x03command terminated with non-zero exit code: exit status 3")],
        ),
    ];
    block_on(async {
        for (path, protocol, send, expect) in rows {
            let row = || format!("{path} with {protocol:?}");
            let mut socket = api.websocket(&format!("{POD}/{path}"), protocol).await.with_context(row)?;
            if let Some(message) = send {
                socket.send(message.clone()).await?;
            }
            let mut left = expect.iter();
            let mut next = left.next();
            while let Some(wanted) = next {
                let message = tokio::time::timeout(crate::local::PATIENCE, socket.next()).await;
                let message = message.with_context(|| format!("{}: no {wanted:?}", row()))?;
                let message = message.with_context(|| format!("{}: closed before {wanted:?}", row()))??;
                ensure!(!matches!(message, Message::Close(_)), "{}: closed before {wanted:?}", row());
                if message == *wanted {
                    next = left.next();
                }
            }
        }
        let mut watch = api.websocket("/api/v1/namespaces/default/pods?watch=1", "").await.context("a watch")?;
        let event = watch.next().await.context("an event")??.into_text()?;
        ensure!(event.starts_with("{\"type\":\"ADDED\"") && event.ends_with("}\n"), "{event}");
        Ok(())
    })
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(bytes.to_vec().into())
}
