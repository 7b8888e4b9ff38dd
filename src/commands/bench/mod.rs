//! `skiff bench`: the figures of `docs/figures.md`, measured again by whoever doubts them.
//!
//! Each measurement starts a cluster of its own on this machine, as the demo does, repeats what it measures, and removes the cluster. It prints medians and
//! tails; it does not judge. What must hold is for the tests and the demo to say.

mod idle;
mod leader;
mod node;
mod samples;
mod start;
mod up;

use super::cluster::{Cluster, Shape};
use samples::Table;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure this machine's clusters
#[derive(clap::Args, Debug)]
pub struct BenchArgs {
    /// What to measure; everything when nothing is named
    #[arg(value_enum)]
    what: Vec<What>,
    /// How often, in place of each measurement's own number
    #[arg(long)]
    runs: Option<usize>,
    /// How long an idle cluster rests before it is looked at, seconds
    #[arg(long, default_value_t = 60)]
    rest_s: u64,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// `skiff up` with 1 server and 2 agents until all are Ready
    Up,
    /// A pod from apply to Running, its image present
    Start,
    /// kill -9 of the leader until the next acknowledged write
    Leader,
    /// Loss of a node until its endpoints are withdrawn and its pods replaced
    Node,
    /// Memory and processor time of an idle server and idle agents
    Idle,
}

/// Measures, one thing after the other. Whatever happens, clusters go when it ends.
pub async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let all = [What::Up, What::Start, What::Leader, What::Node, What::Idle];
    let what = if args.what.is_empty() { all.to_vec() } else { args.what.clone() };
    let mut table = Table::default();
    let measured = tokio::select! {
        measured = measure(&what, &args, &mut table) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    table.print();
    measured?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(what: &[What], args: &BenchArgs, table: &mut Table) -> anyhow::Result<()> {
    let runs = |own: usize| args.runs.unwrap_or(own).max(1);
    for what in what {
        match what {
            What::Up => up::measure(runs(10), table).await?,
            What::Start => start::measure(runs(50), table).await?,
            What::Leader => leader::measure(runs(100), table).await?,
            What::Node => node::measure(runs(20), table).await?,
            What::Idle => idle::measure(std::time::Duration::from_secs(args.rest_s), table).await?,
        }
    }
    Ok(())
}

/// A folder of this run's own.
fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("skiff-bench-{name}-{}", std::process::id()))
}

/// A cluster that ends with this process, or when it is dropped.
async fn cluster(name: &str, servers: usize, agents: usize) -> anyhow::Result<Cluster> {
    tell!("\n==> {name}: {servers} servers, {agents} agents");
    Cluster::start(&Shape { dir: folder(name), servers, agents, tied: true, uplink: false }).await
}
