//! gRPC channels to a server: TLS with the cluster's CA, checked by the role's name, never by the address.

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use skiff_identity::{Own, Pair, Trust};
use skiff_proto::fleet::fleet_client::FleetClient;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What may be under way on one stream, and on all of a connection: a stream that is not read must not stop the others, so
/// the connection has room for thousands of full ones.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;

/// How long an idle connection stays unasked, and how long its answer may take: a server that is cut off is noticed in twice that.
pub const WATCHFUL: Duration = Duration::from_secs(1);
/// The same for people's commands: they wait rather than fail on a machine that is out of breath.
pub const PATIENT: Duration = Duration::from_secs(15);

/// A channel that dials `addr` (`host:port`) when it is used.
pub fn channel(addr: &str, ca: &str, own: Option<&Own>) -> anyhow::Result<Channel> {
    trusting(addr, &Trust::new(ca)?, own)
}

/// The same, where it may change whom one trusts.
pub fn trusting(addr: &str, trust: &Trust, own: Option<&Own>) -> anyhow::Result<Channel> {
    with_tls(addr, skiff_identity::client_with(trust, own)?, WATCHFUL)
}

/// The same with any TLS configuration.
pub fn with_tls(addr: &str, mut tls: ClientConfig, keep_alive: Duration) -> anyhow::Result<Channel> {
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let (tls, addr) = (Arc::new(tls), addr.to_owned());
    let connect = tower::service_fn(move |_: http::Uri| {
        let (tls, addr) = (tls.clone(), addr.clone());
        async move {
            let tcp = TcpStream::connect(&addr).await?;
            tcp.set_nodelay(true)?;
            let stream = tokio_rustls::TlsConnector::from(tls).connect(skiff_identity::server_name(), tcp).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://server.skiff.internal")
        .connect_timeout(keep_alive.max(Duration::from_secs(2)))
        .http2_keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    Ok(endpoint.connect_with_connector_lazy(connect))
}

pub fn client(channel: Channel) -> FleetClient<Channel> {
    FleetClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The words of a gRPC failure, its cause included.
pub fn explain(addr: &str, status: &tonic::Status) -> anyhow::Error {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    anyhow::anyhow!("{text}").context(format!("asking the server at {addr}"))
}

/// Reads a PEM pair from two files, if both are there.
pub fn read_pair(certificate: &std::path::Path, key: &std::path::Path) -> anyhow::Result<Option<Pair>> {
    if !certificate.exists() || !key.exists() {
        return Ok(None);
    }
    let read =
        |path: &std::path::Path| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    Ok(Some(Pair { certificate: read(certificate)?, key: read(key)? }))
}
