//! Whoever reaches the port and takes their time, or sends more than anybody needs. The times themselves are short in `controller/apiserver/tests/connections.rs`;
//! here a real server is asked whether others are served meanwhile.

use crate::local::{Local, block_on};
use anyhow::ensure;
use skiff::client::Api;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Longer than a server waits for the head of a first request.
const PATIENCE: Duration = Duration::from_secs(45);

async fn nobody(address: &str, ca: &str) -> anyhow::Result<TlsStream<TcpStream>> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(skiff_identity::client(ca, None)?));
    let name = rustls::pki_types::ServerName::try_from("localhost")?;
    Ok(connector.connect(name, TcpStream::connect(address).await?).await?)
}

async fn until_its_end(mut reader: impl tokio::io::AsyncRead + Unpin) -> anyhow::Result<Vec<u8>> {
    let mut all = Vec::new();
    let read = async {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut piece).await {
            all.extend_from_slice(&piece[..count]);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.map_err(|_| anyhow::anyhow!("the server never ends it"))?;
    Ok(all)
}

pub fn slow_and_huge(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let address = format!("127.0.0.1:{}", cluster.host.port());
    let api: &Api = &cluster.api;
    block_on(async {
        // Some say nothing at all, some begin and drip.
        let mut held = Vec::new();
        for _ in 0..50 {
            held.push(tokio::spawn(until_its_end(TcpStream::connect(&address).await?)));
            let (reader, mut writer) = tokio::io::split(nobody(&address, &api.ca).await?);
            held.push(tokio::spawn(until_its_end(reader)));
            tokio::spawn(async move {
                let mut next = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n";
                while writer.write_all(next.as_bytes()).await.is_ok() && writer.flush().await.is_ok() {
                    next = "a: b\r\n";
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
        let (reader, mut writer) = tokio::io::split(nobody(&address, &api.ca).await?);
        let writing = tokio::spawn(async move {
            let _ = writer.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n").await;
            while writer.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
        });
        let said = until_its_end(reader).await?;
        writing.abort();
        ensure!(
            said.is_empty() || said.starts_with(b"HTTP/1.1 4"),
            "a head without end: {}",
            String::from_utf8_lossy(&said)
        );
        let began = std::time::Instant::now();
        api.get("/api/v1/namespaces/default").await?;
        ensure!(began.elapsed() < Duration::from_secs(5), "others wait: {:?}", began.elapsed());
        for held in held {
            held.await??;
        }
        Ok(())
    })
}
