//! Watches: the state machine's events, handed to everyone who asked for them.
//!
//! An event is made once and shared. Each watcher has a bounded queue; one that does not keep up is told so and dropped, so that it never
//! holds up the store and never misses an event unknowingly. A watch of the past begins with the kept history; registering
//! and applying exclude each other, so that nothing falls between the two.

use crate::error::WatchError;
use crate::kv::Kv;
use crate::types::*;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Batches that may wait for one watcher. At a few thousand writes a second, some seconds' worth.
const QUEUE_MAX: usize = 4096;
/// How often an idle watch says how far it has come.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

struct Sink {
    range: KeyRange,
    queue: mpsc::Sender<WatchBatch>,
    lagged: Arc<AtomicBool>,
}

/// All watchers of this member.
#[derive(Default)]
pub struct Hub {
    sinks: Mutex<Sinks>,
}

/// Watchers of one key are found by it; the others are asked one by one.
#[derive(Default)]
struct Sinks {
    by_key: HashMap<Bytes, Vec<Sink>>,
    ranges: Vec<Sink>,
}

impl Sink {
    /// Queues a batch; whether the watcher is still there.
    fn offer(&self, revision: Revision, events: Vec<Arc<Event>>) -> bool {
        match self.queue.try_send(WatchBatch { revision, events }) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lagged.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

impl Hub {
    /// Hands out the events of some whole revisions, the last of which is `revision`. Called while the machine is locked for writing.
    pub fn publish(&self, revision: Revision, events: &[Arc<Event>]) {
        let mut sinks = self.lock();
        sinks.ranges.retain(|sink| {
            let wanted: Vec<_> = events.iter().filter(|e| sink.range.contains(&e.kv.key)).cloned().collect();
            if wanted.is_empty() {
                return !sink.queue.is_closed();
            }
            sink.offer(revision, wanted)
        });
        if sinks.by_key.is_empty() {
            return;
        }
        let mut of_key: Vec<(&Bytes, Vec<Arc<Event>>)> = Vec::new();
        for event in events.iter().filter(|e| sinks.by_key.contains_key(&e.kv.key)) {
            match of_key.iter_mut().find(|(key, _)| **key == event.kv.key) {
                Some((_, of)) => of.push(event.clone()),
                None => of_key.push((&event.kv.key, vec![event.clone()])),
            }
        }
        for (key, wanted) in of_key {
            if let Some(watchers) = sinks.by_key.get_mut(key) {
                watchers.retain(|sink| sink.offer(revision, wanted.clone()));
                if watchers.is_empty() {
                    sinks.by_key.remove(key);
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sinks> {
        self.sinks.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Ends every watch: the machine was replaced by a snapshot, and what lies between is not known.
    pub fn interrupt(&self) {
        let sinks = std::mem::take(&mut *self.lock());
        for sink in sinks.ranges.iter().chain(sinks.by_key.values().flatten()) {
            sink.lagged.store(true, Ordering::Release);
        }
    }

    /// Ends every watch for good.
    pub fn close(&self) {
        *self.lock() = Sinks::default();
    }

    /// Running watches.
    pub fn watches(&self) -> usize {
        let sinks = self.lock();
        sinks.ranges.len() + sinks.by_key.values().map(Vec::len).sum::<usize>()
    }

    /// Begins a watch. Called while the machine is locked for reading.
    pub fn register(
        &self,
        request: WatchRequest,
        kv: &Kv,
        published: watch::Receiver<(u64, Revision)>,
    ) -> Result<Watcher, WatchError> {
        let start = if request.start_revision == 0 { kv.revision() + 1 } else { request.start_revision };
        let Some(past) = kv.events_from(start + bug!("watch_skips_a_revision") as u64) else {
            return Err(WatchError::Compacted { asked: start, oldest: kv.compacted() + 1 });
        };
        let backlog = past
            .map(|(revision, events)| {
                let wanted = events.iter().filter(|e| request.range.contains(&e.kv.key)).cloned();
                WatchBatch { revision: *revision, events: wanted.collect() }
            })
            .filter(|batch| !batch.events.is_empty())
            .collect();
        let (queue, incoming) = mpsc::channel(QUEUE_MAX);
        let lagged = Arc::new(AtomicBool::new(false));
        let sink = Sink { range: request.range, queue, lagged: lagged.clone() };
        let mut sinks = self.lock();
        if sink.range.is_single() {
            let of_key = sinks.by_key.entry(sink.range.start.clone()).or_default();
            of_key.retain(|s| !s.queue.is_closed());
            of_key.push(sink);
        } else {
            sinks.ranges.push(sink);
        }
        drop(sinks);
        Ok(Watcher { backlog, incoming, lagged, published, delivered: start - 1, start })
    }
}

/// A running watch. Dropping it ends it.
pub struct Watcher {
    backlog: VecDeque<WatchBatch>,
    incoming: mpsc::Receiver<WatchBatch>,
    lagged: Arc<AtomicBool>,
    published: watch::Receiver<(u64, Revision)>,
    delivered: Revision,
    start: Revision,
}

impl Watcher {
    /// The next events, or, after some idle seconds, an empty batch that says how far the watch has come. Cancel safe.
    pub async fn next(&mut self) -> Result<WatchBatch, WatchError> {
        if let Some(batch) = self.backlog.pop_front() {
            self.delivered = batch.revision;
            return Ok(batch);
        }
        match tokio::time::timeout(PROGRESS_EVERY, self.receive()).await {
            Ok(result) => result,
            Err(_) => Ok(self.progress()),
        }
    }

    /// The next events if they are there already. Never waits.
    pub fn try_next(&mut self) -> Option<WatchBatch> {
        if let Some(batch) = self.backlog.pop_front() {
            self.delivered = batch.revision;
            return Some(batch);
        }
        while let Ok(batch) = self.incoming.try_recv() {
            if batch.revision >= self.start {
                self.delivered = batch.revision;
                return Some(batch);
            }
        }
        None
    }

    async fn receive(&mut self) -> Result<WatchBatch, WatchError> {
        loop {
            match self.incoming.recv().await {
                // A watch that begins in the future waits for it.
                Some(batch) if batch.revision < self.start => continue,
                Some(batch) => {
                    self.delivered = batch.revision;
                    return Ok(batch);
                }
                None if self.lagged.load(Ordering::Acquire) => {
                    return Err(WatchError::Lagged { delivered: self.delivered });
                }
                None => return Err(WatchError::Stopped),
            }
        }
    }

    /// How far this watch has come, if nothing is waiting: a revision is published only after its events are queued.
    pub fn progress(&mut self) -> WatchBatch {
        let revision = self.published.borrow().1;
        // Who lagged is marked before what it missed is published.
        if self.backlog.is_empty() && self.incoming.is_empty() && !self.lagged.load(Ordering::Acquire) {
            self.delivered = self.delivered.max(revision);
        }
        WatchBatch { revision: self.delivered, events: Vec::new() }
    }
}
