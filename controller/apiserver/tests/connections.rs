//! What somebody can hold of a server who only reaches its port, or who reads slowly: each thing has an end, and others are served meanwhile.

mod support;

use rustls::pki_types::ServerName;
use serde_json::json;
use skiff_apiserver::Bounds;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::Cluster;
use support::ask::Question;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Long enough for a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn tls(
    cluster: &Cluster,
    alpn: &[u8],
    pair: Option<&skiff_identity::Pair>,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let mut config = skiff_identity::client(cluster.ca.certificate(), pair)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    let socket = TcpStream::connect(cluster.address).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Ok(connector.connect(ServerName::try_from("localhost")?, socket).await?)
}

/// What comes until the server ends the connection.
async fn until_its_end(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> anyhow::Result<String> {
    let mut all = Vec::new();
    let read = async {
        let mut piece = [0; 4096];
        // An end without a word (a reset, no close_notify) is one, too.
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            all.extend_from_slice(&piece[..count]);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.map_err(|_| anyhow::anyhow!("the server never ends the connection"))?;
    Ok(String::from_utf8_lossy(&all).into_owned())
}

async fn is_healthy(cluster: &Cluster) -> anyhow::Result<bool> {
    let asked = Question { method: "GET", path: "/healthz", ..Default::default() };
    Ok(asked.ask(cluster).await.is_ok_and(|reply| reply.code == 200))
}

async fn until_healthy(cluster: &Cluster) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !is_healthy(cluster).await? {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "the server does not serve again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Connections that say nothing, or little by little: before the handshake, in the first line, in the head, in the body.
#[tokio::test]
async fn who_is_slow_is_sent_away() -> anyhow::Result<()> {
    let soon = Duration::from_millis(400);
    let bounds = Bounds { handshake: soon, first_request: soon, body: soon, ..Bounds::default() };
    let cluster = Cluster::bounded(bounds).await?;
    let admin = cluster.user("root", Some("system:masters"))?;
    until_its_end(&mut TcpStream::connect(cluster.address).await?).await?;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        until_its_end(&mut tls(&cluster, alpn, None).await?).await?;
    }
    // A byte now and then does not keep the door open.
    for begun in ["GET /healthz HTTP/1.1\r\nhost: localhost\r\n", "G"] {
        let (mut reader, mut writer) = tokio::io::split(tls(&cluster, b"http/1.1", None).await?);
        let dripping = tokio::spawn(async move {
            let mut next = begun;
            while writer.write_all(next.as_bytes()).await.is_ok() && writer.flush().await.is_ok() {
                next = "a: b\r\n";
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        until_its_end(&mut reader).await?;
        dripping.abort();
    }
    // HTTP/2: its preface, an empty SETTINGS, and half of a head.
    let mut stream = tls(&cluster, b"h2", None).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x82").await?;
    until_its_end(&mut stream).await?;
    // A body that does not come.
    let mut stream = tls(&cluster, b"http/1.1", Some(&admin)).await?;
    let head =
        "POST /api/v1/namespaces HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n{";
    stream.write_all(head.as_bytes()).await?;
    let said = until_its_end(&mut stream).await?;
    assert!(said.starts_with("HTTP/1.1 504"), "{said}");
    assert!(is_healthy(&cluster).await?);
    Ok(())
}

#[tokio::test]
async fn heads_have_an_end() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let check = async |what: &str, head: String| {
        let (mut reader, mut writer) = tokio::io::split(tls(&cluster, b"http/1.1", None).await?);
        // The server may end the connection before all was written.
        let writing = tokio::spawn(async move {
            let _ = writer.write_all(head.as_bytes()).await;
            let _ = writer.flush().await;
            writer
        });
        let said = until_its_end(&mut reader).await?;
        writing.abort();
        anyhow::ensure!(
            said.is_empty() || said.starts_with("HTTP/1.1 431") || said.starts_with("HTTP/1.1 4"),
            "{what}: {said}"
        );
        anyhow::Ok(())
    };
    let long = "x".repeat(8 << 20);
    let line = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n";
    check("a header of 8 MiB", format!("{line}a: {long}\r\n\r\n")).await?;
    check("a path of 8 MiB", format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await?;
    check("100,000 headers", format!("{line}{}\r\n", "a: b\r\n".repeat(100_000))).await?;
    // HTTP/2 takes 16 KiB: more is refused or resets the stream, and the server goes on.
    let huge = Question { method: "GET", path: "/healthz", token: &long[..(64 << 10)], ..Default::default() };
    let answer = huge.ask(&cluster).await;
    assert!(answer.as_ref().map_or(true, |reply| reply.code == 431), "{answer:?}");
    assert!(is_healthy(&cluster).await?);
    Ok(())
}

#[tokio::test]
async fn nobody_takes_every_connection() -> anyhow::Result<()> {
    let bounds = Bounds { connections_per_source: 8, handshakes_per_source: 4, ..Bounds::default() };
    let cluster = Cluster::bounded(bounds).await?;
    until_healthy(&cluster).await?;
    // Handshakes that never begin.
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(TcpStream::connect(cluster.address).await?);
    }
    until_its_end(&mut TcpStream::connect(cluster.address).await?).await?;
    drop(idle);
    until_healthy(&cluster).await?;
    // Connections that stay.
    let mut open = Vec::new();
    while open.len() < 8 {
        match tls(&cluster, b"http/1.1", None).await {
            Ok(stream) => open.push(stream),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    assert!(tls(&cluster, b"http/1.1", None).await.is_err(), "a ninth connection");
    drop(open);
    until_healthy(&cluster).await
}

/// Lists that nobody reads hold no more than their part; those who come then are told to come again, and are served when the slow ones were sent away.
#[tokio::test]
async fn long_answers_share_what_there_is() -> anyhow::Result<()> {
    let bounds = Bounds {
        memory_bytes: 24 << 20,
        memory_wait: Duration::from_millis(100),
        read: Duration::from_secs(2),
        read_rate: u32::MAX,
        ..Bounds::default()
    };
    let cluster = Cluster::bounded(bounds).await?;
    let admin = cluster.user("root", Some("system:masters"))?;
    for n in 0..20 {
        let map = json!({"metadata": {"name": format!("m{n}")}, "data": {"a": "x".repeat(900 << 10)}});
        cluster.create("", "configmaps", "default", map).await?;
    }
    let list = "/api/v1/namespaces/default/configmaps";
    let asked = Question { pair: Some(&admin), method: "GET", path: list, ..Default::default() };
    assert_eq!(asked.ask(&cluster).await?.code, 200);
    let mut slow = tls(&cluster, b"http/1.1", Some(&admin)).await?;
    slow.write_all(format!("GET {list} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await?;
    let mut first = [0; 12];
    slow.read_exact(&mut first).await?;
    assert_eq!(&first, b"HTTP/1.1 200");
    let refused = asked.ask(&cluster).await?;
    assert_eq!(refused.code, 429, "{}", refused.text.len());
    let one = Question { path: "/api/v1/namespaces/default", ..asked.clone() };
    assert_eq!(one.ask(&cluster).await?.code, 200, "what is small is served meanwhile");
    let begun = Instant::now();
    while asked.ask(&cluster).await?.code != 200 {
        assert!(begun.elapsed() < PATIENCE, "the slow reader keeps its part for ever");
    }
    let rest = until_its_end(&mut slow).await?;
    assert!(rest.len() < 20 * (900 << 10), "the slow reader's connection ended before the answer did");
    Ok(())
}
