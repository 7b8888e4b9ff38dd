//! `skiff store serve`: a member of the store, with the etcd v3 API for clients.

use super::peer_files::{PeerFiles, pem};
use super::{address, peers};
use anyhow::{Context as _, bail, ensure};
use skiff_etcd::{Api, ClientTls, Settings};
use skiff_store::{Config, Limits, PeerPem, PeerTls, Store};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

/// Run a member of the store and serve the etcd v3 API
#[derive(clap::Args)]
pub struct ServeArgs {
    /// This member's name
    #[arg(long, default_value = "default")]
    name: String,
    /// Where the data lies [default: NAME.skiff-store]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Address for clients: gRPC, and /health, /metrics, /version over HTTP
    #[arg(long, default_value = "127.0.0.1:2379", value_name = "HOST:PORT")]
    listen_client: String,
    /// Address for the other members
    #[arg(long, default_value = "127.0.0.1:2380", value_name = "HOST:PORT")]
    listen_peer: String,
    /// Where clients reach this member [default: the client listener]
    #[arg(long, value_name = "URL")]
    advertise_client: Option<String>,
    /// Where the other members reach this one [default: the peer listener]
    #[arg(long, value_name = "HOST:PORT")]
    advertise_peer: Option<String>,
    /// All members of a new cluster, this one too: name=host:port,... Without it this member begins alone; others can join later
    #[arg(long, value_name = "NAME=HOST:PORT,...", conflicts_with = "join")]
    initial_cluster: Option<String>,
    /// Tells clusters apart that begin with the same addresses
    #[arg(long, default_value = "skiff")]
    initial_cluster_token: String,
    /// Peer addresses of a running cluster to join
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    join: Vec<String>,
    /// Join without a vote, until promoted
    #[arg(long, requires = "join")]
    learner: bool,
    /// Certificate of the client listener (PEM); with --key-file
    #[arg(long, requires = "key_file")]
    cert_file: Option<PathBuf>,
    #[arg(long, requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Clients must show a certificate of this authority (PEM)
    #[arg(long, requires = "cert_file")]
    trusted_ca_file: Option<PathBuf>,
    /// Certificate of this member for its peers (PEM); with --peer-key-file and --peer-trusted-ca-file
    #[arg(long, requires = "peer_key_file", requires = "peer_trusted_ca_file")]
    peer_cert_file: Option<PathBuf>,
    #[arg(long, requires = "peer_cert_file")]
    peer_key_file: Option<PathBuf>,
    /// The authority of all members' certificates (PEM)
    #[arg(long, requires = "peer_cert_file")]
    peer_trusted_ca_file: Option<PathBuf>,
    /// The name (a SAN) that every member's certificate carries
    #[arg(long, default_value = "skiff-store")]
    peer_server_name: String,
    /// Each member has a key of its own, for good: a certificate of another key does not speak as that member, and one of a removed member's key not at all
    #[arg(long, requires = "peer_cert_file")]
    peer_own_keys: bool,
    /// Serve without TLS beyond loopback, too
    #[arg(long)]
    insecure: bool,
    /// Bytes of all versions together, above which only deletes and compaction are accepted; 0 for no limit
    #[arg(long, default_value_t = 2 << 30)]
    quota_bytes: usize,
    /// Revisions of history that automatic compaction keeps at least
    #[arg(long, default_value_t = 100_000)]
    history_revisions: usize,
    /// Age from which history is dropped, as 90s, 30m or 12h; 0 keeps it
    #[arg(long, default_value = "0", value_parser = duration)]
    history_age: Duration,
    /// Bytes of history above which it is dropped sooner
    #[arg(long, default_value_t = 256 << 20)]
    history_bytes: usize,
    /// Bytes of the largest request
    #[arg(long, default_value_t = 3 << 19)]
    max_request_bytes: usize,
    /// Operations in a transaction
    #[arg(long, default_value_t = 128)]
    max_txn_ops: usize,
    /// How often watches that asked for it are told their progress
    #[arg(long, default_value = "10m", value_parser = duration)]
    watch_progress_interval: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no duration: write 90s, 30m or 12h"))?;
    let seconds = match unit {
        "" | "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        "ms" => return Ok(Duration::from_millis(number)),
        _ => return Err(format!("{text:?} is no duration: write 90s, 30m or 12h")),
    };
    // The store counts milliseconds in 64 bits.
    let seconds = seconds.filter(|seconds| seconds.checked_mul(1000).is_some());
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is longer than can be counted: 0 means without end"))
}

fn listen(addr: &str, whose: &str, secure: bool) -> anyhow::Result<TcpListener> {
    let addr = address(addr)?;
    let listener = TcpListener::bind(&addr).with_context(|| format!("listening for {whose} at {addr}"))?;
    let loopback = listener.local_addr()?.ip().is_loopback();
    ensure!(
        secure || loopback,
        "{addr} is not on loopback, and without TLS everyone on the way could read and change the data: give certificates for {whose}, or --insecure"
    );
    Ok(listener)
}

/// Where a listener can be dialled, if that can be told from where it listens.
fn dialled(listens: SocketAddr, flag: &str) -> anyhow::Result<String> {
    ensure!(
        !listens.ip().is_unspecified(),
        "{listens} is every address of this machine and none that others could dial: say with {flag} where they reach it"
    );
    Ok(listens.to_string())
}

impl ServeArgs {
    fn peer_tls(&self) -> anyhow::Result<Option<(PeerTls, PeerFiles, PeerPem)>> {
        let (Some(certificate), Some(key), Some(ca)) =
            (self.peer_cert_file.clone(), self.peer_key_file.clone(), self.peer_trusted_ca_file.clone())
        else {
            return Ok(None);
        };
        let files = PeerFiles { ca, certificate, key };
        let read = files.read()?;
        let tls = PeerTls::new(&read, &self.peer_server_name)?;
        Ok(Some((if self.peer_own_keys { tls.with_own_keys() } else { tls }, files, read)))
    }

    fn client_tls(&self) -> anyhow::Result<Option<ClientTls>> {
        let (Some(certificate), Some(key)) = (&self.cert_file, &self.key_file) else { return Ok(None) };
        let client_ca = self.trusted_ca_file.as_deref().map(pem).transpose()?;
        Ok(Some(ClientTls { certificate: pem(certificate)?, key: pem(key)?, client_ca }))
    }
}

/// Runs the member until it is told to stop.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let (peer_tls, client_tls) = (args.peer_tls()?, args.client_tls()?);
    let peer_listener = listen(&args.listen_peer, "peers", args.insecure || peer_tls.is_some())?;
    let client_listener = listen(&args.listen_client, "clients", args.insecure || client_tls.is_some())?;
    let (peer_bound, client_bound) = (peer_listener.local_addr()?, client_listener.local_addr()?);
    let scheme = if client_tls.is_some() { "https" } else { "http" };
    let client_url = match &args.advertise_client {
        Some(url) => url.clone(),
        None => format!("{scheme}://{}", dialled(client_bound, "--advertise-client")?),
    };
    let peer_addr = match &args.advertise_peer {
        Some(addr) => address(addr)?,
        None => dialled(peer_bound, "--advertise-peer")?,
    };
    let initial = args.initial_cluster.as_deref().map(peers).transpose()?.unwrap_or_default();
    if !initial.is_empty() && !initial.iter().any(|p| p.addr == peer_addr) {
        bail!(
            "this member's peer address {peer_addr} is not in --initial-cluster; set --advertise-peer to the one that is"
        );
    }
    let dir = args.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.skiff-store", args.name)));
    let store = Store::start(Config {
        dir: Some(dir.clone()),
        name: args.name.clone(),
        peer_addr,
        client_addr: client_url.clone(),
        listener: Some(peer_listener),
        tls: peer_tls.as_ref().map(|(tls, ..)| tls.clone()),
        join: args.join.iter().map(|a| address(a)).collect::<Result<_, _>>()?,
        initial,
        initial_token: args.initial_cluster_token.clone(),
        learner: args.learner,
        limits: Limits {
            history_revisions: args.history_revisions,
            history_bytes: args.history_bytes,
            history_age: (!args.history_age.is_zero()).then_some(args.history_age),
            quota_bytes: args.quota_bytes,
        },
    })
    .await?;
    if let Some((tls, files, read)) = peer_tls {
        tokio::spawn(files.follow(tls, read));
    }
    // Reading the data, the end of the log too, took more memory than holding it does.
    let read = store.clone();
    tokio::spawn(async move {
        let _ = read.barrier().await;
        let _ = tokio::task::spawn_blocking(crate::memory::give_back_now).await;
    });
    let settings = Settings {
        request_bytes_max: args.max_request_bytes,
        txn_ops_max: args.max_txn_ops,
        progress_every: args.watch_progress_interval,
    };
    tracing::info!(
        member = format_args!("{:x}", store.id()),
        cluster = format_args!("{:x}", store.cluster_id()),
        data = %dir.display(),
        peers = %peer_bound,
        "serving the etcd v3 API at {client_url}"
    );
    let mut failure = store.failure();
    let serving = skiff_etcd::serve(client_listener, Api::new(store.clone(), settings), client_tls);
    let result = tokio::select! {
        served = serving => served,
        failed = failure.wait_for(Option::is_some) => match failed.as_deref() {
            Ok(Some(why)) => Err(anyhow::anyhow!("the store stopped: {why}")),
            _ => Ok(()),
        },
        signal = stop_signal() => signal,
    };
    store.stop().await;
    result
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expect: Option<Duration>| assert_eq!(duration(text).ok(), expect, "{text}");
        check("90", Some(Duration::from_secs(90)));
        check("90s", Some(Duration::from_secs(90)));
        check("30m", Some(Duration::from_secs(1800)));
        check("12h", Some(Duration::from_secs(43_200)));
        check("250ms", Some(Duration::from_millis(250)));
        for bad in [
            "",
            "h",
            "-1s",
            "1d",
            "1.5h",
            "307445734561825861m",
            "18446744073709551615h",
            "18446744073709551615",
            "99999999999999999999s",
        ] {
            check(bad, None);
        }
    }
}
