//! `skiff image`: images that the cluster keeps, so that every node can run them without a registry.

use super::output::say;
use super::target::Cluster;
use crate::agent::wire;
use anyhow::Context as _;
use skiff_proto::fleet as pb;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const CHUNK_BYTES: usize = 1 << 20;

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
    let mut archive = tokio::fs::File::open(&file).await.with_context(|| format!("opening {}", file.display()))?;
    let api = cluster.api()?;
    let own = api
        .own
        .as_ref()
        .context("images are handed in with an administrator's certificate; the kubeconfig has only a token")?;
    let channel = wire::channel(api.host(), &api.ca, Some(own))?;
    let (send, chunks) = mpsc::channel(4);
    let read = async {
        loop {
            let mut data = bytes::BytesMut::with_capacity(CHUNK_BYTES);
            let count = archive.read_buf(&mut data).await.with_context(|| format!("reading {}", file.display()))?;
            if count == 0 {
                break;
            }
            // Who does not take the rest says why in the answer.
            if send.send(pb::ImageChunk { reference: String::new(), data: data.freeze() }).await.is_err() {
                break;
            }
        }
        drop(send);
        anyhow::Ok(())
    };
    let mut client = wire::client(channel);
    let (read, answer) = tokio::join!(read, client.put_image(ReceiverStream::new(chunks)));
    read?;
    let record = answer.map_err(|status| wire::explain(api.host(), &status))?.into_inner();
    say(&format!("imported {} ({}, {} bytes)\n", record.reference, record.digest, record.size))?;
    Ok(ExitCode::SUCCESS)
}
