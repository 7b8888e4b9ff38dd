//! A running member, as commands reach it: its client address and the certificates to show there.

use super::address;
use anyhow::Context as _;
use std::path::PathBuf;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

#[derive(clap::Args)]
pub struct MemberArgs {
    /// The member's client address
    #[arg(long, default_value = "http://127.0.0.1:2379")]
    endpoint: String,
    /// The authority of the member's certificate (PEM), for https
    #[arg(long)]
    cacert: Option<PathBuf>,
    /// Our certificate (PEM), with --key
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
}

impl MemberArgs {
    fn url(&self) -> anyhow::Result<String> {
        match self.endpoint.starts_with("https://") {
            true => Ok(self.endpoint.clone()),
            false => Ok(format!("http://{}", address(&self.endpoint)?)),
        }
    }

    pub async fn connect(&self) -> anyhow::Result<Channel> {
        let url = self.url()?;
        let mut endpoint = Endpoint::from_shared(url.clone())?;
        if url.starts_with("https://") {
            let read = |file: &PathBuf| std::fs::read(file).with_context(|| format!("reading {}", file.display()));
            let mut tls = ClientTlsConfig::new();
            if let Some(ca) = &self.cacert {
                tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
            }
            if let (Some(certificate), Some(key)) = (&self.cert, &self.key) {
                tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        endpoint.connect().await.with_context(|| format!("connecting to {url}"))
    }

    /// A failed call, down to its cause. `doing` ends before the member's name.
    pub fn failed(&self, doing: &str, status: &tonic::Status) -> anyhow::Error {
        let mut text = status.message().to_owned();
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        // In TLS 1.3 whoever is turned away often hears nothing but the end of the connection.
        if std::error::Error::source(status).is_some() && self.endpoint.starts_with("https://") {
            text.push_str(" (if the member turned our certificate away, its log says why)");
        }
        anyhow::anyhow!("{doing} {}: {text}", self.endpoint)
    }
}
