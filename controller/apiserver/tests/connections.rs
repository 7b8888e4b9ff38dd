//! What somebody can hold of a server who only reaches its port, or who reads slowly: each thing has an end, and others are served meanwhile.

mod support;

use axum::body::Body;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::json;
use skiff_apiserver::{Bounds, GrpcService, PeerSource};
use skiff_identity::Subject;
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

async fn h2(
    cluster: &Cluster,
    pair: Option<&skiff_identity::Pair>,
    stream_window: u32,
) -> anyhow::Result<http2::SendRequest<Body>> {
    let stream = TokioIo::new(tls(cluster, b"h2", pair).await?);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.initial_stream_window_size(stream_window).handshake(stream).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn get(path: &str) -> anyhow::Result<Request<Body>> {
    Ok(Request::get(format!("https://localhost{path}")).body(Body::empty())?)
}

/// What a service account shows.
async fn token(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.create("", "serviceaccounts", "default", json!({"metadata": {"name": "robot"}})).await?;
    let role = json!({"metadata": {"name": "reader"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]});
    let group = "rbac.authorization.k8s.io";
    cluster.create(group, "clusterroles", "", role).await?;
    let binding = json!({"metadata": {"name": "reader"}, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "robot"}]});
    cluster.create(group, "clusterrolebindings", "", binding).await?;
    let made = cluster.admin().token("default", "robot", json!({"spec": {"expirationSeconds": 600}})).await;
    let made = made.map_err(|s| anyhow::anyhow!(s.message))?;
    Ok(made["status"]["token"].as_str().unwrap_or_default().to_owned())
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

/// An answer that is made of parsed objects holds what it is long, not what making it took, while it is read.
#[tokio::test]
async fn a_slow_reader_holds_what_it_has_yet_to_read() -> anyhow::Result<()> {
    let bounds = Bounds { memory_bytes: 24 << 20, memory_wait: Duration::from_millis(100), ..Bounds::default() };
    let cluster = Cluster::bounded(bounds).await?;
    let admin = cluster.user("root", Some("system:masters"))?;
    for n in 0..5 {
        let map = json!({"metadata": {"name": format!("m{n}")}, "data": {"a": "x".repeat(450 << 10)}});
        cluster.create("", "configmaps", "default", map).await?;
    }
    let list = "/api/v1/namespaces/default/configmaps?pretty=true";
    let mut sender = h2(&cluster, Some(&admin), 16 << 10).await?;
    let mut slow = sender.send_request(get(list)?).await?;
    assert_eq!(slow.status(), 200);
    let first = slow.body_mut().frame().await;
    assert!(first.is_some_and(|frame| frame.is_ok()));
    let asked = Question { pair: Some(&admin), method: "GET", path: list, ..Default::default() };
    let other = asked.ask(&cluster).await?;
    assert_eq!(other.code, 200, "{}", other.text);
    Ok(())
}

/// Over HTTP/2 a client may send what nobody reads yet: how much, depends on who it is.
#[tokio::test]
async fn large_windows_are_for_machines() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let server = Subject::Server { name: "s".into(), names: vec!["localhost".into()], addresses: Vec::new() };
    let server = cluster.ca.issue(&server)?;
    let node = cluster.ca.issue(&Subject::Node { name: "n".into() })?;
    let admin = cluster.user("root", Some("system:masters"))?;
    let machine = (4096, 256 << 10, 1 << 30);
    for (who, pair, expect) in [
        ("nobody", None, (100, 64 << 10, 4 << 20)),
        ("an administrator", Some(&admin), (250, 256 << 10, 16 << 20)),
        ("a node", Some(&node), machine),
        ("a server", Some(&server), machine),
    ] {
        let mut stream = tls(&cluster, b"h2", pair).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        let (mut streams, mut stream_bytes, mut connection_bytes) = (0, 0, 0);
        // SETTINGS, and a WINDOW_UPDATE of the connection, which begins with 65535.
        while streams == 0 || connection_bytes == 0 {
            let mut head = [0; 9];
            tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await??;
            let mut body = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut body).await?;
            let number = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
            match head[3] {
                4 => {
                    for setting in body.chunks(6) {
                        match number(&setting[..2]) {
                            3 => streams = number(&setting[2..]),
                            4 => stream_bytes = number(&setting[2..]),
                            _ => {}
                        }
                    }
                }
                8 => connection_bytes = number(&body) + 65535,
                _ => {}
            }
        }
        assert_eq!((streams, stream_bytes, connection_bytes), expect, "{who}");
    }
    Ok(())
}

/// GET /healthz as the first stream of HTTP/2, after a preface and these settings.
fn healthz(settings: &[u8]) -> Vec<u8> {
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    all.extend([0, 0, settings.len() as u8, 4, 0, 0, 0, 0, 0]);
    all.extend(settings);
    let head = b"\x82\x87\x44\x08/healthz\x41\x09localhost";
    all.extend([0, 0, head.len() as u8, 1, 5, 0, 0, 0, 1]);
    all.extend(head);
    all
}

/// Without a certificate a connection stays as long as something is under way on it; with one it stays.
#[tokio::test]
async fn who_asks_no_more_is_sent_away() -> anyhow::Result<()> {
    let idle = Duration::from_millis(300);
    let cluster = Cluster::bounded(Bounds { idle, ..Bounds::default() }).await?;
    let (admin, token) = (cluster.user("root", Some("system:masters"))?, token(&cluster).await?);
    until_healthy(&cluster).await?;
    // One that says nothing more, not even to pings; and one that never makes room for its answer.
    for settings in [&[][..], &[0, 4, 0, 0, 0, 0]] {
        let mut stream = tls(&cluster, b"h2", None).await?;
        stream.write_all(&healthz(settings)).await?;
        until_its_end(&mut stream).await?;
    }
    // A good client hears it, and asks over another connection.
    let mut nobody = h2(&cluster, None, 65535).await?;
    assert_eq!(nobody.send_request(get("/healthz")?).await?.status(), 200);
    let mut known = h2(&cluster, Some(&admin), 65535).await?;
    assert_eq!(known.send_request(get("/healthz")?).await?.status(), 200);
    let begun = Instant::now();
    while !nobody.is_closed() {
        assert!(begun.elapsed() < PATIENCE, "the connection stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Watches by token, in the answer and in messages of an upgraded connection.
    let path = "/api/v1/namespaces/default/configmaps?watch=true";
    let watch = Question { token: &token, method: "GET", path, ..Default::default() };
    let mut upgraded = tls(&cluster, b"http/1.1", None).await?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    upgraded.write_all(head.as_bytes()).await?;
    let late = async {
        tokio::time::sleep(4 * idle).await;
        cluster.create("", "configmaps", "default", json!({"metadata": {"name": "late-one"}})).await
    };
    let (watched, made) = tokio::join!(watch.ask(&cluster), late);
    made?;
    let watched = watched?;
    assert!(watched.code == 200 && watched.text.contains("late-one"), "{watched:?}");
    let mut said = String::new();
    while !said.contains("late-one") {
        let mut piece = [0; 4096];
        let count = tokio::time::timeout(PATIENCE, upgraded.read(&mut piece)).await??;
        anyhow::ensure!(count > 0, "the upgraded connection ended: {said}");
        said += &String::from_utf8_lossy(&piece[..count]);
    }
    assert_eq!(known.send_request(get("/healthz")?).await?.status(), 200, "a certificate's connection stays");
    Ok(())
}

/// Whoever shows no certificate leaves room for those who do.
#[tokio::test]
async fn the_last_places_are_for_those_we_know() -> anyhow::Result<()> {
    let cluster = Cluster::bounded(Bounds { connections: 8, ..Bounds::default() }).await?;
    let admin = cluster.user("root", Some("system:masters"))?;
    let ask = async |pair: Option<&skiff_identity::Pair>| {
        let mut stream = tls(&cluster, b"http/1.1", pair).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
        let mut first = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut first)).await??;
        anyhow::Ok(stream)
    };
    let mut open = Vec::new();
    for _ in 0..6 {
        open.push(ask(None).await?);
    }
    assert!(ask(None).await.is_err(), "a seventh without a certificate");
    for _ in 0..2 {
        open.push(ask(Some(&admin)).await?);
    }
    Ok(())
}

/// gRPC is told where a request comes from: what it lets strangers hold, it counts by source.
#[tokio::test]
async fn grpc_knows_the_source() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let tell: GrpcService = Arc::new(|request| {
        let source = request.extensions().get::<PeerSource>().map(|source| source.0.to_string());
        Box::pin(async move { Response::new(Body::from(source.unwrap_or_default())) })
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = cluster.server.clone().with_grpc(tell);
    let serving = tokio::spawn(async move { server.serve(listener, None, Default::default()).await });
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind("127.0.0.2:0".parse()?)?;
    let stream = TokioIo::new(socket.connect(address).await?);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
    tokio::spawn(connection);
    let mut request = get("/skiff.fleet.v1.Fleet/Join")?;
    request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    let said = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    assert_eq!(said, "127.0.0.2");
    serving.abort();
    Ok(())
}
