//! `skiff scale`: how many pods a workload shall have.

use super::discovery::Discovery;
use super::names;
use super::output::say;
use super::target::Cluster;
use anyhow::bail;
use serde_json::json;
use std::process::ExitCode;

/// Set how many pods a Deployment or ReplicaSet has
#[derive(clap::Args, Debug)]
pub struct Options {
    /// TYPE NAME or TYPE/NAME
    #[arg(required = true)]
    resource: Vec<String>,
    /// How many
    #[arg(long)]
    replicas: u32,
    /// Only if there are this many now
    #[arg(long)]
    current_replicas: Option<u64>,
    #[command(flatten)]
    cluster: Cluster,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let api = options.cluster.api()?;
    let discovery = Discovery::load(&api).await?;
    let (resource, name) = names::one(&discovery, &options.resource)?;
    let path = format!("{}/scale", resource.path(Some(&api.namespace), &name));
    let mut body = json!({"spec": {"replicas": options.replicas}});
    if let Some(expected) = options.current_replicas {
        let scale = api.get(&path).await?;
        let now = scale["spec"]["replicas"].as_u64().unwrap_or(0);
        if now != expected {
            bail!("{}/{name} has {now} replicas, not {expected}; nothing was changed", resource.qualified());
        }
        // The version makes the server refuse when somebody was faster.
        body["metadata"] = json!({"resourceVersion": scale["metadata"]["resourceVersion"]});
    }
    api.patch(&path, "application/merge-patch+json", &body).await?;
    say(&format!("{}/{name} scaled\n", resource.qualified()))?;
    Ok(ExitCode::SUCCESS)
}
