//! Where this node gets images: what it has, what the cluster keeps, and then a registry.

use super::link::Link;
use super::wire;
use crate::transfer;
use futures_util::future::BoxFuture;
use skiff_pods::{EnsuredImage, ImageError, ImageSource, PullPolicy, RegistryImages};
use skiff_proto::fleet as pb;
use skiff_runtime::ImageStore;
use std::sync::Arc;

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
                let here = store.resolve(&image);
                // What was imported into the cluster needs no registry, whatever the policy says.
                if here.is_none() || policy == PullPolicy::Always {
                    match from_cluster(&store, &link, &image, here.map(|i| i.id.to_string())).await {
                        Kept::Here => return registry.ensure(image, PullPolicy::IfNotPresent, pull_configs).await,
                        Kept::Fetched => {
                            let found = registry.ensure(image, PullPolicy::IfNotPresent, pull_configs).await?;
                            return Ok(EnsuredImage { present: false, ..found });
                        }
                        Kept::No => {}
                    }
                }
            }
            registry.ensure(image, policy, pull_configs).await
        })
    }
}

/// Whether the cluster keeps an image.
enum Kept {
    /// It does, and this node had the same already.
    Here,
    /// It does, and this node has it now.
    Fetched,
    No,
}

/// Brings the image here as the first server that keeps it has it. `here` is the identity of what this node has under that name: an import of
/// the same name may have replaced it.
async fn from_cluster(store: &ImageStore, link: &Link, image: &str, here: Option<String>) -> Kept {
    for addr in link.servers() {
        let Ok(channel) = link.channel(&addr) else { continue };
        let request = pb::ImageRequest { reference: image.to_owned() };
        let Ok(answer) = wire::client(channel.clone()).images(request).await else { continue };
        let Some(kept) = answer.into_inner().images.into_iter().next() else { continue };
        if here.as_ref() == Some(&kept.digest) {
            return Kept::Here;
        }
        match transfer::fetch(store, channel, image).await {
            Ok(_) => return Kept::Fetched,
            Err(e) => tracing::warn!(addr, image, "taking an image from a server failed: {e:#}"),
        }
    }
    Kept::No
}
