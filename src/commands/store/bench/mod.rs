//! `skiff store bench`: the same load on any etcd v3 server, and side by side on Skiff's store and etcd.
//!
//! Side by side means: fresh data directories on the same disk, one server after the other for each load, in the same minutes. Beside
//! throughput and latency stands the server's CPU time an operation, and the floor: a call that does nothing, over the same connections.

mod load;
mod measure;
mod pool;
mod servers;
mod watch;
mod wire;

use anyhow::Context as _;
use load::{Load, Target};
use measure::Measured;
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
            .chain([1, 16].map(|under_way| Load::Watch(self.watchers, under_way)));
        let wanted = |load: &Load| self.only.is_empty() || self.only.iter().any(|o| load.name().contains(o));
        all.filter(wanted).collect()
    }
}

/// Runs the loads and prints what came of them.
pub async fn run(args: BenchArgs) -> anyhow::Result<()> {
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut servers = Vec::new();
    match (&args.endpoint, args.pid) {
        (Some(endpoint), pid) => servers.push(Server::running(endpoint, pid)),
        (None, _) => servers.push(Server::skiff(&dir).await?),
    }
    if let Some(etcd) = &args.etcd {
        servers.push(Server::etcd(etcd, &dir).await.context("starting etcd")?);
    }
    tokio::task::spawn_blocking(move || compare(&args, &servers)).await?
}

fn compare(args: &BenchArgs, servers: &[Server]) -> anyhow::Result<()> {
    let time = Duration::from_secs(args.seconds);
    println!("{}", Measured::HEADER);
    for load in args.loads() {
        let mut both = Vec::new();
        for server in servers {
            let mut target = Target::new(&server.endpoint, args.connections, args.value_bytes)?;
            let measured = load.run(&mut target, time, Some(server))?;
            println!("{}", measured.line(&server.name));
            both.push(measured);
        }
        if let [ours, theirs] = &both[..] {
            println!("{}", ours.ratio(theirs));
        }
    }
    for server in servers {
        println!("{:8} resident memory at the end: {} MiB", server.name, server.resident_bytes() >> 20);
    }
    Ok(())
}
