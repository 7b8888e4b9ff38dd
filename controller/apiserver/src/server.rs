//! The API server as a whole: made from a store, served on a listener, used from inside.

use crate::auth::authenticate::authenticate;
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
use crate::gate::Gate;
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
use skiff_api::kinds;
use skiff_api::status::Status;
use skiff_store::Store;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The largest body of a request, as upstream.
const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// How long running requests may go on when the server stops.
const DRAIN_MAX: Duration = Duration::from_secs(2);
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

    pub(crate) fn bounds(&self) -> &Bounds {
        &self.state.config.bounds
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
        let mut held = self.state.budget.take(stored.saturating_mul(times)).await?;
        let (head, body) = respond::answer(answer, wanted, include)?.into_parts();
        let bytes = body.collect().await.map_err(Status::internal_error)?.to_bytes();
        // What was parsed is gone; the client may take long to read the rest.
        held.keep(bytes.len());
        let within = self.bounds().read_within(bytes.len());
        let connection = parts.extensions.remove::<Connection>().unwrap_or_default();
        Ok(Response::from_parts(head, budget::body(bytes, held, within, connection)))
    }

    /// Refuses a certificate that was good once: of a node that was removed, say.
    pub(crate) fn is_good(&self, certificate: Option<&PeerCertificate>) -> Result<(), Status> {
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

/// Where a request comes from, in its extensions: an IPv4 address, or the network (64 bits) of an IPv6 address.
#[derive(Clone, Copy, Debug)]
pub struct PeerSource(pub IpAddr);

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
