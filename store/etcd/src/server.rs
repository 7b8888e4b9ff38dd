//! The client listener: all services, and plain HTTP for probes and metrics, on one port.

use crate::api::Api;
use crate::{ETCD_VERSION, error};
use anyhow::Context as _;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::{v3electionpb, v3lockpb};
use skiff_proto::health::health_server::HealthServer;
use tonic::service::Routes;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

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
    let mut server = Server::builder()
        .accept_http1(true)
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(10)));
    if let Some(tls) = tls {
        let mut config = ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key));
        if let Some(ca) = &tls.client_ca {
            config = config.client_ca_root(Certificate::from_pem(ca));
        }
        server = server.tls_config(config).context("the client listener's TLS configuration")?;
    }
    let limit = api.settings.request_bytes_max + OVERHEAD_BYTES;
    let mut stopped = api.store.stopped();
    let services = Routes::from(probes(api.clone()))
        .add_service(
            pb::kv_server::KvServer::new(api.clone())
                .max_decoding_message_size(limit)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(
            pb::watch_server::WatchServer::new(api.clone())
                .max_decoding_message_size(limit)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(pb::lease_server::LeaseServer::new(api.clone()))
        .add_service(pb::cluster_server::ClusterServer::new(api.clone()))
        .add_service(pb::maintenance_server::MaintenanceServer::new(api.clone()))
        .add_service(pb::auth_server::AuthServer::new(api.clone()))
        .add_service(v3lockpb::lock_server::LockServer::new(api.clone()))
        .add_service(v3electionpb::election_server::ElectionServer::new(api.clone()))
        .add_service(HealthServer::new(api));
    listener.set_nonblocking(true)?;
    let incoming = tonic::transport::server::TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?)
        .with_nodelay(Some(true));
    let stop = async move {
        let _ = stopped.wait_for(|s| *s).await;
    };
    let serving = server.add_routes(services).serve_with_incoming(incoming);
    tokio::select! {
        served = serving => served.with_context(|| format!("serving clients at {addr}")),
        () = stop => Ok(()),
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
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], api.store.metrics()).into_response()
}
