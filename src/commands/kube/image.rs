//! `skiff image`: images that the cluster keeps, so that every node can run them without a registry.

use super::output::say;
use super::target::Cluster;
use std::path::PathBuf;
use std::process::ExitCode;

/// Hand images to the cluster
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Hand in the archive of an image (docker save, or an OCI layout); every node can run it then
    Import {
        /// The archive
        file: PathBuf,
        #[command(flatten)]
        cluster: Cluster,
    },
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let Verb::Import { file, cluster } = options.verb;
    let record = cluster.api()?.put_image(&file).await?;
    say(&format!("imported {} ({}, {} bytes)\n", record.reference, record.digest, record.size))?;
    Ok(ExitCode::SUCCESS)
}
