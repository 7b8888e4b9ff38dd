//! Watches: the state machine's events, handed to everyone who asked for them.
//!
//! ```text
//!   apply --publish--> [hub: who wants this key] --one parcel a feed--> [feed] --> its watches
//! ```
//!
//! An event is made once and shared. Whoever watches has a feed: a bounded queue for any number of ranges, each of which it hears of under
//! a number. A feed that does not keep up is told so and dropped, so that it never holds up the store and never misses an event
//! unknowingly. A watch of the past begins with the kept history; joining and applying exclude each other, so that nothing falls
//! between the two.

use crate::error::WatchError;
use crate::kv::Kv;
use crate::types::*;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Parcels that may wait for one feed. At a few thousand writes a second, some seconds' worth.
const QUEUE_MAX: usize = 4096;
/// How often an idle watch says how far it has come.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Changes of history that are looked at under one lock, about a millisecond of work.
const CHANGES_A_LOOK: usize = 10_000;

/// What a range that a feed has joined is called in its parcels.
pub type Token = u64;

/// Events of one range, of some whole revisions that were published together: shared by everyone who watches that range.
#[derive(Debug, Default)]
pub struct Published {
    /// The last of the revisions.
    pub revision: Revision,
    /// In order, at least one.
    pub events: Vec<Arc<Event>>,
    /// What whoever serves these events makes of them for the wire, so that it is made once: without and with the values before.
    pub encoded: [OnceLock<Bytes>; 2],
}

/// What one publication holds for a feed.
pub type Parcel = Vec<(Token, Arc<Published>)>;

/// All feeds of this member.
#[derive(Default)]
pub struct Hub {
    index: Arc<Mutex<Index>>,
}

/// Who wants what. Single keys are found by a look-up; the other ranges are asked one by one, each once however many want it.
#[derive(Default)]
struct Index {
    keys: HashMap<Bytes, Vec<Place>>,
    ranges: BTreeMap<(Bytes, Bytes), Vec<Place>>,
    feeds: HashMap<u64, Sink>,
    next_feed: u64,
    /// The last revision that was published.
    published: Revision,
}

/// A range that a feed has joined.
struct Place {
    feed: u64,
    token: Token,
}

/// The hub's end of a feed.
struct Sink {
    queue: mpsc::Sender<Parcel>,
    /// 0, or, once the feed was too slow, the revision after the last of which it has got everything.
    lagged: Arc<AtomicU64>,
    joined: HashMap<KeyRange, Token>,
    next_token: Token,
    /// What the publication at hand holds for it.
    parcel: Parcel,
}

fn lock(index: &Mutex<Index>) -> std::sync::MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(|e| e.into_inner())
}

impl Index {
    fn join(&mut self, feed: u64, range: &KeyRange) -> Option<Token> {
        let sink = self.feeds.get_mut(&feed)?;
        if let Some(token) = sink.joined.get(range) {
            return Some(*token);
        }
        let token = sink.next_token;
        sink.next_token += 1;
        sink.joined.insert(range.clone(), token);
        let place = Place { feed, token };
        match range.is_single() {
            true => self.keys.entry(range.start.clone()).or_default().push(place),
            false => self.ranges.entry((range.start.clone(), range.end.clone())).or_default().push(place),
        }
        Some(token)
    }

    fn leave(&mut self, feed: u64, range: &KeyRange) {
        if self.feeds.get_mut(&feed).is_some_and(|sink| sink.joined.remove(range).is_some()) {
            self.forget(feed, range);
        }
    }

    fn forget(&mut self, feed: u64, range: &KeyRange) {
        let without = |places: &mut Vec<Place>| {
            places.retain(|place| place.feed != feed);
            places.is_empty()
        };
        if range.is_single() {
            if self.keys.get_mut(&range.start).is_some_and(without) {
                self.keys.remove(&range.start);
            }
        } else {
            let key = (range.start.clone(), range.end.clone());
            if self.ranges.get_mut(&key).is_some_and(without) {
                self.ranges.remove(&key);
            }
        }
    }

    fn drop_feed(&mut self, feed: u64) {
        if let Some(sink) = self.feeds.remove(&feed) {
            sink.joined.keys().for_each(|range| self.forget(feed, range));
        }
    }

    /// Puts events in the parcels of everyone at these places.
    fn gather(feeds: &mut HashMap<u64, Sink>, places: &[Place], published: Published, touched: &mut Vec<u64>) {
        let published = Arc::new(published);
        for place in places {
            if let Some(sink) = feeds.get_mut(&place.feed) {
                if sink.parcel.is_empty() {
                    touched.push(place.feed);
                }
                sink.parcel.push((place.token, published.clone()));
            }
        }
    }
}

impl Hub {
    /// Hands out the events of some whole revisions, the last of which is `revision`. Called while the machine is locked for writing.
    pub fn publish(&self, revision: Revision, events: &[Arc<Event>]) {
        let mut index = lock(&self.index);
        let Index { keys, ranges, feeds, .. } = &mut *index;
        let mut touched = Vec::new();
        for ((start, end), places) in ranges.iter() {
            let range = |e: &&Arc<Event>| e.kv.key >= *start && (end[..] == [0] || e.kv.key < *end);
            let events: Vec<_> = events.iter().filter(range).cloned().collect();
            if !events.is_empty() {
                Index::gather(feeds, places, Published { revision, events, ..Default::default() }, &mut touched);
            }
        }
        if !keys.is_empty() {
            let mut of_key: Vec<(&Bytes, Vec<Arc<Event>>)> = Vec::new();
            for event in events.iter().filter(|e| keys.contains_key(&e.kv.key)) {
                match of_key.iter_mut().find(|(key, _)| **key == event.kv.key) {
                    Some((_, of)) => of.push(event.clone()),
                    None => of_key.push((&event.kv.key, vec![event.clone()])),
                }
            }
            for (key, events) in of_key {
                if let Some(places) = keys.get(key) {
                    Index::gather(feeds, places, Published { revision, events, ..Default::default() }, &mut touched);
                }
            }
        }
        let published = index.published;
        for feed in touched {
            let Some(sink) = index.feeds.get_mut(&feed) else { continue };
            let parcel = std::mem::take(&mut sink.parcel);
            if let Err(refused) = sink.queue.try_send(parcel) {
                if let mpsc::error::TrySendError::Full(_) = refused {
                    sink.lagged.store(published + 1, Ordering::Release);
                }
                index.drop_feed(feed);
            }
        }
        index.published = revision;
    }

    /// Ends every feed: the machine was replaced by a snapshot, and what lies between is not known.
    pub fn interrupt(&self) {
        let mut index = lock(&self.index);
        let published = index.published;
        for sink in index.feeds.values() {
            sink.lagged.store(published + 1, Ordering::Release);
        }
        let next_feed = index.next_feed;
        *index = Index { published, next_feed, ..Default::default() };
    }

    /// Ends every feed for good.
    pub fn close(&self) {
        let mut index = lock(&self.index);
        let next_feed = index.next_feed;
        *index = Index { next_feed, ..Default::default() };
    }

    /// Ranges that are watched, each counted once a feed.
    pub fn watches(&self) -> usize {
        lock(&self.index).feeds.values().map(|sink| sink.joined.len()).sum()
    }

    /// A feed that has joined nothing yet.
    pub fn feed(&self, published: watch::Receiver<(u64, Revision)>) -> Feed {
        let (queue, incoming) = mpsc::channel(QUEUE_MAX);
        let lagged = Arc::new(AtomicU64::new(0));
        let mut index = lock(&self.index);
        let id = index.next_feed;
        index.next_feed += 1;
        let sink = Sink { queue, lagged: lagged.clone(), joined: HashMap::new(), next_token: 0, parcel: Parcel::new() };
        index.feeds.insert(id, sink);
        drop(index);
        Feed { index: self.index.clone(), id, incoming, lagged, published }
    }

    /// Begins a watch. Called while the machine is locked for reading.
    pub fn register(
        &self,
        request: WatchRequest,
        kv: &Kv,
        published: watch::Receiver<(u64, Revision)>,
    ) -> Result<Watcher, WatchError> {
        let start = if request.start_revision == 0 { kv.revision() + 1 } else { request.start_revision };
        let Some(past) = kv.changes_from(start + bug!("watch_skips_a_revision") as u64) else {
            return Err(WatchError::Compacted { asked: start, oldest: kv.compacted() + 1 });
        };
        let mut backlog: VecDeque<WatchBatch> = VecDeque::new();
        for change in past.filter(|change| request.range.contains(change.key())) {
            let revision = change.revision();
            match backlog.back_mut().filter(|batch| batch.revision == revision) {
                Some(batch) => batch.events.push(change.event()),
                None => backlog.push_back(WatchBatch { revision, events: vec![change.event()] }),
            }
        }
        let feed = self.feed(published);
        lock(&self.index).join(feed.id, &request.range);
        Ok(Watcher { backlog, feed, delivered: start - 1, start })
    }
}

/// One queue for any number of watches. Dropping it ends them.
pub struct Feed {
    index: Arc<Mutex<Index>>,
    id: u64,
    incoming: mpsc::Receiver<Parcel>,
    lagged: Arc<AtomicU64>,
    published: watch::Receiver<(u64, Revision)>,
}

/// A piece of a range's past, and whether its future comes by the feed from here on.
pub struct CatchUp {
    /// In order; whole revisions.
    pub events: Vec<Arc<Event>>,
    /// The first revision that is not among them.
    pub next: Revision,
    /// What the range is called in the feed's parcels, which hold everything from `next` on (and may hold what is before); None while there
    /// is more of the past.
    pub joined: Option<Token>,
}

impl Feed {
    /// The next parcel. Cancel safe. After [`WatchError::Lagged`] every range has had everything up to the revision that it names.
    pub async fn next(&mut self) -> Result<Parcel, WatchError> {
        match self.incoming.recv().await {
            Some(parcel) => Ok(parcel),
            None => match self.lagged.load(Ordering::Acquire) {
                0 => Err(WatchError::Stopped),
                missed => Err(WatchError::Lagged { delivered: missed - 1 }),
            },
        }
    }

    /// The next parcel if it is there already. Never waits.
    pub fn try_next(&mut self) -> Option<Parcel> {
        self.incoming.try_recv().ok()
    }

    /// A revision up to which everything was queued; None if this feed was too slow. A revision is published only after its events are
    /// queued, and who lagged is marked before what it missed is published.
    pub fn published(&self) -> Option<Revision> {
        let revision = self.published.borrow().1;
        (self.lagged.load(Ordering::Acquire) == 0).then_some(revision)
    }

    /// Gives up to about `events_max` events of a range from a revision on, and joins the range when that was all. Called while the machine
    /// is locked for reading. [`WatchError::Lagged`] if this feed has ended meanwhile.
    pub fn catch_up(
        &self,
        kv: &Kv,
        range: &KeyRange,
        from: Revision,
        events_max: usize,
    ) -> Result<CatchUp, WatchError> {
        let Some(past) = kv.changes_from(from) else {
            return Err(WatchError::Compacted { asked: from, oldest: kv.compacted() + 1 });
        };
        let mut found = CatchUp { events: Vec::new(), next: from, joined: None };
        for (looked, change) in past.enumerate() {
            let enough = looked >= CHANGES_A_LOOK || found.events.len() >= events_max;
            if enough && change.revision() >= found.next {
                return Ok(found);
            }
            if range.contains(change.key()) {
                found.events.push(change.event());
            }
            found.next = change.revision() + 1;
        }
        found.next = from.max(kv.revision() + 1);
        found.joined = lock(&self.index).join(self.id, range);
        match found.joined {
            Some(_) => Ok(found),
            None => Err(WatchError::Lagged { delivered: from - 1 }),
        }
    }

    /// Hears no more of a range.
    pub fn leave(&self, range: &KeyRange) {
        lock(&self.index).leave(self.id, range);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        lock(&self.index).drop_feed(self.id);
    }
}

/// A running watch of one range. Dropping it ends it.
pub struct Watcher {
    backlog: VecDeque<WatchBatch>,
    feed: Feed,
    delivered: Revision,
    start: Revision,
}

/// What a feed with one range brings.
fn only(parcel: Parcel) -> WatchBatch {
    let published = parcel.into_iter().next().map(|(_, published)| published).unwrap_or_default();
    match Arc::try_unwrap(published) {
        Ok(Published { revision, events, .. }) => WatchBatch { revision, events },
        Err(shared) => WatchBatch { revision: shared.revision, events: shared.events.clone() },
    }
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
        while let Some(parcel) = self.feed.try_next() {
            let batch = only(parcel);
            if batch.revision >= self.start {
                self.delivered = batch.revision;
                return Some(batch);
            }
        }
        None
    }

    async fn receive(&mut self) -> Result<WatchBatch, WatchError> {
        loop {
            match self.feed.next().await.map(only) {
                // A watch that begins in the future waits for it.
                Ok(batch) if batch.revision < self.start => continue,
                Ok(batch) => {
                    self.delivered = batch.revision;
                    return Ok(batch);
                }
                Err(WatchError::Lagged { .. }) => return Err(WatchError::Lagged { delivered: self.delivered }),
                Err(e) => return Err(e),
            }
        }
    }

    /// How far this watch has come, if nothing is waiting.
    pub fn progress(&mut self) -> WatchBatch {
        if let Some(revision) = self.feed.published()
            && self.backlog.is_empty()
            && self.feed.incoming.is_empty()
        {
            self.delivered = self.delivered.max(revision);
        }
        WatchBatch { revision: self.delivered, events: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hub over a map, with what the apply thread does between them.
    struct World {
        hub: Hub,
        kv: Kv,
        applied: watch::Sender<(u64, Revision)>,
    }

    impl World {
        fn new() -> World {
            World { hub: Hub::default(), kv: Kv::new(), applied: watch::Sender::new((0, 1)) }
        }

        fn put(&mut self, key: &'static str) -> Revision {
            let (done, events) = self.kv.txn(&Txn::of(Op::put(key, "v"))).unwrap();
            self.hub.publish(done.revision, &events);
            self.applied.send_replace((0, done.revision));
            done.revision
        }

        fn feed(&self) -> Feed {
            self.hub.feed(self.applied.subscribe())
        }
    }

    fn revisions(events: &[Arc<Event>]) -> Vec<Revision> {
        events.iter().map(|e| e.kv.mod_revision).collect()
    }

    #[test]
    fn a_range_catches_up_a_piece_at_a_time_and_then_hears_the_rest() {
        let mut w = World::new();
        let mut feed = w.feed();
        let all: Vec<_> = (0..5).map(|_| w.put("k")).collect();
        let range = KeyRange::key("k");
        let first = feed.catch_up(&w.kv, &range, 1, 3).unwrap();
        assert_eq!((revisions(&first.events), first.next, first.joined), (all[..3].to_vec(), all[3], None));
        let sixth = w.put("k");
        let rest = feed.catch_up(&w.kv, &range, first.next, 100).unwrap();
        assert_eq!(revisions(&rest.events), [all[3], all[4], sixth]);
        let token = rest.joined.unwrap();
        assert!(feed.try_next().is_none());
        let seventh = w.put("k");
        let parcel = feed.try_next().unwrap();
        assert_eq!((parcel[0].0, revisions(&parcel[0].1.events)), (token, vec![seventh]));
        feed.leave(&range);
        w.put("k");
        assert!(feed.try_next().is_none());
        assert_eq!(w.hub.watches(), 0);
    }

    #[test]
    fn feeds_of_one_range_share_what_is_published() {
        let mut w = World::new();
        let mut feeds = [w.feed(), w.feed()];
        for feed in &feeds {
            for range in [KeyRange::key("k"), KeyRange::prefix("k"), KeyRange::key("other")] {
                feed.catch_up(&w.kv, &range, w.kv.revision() + 1, 10).unwrap();
            }
        }
        w.put("k");
        let [a, b] = feeds.each_mut().map(|feed| feed.try_next().unwrap());
        assert_eq!((a.len(), b.len()), (2, 2), "one parcel with both ranges of the key");
        assert!(a.iter().zip(&b).all(|(a, b)| Arc::ptr_eq(&a.1, &b.1)));
    }

    #[tokio::test]
    async fn a_feed_that_is_too_slow_is_told_up_to_where_it_has_everything() {
        let mut w = World::new();
        let mut feed = w.feed();
        let range = KeyRange::key("k");
        feed.catch_up(&w.kv, &range, w.kv.revision() + 1, 10).unwrap();
        let all: Vec<_> = (0..QUEUE_MAX + 3).map(|_| w.put("k")).collect();
        assert_eq!(feed.published(), None);
        for revision in &all[..QUEUE_MAX] {
            assert_eq!(feed.next().await.unwrap()[0].1.revision, *revision);
        }
        let delivered = all[QUEUE_MAX - 1];
        assert!(matches!(feed.next().await, Err(WatchError::Lagged { delivered: d }) if d == delivered));
        assert!(matches!(feed.catch_up(&w.kv, &range, delivered + 1, 10), Err(WatchError::Lagged { .. })));
        let again = w.feed().catch_up(&w.kv, &range, delivered + 1, 10).unwrap();
        assert_eq!(revisions(&again.events), all[QUEUE_MAX..]);
        let mut last = w.feed();
        w.hub.close();
        assert!(matches!(last.next().await, Err(WatchError::Stopped)));
    }
}
