//! `skiff store snapshot`: take a snapshot from a running member, look at one, make a new cluster of one.

use super::{address, peers};
use anyhow::{Context as _, ensure};
use clap::Subcommand;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use skiff_store::RestoreOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Take, check and restore snapshots of the store
#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Save a snapshot of a running member to a file
    Save(SaveArgs),
    /// Check a snapshot and say what it holds
    Status {
        file: PathBuf,
    },
    Restore(RestoreArgs),
}

#[derive(clap::Args)]
pub struct SaveArgs {
    file: PathBuf,
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

/// Make the data of a new cluster's member from a snapshot: run it for each member with the same file and the same list
#[derive(clap::Args)]
pub struct RestoreArgs {
    file: PathBuf,
    /// A directory that does not exist yet
    #[arg(long)]
    data_dir: PathBuf,
    /// This member's name in the list
    #[arg(long, default_value = "default")]
    name: String,
    /// All members of the new cluster [default: this one alone]
    #[arg(long, value_name = "NAME=HOST:PORT,...")]
    initial_cluster: Option<String>,
    #[arg(long, default_value = "skiff")]
    initial_cluster_token: String,
    /// This member's peer address, where it begins alone
    #[arg(long, default_value = "127.0.0.1:2380")]
    advertise_peer: String,
    /// Added to the revision, so that no client meets a revision that it has seen with other contents; everything before counts as
    /// compacted
    #[arg(long, default_value_t = 1_000_000_000)]
    bump_revision: u64,
}

/// Runs one of them.
pub async fn run(command: SnapshotCommand) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Save(args) => save(args).await,
        SnapshotCommand::Status { file } => {
            let s = skiff_store::snapshot_status(&file)?;
            println!("hash       {:08x}", s.hash);
            println!("revision   {} (compacted to {})", s.revision, s.compacted);
            println!("keys       {}", s.keys);
            println!("leases     {}", s.leases);
            println!("size       {} bytes", s.size_bytes);
            for member in s.members {
                println!("member     {:x} {} {}", member.id, member.name, member.peer_addr);
            }
            Ok(())
        }
        SnapshotCommand::Restore(args) => restore(&args),
    }
}

fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let initial = match &args.initial_cluster {
        Some(list) => peers(list)?,
        None => peers(&format!("{}={}", args.name, args.advertise_peer))?,
    };
    let own = initial.iter().find(|p| p.name == args.name);
    let own = own.with_context(|| format!("no member of the initial cluster is called {:?}; set --name", args.name))?;
    let options = RestoreOptions {
        data_dir: args.data_dir.clone(),
        peer_addr: own.addr.clone(),
        initial: initial.clone(),
        initial_token: args.initial_cluster_token.clone(),
        revision_bump: args.bump_revision,
    };
    let id = skiff_store::restore(&args.file, &options)?;
    println!(
        "restored as member {id:x}; start it: skiff store serve --name {} --data-dir {} --listen-peer {}",
        args.name,
        args.data_dir.display(),
        own.addr
    );
    Ok(())
}

async fn save(args: SaveArgs) -> anyhow::Result<()> {
    let secure = args.endpoint.starts_with("https://");
    let url = if secure { args.endpoint.clone() } else { format!("http://{}", address(&args.endpoint)?) };
    let mut endpoint = Endpoint::from_shared(url.clone())?;
    if secure {
        let read = |file: &PathBuf| std::fs::read(file).with_context(|| format!("reading {}", file.display()));
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &args.cacert {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let (Some(certificate), Some(key)) = (&args.cert, &args.key) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        endpoint = endpoint.tls_config(tls)?;
    }
    let channel = endpoint.connect().await.with_context(|| format!("connecting to {url}"))?;
    let mut client = MaintenanceClient::new(channel).max_decoding_message_size(64 << 20);
    let mut stream = client.snapshot(pb::SnapshotRequest {}).await.map_err(|e| failed(&url, &e))?.into_inner();
    let unfinished = Unfinished::beside(&args.file);
    let path = &unfinished.0;
    let mut file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let (mut size, mut left) = (0, u64::MAX);
    while let Some(chunk) = stream.message().await.map_err(|e| failed(&url, &e))? {
        file.write_all(&chunk.blob).with_context(|| format!("writing {}", path.display()))?;
        (size, left) = (size + chunk.blob.len(), chunk.remaining_bytes);
    }
    ensure!(left == 0, "the member ended the snapshot {left} bytes before its end; try again");
    file.sync_all().with_context(|| format!("writing {}", path.display()))?;
    let status = skiff_store::snapshot_status(path)?;
    std::fs::rename(path, &args.file).with_context(|| format!("naming the snapshot {}", args.file.display()))?;
    println!("saved {} keys at revision {}, {size} bytes, to {}", status.keys, status.revision, args.file.display());
    Ok(())
}

/// A failed call, down to its cause.
fn failed(url: &str, status: &tonic::Status) -> anyhow::Error {
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
    if std::error::Error::source(status).is_some() && url.starts_with("https://") {
        text.push_str(" (if the member turned our certificate away, its log says why)");
    }
    anyhow::anyhow!("taking a snapshot from {url}: {text}")
}

/// A file that is being written; what is left of it goes when this does.
struct Unfinished(PathBuf);

impl Unfinished {
    fn beside(file: &Path) -> Self {
        let mut name = file.as_os_str().to_owned();
        name.push(".part");
        Unfinished(name.into())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
