//! `skiff demo`: the main job, shown and checked on this machine.
//!
//! Three servers and three agents, each a process in a network namespace of its own; the manifests of `manifests/demo` applied through the API; and then,
//! while two pods send 200 requests a second, everything that usually hurts: scaling, a rollout, a killed leader, a lost node, a killed container. Each step
//! says what it measured; the exit code says whether all checks held.

mod acts;
mod report;
mod traffic;
pub mod world;
pub mod writer;

use super::cluster::{Cluster, Shape};
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use world::World;

/// Show and check the main job on this machine
#[derive(clap::Args, Debug)]
pub struct DemoArgs {
    /// Leave the cluster up at the end
    #[arg(long)]
    keep: bool,
    /// Where the cluster is kept [default: a folder of its own under the system's temporary one]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs the demo. Whatever happens, the cluster goes when it ends, unless it is to be kept.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let dir =
        args.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("skiff-demo-{}", std::process::id())));
    let shape = Shape { dir, servers: 3, agents: 3, tied: !args.keep, uplink: false };
    report::step("three servers and three agents, each a process in a network namespace of its own");
    let cluster = Cluster::start(&shape).await?;
    let mut report = Report::default();
    report.time("cluster of 3 servers and 3 agents ready", begun.elapsed(), None);
    let played = tokio::select! {
        played = play(&cluster, &mut report) => played,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(e) = played {
        report.broken(&format!("{e:#}"));
    }
    report.time("the whole demo", begun.elapsed(), Some(std::time::Duration::from_secs(90)));
    if args.keep {
        tell!("\nexport KUBECONFIG={}", cluster.dir.join("kubeconfig").display());
        tell!("skiff down --dir {}   # when you are done", cluster.dir.display());
    } else {
        if report.failed() && std::env::var_os("SKIFF_DEMO_LOGS").is_some() {
            keep_logs(&cluster.dir);
        }
        cluster.host.shutdown()?;
    }
    report.print();
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Copies the processes' logs beside the folder that is about to go.
fn keep_logs(dir: &std::path::Path) {
    let to = dir.with_extension("logs");
    let _ = std::fs::create_dir_all(&to);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|e| e == "log") {
            let _ = std::fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
    tell!("the logs are in {}", to.display());
}

async fn play(cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    let world = World::new(cluster);
    acts::deploy(&world, report).await?;
    acts::resolve_and_answer(&world, report).await?;
    acts::scale(&world, report).await?;
    acts::roll_out(&world, report).await?;
    acts::kill_leader(&world, report).await?;
    acts::lose_node(&world, report).await?;
    acts::kill_container(&world, report).await
}
