//! Every change of every object, in the store's order: what the control plane's view is made of.
//!
//! One watch over all objects, so that a view is always a prefix of what happened, across kinds. A reader that falls behind what the store keeps
//! is told to begin anew and gets everything again.

use crate::storage::encode::Stored;
use crate::storage::keys;
use skiff_api::view::{Key, Resource};
use skiff_store::{EventKind, RangeRequest, Revision, Store, WatchBatch, WatchError, WatchRequest, Watcher};
use std::collections::VecDeque;

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
    store: Store,
    watcher: Option<Watcher>,
    queue: VecDeque<News>,
}

impl Feed {
    pub fn new(store: Store) -> Feed {
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
                Err(WatchError::Stopped) => return None,
                Err(WatchError::Lagged { .. } | WatchError::Compacted { .. }) => self.watcher = None,
            }
        }
    }

    async fn begin(&mut self) -> Option<()> {
        // From this member's own state: whatever is newer comes by the watch.
        let request = RangeRequest { range: keys::range(keys::ROOT), serializable: true, ..Default::default() };
        let there = self.store.range(request).await.ok()?;
        let from = WatchRequest { range: keys::range(keys::ROOT), start_revision: there.revision + 1 };
        match self.store.watch(from).await {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(WatchError::Stopped) => return None,
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
