//! The process's one view: the store's feed taken in, batch by batch, and the news handed to whoever decides.

use crate::supervise;
use skiff_api::view::{Change, View};
use skiff_apiserver::Objects;
use skiff_apiserver::feed::{Feed, News};
use skiff_fleet::SharedView;
use std::sync::{Arc, RwLock};
use tokio::sync::{broadcast, watch};

/// Batches that a slow reader may lag behind before it must look at everything again.
const NEWS_MAX: usize = 4096;

/// The changes of one batch; an empty list means: everything may have changed.
pub type Changes = Arc<Vec<Change>>;

/// Starts following the store.
pub fn follow(objects: Objects) -> (SharedView, broadcast::Sender<Changes>) {
    let (revision, follower) = watch::channel(0);
    let (news, _) = broadcast::channel(NEWS_MAX);
    let shared = SharedView { view: Arc::new(RwLock::new(View::default())), revision: follower };
    let (view, revision, telling) = (shared.view.clone(), Arc::new(revision), news.clone());
    let taking = move || take_in(Feed::new(objects.clone()), view.clone(), revision.clone(), telling.clone());
    tokio::spawn(supervise::forever("view", taking));
    (shared, news)
}

async fn take_in(
    mut feed: Feed,
    view: Arc<RwLock<View>>,
    revision: Arc<watch::Sender<u64>>,
    news: broadcast::Sender<Changes>,
) {
    let mut batch = Vec::new();
    let mut fresh = false;
    while let Some(one) = feed.next().await {
        match one {
            News::Reset => {
                batch.clear();
                fresh = true;
            }
            News::Object { resource, key, json } => batch.push((resource, key, json)),
            News::Reached(reached) => {
                let mut changes = Vec::with_capacity(batch.len());
                {
                    let mut view = view.write().unwrap_or_else(|e| e.into_inner());
                    if fresh {
                        *view = View::default();
                    }
                    for (resource, key, json) in batch.drain(..) {
                        let applied = supervise::caught("view", &key, || view.apply(&resource, &key, json.as_deref()));
                        match applied {
                            Err(_) => {}
                            Ok(Ok(change)) => changes.push(change),
                            Ok(Err(e)) => {
                                tracing::error!(%key, resource = resource.plural, "an object in the store cannot be read: {e}")
                            }
                        }
                    }
                    view.revision = reached;
                }
                if fresh {
                    changes.clear();
                }
                if fresh || !changes.is_empty() {
                    let _ = news.send(Arc::new(changes));
                }
                fresh = false;
                revision.send_replace(reached);
            }
        }
    }
}
