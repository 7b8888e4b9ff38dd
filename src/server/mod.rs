//! `skiff server`: one process that holds a member of the store, the API, and (while it leads) the controllers and the scheduler.
//!
//! ```text
//!   TLS listener -> API server -> store -> feed -> shared view -> controllers, scheduler (leader only) -> API server
//!                \-> fleet (gRPC from agents) <----------------/
//! ```

mod authority;
mod control;
mod controllers;
mod descriptors;
mod door;
mod files;
mod images;
mod join;
mod joins;
mod members;
mod node;
mod nodes;
mod renew;
mod revoked;
mod scheduling;
pub(crate) mod sealing;
mod standing;
mod upstream;
mod view;

use crate::supervise;
use anyhow::Context as _;
use skiff_apiserver::{
    ApiServer, Bounds, CertificateCheck, Cidr, Config as ApiConfig, FurtherMetrics, Objects, OwnPaths, Sealing,
    TokenSigner, UserInfo,
};
use skiff_fleet::{Beats, Calls, Detector, FleetService};
use skiff_identity::{SERVER_NAME, Subject};
use skiff_reconcile::Settings;
use skiff_store::{PeerPem, PeerTls, Store};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub use control::run_without_agents;
pub use files::Files;
pub use join::write_token;

/// The issuer of service account tokens: what Kubernetes clients expect inside a cluster.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// How long a token is good that was made before the cluster: for the machines that are started together with it.
const BOOTSTRAP_TOKEN_LIFE: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Where the server that leads writes its name.
pub const LEADER_LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/skiff-leader";

/// How a server is started.
#[derive(Clone)]
pub struct Options {
    pub name: String,
    pub data_dir: PathBuf,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The address at which peers and agents reach this server.
    pub advertise: IpAddr,
    pub peer_port: u16,
    /// `host:port` of a server of the cluster to join, and a server's token.
    pub join: Option<(String, String)>,
    /// Further names and addresses for the API's certificate.
    pub tls_san: Vec<String>,
    pub cluster_cidr: String,
    pub service_cidr: String,
    pub token_file: Option<PathBuf>,
    /// Tokens to accept from the start (made with the CA beforehand).
    pub bootstrap_tokens: Vec<String>,
    /// How long a lost node keeps its pods, milliseconds.
    pub eviction_grace_ms: i64,
    /// How long the certificates that this server gives out are good.
    pub certificate_life: jiff::SignedDuration,
    pub anonymous: bool,
    /// Run controllers and scheduler when this server leads.
    pub controllers: bool,
    /// Run a node on this machine too.
    pub agent: bool,
    /// Kinds (`resource` or `resource.group`) that are sealed in the store.
    pub sealed: Vec<String>,
    /// Registries (`host:port`) that speak plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Most processes and threads in a pod of this machine's node; 0 for no limit.
    pub pod_pids_limit: u64,
    /// Sysctls beyond the safe ones that pods of this machine's node may set.
    pub allowed_unsafe_sysctls: Vec<String>,
}

/// What the parts of a server share.
pub(crate) struct Shared {
    pub options: Options,
    pub authority: authority::Authority,
    pub files: Files,
    pub store: Store,
    pub service_cidr: Cidr,
    pub images: images::Images,
    /// The keys that seal Secrets, and the store as the API sees it: with them.
    pub sealing: sealing::Keeper,
    pub objects: Objects,
    /// This server's certificate, for when it is a client of its peers.
    pub own: skiff_identity::Own,
    /// The same, towards the other servers' stores.
    pub peer_tls: PeerTls,
    /// Whether joining machines are judged yet: before that, a token may only not have been written.
    pub admits: std::sync::atomic::AtomicBool,
}

impl Shared {
    /// The address of cluster DNS: the tenth of the Services' range.
    fn cluster_dns(&self) -> Ipv4Addr {
        self.service_cidr.nth(10)
    }

    /// Where every server's API is.
    fn servers(&self) -> Vec<String> {
        self.store.members().into_iter().map(|m| m.client_addr).filter(|a| !a.is_empty()).collect()
    }
}

/// What a server shows to the other servers' stores, and whom it trusts there.
fn peer_pem(bundle: &str, own: skiff_identity::Pair) -> PeerPem {
    PeerPem { ca: bundle.to_owned(), certificate: own.certificate, key: own.key }
}

/// Runs a server until it is told to stop.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let service_cidr = parse_cidr(&options.service_cidr).context("--service-cidr")?;
    let cluster_cidr = parse_cidr(&options.cluster_cidr).context("--cluster-cidr")?;
    let files = Files::new(options.data_dir.clone())?;
    let listener = std::net::TcpListener::bind(options.listen)
        .with_context(|| format!("listening on {} for the API (is another server running there?)", options.listen))?;
    listener.set_nonblocking(true)?;
    let peer_listen = SocketAddr::new(options.listen.ip(), options.peer_port);
    let peer_listener = std::net::TcpListener::bind(peer_listen)
        .with_context(|| format!("listening on {peer_listen} for the other servers"))?;
    let peers = join::prepare(&options, &files).await?;
    let authority =
        authority::Authority::load(&files, options.certificate_life).context("reading the cluster's authority")?;
    let subject = subject(&options, service_cidr)?;
    let own = authority.ca().issue_for(&subject, &files.server_key()?).context("making this server's certificate")?;
    let shown = skiff_identity::Own::new(own.clone())?;
    let peer_tls = PeerTls::new(&peer_pem(&authority.bundle(), own), SERVER_NAME)?.with_own_keys();
    let tls = skiff_identity::server_with(authority.trust(), &shown)?;
    let api_addr = SocketAddr::new(options.advertise, options.listen.port()).to_string();
    let store = Store::start(skiff_store::Config {
        dir: Some(files.store()),
        name: options.name.clone(),
        peer_addr: SocketAddr::new(options.advertise, options.peer_port).to_string(),
        client_addr: api_addr.clone(),
        listener: Some(peer_listener),
        tls: Some(peer_tls.clone()),
        join: peers,
        ..Default::default()
    })
    .await?;
    let images = images::Images::open(&options.data_dir.join("server/images"), &options.insecure_registries)?;
    let keeper = sealing::Keeper::open(&files)?;
    let sealing = Sealing::new(keeper.ring.clone(), &options.sealed)
        .context("--seal")?
        .and(authority::STEP)
        .following(keeper.following());
    let shared = Arc::new(Shared {
        options: options.clone(),
        authority,
        files,
        store: store.clone(),
        service_cidr,
        images,
        sealing: keeper,
        objects: Objects::new(store.clone(), sealing),
        own: shown,
        peer_tls,
        admits: false.into(),
    });
    let api = start_api(&shared, listener, tls, &api_addr, cluster_cidr, stop.clone()).await?;
    files_for_people(&shared)?;
    let keeping = shared.clone();
    tokio::spawn(supervise::forever("sealing", move || sealing::run(keeping.clone())));
    let (renewing, of) = (shared.clone(), subject.clone());
    tokio::spawn(supervise::forever("certificate", move || renew::run(renewing.clone(), of.clone())));
    let following = shared.clone();
    tokio::spawn(supervise::forever("authority", move || authority::follow(following.clone(), subject.clone())));
    let client = api.client(UserInfo::apiserver());
    api.ready().await;
    for token in &options.bootstrap_tokens {
        // A server that cannot write Secrets now (it lacks the key that seals them) serves what it can.
        if let Err(e) = join::accept_token(&client, &token.parse()?, Some(BOOTSTRAP_TOKEN_LIFE)).await {
            tracing::error!("nobody can join with the token of --bootstrap-token: {e:#}");
        }
    }
    shared.admits.store(true, std::sync::atomic::Ordering::Release);
    tracing::info!(
        name = options.name,
        api = api_addr,
        member = format_args!("{:x}", store.id()),
        "this server is ready"
    );
    let (keeping, until) = (shared.clone(), stop.clone());
    tokio::spawn(supervise::forever("images", move || images::keep(keeping.clone(), until.clone())));
    tokio::spawn(crate::memory::give_back());
    let agent = options.agent.then(|| tokio::spawn(node::run(shared.clone(), client.clone(), stop.clone())));
    wait_for_signal(&store).await;
    store.stop().await;
    stop.cancel();
    if let Some(agent) = agent {
        let _ = agent.await;
    }
    Ok(())
}

async fn start_api(
    shared: &Arc<Shared>,
    listener: std::net::TcpListener,
    tls: Arc<rustls::ServerConfig>,
    api_addr: &str,
    cluster_cidr: Cidr,
    stop: CancellationToken,
) -> anyhow::Result<ApiServer> {
    let options = &shared.options;
    let mut config = ApiConfig::new(Arc::new(TokenSigner::from_pem(ISSUER, &shared.files.token_key()?)?));
    config.token_file = options.token_file.clone();
    config.service_cidr = shared.service_cidr;
    config.anonymous = options.anonymous;
    config.ca_pem = shared.authority.bundle();
    config.advertise = api_addr.to_owned();
    // Pods cannot reach a loopback address, and the API refuses one in Endpoints.
    if !options.advertise.is_loopback() {
        config.endpoints = vec![api_addr.parse()?];
    }
    config.cluster_dns = Some(shared.cluster_dns());
    config.controllers = options.controllers;
    let (view, changes) = view::follow(shared.objects.clone());
    config.bounds = Bounds::default().with_descriptors(descriptors::raise());
    let (known, members, trust) = (view.clone(), shared.store.clone(), shared.authority.trust().clone());
    let check = Arc::new(move |der: &[u8]| standing::check(&known, &members, &trust, der));
    let (moment, moments) = tokio::sync::watch::channel(0);
    config.certificates = Some(CertificateCheck { check, moments });
    let (watching, news) = (shared.clone(), changes.clone());
    let counting = move || revoked::count(watching.clone(), news.subscribe(), moment.clone());
    tokio::spawn(supervise::forever("revoked", counting));
    let calls = Arc::new(Calls::default());
    let beats = Arc::new(Beats::new(Detector::default()));
    let counted = beats.clone();
    let counts = move || counted.metrics(std::time::Instant::now()) + &supervise::metrics();
    config.further_metrics = Some(FurtherMetrics(Arc::new(counts)));
    let asked = shared.clone();
    config.own_paths = Some(OwnPaths(Arc::new(move |method, path| {
        let shared = asked.clone();
        Box::pin(async move { sealing::orders::answer(&shared, &method, &path).await })
    })));
    let api = ApiServer::new(config, shared.objects.clone(), Arc::new(nodes::Connector::new(calls.clone())))?;
    let desk = authority::Desk { store: shared.objects.clone(), view: view.clone(), beats: beats.clone() };
    let upstream = Arc::new(upstream::ApiUpstream::new(shared.clone(), api.clone(), desk));
    let fleet = FleetService { view: view.clone(), beats: beats.clone(), calls, upstream };
    let api = api.with_grpc(door::open(fleet, shared.store.clone(), shared.authority.trust().clone()));
    let serving = api.clone();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
        if let Err(e) = serving.serve(listener, Some(tls), stop).await {
            tracing::error!("the API's listener ended: {e:#}");
        }
    });
    if options.controllers {
        let settings = Settings {
            ca: shared.authority.bundle(),
            eviction_grace_ms: options.eviction_grace_ms,
            event_ttl_seconds: 3600,
            cluster_cidr: (cluster_cidr.base, cluster_cidr.bits),
        };
        tokio::spawn(control::run(
            options.name.clone(),
            api.clone(),
            view,
            changes,
            beats,
            settings,
            shared.authority.bundles(),
        ));
    }
    Ok(api)
}

/// The names and addresses under which clients may find this server's API.
fn subject(options: &Options, service_cidr: Cidr) -> anyhow::Result<Subject> {
    let mut names: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from).to_vec();
    names.push("kubernetes.default.svc.cluster.local".into());
    names.push(options.name.clone());
    let mut addresses = vec![options.advertise, IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(service_cidr.nth(1))];
    for san in &options.tls_san {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(san.clone()),
        }
    }
    Ok(Subject::Server { name: options.name.clone(), names, addresses })
}

/// A kubeconfig for the administrator, readable by root only.
pub(crate) fn files_for_people(shared: &Shared) -> anyhow::Result<()> {
    let admin = Subject::User { name: "kubernetes-admin".into(), group: Some("system:masters".into()) };
    let pair = shared.authority.ca().issue(&admin)?;
    let server = format!("https://127.0.0.1:{}", shared.options.listen.port());
    shared
        .files
        .write_secret("admin.kubeconfig", &crate::client::kubeconfig(&server, &shared.authority.bundle(), &pair))
}

async fn wait_for_signal(store: &Store) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut failure = store.failure();
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return;
    };
    tokio::select! {
        _ = term.recv() => tracing::info!("stopping"),
        _ = int.recv() => tracing::info!("stopping"),
        // The process goes on no longer than its replica: what supervises it starts it again.
        _ = failure.wait_for(Option::is_some) => {}
    }
}

/// `10.43.0.0/16`, at most a /8 and at least a /30.
fn parse_cidr(text: &str) -> anyhow::Result<Cidr> {
    text.parse().map_err(|e| anyhow::anyhow!("{text:?} is not a range like 10.43.0.0/16: {e}"))
}
