//! A client of the API over HTTPS, for the command line: kubeconfig in, JSON out. Streams (logs, watches) are read piece by piece, and a
//! connection may be upgraded to a WebSocket.

use anyhow::Context as _;
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use skiff_identity::Pair;
use skiff_proto::fleet;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{handshake::client::generate_key, protocol::Role};

/// What a WebSocket of the API runs over.
pub type Socket = WebSocketStream<hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>>;

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
    /// The bearer token of a user without a certificate.
    token: Option<String>,
    /// Whom to act as: `Impersonate-*` headers.
    acting: Vec<(String, String)>,
    certificate: Option<String>,
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
        let token = user["token"].as_str().map(String::from);
        let own = match token {
            Some(_) => None,
            None => Some(Pair { certificate: pem(&user, "client-certificate")?, key: pem(&user, "client-key")? }),
        };
        let ca = pem(&cluster, "certificate-authority")?;
        let server = cluster["server"].as_str().unwrap_or_default();
        let host = server.strip_prefix("https://").with_context(|| format!("{server:?} is not an https:// address"))?;
        Ok(Api {
            host: host.trim_end_matches('/').to_owned(),
            tls: Arc::new(skiff_identity::client(&ca, own.as_ref())?),
            token,
            acting: acting_as(&user),
            certificate: own.map(|own| own.certificate),
            ca,
            namespace: context["namespace"].as_str().unwrap_or("default").to_owned(),
        })
    }

    /// The kubeconfig that the environment names; else the local cluster's, this machine's server's, or the user's.
    pub fn from_environment() -> anyhow::Result<Api> {
        let path = match std::env::var_os("KUBECONFIG") {
            Some(path) => path.into(),
            None => {
                let home = std::path::PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
                let server = std::path::Path::new("/var/lib/skiff/server/admin.kubeconfig").to_owned();
                let candidates = [crate::commands::default_dir().join("kubeconfig"), server];
                candidates.into_iter().find(|p| p.exists()).unwrap_or_else(|| home.join(".kube/config"))
            }
        };
        Api::from_kubeconfig(&path)
    }

    /// A gRPC channel to the same server, with the same certificate.
    pub fn grpc(&self) -> anyhow::Result<tonic::transport::Channel> {
        crate::agent::wire::with_tls(&self.host, (*self.tls).clone(), crate::agent::wire::PATIENT)
    }

    /// Hands an archive of images (`docker save` or OCI) to the cluster; every node can run them then. A record for each name in it, at least one.
    pub async fn put_image(&self, archive: &Path) -> anyhow::Result<Vec<fleet::ImageRecord>> {
        use tokio::io::AsyncReadExt as _;
        let mut file = tokio::fs::File::open(archive)
            .await
            .with_context(|| format!("opening the archive {}", archive.display()))?;
        let (send, chunks) = tokio::sync::mpsc::channel(4);
        let read = tokio::spawn(async move {
            loop {
                let mut data = vec![0; 1 << 20];
                let count = file.read(&mut data).await?;
                data.truncate(count);
                let chunk = fleet::ImageChunk { data: data.into() };
                if count == 0 || send.send(chunk).await.is_err() {
                    return Ok::<_, std::io::Error>(());
                }
            }
        });
        let stream = tokio_stream::wrappers::ReceiverStream::new(chunks);
        let answer = crate::agent::wire::client(self.grpc()?).put_image(stream).await;
        read.await?.with_context(|| format!("reading the archive {}", archive.display()))?;
        Ok(answer.map_err(|s| crate::agent::wire::explain(&self.host, &s))?.into_inner().images)
    }

    /// Lets a server fetch an image from its registry and keep it for the cluster. `docker_config` may be empty.
    pub async fn pull_image(&self, reference: &str, docker_config: Vec<u8>) -> anyhow::Result<fleet::ImageRecord> {
        let request = fleet::PullRequest { reference: reference.to_owned(), docker_config: docker_config.into() };
        let answer = crate::agent::wire::client(self.grpc()?).pull_image(request).await;
        Ok(answer.map_err(|s| crate::agent::wire::explain(&self.host, &s))?.into_inner())
    }

    /// The images that the cluster keeps.
    pub async fn images(&self) -> anyhow::Result<Vec<fleet::ImageRecord>> {
        let answer = crate::agent::wire::client(self.grpc()?).images(fleet::ImageRequest::default()).await;
        Ok(answer.map_err(|s| crate::agent::wire::explain(&self.host, &s))?.into_inner().images)
    }

    /// Takes a name out of what the cluster keeps.
    pub async fn remove_image(&self, reference: &str) -> anyhow::Result<fleet::ImageRecord> {
        let request = fleet::ImageRequest { reference: reference.to_owned() };
        let answer = crate::agent::wire::client(self.grpc()?).remove_image(request).await;
        Ok(answer.map_err(|s| crate::agent::wire::explain(&self.host, &s))?.into_inner())
    }

    /// The servers of the cluster.
    pub async fn members(&self) -> anyhow::Result<Vec<fleet::Member>> {
        let answer = crate::agent::wire::client(self.grpc()?).members(fleet::MembersRequest {}).await;
        Ok(answer.map_err(|s| crate::agent::wire::explain(&self.host, &s))?.into_inner().members)
    }

    /// Takes a server out of the cluster; those that are left.
    pub async fn remove_member(&self, name: &str) -> anyhow::Result<Vec<fleet::Member>> {
        let request = fleet::MemberName { name: name.to_owned() };
        let answer = crate::agent::wire::client(self.grpc()?).remove_member(request).await;
        Ok(answer.map_err(|s| crate::agent::wire::explain(&self.host, &s))?.into_inner().members)
    }

    /// Takes a step of the exchange of the cluster's authority (none, where it is empty); where that stands.
    pub async fn rotation(&self, step: &str) -> anyhow::Result<fleet::Rotation> {
        let request = fleet::RotationStep { step: step.to_owned() };
        let answer = crate::agent::wire::client(self.grpc()?).rotate_authority(request).await;
        Ok(answer.map_err(|s| crate::agent::wire::explain(&self.host, &s))?.into_inner())
    }

    /// The certificate with the authority behind it that is shown to the server, PEM; None where a token is.
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    async fn connect(&self) -> anyhow::Result<hyper::client::conn::http1::SendRequest<Full<Bytes>>> {
        let tcp =
            TcpStream::connect(&self.host).await.with_context(|| format!("connecting to the API at {}", self.host))?;
        tcp.set_nodelay(true)?;
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(h, _)| h);
        let name = rustls::pki_types::ServerName::try_from(name.trim_matches(['[', ']']).to_owned())?;
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(tls)).await?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    /// The same user at another server of the cluster.
    pub fn at(&self, host: String) -> Api {
        Api { host, ..self.clone() }
    }

    /// `host:port` of the server.
    pub fn host(&self) -> &str {
        &self.host
    }

    fn request(&self, method: &str, path: &str, accept: &str) -> http::request::Builder {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("accept", accept)
            .header("user-agent", concat!("skiff/", env!("CARGO_PKG_VERSION")));
        let request = self.acting.iter().fold(request, |request, (name, value)| request.header(name, value));
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends a request and gives the answer as it is.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        media: &str,
        body: Bytes,
    ) -> anyhow::Result<http::Response<Incoming>> {
        let mut request = self.request(method, path, "application/json");
        if !body.is_empty() {
            request = request.header("content-type", media);
        }
        let request = request.body(Full::new(body))?;
        Ok(self.connect().await?.send_request(request).await?)
    }

    /// The body of an answer in the form `accept`, to be read as it comes; a Status of failure is an error.
    pub async fn stream(&self, path: &str, accept: &str) -> anyhow::Result<Incoming> {
        let request = self.request("GET", path, accept).body(Full::new(Bytes::new()))?;
        let response = self.connect().await?.send_request(request).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(refused(response).await?)
    }

    /// A document in the form `accept`.
    pub async fn get_as(&self, path: &str, accept: &str) -> anyhow::Result<Value> {
        let bytes = self.stream(path, accept).await?.collect().await?.to_bytes();
        serde_json::from_slice(&bytes).with_context(|| format!("the server's answer to GET {path} is not JSON"))
    }

    /// Opens a WebSocket that speaks `protocol`.
    pub async fn websocket(&self, path: &str, protocol: &str) -> anyhow::Result<Socket> {
        let request = self
            .request("GET", path, "*/*")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", generate_key())
            .header("sec-websocket-protocol", protocol)
            .body(Full::new(Bytes::new()))?;
        let response = self.connect().await?.send_request(request).await?;
        if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(response).await?);
        }
        let upgraded = hyper::upgrade::on(response).await.context("upgrading the connection to a WebSocket")?;
        Ok(WebSocketStream::from_raw_socket(hyper_util::rt::TokioIo::new(upgraded), Role::Client, None).await)
    }

    /// Sends a request; a Status of failure is an error with its message.
    pub async fn call(&self, method: &str, path: &str, media: &str, body: Bytes) -> anyhow::Result<Value> {
        let response = self.send(method, path, media, body).await?;
        if !response.status().is_success() {
            return Err(refused(response).await?);
        }
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))))
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

/// Whom the user of a kubeconfig acts as (`as`, `as-uid`, `as-groups`, `as-user-extra`), in headers.
fn acting_as(user: &Value) -> Vec<(String, String)> {
    let texts = |value: &Value| -> Vec<String> {
        let list = value.as_array().cloned().unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(String::from).collect()
    };
    let one = |field: &str, header: &str| user[field].as_str().map(|text| (header.to_owned(), text.to_owned()));
    let mut headers: Vec<_> = one("as", "impersonate-user").into_iter().collect();
    headers.extend(one("as-uid", "impersonate-uid"));
    headers.extend(texts(&user["as-groups"]).into_iter().map(|group| ("impersonate-group".to_owned(), group)));
    for (key, values) in user["as-user-extra"].as_object().into_iter().flatten() {
        let name = format!("impersonate-extra-{}", key.replace('%', "%25").replace('/', "%2f"));
        headers.extend(texts(values).into_iter().map(|value| (name.clone(), value)));
    }
    headers
}

/// The error that an answer of failure stands for.
async fn refused(response: http::Response<Incoming>) -> anyhow::Result<anyhow::Error> {
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await?.to_bytes();
    let status = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
    Ok(ApiError { code, status }.into())
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
