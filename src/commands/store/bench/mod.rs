//! `skiff store bench`: the same load on any etcd v3 server, and side by side on Skiff's store and etcd.
//!
//! Side by side means: fresh data directories on the same disk, one server after the other for each load, in the same minutes. Beside
//! throughput and latency stands the server's CPU time an operation, and the floor: a call that does nothing, over the same connections.

mod load;
mod servers;

use anyhow::Context as _;
use load::{Load, Measured};
use servers::Server;
use std::path::PathBuf;
use std::time::Duration;

/// Measure an etcd v3 server, or Skiff's store beside etcd
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Client address of a server that runs already
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "etcd")]
    endpoint: Option<String>,
    /// Its process, whose CPU time is then counted
    #[arg(long, requires = "endpoint")]
    pid: Option<u32>,
    /// Start Skiff's store and this etcd binary, and compare them
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "etcd")]
    etcd: Option<PathBuf>,
    /// Connections that the clients share
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// How long each load runs, seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Watchers of the fan-out load
    #[arg(long, default_value_t = 1000)]
    watchers: usize,
    /// Only the loads whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where the data directories are made
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl BenchArgs {
    fn loads(&self) -> Vec<Load> {
        let clients = [1, 64, 256, 1000];
        let all = [Load::Floor(1), Load::Floor(256)]
            .into_iter()
            .chain(clients.map(Load::Put))
            .chain([1, 64, 256].map(Load::Get))
            .chain([1, 64].map(Load::GetSerializable))
            .chain([Load::Range(8), Load::Txn(1), Load::Txn(64), Load::Mixed(64), Load::LeaseChurn(64)])
            .chain([Load::Watch(self.watchers)]);
        let wanted = |load: &Load| self.only.is_empty() || self.only.iter().any(|o| load.name().contains(o));
        all.filter(wanted).collect()
    }
}

/// Runs the loads and prints what came of them.
pub async fn run(args: BenchArgs) -> anyhow::Result<()> {
    let time = Duration::from_secs(args.seconds);
    if let Some(endpoint) = &args.endpoint {
        let target = load::Target::new(endpoint, args.connections, args.value_bytes).await?;
        println!("{}", Measured::HEADER);
        for load in args.loads() {
            println!("{}", load.run(&target, time, args.pid).await?.line(""));
        }
        return Ok(());
    }
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut servers = vec![Server::skiff(&dir).await?];
    if let Some(etcd) = &args.etcd {
        servers.push(Server::etcd(etcd, &dir).await.context("starting etcd")?);
    }
    let mut targets = Vec::new();
    for server in &servers {
        targets.push(load::Target::new(&server.endpoint, args.connections, args.value_bytes).await?);
    }
    println!("{}", Measured::HEADER);
    for load in args.loads() {
        let mut both = Vec::new();
        for (server, target) in servers.iter().zip(&targets) {
            let measured = load.run(target, time, Some(server.pid())).await?;
            println!("{}", measured.line(&server.name));
            both.push(measured);
        }
        if let [ours, theirs] = &both[..] {
            println!("{}", ours.ratio(theirs));
        }
    }
    for server in &servers {
        println!("{:8} resident memory at the end: {} MiB", server.name, server.resident_bytes() >> 20);
    }
    Ok(())
}
