//! `skiff web`: answers every request with who it is and what DNS tells it. On SIGTERM it answers those that have connected by then, and ends when the
//! last answer is out.

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// A web server that answers with pod, node, version and what DNS says.
#[derive(clap::Args, Debug)]
pub struct WebArgs {
    /// Where it listens
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// A name to look up for each answer to /dns
    #[arg(long, default_value = "web.default.svc.cluster.local")]
    lookup: String,
}

/// Serves until SIGTERM.
pub async fn run(args: WebArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await?;
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    let who = Arc::new(json!({"pod": var("POD_NAME"), "node": var("NODE_NAME"), "version": var("VERSION")}));
    let lookup = Arc::new(args.lookup);
    let connections = TaskTracker::new();
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let serve = |stream: TcpStream| {
        let (who, lookup) = (who.clone(), lookup.clone());
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(request, who.clone(), lookup.clone()));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    };
    loop {
        tokio::select! {
            _ = term.recv() => break,
            accepted = listener.accept() => if let Ok((stream, _)) = accepted { serve(stream) },
        }
    }
    // Whoever the kernel has connected already waits for an answer: closing the listener would reset these connections.
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        serve(stream);
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(Duration::from_secs(10), connections.wait()).await;
    Ok(())
}

async fn answer(
    request: Request<Incoming>,
    who: Arc<serde_json::Value>,
    lookup: Arc<String>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut body = (*who).clone();
    if request.uri().path() == "/dns" {
        let found = tokio::net::lookup_host((lookup.as_str(), 80)).await;
        body["dns"] = match found {
            Ok(addresses) => json!(addresses.map(|a| a.ip().to_string()).collect::<Vec<_>>()),
            Err(e) => json!({"error": e.to_string()}),
        };
    }
    let response = Response::builder().header("content-type", "application/json").header("connection", "close");
    Ok(response.body(Full::from(format!("{body}\n"))).unwrap_or_default())
}
