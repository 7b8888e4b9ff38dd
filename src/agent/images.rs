//! Where this node gets images: what it has, what the cluster keeps, and then a registry.

use super::link::Link;
use super::wire;
use futures_util::future::BoxFuture;
use skiff_pods::{EnsuredImage, ImageError, ImageSource, PullPolicy, RegistryImages};
use skiff_proto::fleet as pb;
use skiff_runtime::ImageStore;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;

/// The node's own store, filled from the cluster's servers or a registry.
pub struct ClusterImages {
    store: ImageStore,
    registry: Arc<RegistryImages>,
    link: Link,
    /// One transfer at a time: pods of one Deployment ask for the same image together.
    transfer: Arc<tokio::sync::Mutex<()>>,
}

impl ClusterImages {
    pub fn new(store: ImageStore, link: Link) -> Self {
        let registry = Arc::new(RegistryImages::new(store.clone()));
        ClusterImages { store, registry, link, transfer: Arc::default() }
    }
}

impl ImageSource for ClusterImages {
    fn ensure(
        &self,
        image: String,
        policy: PullPolicy,
        pull_configs: Vec<Vec<u8>>,
    ) -> BoxFuture<'static, Result<EnsuredImage, ImageError>> {
        let (store, registry, link, transfer) =
            (self.store.clone(), self.registry.clone(), self.link.clone(), self.transfer.clone());
        Box::pin(async move {
            if policy != PullPolicy::Never {
                let _one = transfer.lock().await;
                let missing = store.resolve(&image).is_none();
                if missing || policy == PullPolicy::Always {
                    // What was imported into the cluster needs no registry, whatever the policy says.
                    if missing && from_cluster(&store, &link, &image).await {
                        return registry.ensure(image, PullPolicy::IfNotPresent, pull_configs).await;
                    }
                    if !missing && in_cluster(&link, &image).await {
                        return registry.ensure(image, PullPolicy::IfNotPresent, pull_configs).await;
                    }
                }
            }
            registry.ensure(image, policy, pull_configs).await
        })
    }
}

async fn ask(link: &Link, addr: &str, image: &str) -> Option<tonic::Streaming<pb::ImageChunk>> {
    let request = pb::ImageRequest { reference: image.to_owned() };
    let channel = link.channel(addr).ok()?;
    wire::client(channel).image(request).await.ok().map(tonic::Response::into_inner)
}

/// Whether a server keeps the image.
async fn in_cluster(link: &Link, image: &str) -> bool {
    for addr in link.servers() {
        if ask(link, &addr, image).await.is_some() {
            return true;
        }
    }
    false
}

/// Takes the image from the first server that keeps it; false if none does.
async fn from_cluster(store: &ImageStore, link: &Link, image: &str) -> bool {
    for addr in link.servers() {
        let Some(mut chunks) = ask(link, &addr, image).await else { continue };
        let (reader, mut writer) = tokio::io::duplex(1 << 20);
        let store = store.clone();
        let handle = tokio::runtime::Handle::current();
        let import = tokio::task::spawn_blocking(move || {
            let _guard = handle.enter();
            store.import(tokio_util::io::SyncIoBridge::new(reader))
        });
        let copy = async {
            while let Some(chunk) = chunks.message().await? {
                if writer.write_all(&chunk.data).await.is_err() {
                    break;
                }
            }
            drop(writer);
            Ok::<_, tonic::Status>(())
        };
        match tokio::join!(copy, import) {
            (Ok(()), Ok(Ok(_))) => return true,
            (copied, imported) => {
                tracing::warn!(addr, image, ?copied, ?imported, "taking an image from a server failed")
            }
        }
    }
    false
}
