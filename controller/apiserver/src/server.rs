//! The API server as a whole: made from a store, served on a listener, used from inside.

use crate::auth::authenticate::{authenticate, user_of_certificate};
use crate::auth::impersonate::impersonate;
use crate::auth::pod_graph::PodGraphCache;
use crate::auth::policy::PolicyCache;
use crate::auth::rbac::Attributes;
use crate::auth::token_file::TokenFile;
use crate::auth::user::UserInfo;
use crate::auth::{authorize, bootstrap};
use crate::bounds::Bounds;
use crate::budget::{self, Budget, Connection, Held};
use crate::call::{Answer, Body as CallBody};
use crate::client::Client;
use crate::config::Config;
use crate::dispatch::{self, Asked};
use crate::endpoints;
use crate::gate::{Counted, Gate, Pass};
use crate::http::media::{self, Offers, Wanted};
use crate::http::request::{Query, RequestInfo};
use crate::http::respond;
use crate::kubernetes;
use crate::metrics::{self, Metrics};
use crate::node::NodeConnector;
use crate::rules::new_uid;
use crate::state::State;
use crate::storage::objects::Objects;
use crate::stream::body;
use crate::sub;
use axum::body::Body;
use axum::response::Response;
use bytes::BytesMut;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use skiff_api::kinds;
use skiff_api::status::Status;
use skiff_store::Store;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The largest body of a request, as upstream.
const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// What the head of a request may fill over HTTP/1; HTTP/2 has 16 KiB.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
/// How long running requests may go on when the server stops.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Requests at the same time on one connection: an agent's logs, execs and forwarded ports come on a few.
const CONCURRENT_STREAMS_MAX: u32 = 4096;
/// What may be under way on one stream, and on all of a connection: a stream that is not read must not stop the others, so
/// the connection has room for all of them when they are full.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;

/// How long a connection stays open whose certificate is good no longer: whoever holds it is told why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Answers gRPC requests that come to the same listener.
pub type GrpcService = Arc<dyn Fn(Request<Body>) -> BoxFuture<'static, Response> + Send + Sync>;

/// The API server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) state: Arc<State>,
    grpc: Option<GrpcService>,
}

impl ApiServer {
    /// Makes the server and starts what keeps it current. The default namespaces and roles are made in the background;
    /// `/readyz` says when they are there.
    pub fn new(config: Config, store: impl Into<Objects>, nodes: Arc<dyn NodeConnector>) -> anyhow::Result<Self> {
        let store = store.into();
        let token_file = match &config.token_file {
            Some(path) => TokenFile::load(path)?,
            None => TokenFile::default(),
        };
        let policy = PolicyCache::default();
        tokio::spawn(policy.clone().follow(store.clone()));
        let pods = PodGraphCache::default();
        tokio::spawn(pods.clone().follow(store.clone()));
        let state = Arc::new(State {
            budget: Budget::new(&config.bounds),
            config,
            store,
            policy,
            pods,
            token_file,
            nodes,
            metrics: Metrics::default(),
            ready: false.into(),
        });
        let server = ApiServer { state, grpc: None };
        tokio::spawn(prepare(server.clone()));
        Ok(server)
    }

    /// Requests with a gRPC content type go to `grpc`; the certificate's user is in the extensions as
    /// `Option<PeerCertificate>`.
    pub fn with_grpc(self, grpc: GrpcService) -> Self {
        ApiServer { grpc: Some(grpc), ..self }
    }

    /// A user's hand on the API, from inside.
    pub fn client(&self, user: UserInfo) -> Client {
        Client::new(self.state.clone(), user)
    }

    /// A token of a service account that is kept in `secret`, and ends with it or with the account.
    pub fn account_token(&self, secret: &serde_json::Value, account: &str, account_uid: &str) -> String {
        sub::token::kept(&self.state, secret, account, account_uid)
    }

    /// For what concerns no object: members, leadership, how far it is.
    pub fn store(&self) -> &Store {
        self.state.store.store()
    }

    pub fn objects(&self) -> &Objects {
        &self.state.store
    }

    /// Whether the default namespaces and roles are there.
    pub fn is_ready(&self) -> bool {
        self.state.ready.load(Ordering::Acquire)
    }

    /// Waits until the default namespaces and roles are there.
    pub async fn ready(&self) {
        while !self.is_ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Serves until `shutdown`; with TLS where a configuration is given.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let address = listener.local_addr()?.to_string();
        let acceptor = tls.map(TlsAcceptor::from);
        let connections = TaskTracker::new();
        let gate = Gate::new(&self.state.config.bounds);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(pass) = gate.enter(from.ip()) else { continue };
            let _ = stream.set_nodelay(true);
            let (server, acceptor, address, shutdown) =
                (self.clone(), acceptor.clone(), address.clone(), shutdown.clone());
            connections.spawn(async move { server.welcome(stream, pass, acceptor, address, shutdown).await });
        }
        connections.close();
        let _ = tokio::time::timeout(DRAIN_MAX, connections.wait()).await;
        Ok(())
    }

    /// The handshake, then the connection, which has its place as long as `pass` lives.
    async fn welcome(
        &self,
        stream: tokio::net::TcpStream,
        mut pass: Pass,
        acceptor: Option<TlsAcceptor>,
        address: String,
        shutdown: CancellationToken,
    ) {
        let Some(acceptor) = acceptor else {
            pass.shaken();
            return self.connection(Counted::new(stream, pass), None, address, shutdown).await;
        };
        match tokio::time::timeout(self.bounds().handshake, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                pass.shaken();
                let peer = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
                let peer = peer.map(|c| PeerCertificate { der: c.to_vec() });
                self.connection(Counted::new(stream, pass), peer, address, shutdown).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    fn bounds(&self) -> &Bounds {
        &self.state.config.bounds
    }

    async fn connection<S>(
        &self,
        stream: S,
        peer: Option<PeerCertificate>,
        address: String,
        shutdown: CancellationToken,
    ) where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let user = peer.as_ref().and_then(|p| user_of_certificate(&p.der));
        let asked = std::sync::atomic::AtomicBool::new(false);
        let first_request = self.bounds().first_request;
        let end = Connection::default();
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(end.clone());
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            let (server, user, address) = (self.clone(), user.clone(), address.clone());
            async move { Ok::<_, Infallible>(server.handle(request, user.as_ref(), &address).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .max_concurrent_streams(CONCURRENT_STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .timer(hyper_util::rt::TokioTimer::new());
        builder
            .http1()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(Some(first_request))
            .max_buf_size(HEADERS_BYTES_MAX);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        // A connection over which nothing was asked yet may not wait for ever: neither version's time-outs have begun then.
        let silent = async {
            tokio::time::sleep(first_request).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = silent => {
                tracing::debug!("a connection asked nothing in time");
                return;
            }
            () = end.0.cancelled() => return,
            () = self.revoked(peer.as_ref()) => {
                tracing::info!("a connection was ended: its certificate is good no longer");
                return;
            }
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }

    /// Answers one request. `certificate` is the user of a verified client certificate.
    pub async fn handle(&self, request: Request<Body>, certificate: Option<&UserInfo>, address: &str) -> Response {
        if let Some(grpc) = &self.grpc
            && request.headers().get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"))
        {
            return grpc(request).await;
        }
        let began = Instant::now();
        self.state.metrics.begin();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = RequestInfo::parse(request.method().as_str(), request.uri().path(), &query);
        let head = request.method() == Method::HEAD;
        let accept = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
        let mut warnings = Vec::new();
        let standing = self.is_good(request.extensions().get::<PeerCertificate>());
        let (info, outcome) = match info {
            Ok(info) => {
                let outcome = match standing {
                    Ok(()) => self.route(request, &info, query, certificate, address, &mut warnings).await,
                    Err(refused) => Err(refused),
                };
                (info, outcome)
            }
            // Who it is comes first: strangers do not learn which paths there are.
            Err(status) => {
                let known = authenticate(&self.state, request.headers(), certificate).await;
                (RequestInfo::default(), Err(known.err().unwrap_or(status)))
            }
        };
        let mut response = outcome.unwrap_or_else(|status| {
            let wanted = media::negotiate(&accept, Offers::Objects).unwrap_or_default();
            respond::status(&status, Wanted { shape: media::Shape::Plain, ..wanted })
        });
        respond::add_warnings(&mut response, &warnings);
        if let Ok(id) = HeaderValue::from_str(&new_uid()) {
            response.headers_mut().insert(HeaderName::from_static("audit-id"), id);
        }
        response
            .headers_mut()
            .entry(http::header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-cache, private"));
        if head {
            *response.body_mut() = Body::empty();
        }
        let (verb, resource) = metrics::labels(&info);
        self.state.metrics.end(verb, &resource, response.status().as_u16(), began.elapsed());
        response
    }

    /// An answer in the form that is wanted; a long one waits for its part of the memory, and holds it until it was read.
    async fn put(
        &self,
        answer: Answer,
        wanted: Wanted,
        include: &str,
        parts: &mut http::request::Parts,
    ) -> Result<Response, Status> {
        let stored = match &answer {
            Answer::List(list) => list.items.iter().map(|item| item.bytes.len()).sum(),
            _ => 0,
        };
        if stored <= budget::SMALL_BYTES {
            return respond::answer(answer, wanted, include);
        }
        // A plain list is the stored bytes beside each other; for every other form they are parsed.
        let times = if respond::is_spliced(wanted) { 1 } else { budget::PARSED };
        let held = self.state.budget.take(stored.saturating_mul(times)).await?;
        let (head, body) = respond::answer(answer, wanted, include)?.into_parts();
        let bytes = body.collect().await.map_err(Status::internal_error)?.to_bytes();
        let within = self.bounds().read_within(bytes.len());
        let connection = parts.extensions.remove::<Connection>().unwrap_or_default();
        Ok(Response::from_parts(head, budget::body(bytes, held, within, connection)))
    }

    /// Returns when the certificate of an open connection is good no longer, and what is under way by it had the time to say so.
    async fn revoked(&self, peer: Option<&PeerCertificate>) {
        if let (Some(peer), Some(check)) = (peer, &self.state.config.certificates) {
            let mut moments = check.moments.clone();
            moments.mark_unchanged();
            while moments.changed().await.is_ok() {
                if self.is_good(Some(peer)).is_err() {
                    return tokio::time::sleep(LAST_WORDS).await;
                }
            }
        }
        std::future::pending().await
    }

    /// Refuses a certificate that was good once: of a node that was removed, say.
    fn is_good(&self, certificate: Option<&PeerCertificate>) -> Result<(), Status> {
        let (Some(certificate), Some(check)) = (certificate, &self.state.config.certificates) else { return Ok(()) };
        (check.check)(&certificate.der).map_err(|why| Status { message: why, ..Status::unauthorized() })
    }

    async fn route(
        &self,
        request: Request<Body>,
        info: &RequestInfo,
        query: Query,
        certificate: Option<&UserInfo>,
        address: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Response, Status> {
        let state = &self.state;
        let user = authenticate(state, request.headers(), certificate).await?;
        let user = impersonate(state, user, request.headers()).await?;
        authorize::require(state, &user, &Attributes::from(info)).await?;
        let (mut parts, body) = request.into_parts();
        if !info.is_resource {
            let (path, method) = (&info.path, &info.verb);
            let asked = endpoints::Asked { path, method, query: &query, headers: &parts.headers, address };
            return endpoints::answer(state, &asked).await;
        }
        let text =
            |name: HeaderName| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
        let agent = manager_of(&text(USER_AGENT));
        let accept = text(ACCEPT);
        let content_type = text(CONTENT_TYPE);
        if dispatch::is_connect(info) {
            let asked = Asked { user, info: info.clone(), query, body: CallBody::Empty, agent, fence: None };
            let call = dispatch::call(asked)?;
            return sub::connect::handle(state, call, &mut parts).await;
        }
        // The form of the answer is settled before anything is done.
        let answered_only = info.verb == "create"
            && kinds::by_resource(&info.group, &info.version, &info.resource).is_some_and(|kind| !kind.is_stored());
        let offers = if answered_only { Offers::PlainOnly } else { Offers::Objects };
        let mut wanted = media::negotiate(&accept, offers).ok_or_else(|| Status::not_acceptable(media::ACCEPTED))?;
        wanted.pretty |= query.flag("pretty");
        let include = query.text("includeObject").to_string();
        let (body, _held) = read_body(body, media::essence(&content_type), state).await?;
        let asked = Asked { user, info: info.clone(), query, body, agent, fence: None };
        let mut call = dispatch::call(asked)?;
        let answer = dispatch::answer(state, &mut call).await;
        warnings.append(&mut call.warnings);
        let answer = self.put(answer?, wanted, &include, &mut parts).await?;
        if info.verb == "watch" && body::is_asked(&parts) {
            return body::in_messages(&mut parts, answer, true).await;
        }
        Ok(answer)
    }
}

/// The certificate that a client showed, verified by TLS; DER.
#[derive(Clone, Debug)]
pub struct PeerCertificate {
    pub der: Vec<u8>,
}

/// The field manager of a client that does not name one: the first word of its user agent.
fn manager_of(agent: &str) -> String {
    let word = agent.split('/').next().unwrap_or_default();
    let clean: String = word.chars().filter(|c| !c.is_control()).take(128).collect();
    if clean.is_empty() { "unknown".into() } else { clean }
}

/// Reads a body piece by piece, each within the memory that requests have together.
async fn read_body(body: Body, media: &str, state: &State) -> Result<(CallBody, Held), Status> {
    let mut held = Held::default();
    let mut bytes = BytesMut::new();
    let mut body = Limited::new(body, BODY_BYTES_MAX);
    let reading = tokio::time::timeout(state.config.bounds.body, async {
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) if error.downcast_ref::<http_body_util::LengthLimitError>().is_some() => {
                    return Err(Status::too_large(&format!("limit is {BODY_BYTES_MAX}")));
                }
                Err(error) => return Err(Status::bad_request(format!("reading the body: {error}"))),
            };
            if let Some(data) = frame.data_ref() {
                held.add(state.budget.take(data.len() * budget::PARSED).await?);
                bytes.extend_from_slice(data);
            }
        }
        Ok(())
    });
    match reading.await {
        Ok(read) => read?,
        Err(_) => return Err(Status::timeout("reading the body took too long: send it at once", 1)),
    }
    if bytes.is_empty() {
        return Ok((CallBody::Empty, held));
    }
    let media = if media.is_empty() { "application/json" } else { media };
    Ok((CallBody::Raw { bytes: bytes.freeze(), media: media.to_string() }, held))
}

/// Makes what every cluster begins with, and keeps the `kubernetes` Service.
async fn prepare(server: ApiServer) {
    let client = server.client(bootstrap::user()).with_manager("kube-apiserver");
    let mut wait = Duration::from_millis(50);
    loop {
        let made = async {
            bootstrap::run(&client).await?;
            kubernetes::ensure_services(&server.state, &client).await
        };
        match made.await {
            Ok(()) => break,
            Err(status) => tracing::debug!(%status, "the cluster's first objects could not be made yet"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(2));
    }
    let _ = server.state.policy.refresh(&server.state.store).await;
    server.state.ready.store(true, Ordering::Release);
    kubernetes::follow(server).await;
}
