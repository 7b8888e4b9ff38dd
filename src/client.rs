//! A client of the API over HTTPS, for the command line: kubeconfig in, JSON out.

use anyhow::{Context as _, bail};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use skiff_identity::Pair;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;

fn base64_of(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// A kubeconfig (JSON, which is YAML too) for one server and one client certificate.
pub fn kubeconfig(server: &str, ca: &str, own: &Pair) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "skiff",
        "clusters": [{"name": "skiff", "cluster": {"server": server, "certificate-authority-data": base64_of(ca)}}],
        "users": [{"name": "admin", "user": {
            "client-certificate-data": base64_of(&own.certificate), "client-key-data": base64_of(&own.key)}}],
        "contexts": [{"name": "skiff", "context": {"cluster": "skiff", "user": "admin", "namespace": "default"}}],
    });
    let mut text = serde_json::to_string_pretty(&config).unwrap_or_default();
    text.push('\n');
    text
}

/// An API server and who we are to it. A connection a request: a command line makes few.
#[derive(Clone)]
pub struct Api {
    host: String,
    tls: Arc<rustls::ClientConfig>,
    /// The cluster's CA, PEM.
    pub ca: String,
    pub namespace: String,
}

impl Api {
    /// Reads a kubeconfig's current context. Certificates may be inline or in files.
    pub fn from_kubeconfig(path: &Path) -> anyhow::Result<Api> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("reading the kubeconfig {} (set KUBECONFIG, or start a cluster with `skiff up`)", path.display())
        })?;
        let config: Value = serde_yaml::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))?;
        let named = |list: &str, name: &Value, what: &str| {
            let found = config[list].as_array().into_iter().flatten().find(|e| &e["name"] == name);
            found.map(|e| e[what].clone()).with_context(|| format!("{}: no {what} named {name}", path.display()))
        };
        let context = named("contexts", &config["current-context"], "context")?;
        let cluster = named("clusters", &context["cluster"], "cluster")?;
        let user = named("users", &context["user"], "user")?;
        let pem = |object: &Value, field: &str| -> anyhow::Result<String> {
            if let Some(data) = object[format!("{field}-data")].as_str() {
                let bytes = base64::engine::general_purpose::STANDARD.decode(data)?;
                return Ok(String::from_utf8(bytes)?);
            }
            let file = object[field].as_str().with_context(|| format!("{}: no {field}", path.display()))?;
            std::fs::read_to_string(file).with_context(|| format!("reading {file}"))
        };
        let own = Pair { certificate: pem(&user, "client-certificate")?, key: pem(&user, "client-key")? };
        let ca = pem(&cluster, "certificate-authority")?;
        let server = cluster["server"].as_str().unwrap_or_default();
        let host = server.strip_prefix("https://").with_context(|| format!("{server:?} is not an https:// address"))?;
        Ok(Api {
            host: host.trim_end_matches('/').to_owned(),
            tls: Arc::new(skiff_identity::client(&ca, Some(&own))?),
            ca,
            namespace: context["namespace"].as_str().unwrap_or("default").to_owned(),
        })
    }

    /// The kubeconfig that the environment, or the local cluster, gives.
    pub fn from_environment() -> anyhow::Result<Api> {
        let path = match std::env::var_os("KUBECONFIG") {
            Some(path) => path.into(),
            None => {
                let local = crate::commands::default_dir().join("kubeconfig");
                let home = std::path::PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".kube/config");
                if local.exists() { local } else { home }
            }
        };
        Api::from_kubeconfig(&path)
    }

    async fn connect(&self) -> anyhow::Result<hyper::client::conn::http1::SendRequest<Full<Bytes>>> {
        let tcp = TcpStream::connect(&self.host).await.with_context(|| format!("connecting to the API at {}", self.host))?;
        tcp.set_nodelay(true)?;
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(h, _)| h);
        let name = rustls::pki_types::ServerName::try_from(name.trim_matches(['[', ']']).to_owned())?;
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(tls)).await?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    /// Sends a request and gives the answer as it is.
    pub async fn send(&self, method: &str, path: &str, media: &str, body: Bytes) -> anyhow::Result<http::Response<Incoming>> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("accept", "application/json")
            .header("user-agent", "skiff");
        if !body.is_empty() {
            request = request.header("content-type", media);
        }
        let request = request.body(Full::new(body))?;
        Ok(self.connect().await?.send_request(request).await?)
    }

    /// Sends a request; a Status of failure is an error with its message.
    pub async fn call(&self, method: &str, path: &str, media: &str, body: Bytes) -> anyhow::Result<Value> {
        let response = self.send(method, path, media, body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
        if !status.is_success() {
            bail!(ApiError { code: status.as_u16(), status: value });
        }
        Ok(value)
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call("GET", path, "", Bytes::new()).await
    }
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call("POST", path, "application/json", body.to_string().into()).await
    }
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call("PUT", path, "application/json", body.to_string().into()).await
    }
    pub async fn delete(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call("DELETE", path, "application/json", body.to_string().into()).await
    }
    pub async fn patch(&self, path: &str, media: &str, body: &Value) -> anyhow::Result<Value> {
        self.call("PATCH", path, media, body.to_string().into()).await
    }
}

/// What the API said in place of yes.
#[derive(Debug)]
pub struct ApiError {
    pub code: u16,
    pub status: Value,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = self.status["reason"].as_str().unwrap_or("Error");
        match self.status["message"].as_str() {
            Some(message) => write!(f, "from the server ({reason}): {message}"),
            None => write!(f, "from the server: {} {}", self.code, self.status),
        }
    }
}

impl std::error::Error for ApiError {}
