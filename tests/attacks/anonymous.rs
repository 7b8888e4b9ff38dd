//! Whoever reaches the API's port, with nothing in hand.

use crate::holder::{refused, with_token};
use crate::local::{Local, block_on};
use anyhow::ensure;
use serde_json::json;
use skiff::agent::wire;
use skiff::client::Api;
use skiff_proto::fleet as pb;
use std::time::Duration;
use tonic::Code;

/// The address at which this machine reaches the API.
fn address(local: &Local) -> anyhow::Result<String> {
    Ok(format!("127.0.0.1:{}", local.cluster()?.host.port()))
}

fn channel(local: &Local) -> anyhow::Result<tonic::transport::Channel> {
    let ca = Api::from_kubeconfig(&local.dir.join("kubeconfig"))?.ca;
    wire::channel(&address(local)?, &ca, None)
}

pub fn sees_health_only(local: &Local) -> anyhow::Result<()> {
    // No token at all, as an empty one is: then nobody asks.
    let nobody = with_token(local, "nobody", "")?;
    let stranger = with_token(local, "stranger", "not-a-token")?;
    block_on(async {
        for path in ["/healthz", "/livez", "/readyz", "/version"] {
            nobody.get(path).await?;
        }
        for path in [
            "/api/v1/secrets",
            "/api/v1/nodes",
            "/metrics",
            "/apis/apps/v1/deployments",
            "/api/v1/namespaces/default/pods",
            "/logs",
        ] {
            refused(path, nobody.get(path).await, 403)?;
            refused(path, stranger.get(path).await, 401)?;
        }
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}});
        refused("a write", nobody.post("/api/v1/namespaces/default/configmaps", &map).await, 403)
    })
}

pub fn may_only_join(local: &Local) -> anyhow::Result<()> {
    block_on(async {
        let mut client = wire::client(channel(local)?);
        let join = |name: String| pb::JoinRequest { token: "nonsense".into(), name, ..Default::default() };
        let said = client.join(join("x".into())).await.err().map(|s| s.code());
        ensure!(said == Some(Code::FailedPrecondition), "a wrong token is heard and refused: {said:?}");
        let large = client.join(join("x".repeat(1 << 20))).await.err().map(|s| s.code());
        ensure!(matches!(large, Some(Code::OutOfRange | Code::ResourceExhausted)), "a name of 1 MiB: {large:?}");
        let codes = [
            client.session(tokio_stream::iter([pb::FromAgent::default()])).await.err().map(|s| s.code()),
            client.heartbeat(tokio_stream::iter([pb::Beat::default()])).await.err().map(|s| s.code()),
            client.calls(pb::Hello::default()).await.err().map(|s| s.code()),
            client.attach(tokio_stream::iter([pb::Frame::default()])).await.err().map(|s| s.code()),
            client.images(pb::ImageRequest::default()).await.err().map(|s| s.code()),
            client.put_image(tokio_stream::iter([pb::ImageChunk::default()])).await.err().map(|s| s.code()),
            client.remove_image(pb::ImageRequest::default()).await.err().map(|s| s.code()),
        ];
        ensure!(codes.iter().all(|code| *code == Some(Code::Unauthenticated)), "without a certificate: {codes:?}");
        Ok(())
    })
}

/// Requests to join whose message never comes: one source has so many at once, none for long, and others are heard afterwards.
pub fn joins_without_end(local: &Local) -> anyhow::Result<()> {
    const JOIN: &str = "http://server.skiff.internal/skiff.fleet.v1.Fleet/Join";
    block_on(async {
        // A call whose messages are a stream, and never come, at the path of the other.
        let to_join = |mut request: http::Request<tonic::body::Body>| {
            *request.uri_mut() = http::Uri::from_static(JOIN);
            request
        };
        let channel = tower::util::MapRequest::new(channel(local)?, to_join);
        let client = pb::fleet_client::FleetClient::new(channel);
        let begun = std::time::Instant::now();
        let held: Vec<_> = (0..40)
            .map(|_| {
                let mut client = client.clone();
                let asks = async move { client.session(tokio_stream::pending::<pb::FromAgent>()).await.err() };
                tokio::spawn(tokio::time::timeout(Duration::from_secs(30), asks))
            })
            .collect();
        let mut codes = Vec::new();
        for one in held {
            codes.push(one.await??.map(|status| status.code()));
        }
        let count = |code: Code| codes.iter().filter(|said| **said == Some(code)).count();
        ensure!((count(Code::DeadlineExceeded), count(Code::ResourceExhausted)) == (16, 24), "{codes:?}");
        ensure!(begun.elapsed() >= Duration::from_secs(9), "those who have a place have time: {:?}", begun.elapsed());
        let mut client = wire::client(self::channel(local)?);
        let asked = pb::JoinRequest { token: "nonsense".into(), name: "x".into(), ..Default::default() };
        let said = client.join(asked).await.err().map(|s| s.code());
        ensure!(said == Some(Code::FailedPrecondition), "the next one is heard: {said:?}");
        Ok(())
    })
}

pub fn writes_no_metrics(local: &Local) -> anyhow::Result<()> {
    let nobody = with_token(local, "nobody", "")?;
    let admin = local.cluster()?.api;
    block_on(async {
        for n in 0..50 {
            let _ = nobody.get(&format!("/api/v1/namespaces/default/planted{n}")).await;
            let _ = nobody.get(&format!("/apis/planted{n}.example/v1/things%0Aplanted_metric%201")).await;
        }
        let metrics = admin.get("/metrics").await?;
        let metrics = metrics.as_str().unwrap_or_default();
        ensure!(metrics.contains("apiserver_request_total"), "the metrics are there: {metrics}");
        ensure!(!metrics.contains("planted"), "what strangers asked for is in the metrics");
        Ok(())
    })
}
