//! An API server alone, on an in-memory store, with a certificate made on the spot: for trying clients against it
//! (`kubectl --insecure-skip-tls-verify --token ...`; kubectl sends no token without TLS).
//!
//! `serve 127.0.0.1:8001 [TOKENS.csv] [SERVICE_CIDR]`. Without controllers nothing makes default accounts.

use skiff_apiserver::node::NoNodes;
use skiff_apiserver::{ApiServer, Config, TokenSigner};
use std::sync::Arc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8001".into());
    let mut config = Config::new(Arc::new(TokenSigner::generate("https://kubernetes.default.svc")));
    config.token_file = arguments.next().map(Into::into);
    config.controllers = false;
    if let Some(cidr) = arguments.next() {
        config.service_cidr = cidr.parse().map_err(anyhow::Error::msg)?;
    }
    let server = ApiServer::new(config, skiff_store::Store::in_memory().await, Arc::new(NoNodes))?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    server.ready().await;
    println!("serving on https://{address}");
    server.serve(listener, Some(certificate()?), Default::default()).await
}

fn certificate() -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(["localhost".to_string(), "127.0.0.1".to_string()])?;
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
