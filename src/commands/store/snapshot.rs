//! `skiff store snapshot`: take a snapshot from a running member, look at one, make a new cluster of one.

use super::member::MemberArgs;
use super::peers;
use anyhow::{Context as _, ensure};
use clap::Subcommand;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use skiff_store::RestoreOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

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
    #[command(flatten)]
    member: MemberArgs,
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
    let channel = args.member.connect().await?;
    let failed = |e: &tonic::Status| args.member.failed("taking a snapshot from", e);
    let mut client = MaintenanceClient::new(channel).max_decoding_message_size(64 << 20);
    let mut stream = client.snapshot(pb::SnapshotRequest {}).await.map_err(|e| failed(&e))?.into_inner();
    let unfinished = Unfinished::beside(&args.file);
    let path = &unfinished.0;
    let mut file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let (mut size, mut left) = (0, u64::MAX);
    while let Some(chunk) = stream.message().await.map_err(|e| failed(&e))? {
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
