//! `skiff up`, `down` and `status`: a local cluster to work with.

use super::cluster::{Cluster, Shape, items, registry};
use super::default_dir;
use skiff_local::Host;
use std::path::PathBuf;
use std::process::ExitCode;

/// Start a cluster on this machine
#[derive(clap::Args, Debug)]
pub struct UpArgs {
    /// Servers: 1 or 3
    #[arg(long, default_value_t = 1)]
    servers: usize,
    /// Nodes that run pods
    #[arg(long, default_value_t = 2)]
    agents: usize,
    /// Where the cluster is kept
    #[arg(long, default_value_os_t = default_dir())]
    dir: PathBuf,
}

/// End the local cluster and remove every trace of it
#[derive(clap::Args, Debug)]
pub struct DownArgs {
    #[arg(long, default_value_os_t = default_dir())]
    dir: PathBuf,
}

/// Show the local cluster's members, nodes and processes
#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    #[arg(long, default_value_os_t = default_dir())]
    dir: PathBuf,
    /// Start a server or agent again
    #[arg(long, value_name = "NAME")]
    restart: Option<String>,
}

pub async fn up(args: UpArgs) -> anyhow::Result<ExitCode> {
    let begun = std::time::Instant::now();
    let cluster = match Cluster::open(&args.dir) {
        // It runs: what died is started again.
        Ok(cluster) => {
            for node in cluster.host.status()?.nodes.into_iter().filter(|n| n.pid.is_none()) {
                cluster.host.restart(&node.name)?;
                tell!("{} was not running; it is started again", node.name);
            }
            cluster.renew_kubeconfig()?;
            cluster
        }
        Err(_) => {
            let shape = Shape {
                dir: args.dir.clone(),
                servers: args.servers.max(1),
                agents: args.agents,
                tied: false,
                uplink: true,
            };
            Cluster::start(&shape).await?
        }
    };
    tell!("{} servers and {} agents are ready ({:.2} s)", args.servers, args.agents, begun.elapsed().as_secs_f64());
    tell!("export KUBECONFIG={}", cluster.dir.join("kubeconfig").display());
    Ok(ExitCode::SUCCESS)
}

pub async fn down(args: DownArgs) -> anyhow::Result<ExitCode> {
    let dir = std::path::absolute(&args.dir)?;
    match Host::open(&dir, &registry()) {
        Ok(host) => host.shutdown()?,
        Err(_) => drop(skiff_local::registry::sweep(&registry())?),
    }
    // Whatever is there of a cluster, also of one that never came up; any other folder is none of ours.
    let signs = ["kubeconfig", "subnet", "supervisor.json"];
    if signs.iter().any(|name| dir.join(name).exists()) {
        std::fs::remove_dir_all(&dir)?;
    }
    tell!("the local cluster in {} is gone", dir.display());
    Ok(ExitCode::SUCCESS)
}

pub async fn status(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(&args.dir)?;
    if let Some(name) = &args.restart {
        let pid = cluster.host.restart(name)?;
        tell!("{name} runs again (pid {} in the cluster)", pid);
        return Ok(ExitCode::SUCCESS);
    }
    let status = cluster.host.status()?;
    tell!("{:<6} {:<16} {:<9} {:<24} LOG", "NAME", "ADDRESS", "PID", "STATE");
    for node in &status.nodes {
        let pid = node.pid.and_then(|p| cluster.host.outer_pid(p).ok());
        let state = match (&node.ended, node.cut) {
            (Some(ended), _) if node.pid.is_none() => ended.clone(),
            (_, Some(cut)) => format!("running, link cut ({cut:?})"),
            _ => "running".into(),
        };
        let pid = pid.map_or("-".into(), |p| p.to_string());
        tell!("{:<6} {:<16} {:<9} {:<24} {}", node.name, node.address, pid, state, node.log.display());
    }
    match cluster.api.get("/api/v1/nodes").await {
        Ok(nodes) => {
            tell!();
            for node in items(&nodes) {
                let ready = if super::cluster::is_ready(node) { "Ready" } else { "NotReady" };
                tell!("node {:<6} {ready}", node["metadata"]["name"].as_str().unwrap_or_default());
            }
            tell!("\nleader {}", cluster.leader().await.unwrap_or_else(|_| "unknown".into()));
        }
        Err(e) => tell!("\nthe API does not answer: {e:#}"),
    }
    tell!("\nexport KUBECONFIG={}", cluster.dir.join("kubeconfig").display());
    Ok(ExitCode::SUCCESS)
}
