//! Images from the runtime's store and, when they are not there, from their registry.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use skiff_runtime::image::{Credentials, ImageName};
use skiff_runtime::{ImageRecord, ImageStore};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Mutex;

use crate::traits::{EnsuredImage, ImageError, ImageSource, PullPolicy};

/// The default source: store first, registry second. Ten pods of one image pull it once.
#[derive(Clone)]
pub struct RegistryImages {
    store: ImageStore,
    pulls: Arc<Mutex<BTreeMap<String, Arc<Mutex<()>>>>>,
}

impl RegistryImages {
    /// Over a runtime's store.
    pub fn new(store: ImageStore) -> RegistryImages {
        RegistryImages { store, pulls: Arc::default() }
    }

    async fn find(
        self,
        image: String,
        policy: PullPolicy,
        pull_configs: Vec<Vec<u8>>,
    ) -> Result<EnsuredImage, ImageError> {
        let name = ImageName::parse(&image)
            .map_err(|error| ImageError::InvalidName { image: image.clone(), why: error.to_string() })?;
        let known: Vec<Credentials> =
            pull_configs.iter().filter_map(|config| Credentials::from_docker_config(config, &name)).collect();
        let present = self.store.resolve(&image);
        match (policy, present) {
            (PullPolicy::Never, None) => return Err(ImageError::NeverPull { image }),
            (PullPolicy::Never | PullPolicy::IfNotPresent, Some(record)) if record.open_to(&name, &known) => {
                return Ok(ensured(record, &name, true));
            }
            // Another pod's credentials brought it here: only the registry can say whether this one may have it.
            (PullPolicy::Never, Some(_)) => return Err(ImageError::NotYours { image }),
            (PullPolicy::IfNotPresent, _) | (PullPolicy::Always, _) => {}
        }
        let turn = self.pulls.lock().await.entry(name.to_string()).or_default().clone();
        let _turn = turn.lock().await;
        if policy == PullPolicy::IfNotPresent
            && let Some(record) = self.store.resolve(&image).filter(|record| record.open_to(&name, &known))
        {
            return Ok(ensured(record, &name, true));
        }
        let mut last = None;
        for credentials in known.iter().map(Some).chain([None]) {
            match self.store.pull(&image, credentials).await {
                Ok(record) => return Ok(ensured(record, &name, false)),
                Err(error) => last = last.or(Some(error.to_string())),
            }
        }
        Err(ImageError::Pull { image, why: last.unwrap_or_default() })
    }
}

fn ensured(record: ImageRecord, name: &ImageName, present: bool) -> EnsuredImage {
    let family = format!("{}@", name.family());
    let image_ref =
        record.repo_digests.iter().find(|digest| digest.starts_with(&family)).or(record.repo_digests.first());
    EnsuredImage {
        image_ref: image_ref.cloned().unwrap_or_else(|| record.id.to_string()),
        id: record.id.to_string(),
        config: record.config,
        present,
        size_bytes: record.size_bytes,
    }
}

impl ImageSource for RegistryImages {
    fn ensure(
        &self,
        image: String,
        policy: PullPolicy,
        pull_configs: Vec<Vec<u8>>,
    ) -> BoxFuture<'static, Result<EnsuredImage, ImageError>> {
        self.clone().find(image, policy, pull_configs).boxed()
    }
}
