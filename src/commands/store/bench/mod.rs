//! `skiff store bench`: the same load on any etcd v3 server, and side by side on Skiff's store and etcd.
//!
//! Side by side means: fresh data directories on the same disk, one server after the other for each load, in the same minutes. Beside
//! throughput and latency stands the server's CPU time an operation, and the floor: a call that does nothing, over the same connections.
//!
//! | module | is |
//! |---|---|
//! | `wire`, `pool` | the load generator's HTTP/2 client |
//! | `load`, `watch` | the loads of clients that ask and wait |
//! | `keys` | a store with many keys: memory, snapshots, starting again |
//! | `inside` | the store without gRPC |
//! | `failover` | three members, and leaders that die or freeze |
//! | `servers`, `measure` | what is measured, and what of it |

mod failover;
mod inside;
mod keys;
mod load;
mod measure;
mod pool;
mod servers;
mod watch;
mod wire;

use anyhow::Context as _;
use failover::Trio;
use load::{Load, Target};
use measure::Measured;
use nix::sys::signal::Signal;
use servers::{Make, Server, members};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Measure an etcd v3 server, or Skiff's store beside etcd
#[derive(clap::Args)]
pub struct BenchArgs {
    /// What is measured
    #[arg(value_enum, default_value = "loads")]
    what: What,
    /// Client address of a server that runs already; for the loads only
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
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=32768))]
    value_bytes: u32,
    /// Watchers of the fan-out load
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    watchers: u32,
    /// Keys of `keys`
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// How often `failover` kills, and how often it freezes the leader
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Only the loads whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where the data directories are made
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// Empty calls, puts, gets, ranges, transactions, leases and watches by clients that each ask, wait for the answer and ask again
    Loads,
    /// A store filled with many keys: time, memory, the longest put while a snapshot is taken, the time until it serves after a kill
    Keys,
    /// Puts into Skiff's store without gRPC, in this process
    Inside,
    /// Puts through the leader of three members on this machine
    Members,
    /// Three members: the time without writes after the leader is killed (SIGKILL), and after it is frozen (SIGSTOP)
    Failover,
}

impl BenchArgs {
    fn loads(&self) -> Vec<Load> {
        let all = [Load::Floor(1), Load::Floor(64), Load::Floor(256)]
            .into_iter()
            .chain([1, 64, 256, 1000].map(Load::Put))
            .chain([1, 64, 256].map(Load::Get))
            .chain([1, 64].map(Load::GetSerializable))
            .chain([Load::Range(8), Load::Txn(1), Load::Txn(64), Load::Mixed(64), Load::LeaseChurn(64)])
            .chain([1, 16].map(|under_way| Load::Watch(self.watchers as usize, under_way)));
        let wanted = |load: &Load| self.only.is_empty() || self.only.iter().any(|o| load.name().contains(o));
        all.filter(wanted).collect()
    }

    fn value_bytes(&self) -> usize {
        self.value_bytes as usize
    }

    /// Skiff's store, and etcd if it was asked for.
    fn makes(&self) -> Vec<Make> {
        std::iter::once(Make::Skiff).chain(self.etcd.clone().map(Make::Etcd)).collect()
    }
}

/// Measures and prints.
pub async fn run(args: BenchArgs) -> anyhow::Result<()> {
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    if let What::Inside = args.what {
        println!("{}", Measured::HEADER);
        for tasks in [1, 64, 256, 1000] {
            let time = Duration::from_secs(args.seconds);
            println!("{}", inside::run(&dir, tasks, args.value_bytes(), time).await?.line("skiff"));
        }
        return Ok(());
    }
    tokio::task::spawn_blocking(move || match args.what {
        What::Loads | What::Inside => compare(&args, &dir),
        What::Keys => args.makes().iter().try_for_each(|make| keys::run(make, &dir, args.keys, args.value_bytes())),
        What::Members => trios(&args, &dir),
        What::Failover => args.makes().iter().try_for_each(|make| fail_over(make, &dir, args.rounds)),
    })
    .await?
}

fn compare(args: &BenchArgs, dir: &Path) -> anyhow::Result<()> {
    let mut servers = Vec::new();
    match &args.endpoint {
        Some(endpoint) => servers.push(Server::running(endpoint, args.pid)),
        None => {
            for make in args.makes() {
                let member = members(&make, 1, dir)?.pop().context("no member")?;
                servers.push(member.start()?);
            }
        }
    }
    println!("{}", Measured::HEADER);
    for load in args.loads() {
        side_by_side(&servers, |server| {
            let mut target = Target::new(&server.endpoint, args.connections, args.value_bytes())?;
            load.run(&mut target, Duration::from_secs(args.seconds), Some(server))
        })?;
    }
    Ok(())
}

/// The same on each, and the ratio if there are two.
fn side_by_side<S: Named>(servers: &[S], measure: impl Fn(&S) -> anyhow::Result<Measured>) -> anyhow::Result<()> {
    let mut both = Vec::new();
    for server in servers {
        let measured = measure(server)?;
        println!("{}", measured.line(server.name()));
        both.push(measured);
    }
    if let [ours, theirs] = &both[..] {
        println!("{}", ours.ratio(theirs));
    }
    Ok(())
}

trait Named {
    fn name(&self) -> &str;
}

impl Named for Server {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Trio {
    fn name(&self) -> &str {
        self.name()
    }
}

fn trios(args: &BenchArgs, dir: &Path) -> anyhow::Result<()> {
    let trios = args.makes().iter().map(|make| Trio::start(make, dir)).collect::<anyhow::Result<Vec<_>>>()?;
    println!("{}", Measured::HEADER);
    for clients in [1, 64, 256] {
        let time = Duration::from_secs(args.seconds);
        side_by_side(&trios, |trio| trio.puts(clients, args.connections, args.value_bytes(), time))?;
    }
    Ok(())
}

fn fail_over(make: &Make, dir: &Path, rounds: usize) -> anyhow::Result<()> {
    let mut trio = Trio::start(make, dir)?;
    for (signal, what) in [(Signal::SIGKILL, "killed"), (Signal::SIGSTOP, "frozen")] {
        let outages = trio.outages(signal, rounds)?;
        println!("{}", failover::line(trio.name(), what, &outages)?);
    }
    Ok(())
}
