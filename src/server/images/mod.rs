//! The cluster's images: what was handed in by `skiff image import` or `pull` is kept by every server, and nodes take it from any of them.
//!
//! ```text
//!   import, pull, rm -> this server's content store, then the catalogue (names, in the replicated store)
//!   catalogue        -> every server: fetch what is missing from another server, drop what is no longer named
//! ```

mod catalogue;
mod keep;

use super::Shared;
use crate::transfer;
use skiff_fleet::UpstreamError;
use skiff_proto::fleet as pb;
use skiff_runtime::image::{Credentials, ImageName};
use skiff_runtime::{ImageRecord, ImageStore};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;

pub use keep::run as keep;

/// A server's own copies.
#[derive(Clone)]
pub struct Images {
    store: ImageStore,
    /// Held for reading while an image is taken in and not yet in the catalogue.
    entering: Arc<tokio::sync::RwLock<()>>,
}

impl Images {
    pub fn open(dir: &Path, insecure_registries: &[String]) -> anyhow::Result<Images> {
        let store = ImageStore::open(dir, insecure_registries)?;
        // Beside the folders of server and agent, which both read it.
        if let Some(data_dir) = dir.parent().and_then(Path::parent) {
            store.trust(data_dir.join("registries"));
        }
        Ok(Images { store, entering: Arc::default() })
    }

    /// The archive of an image, in chunks.
    pub fn send(&self, reference: String) -> Result<mpsc::Receiver<pb::ImageChunk>, String> {
        match self.store.resolve(&reference) {
            Some(_) => Ok(transfer::send(&self.store, reference)),
            None => Err(not_kept(&reference)),
        }
    }
}

fn not_kept(reference: &str) -> String {
    format!("the cluster keeps no image {reference:?}; `skiff image ls` lists them, `skiff image import` hands one in")
}

fn refused(error: impl std::fmt::Display) -> UpstreamError {
    UpstreamError::Refused(format!("{error:#}"))
}

/// A reference in full, `docker.io/library/web:1` for `web:1`.
fn full_name(reference: &str) -> Result<String, UpstreamError> {
    ImageName::parse(reference).map(|name| name.to_string()).map_err(refused)
}

fn record(name: &str, image: &ImageRecord) -> pb::ImageRecord {
    pb::ImageRecord {
        reference: name.to_owned(),
        digest: image.id.to_string(),
        size: image.size_bytes,
        created: image.created.clone(),
    }
}

/// Takes an archive in and keeps its images for the cluster; a record for each name, at least one. Returns when the other servers that answer have
/// them too, so that the loss of this one loses no image.
pub async fn take(
    shared: &Arc<Shared>,
    chunks: mpsc::Receiver<pb::ImageChunk>,
) -> Result<Vec<pb::ImageRecord>, UpstreamError> {
    let entering = shared.images.entering.read().await;
    let images = transfer::take(&shared.images.store, chunks).await.map_err(refused)?;
    let records: Vec<_> = images.iter().flat_map(|image| image.names.iter().map(|name| record(name, image))).collect();
    if records.is_empty() {
        return Err(refused("the archive names no image; give it a tag when you save it"));
    }
    catalogue::put(&shared.store, &records).await?;
    drop(entering);
    keep::everywhere(shared, &records).await;
    Ok(records)
}

/// Fetches an image from its registry and keeps it for the cluster, as [`take`] does.
pub async fn pull(shared: &Arc<Shared>, request: pb::PullRequest) -> Result<pb::ImageRecord, UpstreamError> {
    let name = ImageName::parse(&request.reference).map_err(refused)?;
    let credentials = Credentials::from_docker_config(&request.docker_config, &name);
    let entering = shared.images.entering.read().await;
    let image = shared.images.store.pull(&request.reference, credentials.as_ref()).await.map_err(refused)?;
    let records = [record(&name.to_string(), &image)];
    catalogue::put(&shared.store, &records).await?;
    drop(entering);
    keep::everywhere(shared, &records).await;
    let [record] = records;
    Ok(record)
}

/// The catalogue; or, for one reference, what this server holds under it.
pub async fn list(shared: &Arc<Shared>, reference: &str) -> Result<Vec<pb::ImageRecord>, UpstreamError> {
    if reference.is_empty() {
        return catalogue::all(&shared.store).await;
    }
    let held = shared.images.store.resolve(reference);
    Ok(held.map(|image| record(reference, &image)).into_iter().collect())
}

/// Takes a name out of the catalogue; every server then drops what no name stands for. Nodes keep what they have already.
pub async fn remove(shared: &Arc<Shared>, reference: &str) -> Result<pb::ImageRecord, UpstreamError> {
    let removed = catalogue::remove(&shared.store, &full_name(reference)?).await?;
    removed.ok_or_else(|| refused(not_kept(reference)))
}
