//! The client listener: all services, and plain HTTP for probes and metrics, on one port.

use crate::api::Api;
use crate::authority::Lenient;
use crate::unary::{self, Answer};
use crate::{ETCD_VERSION, error};
use anyhow::Context as _;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::{v3electionpb, v3lockpb};
use skiff_proto::health::health_server::HealthServer;
use skiff_proto::store::members_server::MembersServer;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, rustls};
use tonic::service::Routes;

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// A client that is silent for so long is asked whether it is there, and has as long again to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Room for what surrounds a request of the largest size.
const OVERHEAD_BYTES: usize = 512 << 10;

/// How the listener proves who it is, and whether clients must. PEM, as files hold it.
#[derive(Clone)]
pub struct ClientTls {
    pub certificate: String,
    pub key: String,
    /// Clients must show a certificate of this authority; None lets everyone in who can connect.
    pub client_ca: Option<String>,
}

/// Serves the API until the store stops.
pub async fn serve(listener: std::net::TcpListener, api: Api, tls: Option<ClientTls>) -> anyhow::Result<()> {
    let addr = listener.local_addr()?;
    let tls = tls.map(|tls| acceptor(&tls)).transpose().context("the client listener's TLS configuration")?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut stopped = api.store.stopped();
    let services = Services::new(api);
    // Dropped when this ends, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            _ = stopped.wait_for(|s| *s) => return Ok(()),
        };
        match accepted {
            Ok((stream, from)) => {
                let _ = stream.set_nodelay(true);
                connections.spawn(connection(stream, from, tls.clone(), services.clone()));
            }
            Err(e) => {
                // Out of files, most likely: those that are open will be closed some time.
                tracing::warn!("accepting a client at {addr} failed: {e}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    from: std::net::SocketAddr,
    tls: Option<TlsAcceptor>,
    services: Services,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(None)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    // How a connection ends is its client's affair; what went wrong in a call was told to it.
    match tls {
        None => drop(builder.serve_connection(TokioIo::new(Lenient::new(stream)), services).await),
        Some(tls) => {
            match tokio::time::timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
                Ok(Ok(stream)) => drop(builder.serve_connection(TokioIo::new(Lenient::new(stream)), services).await),
                // Its client hears no more than that the connection ended.
                Ok(Err(e)) => tracing::warn!("the TLS handshake with the client at {from} failed: {e}"),
                Err(_) => tracing::debug!("the client at {from} began no TLS handshake"),
            }
        }
    }
}

fn acceptor(tls: &ClientTls) -> anyhow::Result<TlsAcceptor> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificates = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = certificates(&tls.certificate).context("the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes()).context("the key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let config = match &tls.client_ca {
        None => config.with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in certificates(ca).context("the clients' authority")? {
                roots.add(certificate).context("the clients' authority")?;
            }
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let mut config = config.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// All services. Those that are called most are found by their path at once, the others by a router.
#[derive(Clone)]
struct Services {
    others: axum::Router,
    api: Api,
    /// Bytes of the largest message.
    limit: usize,
}

impl Services {
    fn new(api: Api) -> Self {
        let limit = api.settings.request_bytes_max + OVERHEAD_BYTES;
        let others = Routes::from(probes(api.clone()))
            .add_service(HealthServer::new(api.clone()))
            .add_service(pb::lease_server::LeaseServer::new(api.clone()))
            .add_service(pb::cluster_server::ClusterServer::new(api.clone()))
            .add_service(MembersServer::new(api.clone()))
            .add_service(pb::maintenance_server::MaintenanceServer::new(api.clone()))
            .add_service(pb::auth_server::AuthServer::new(api.clone()))
            .add_service(v3lockpb::lock_server::LockServer::new(api.clone()))
            .add_service(v3electionpb::election_server::ElectionServer::new(api.clone()))
            .prepare()
            .into_axum_router();
        Services { others, api, limit }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Answer>, Infallible>> + Send>>;

impl hyper::service::Service<http::Request<Incoming>> for Services {
    type Response = http::Response<Answer>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: http::Request<Incoming>) -> Answering {
        use tower::Service as _;
        let (api, limit) = (self.api.clone(), self.limit);
        macro_rules! unary {
            ($method:ident) => {
                Box::pin(async move { Ok(unary::serve(request, limit, |r| async move { api.$method(r).await }).await) })
            };
        }
        match request.uri().path() {
            "/etcdserverpb.KV/Range" => unary!(range),
            "/etcdserverpb.KV/Put" => unary!(put),
            "/etcdserverpb.KV/DeleteRange" => unary!(delete_range),
            "/etcdserverpb.KV/Txn" => unary!(txn),
            "/etcdserverpb.KV/Compact" => unary!(compact),
            "/grpc.health.v1.Health/Check" => unary!(check_health),
            crate::watch::PATH => {
                let answer = crate::watch::serve(api, request, limit).map(Answer::General);
                Box::pin(std::future::ready(Ok(answer)))
            }
            _ => {
                let answer = self.others.clone().call(request);
                let general = |body| Answer::General(tonic::body::Body::new(body));
                Box::pin(async move { answer.await.map(|response| response.map(general)) })
            }
        }
    }
}

fn probes(api: Api) -> axum::Router {
    axum::Router::new()
        .route("/health", get(health))
        .route("/readyz", get(health))
        .route("/livez", get(live))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .with_state(api)
}

fn json(code: StatusCode, body: String) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn health(State(api): State<Api>) -> Response {
    match api.unhealthy().await {
        None => json(StatusCode::OK, r#"{"health":"true","reason":""}"#.into()),
        Some(why) => {
            let why = why.replace(['"', '\\'], "'");
            json(StatusCode::SERVICE_UNAVAILABLE, format!(r#"{{"health":"false","reason":"{why}"}}"#))
        }
    }
}

/// Alive while the replica has not stopped, whoever leads.
async fn live(State(api): State<Api>) -> Response {
    match &*api.store.failure().borrow() {
        None => "ok\n".into_response(),
        Some(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}: {why}\n", error::corrupt().message())).into_response()
        }
    }
}

async fn version() -> Response {
    json(StatusCode::OK, format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_VERSION}"}}"#))
}

async fn metrics(State(api): State<Api>) -> Response {
    let mut text = api.store.metrics();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    if let Some(pages) = statm.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok()) {
        let name = "process_resident_memory_bytes";
        text.push_str(&format!(
            "# HELP {name} Resident memory size in bytes.\n# TYPE {name} gauge\n{name} {}\n",
            pages * 4096
        ));
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
