//! An index over some objects of the store, kept by the store's watch, and how to wait until it has come far enough.
//!
//! One task owns the watch. The index may be some milliseconds behind; whoever must not decide on that calls [`Followed::reach`], which
//! reads nothing: it learns how far the store is (wherever the newest write was acknowledged) and has the task take in what lies queued.

use crate::state::store_status;
use crate::storage::keys;
use crate::storage::objects::{Objects, Watcher};
use skiff_api::status::Status;
use skiff_store::{EventKind, RangeRequest, Revision, WatchBatch, WatchRequest};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The pause before the objects are read anew, when the watch could not go on.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long a request waits for the index before it is told to try again.
const REACH_MAX: Duration = Duration::from_secs(10);

/// What is made of the objects.
pub trait Index: Default + Send + Sync + 'static {
    /// The key below the prefix, and the object; None when it went away.
    fn take(&mut self, key: &str, object: Option<&[u8]>);
}

/// A shared index; clones are the same one.
pub struct Followed<I> {
    inner: Arc<Inner<I>>,
}

struct Inner<I> {
    index: RwLock<I>,
    /// Everything up to here is taken in.
    reached: watch::Sender<Revision>,
    /// Wakes the task to take in what lies queued.
    nudge: Notify,
    /// How often the objects were read whole.
    loads: AtomicU64,
}

impl<I> Clone for Followed<I> {
    fn clone(&self) -> Self {
        Followed { inner: self.inner.clone() }
    }
}

impl<I: Index> Default for Followed<I> {
    fn default() -> Self {
        let (index, reached) = (RwLock::new(I::default()), watch::Sender::new(0));
        Followed { inner: Arc::new(Inner { index, reached, nudge: Notify::new(), loads: AtomicU64::new(0) }) }
    }
}

impl<I: Index> Followed<I> {
    /// Looks at the index as it is.
    pub fn with<T>(&self, look: impl FnOnce(&I) -> T) -> T {
        look(&self.inner.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How often the objects were read whole: once, and again where the watch fell behind.
    #[cfg(test)]
    pub fn loads(&self) -> u64 {
        self.inner.loads.load(Ordering::Relaxed)
    }

    /// Returns once the index holds every write that was acknowledged before the call, by whichever server.
    pub async fn reach(&self, store: &Objects) -> Result<(), Status> {
        store.store().barrier().await.map_err(store_status)?;
        let wanted = store.revision();
        let mut reached = self.inner.reached.subscribe();
        if *reached.borrow_and_update() >= wanted {
            return Ok(());
        }
        self.inner.nudge.notify_one();
        match tokio::time::timeout(REACH_MAX, reached.wait_for(|r| *r >= wanted)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Status::service_unavailable("who may do what is not known up to now on this server; try again")),
        }
    }

    /// Follows the objects below `prefix` until the process ends.
    pub async fn follow(self, store: Objects, prefix: String) {
        loop {
            let loaded = self.load(&store, &prefix).await;
            if let Err(error) = &loaded {
                tracing::debug!("reading {prefix}: {error:#}; trying again");
            }
            if let Ok(mut watcher) = loaded {
                'following: loop {
                    let batch = tokio::select! {
                        batch = watcher.next() => batch,
                        () = self.inner.nudge.notified() => Ok(WatchBatch::default()),
                    };
                    let Ok(batch) = batch else { break 'following };
                    self.take(&prefix, &batch);
                    loop {
                        match watcher.try_next() {
                            Ok(Some(batch)) => self.take(&prefix, &batch),
                            Ok(None) => break,
                            Err(_) => break 'following,
                        }
                    }
                    self.take(&prefix, &watcher.progress());
                }
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn load(&self, store: &Objects, prefix: &str) -> anyhow::Result<Watcher> {
        self.inner.loads.fetch_add(1, Ordering::Relaxed);
        // From this member's own state: what is newer comes by the watch.
        let request = RangeRequest { range: keys::range(prefix), serializable: true, ..Default::default() };
        let there = store.range(request).await?;
        let from = WatchRequest { range: keys::range(prefix), start_revision: there.revision + 1 };
        let watcher = store.watch(from).await.map_err(|error| anyhow::anyhow!("watching {prefix}: {error:?}"))?;
        let mut fresh = I::default();
        for kv in &there.kvs {
            if let Some(key) = below(prefix, &kv.key) {
                fresh.take(key, Some(&kv.value));
            }
        }
        *self.inner.index.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.inner.reached.send_replace(there.revision);
        Ok(watcher)
    }

    fn take(&self, prefix: &str, batch: &WatchBatch) {
        if !batch.events.is_empty() {
            let mut index = self.inner.index.write().unwrap_or_else(PoisonError::into_inner);
            for event in &batch.events {
                if let Some(key) = below(prefix, &event.kv.key) {
                    index.take(key, (event.kind == EventKind::Put).then_some(&event.kv.value[..]));
                }
            }
        }
        self.inner.reached.send_if_modified(|reached| {
            let further = batch.revision > *reached;
            *reached = batch.revision.max(*reached);
            further
        });
    }
}

fn below<'k>(prefix: &str, key: &'k [u8]) -> Option<&'k str> {
    std::str::from_utf8(key).ok()?.strip_prefix(prefix)
}
