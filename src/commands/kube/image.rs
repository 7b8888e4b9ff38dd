//! `skiff image`: images that the cluster keeps, so that every node can run them without a registry.

use super::output::say;
use super::target::Cluster;
use anyhow::Context as _;
use skiff_proto::fleet as pb;
use std::path::PathBuf;
use std::process::ExitCode;

/// Images that the cluster keeps for its nodes
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Hand in an archive of images (docker save, or an OCI layout); every node can run them then
    Import {
        /// The archive
        file: PathBuf,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Let a server fetch an image from its registry and keep it
    Pull {
        /// The image, as a pod would name it
        name: String,
        /// A Docker configuration with the registry's password [default: $DOCKER_CONFIG/config.json or ~/.docker/config.json, where there is one]
        #[arg(long)]
        docker_config: Option<PathBuf>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// List what the cluster keeps
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Take names out; nodes keep what they run
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        cluster: Cluster,
    },
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    match options.verb {
        Verb::Import { file, cluster } => {
            for record in cluster.api()?.put_image(&file).await? {
                say(&format!("imported {}\n", describe(&record)))?;
            }
        }
        Verb::Pull { name, docker_config, cluster } => {
            let docker_config = read_docker_config(docker_config)?;
            let record = cluster.api()?.pull_image(&name, docker_config).await?;
            say(&format!("pulled {}\n", describe(&record)))?;
        }
        Verb::Ls { cluster } => say(&table(&cluster.api()?.images().await?))?,
        Verb::Rm { names, cluster } => {
            let api = cluster.api()?;
            for name in &names {
                let record = api.remove_image(name).await?;
                say(&format!("removed {}\n", record.reference))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(record: &pb::ImageRecord) -> String {
    format!("{} ({}, {} bytes)", record.reference, record.digest, record.size)
}

/// The configuration that was named must be there; the usual one may be absent.
fn read_docker_config(named: Option<PathBuf>) -> anyhow::Result<Vec<u8>> {
    if let Some(path) = named {
        return std::fs::read(&path).with_context(|| format!("reading the Docker configuration {}", path.display()));
    }
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")));
    Ok(folder.and_then(|f| std::fs::read(f.join("config.json")).ok()).unwrap_or_default())
}

/// The columns of `docker image ls`, for what a name stands for here.
fn table(images: &[pb::ImageRecord]) -> String {
    let mut rows = vec![["NAME".to_owned(), "IMAGE ID".into(), "CREATED".into(), "SIZE".into()]];
    for image in images {
        let id = image.digest.split(':').next_back().unwrap_or_default();
        let created = image.created.split('.').next().unwrap_or_default().trim_end_matches('Z').replace('T', " ");
        rows.push([image.reference.clone(), id.chars().take(12).collect(), created, size(image.size)]);
    }
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let line = |r: &[String; 4]| {
        let line = format!(
            "{:<a$}   {:<b$}   {:<c$}   {}",
            r[0],
            r[1],
            r[2],
            r[3],
            a = widths[0],
            b = widths[1],
            c = widths[2]
        );
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

/// Bytes for people: decimal units, as image sizes usually are.
fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_list_looks_like() {
        let image = |reference: &str, size| pb::ImageRecord {
            reference: reference.into(),
            digest: "sha256:0123456789abcdef".into(),
            size,
            created: "2026-11-25T10:00:00.123Z".into(),
        };
        let images = [image("docker.io/library/web:1", 512), image("skiff.local/demo:latest", 12_345_678)];
        let expect = "NAME                      IMAGE ID       CREATED               SIZE\n\
                      docker.io/library/web:1   0123456789ab   2026-11-25 10:00:00   512 B\n\
                      skiff.local/demo:latest   0123456789ab   2026-11-25 10:00:00   12.3 MB\n";
        assert_eq!(table(&images), expect);
    }
}
