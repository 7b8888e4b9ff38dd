//! `skiff member`: the servers of a cluster, and taking one out that does not come back.

use super::output::say;
use super::target::Cluster;
use skiff_proto::fleet as pb;
use std::process::ExitCode;

/// The servers of the cluster
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// List them
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Take one out for good; its certificate is refused from then on
    #[command(visible_alias = "remove")]
    Rm {
        /// Its name, or its id
        name: String,
        #[command(flatten)]
        cluster: Cluster,
    },
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    match options.verb {
        Verb::Ls { cluster } => say(&table(&cluster.api()?.members().await?))?,
        Verb::Rm { name, cluster } => {
            cluster.api()?.remove_member(&name).await?;
            say(&format!("removed {name}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(members: &[pb::Member]) -> String {
    let width = members.iter().map(|m| m.name.chars().count()).max().unwrap_or(0).max(4);
    let mut text = format!("{:<width$}   ROLE      {:<16}   API\n", "NAME", "ID");
    for m in members {
        text.push_str(&format!("{:<width$}   {:<8}  {:<16x}   {}\n", m.name, m.role, m.id, m.api_addr));
    }
    text
}
