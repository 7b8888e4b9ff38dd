//! Every change of every object, in the store's order: what the control plane's view is made of.
//!
//! One watch over all objects, so that a view is always a prefix of what happened, across kinds. A reader that falls behind what the store keeps
//! is told to begin anew and gets everything again.

use crate::storage::encode::Stored;
use crate::storage::keys;
use crate::storage::objects::{Error, Objects, WatchError, Watcher};
use skiff_api::view::{Key, Resource};
use skiff_store::{EventKind, RangeRequest, Revision, WatchBatch, WatchRequest};
use std::collections::VecDeque;
use std::time::Duration;

/// The pause before everything is read again, where a sealed object did not open.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// One thing to take in.
#[derive(Debug)]
pub enum News {
    /// Forget everything: what there is follows, up to the next [`News::Reached`].
    Reset,
    /// An object as it stands (JSON with its resourceVersion), or None where it went away.
    Object { resource: Resource, key: Key, json: Option<Vec<u8>> },
    /// Everything up to this revision has been told.
    Reached(Revision),
}

/// The stream of news. It never ends while the store runs.
pub struct Feed {
    store: Objects,
    watcher: Option<Watcher>,
    queue: VecDeque<News>,
}

impl Feed {
    pub fn new(store: Objects) -> Feed {
        Feed { store, watcher: None, queue: VecDeque::new() }
    }

    /// The next news, or None once the store has stopped. Cancel safe.
    pub async fn next(&mut self) -> Option<News> {
        loop {
            if let Some(news) = self.queue.pop_front() {
                return Some(news);
            }
            let Some(watcher) = &mut self.watcher else {
                self.begin().await?;
                continue;
            };
            match watcher.next().await {
                Ok(batch) => self.take(batch),
                Err(WatchError::Store(skiff_store::WatchError::Stopped)) => return None,
                Err(WatchError::Store(_)) => self.watcher = None,
                Err(WatchError::Sealed(error)) => {
                    self.watcher = None;
                    unreadable(&error).await;
                }
            }
        }
    }

    async fn begin(&mut self) -> Option<()> {
        // From this member's own state: whatever is newer comes by the watch.
        let request = RangeRequest { range: keys::range(keys::ROOT), serializable: true, ..Default::default() };
        let there = match self.store.range(request).await {
            Ok(there) => there,
            Err(Error::Store(_)) => return None,
            Err(error) => {
                unreadable(&error).await;
                return Some(());
            }
        };
        let from = WatchRequest { range: keys::range(keys::ROOT), start_revision: there.revision + 1 };
        match self.store.watch(from).await {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(WatchError::Store(skiff_store::WatchError::Stopped)) => return None,
            Err(_) => return Some(()),
        }
        self.queue.push_back(News::Reset);
        for kv in &there.kvs {
            if let Some((resource, key)) = locate(&kv.key) {
                self.queue.push_back(News::Object { resource, key, json: Some(Stored::of(kv).to_json()) });
            }
        }
        self.queue.push_back(News::Reached(there.revision));
        Some(())
    }

    fn take(&mut self, batch: WatchBatch) {
        for event in batch.events {
            let Some((resource, key)) = locate(&event.kv.key) else { continue };
            let json = (event.kind == EventKind::Put).then(|| Stored::of(&event.kv).to_json());
            self.queue.push_back(News::Object { resource, key, json });
        }
        self.queue.push_back(News::Reached(batch.revision));
    }
}

/// Nothing is decided while something cannot be read: what is not known would count as absent, and be collected or made anew.
async fn unreadable(error: &Error) {
    tracing::error!("controllers and scheduler stand still on this server: {error}");
    tokio::time::sleep(READ_AGAIN_AFTER).await;
}

/// Which object a key of the store holds; None for what is not an object (ranges of addresses and the like).
fn locate(key: &[u8]) -> Option<(Resource, Key)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(keys::ROOT)?;
    let (group, rest) = rest.split_once('/')?;
    let (plural, rest) = rest.split_once('/')?;
    let group = if group == "core" { "" } else { group };
    let kind = skiff_api::kinds::stored(group, plural)?;
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    let resource = Resource { group: group.into(), version: kind.version.clone(), plural: plural.into() };
    Some((resource, Key::new(namespace, name)))
}
