//! Requests over real TLS, each on a connection of its own.

use super::Cluster;
use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::Value;
use skiff_identity::Pair;
use std::sync::Arc;
use std::time::Duration;

/// Who asks what.
#[derive(Clone, Default)]
pub struct Question<'a> {
    pub pair: Option<&'a Pair>,
    pub token: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    /// Without one: a merge patch for PATCH, JSON otherwise.
    pub media: &'a str,
    pub accept: &'a str,
    pub body: String,
}

/// What came back: the text of a watch is what it told within two seconds.
#[derive(Debug, Default)]
pub struct Reply {
    pub code: u16,
    pub text: String,
    pub warnings: Vec<String>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_string()
    }
}

impl Question<'_> {
    pub async fn ask(&self, cluster: &Cluster) -> anyhow::Result<Reply> {
        let mut config = skiff_identity::client(cluster.ca.certificate(), self.pair)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let socket = tokio::net::TcpStream::connect(cluster.address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("localhost")?, socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let media = match self.media {
            "" if self.method == "PATCH" => "application/merge-patch+json",
            "" => "application/json",
            media => media,
        };
        let mut request = Request::builder()
            .method(Method::from_bytes(self.method.as_bytes())?)
            .uri(format!("https://localhost{}", self.path))
            .header("content-type", media);
        if !self.accept.is_empty() {
            request = request.header("accept", self.accept);
        }
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        let response = sender.send_request(request.body(Body::from(self.body.clone()))?).await?;
        let code = response.status().as_u16();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.map(|w| String::from_utf8_lossy(w.as_bytes()).into_owned()).collect();
        let mut body = response.into_body();
        let mut text = Vec::new();
        let read = async {
            while let Some(Ok(frame)) = body.frame().await {
                text.extend_from_slice(frame.data_ref().map(AsRef::as_ref).unwrap_or_default());
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), read).await;
        connection.abort();
        Ok(Reply { code, text: String::from_utf8_lossy(&text).into_owned(), warnings })
    }
}

/// The usual question and the answer's JSON.
pub async fn ask(
    cluster: &Cluster,
    pair: Option<&Pair>,
    token: &str,
    method: Method,
    path: &str,
    body: Value,
) -> anyhow::Result<(u16, Value)> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let question = Question { pair, token, method: method.as_str(), path, body, ..Default::default() };
    let reply = question.ask(cluster).await?;
    Ok((reply.code, reply.json()))
}
