//! Logs, exec, attach and port forwarding of real pods.

use bytes::Bytes;
use libtest_mimic::Failed;
use serde_json::json;
use skiff_pods::{Directory, ExecRequest, ExecStream, LogRange, LogRequest, Output};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::{IMAGE, Node, Test, equal, with};

pub const TESTS: &[Test] = &[
    ("streams::all_of_them", all_of_them),
    ("streams::exec_relays_while_the_program_runs", exec_relays_while_the_program_runs),
    ("streams::a_slow_reader_loses_nothing", a_slow_reader_loses_nothing),
    ("streams::an_attached_slow_reader_loses_nothing", an_attached_slow_reader_loses_nothing),
    ("streams::a_client_that_goes_ends_the_session", a_client_that_goes_ends_the_session),
    ("streams::a_terminal_has_its_size_from_the_start", a_terminal_has_its_size_from_the_start),
];

/// More than every pipe and queue on the way holds together.
const MANY_BYTES: usize = 8 << 20;

fn request(container: &str, command: &[&str], stdin: bool) -> ExecRequest {
    ExecRequest {
        namespace: "default".into(),
        name: "p".into(),
        container: container.into(),
        command: command.iter().map(|word| word.to_string()).collect(),
        stdin,
        tty: false,
        window: None,
    }
}

/// A pod that does nothing, and what reaches into it.
async fn idle(node: &mut Node) -> Result<Directory, Failed> {
    let idle = json!({"name": "c", "image": IMAGE, "command": ["sleep", "1000"]});
    node.apply("p", json!({"spec": {"terminationGracePeriodSeconds": 0, "containers": [idle]}}));
    node.until_ready("p").await?;
    Ok(node.pods.as_ref().ok_or("no agent")?.streams().clone())
}

async fn next(stream: &mut ExecStream) -> Result<Bytes, Failed> {
    match stream.output.recv().await {
        Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => Ok(bytes),
        None => Err("the output ended".into()),
    }
}

/// The program says something and waits for the answer: it only ends if the one arrives before the other is sent.
fn exec_relays_while_the_program_runs() -> Result<(), Failed> {
    with(async |node| {
        let streams = idle(node).await?;
        let script = "echo name?; read name; echo hello $name; cat; echo end";
        let mut exec = streams.exec(&request("c", &["sh", "-c", script], true)).await?;
        equal(next(&mut exec).await?, Bytes::from_static(b"name?\n"))?;
        let stdin = exec.stdin.take().ok_or("no input")?;
        stdin.send(Bytes::from_static(b"you\n")).await?;
        equal(next(&mut exec).await?, Bytes::from_static(b"hello you\n"))?;
        // More than all queues hold: both ways must flow at once.
        let feed = tokio::spawn(async move {
            for _ in 0..MANY_BYTES / 65536 {
                let _ = stdin.send(Bytes::from(vec![b'x'; 65536])).await;
            }
        });
        let mut seen = 0;
        while seen < MANY_BYTES {
            seen += next(&mut exec).await?.len();
        }
        feed.await?;
        // The input has ended, the output has not.
        equal(next(&mut exec).await?, Bytes::from_static(b"end\n"))?;
        equal(exec.exit.await?, Ok(0))
    })
}

fn a_slow_reader_loses_nothing() -> Result<(), Failed> {
    with(async |node| {
        let streams = idle(node).await?;
        // A pipe's worth stays behind when the program has ended; nobody reads for longer than any patience of ours was.
        let script = "head -c 60000 /dev/zero; exit 3";
        let mut exec = streams.exec(&request("c", &["sh", "-c", script], false)).await?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let exit = std::mem::replace(&mut exec.exit, receiver);
        drop(sender);
        equal(exit.await?, Ok(3))?;
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        let mut seen = 0;
        while let Some(Output::Stdout(bytes) | Output::Stderr(bytes)) = exec.output.recv().await {
            seen += bytes.len();
        }
        equal(seen, 60_000)?;
        // What was left in the background is heard to its end.
        let script = "(read line </proc/self/fd/3; sleep 1; echo late) 3<&0 & echo early";
        let mut exec = streams.exec(&request("c", &["sh", "-c", script], true)).await?;
        equal(next(&mut exec).await?, Bytes::from_static(b"early\n"))?;
        drop(exec.stdin.take());
        equal(next(&mut exec).await?, Bytes::from_static(b"late\n"))?;
        equal(exec.exit.await?, Ok(0))
    })
}

/// A container that writes faster than the attached client reads: it waits, and its last bytes are heard after its end.
fn an_attached_slow_reader_loses_nothing() -> Result<(), Failed> {
    with(async |node| {
        let script = format!("read go; head -c {MANY_BYTES} /dev/zero; echo; echo the end");
        let container =
            json!({"name": "c", "image": IMAGE, "stdin": true, "stdinOnce": true, "command": ["sh", "-c", script]});
        node.apply("p", json!({"spec": {"restartPolicy": "Never", "containers": [container]}}));
        node.until_ready("p").await?;
        let streams = node.pods.as_ref().ok_or("no pods")?.streams().clone();
        let mut attached = streams.attach(&request("c", &[], true)).await?;
        attached.stdin.as_ref().ok_or("no input")?.send(Bytes::from_static(b"go\n")).await?;
        // Long enough for every pipe and queue on the way to fill up.
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        let (mut seen, mut tail) = (0, Vec::new());
        while let Some(Output::Stdout(bytes) | Output::Stderr(bytes)) = attached.output.recv().await {
            seen += bytes.len();
            tail.extend_from_slice(&bytes[bytes.len().saturating_sub(16)..]);
        }
        equal(seen, MANY_BYTES + "\nthe end\n".len())?;
        equal(tail.ends_with(b"\nthe end\n"), true)
    })
}

fn a_client_that_goes_ends_the_session() -> Result<(), Failed> {
    with(async |node| {
        let streams = idle(node).await?;
        for (tty, script) in
            [(false, "sleep 777 & sleep 778 & echo on; wait"), (true, "sleep 777 & sleep 778 & echo on; wait")]
        {
            let mut exec = streams.exec(&ExecRequest { tty, ..request("c", &["sh", "-c", script], true) }).await?;
            next(&mut exec).await?;
            drop(exec);
            let begun = std::time::Instant::now();
            loop {
                // The shell finds itself and the container's own program.
                let look = "for p in /proc/[0-9]*; do read -r line < $p/cmdline; echo $line; done";
                let mut exec = streams.exec(&request("c", &["sh", "-c", look], false)).await?;
                let mut text = String::new();
                while let Some(Output::Stdout(bytes) | Output::Stderr(bytes)) = exec.output.recv().await {
                    text.push_str(&String::from_utf8_lossy(&bytes));
                }
                if !text.contains("77") {
                    break;
                }
                equal(begun.elapsed() < std::time::Duration::from_secs(20), true)?;
            }
        }
        Ok(())
    })
}

fn a_terminal_has_its_size_from_the_start() -> Result<(), Failed> {
    with(async |node| {
        let streams = idle(node).await?;
        let sized = ExecRequest { tty: true, window: Some((132, 43)), ..request("c", &["stty", "size"], false) };
        let mut exec = streams.exec(&sized).await?;
        equal(next(&mut exec).await?, Bytes::from_static(b"43 132\r\n"))
    })
}

fn all_of_them() -> Result<(), Failed> {
    with(async |node| {
        let server = json!({"name": "web", "image": IMAGE, "command": ["/bin/skiff-echo", "8080", "/bin/sh"],
            "readinessProbe": {"httpGet": {"port": 8080}}});
        let reader = json!({"name": "reader", "image": IMAGE, "stdin": true, "stdinOnce": true,
            "command": ["sh", "-c", "while read line; do echo heard $line; done; sleep 1000"]});
        node.apply("p", json!({"spec": {"terminationGracePeriodSeconds": 0, "containers": [server, reader]}}));
        node.until_ready("p").await?;
        let streams = node.pods.as_ref().ok_or("no agent")?.streams().clone();

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
