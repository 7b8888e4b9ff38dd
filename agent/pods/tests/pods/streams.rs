//! Logs, exec, attach and port forwarding of real pods.

use bytes::Bytes;
use libtest_mimic::Failed;
use serde_json::json;
use skiff_pods::{ExecRequest, LogRange, LogRequest, Output};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::{IMAGE, Test, equal, with};

pub const TESTS: &[Test] = &[("streams::all_of_them", all_of_them)];

fn all_of_them() -> Result<(), Failed> {
    with(async |node| {
        let server = json!({"name": "web", "image": IMAGE, "command": ["/bin/skiff-echo", "8080", "/bin/sh"],
            "readinessProbe": {"httpGet": {"port": 8080}}});
        let reader = json!({"name": "reader", "image": IMAGE, "stdin": true, "stdinOnce": true,
            "command": ["sh", "-c", "while read line; do echo heard $line; done; sleep 1000"]});
        node.apply("p", json!({"spec": {"terminationGracePeriodSeconds": 0, "containers": [server, reader]}}));
        node.until_ready("p").await?;
        let streams = node.pods.as_ref().ok_or("no agent")?.streams().clone();

        let request = |container: &str, command: &[&str], stdin: bool| ExecRequest {
            namespace: "default".into(),
            name: "p".into(),
            container: container.into(),
            command: command.iter().map(|word| word.to_string()).collect(),
            stdin,
            tty: false,
        };
        let mut exec = streams.exec(&request("web", &["sh", "-c", "cat; echo oops >&2; exit 4"], true)).await?;
        if let Some(stdin) = exec.stdin.take() {
            stdin.send(Bytes::from_static(b"hello")).await?;
        }
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(chunk) = exec.output.recv().await {
            match chunk {
                Output::Stdout(bytes) => out.extend_from_slice(&bytes),
                Output::Stderr(bytes) => err.extend_from_slice(&bytes),
            }
        }
        equal((out.as_slice(), err.as_slice()), (&b"hello"[..], &b"oops\n"[..]))?;
        equal(exec.exit.await?, Ok(4))?;

        let follow = LogRequest {
            namespace: "default".into(),
            name: "p".into(),
            container: "reader".into(),
            previous: false,
            range: LogRange { follow: true, ..LogRange::default() },
        };
        let mut log = streams.logs(&follow)?;
        let attach = streams.attach(&request("reader", &[], true)).await?;
        attach.stdin.as_ref().ok_or("no input")?.send(Bytes::from_static(b"you\n")).await?;
        equal(log.recv().await.transpose()?, Some(Bytes::from_static(b"heard you\n")))?;

        let mut stream = streams.port_forward("default", "p", 8080).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        equal(answer.starts_with("HTTP/1.1 200 OK"), true)?;

        let refused =
            streams.port_forward("default", "p", 1).await.err().map(|error| error.to_string()).unwrap_or_default();
        equal(refused.contains("refused"), true)?;
        equal(streams.exec(&request("none", &["sh"], false)).await.is_err(), true)?;
        equal(streams.logs(&LogRequest { name: "none".into(), ..follow.clone() }).is_err(), true)
    })
}
