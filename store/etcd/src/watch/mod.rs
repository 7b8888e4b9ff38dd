//! The Watch service: many watches on one stream, told by one task.
//!
//! ```text
//!   client --create, cancel, progress--> [session] <--parcels of events-- [the store's hub]
//!                                            |  one answer a watch, its events encoded once for all
//!   client <-------- pieces of body ------ [outlet]
//! ```
//!
//! Watches of the same range are a group. A group that begins in the past, or that was too slow for a while, catches up from the history
//! a piece at a time until it has joined the stream's feed: no event is lost, told twice or out of order, or the watch is cancelled with the
//! revision from which history is kept. A progress answer for the whole stream goes out only behind every event up to its revision.

mod encode;
mod outlet;
#[cfg(test)]
mod tests;

use crate::api::Api;
use crate::error;
use encode::{Events, Flavour};
use hyper::body::Incoming;
use outlet::{Outlet, outlet};
use prost::Message as _;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_store::*;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// Events that are put in one answer when they are there at once, and their bytes.
const EVENTS_AN_ANSWER: usize = 1000;
const BYTES_AN_ANSWER: usize = 1 << 20;
/// The watch id of answers that concern the whole stream.
const WHOLE_STREAM: i64 = -1;
/// A stream that asked for a leader ends when there has been none for so long.
const LEADER_MISSING_MAX: Duration = Duration::from_secs(3);

/// The path of the service's only call.
pub const PATH: &str = "/etcdserverpb.Watch/Watch";

/// Answers a call of it. By hand, because gRPC's usual way encodes each answer whole.
pub fn serve(
    api: Api,
    request: http::Request<Incoming>,
    request_bytes_max: usize,
) -> http::Response<tonic::body::Body> {
    let needs_leader = request.headers().get("hasleader").is_some_and(|v| v == "true");
    if needs_leader && api.store.leadership().borrow().leader.is_none() {
        return error::no_leader().into_http();
    }
    let (outlet, pieces) = outlet();
    let decoder = tonic_prost::ProstDecoder::<pb::WatchRequest>::default();
    let requests = Streaming::new_request(decoder, request.into_body(), None, Some(request_bytes_max));
    let session = Session {
        api,
        outlet,
        feed: None,
        known: HashMap::new(),
        live: HashMap::new(),
        catching: VecDeque::new(),
        due: BTreeSet::new(),
        asks: Vec::new(),
        next: 0,
    };
    tokio::spawn(session.run(requests, needs_leader));
    let mut response = http::Response::new(tonic::body::Body::new(pieces));
    let grpc = http::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
    response
}

/// One stream.
struct Session {
    api: Api,
    outlet: Outlet,
    /// Made with the first watch, and anew when it was too slow.
    feed: Option<Feed>,
    known: HashMap<i64, Known>,
    /// The groups that hear of events by the feed.
    live: HashMap<Token, Group>,
    /// Those that have more of the past to tell.
    catching: VecDeque<Group>,
    /// When which watch is told its progress.
    due: BTreeSet<(Instant, i64)>,
    /// Revisions for which the client waits until all its watches have come so far.
    asks: Vec<Revision>,
    next: i64,
}

/// Where a watch is.
struct Known {
    /// None while it catches up.
    token: Option<Token>,
    due: Option<Instant>,
}

/// The watches of one range.
struct Group {
    range: KeyRange,
    /// The first revision that was not passed on to it.
    next: Revision,
    watches: Vec<Watch>,
}

struct Watch {
    id: i64,
    flavour: Flavour,
    fragment: bool,
}

/// The client is gone: there is nothing more to do.
struct Gone;

impl Session {
    async fn run(mut self, requests: Streaming<pb::WatchRequest>, needs_leader: bool) {
        let lost = leader_lost(self.api.store.clone(), needs_leader);
        // Who asked for a leader is told when it is lost; whoever is gone needs no word.
        if let Ok(()) = self.serve(requests, lost).await {
            self.outlet.fail(error::no_leader()).await;
        }
    }

    /// Serves until the leader is lost.
    async fn serve(
        &mut self,
        mut requests: Streaming<pb::WatchRequest>,
        lost: impl Future<Output = ()>,
    ) -> Result<(), Gone> {
        tokio::pin!(lost);
        let client = self.outlet.client();
        loop {
            let due = self.due.first().map(|(at, _)| *at);
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.request(request).await?,
                    _ => {
                        let _ = self.outlet.flush().await;
                        return Err(Gone);
                    }
                },
                parcel = parcel(self.feed.as_mut()) => self.take(parcel).await?,
                () = std::future::ready(()), if !self.catching.is_empty() => self.catch_up().await?,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.tell_progress().await?,
                () = client.closed() => return Err(Gone),
                () = &mut lost => return Ok(()),
            }
            self.answer_asks().await?;
            self.flush().await?;
        }
    }

    async fn request(&mut self, request: pb::WatchRequest) -> Result<(), Gone> {
        use pb::watch_request::RequestUnion;
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.asks.push(self.api.store.revision()),
            None => {}
        }
        self.make_room().await
    }

    fn tell(&mut self, answer: &pb::WatchResponse) {
        self.outlet.message(&[&answer.encode_to_vec()]);
    }

    async fn make_room(&mut self) -> Result<(), Gone> {
        if self.outlet.make_room().await { Ok(()) } else { Err(Gone) }
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        if self.outlet.flush().await { Ok(()) } else { Err(Gone) }
    }

    fn refuse(&mut self, reason: String) {
        let header = self.api.header();
        self.tell(&pb::WatchResponse {
            header,
            watch_id: WHOLE_STREAM,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..Default::default()
        });
    }

    /// Begins a watch.
    fn create(&mut self, create: pb::WatchCreateRequest) {
        let id = match create.watch_id {
            0 => {
                while self.known.contains_key(&self.next) {
                    self.next += 1;
                }
                self.next += 1;
                self.next - 1
            }
            id if self.known.contains_key(&id) => {
                return self.refuse(format!("etcdserver: mvcc: duplicate watch ID {id} provided on the WatchStream"));
            }
            id => id,
        };
        // An empty key with an end means from the first key on.
        let start = if create.key.is_empty() { bytes::Bytes::from_static(&[0]) } else { create.key };
        let range = KeyRange { start, end: create.range_end };
        if !range.is_single() && range.end[..] != [0] && range.end <= range.start {
            return self.refuse("etcdserver: mvcc: watcher range is empty".into());
        }
        let now = self.api.store.revision();
        let from = match create.start_revision {
            r if r > 0 => r as Revision,
            _ => now + 1,
        };
        let header = self.api.header_at(now);
        self.tell(&pb::WatchResponse { header, watch_id: id, created: true, ..Default::default() });
        use pb::watch_create_request::FilterType;
        let without = |t: FilterType| create.filters.contains(&(t as i32));
        let flavour = Flavour {
            puts: !without(FilterType::Noput),
            deletes: !without(FilterType::Nodelete),
            prev_kv: create.prev_kv,
            from,
        };
        let due = create.progress_notify.then(|| Instant::now() + self.api.settings.progress_every);
        self.due.extend(due.map(|at| (at, id)));
        self.known.insert(id, Known { token: None, due });
        let watch = Watch { id, flavour, fragment: create.fragment };
        self.catching.push_back(Group { range, next: from, watches: vec![watch] });
    }

    fn cancel(&mut self, id: i64) {
        let Some(known) = self.known.remove(&id) else { return };
        self.not_due(known.due, id);
        match known.token {
            Some(token) => {
                if let Some(group) = self.live.get_mut(&token) {
                    group.watches.retain(|w| w.id != id);
                    if group.watches.is_empty()
                        && let (Some(feed), Some(group)) = (&self.feed, self.live.remove(&token))
                    {
                        feed.leave(&group.range);
                    }
                }
            }
            None => {
                self.catching.iter_mut().for_each(|group| group.watches.retain(|w| w.id != id));
                self.catching.retain(|group| !group.watches.is_empty());
            }
        }
        let header = self.api.header();
        self.tell(&pb::WatchResponse { header, watch_id: id, canceled: true, ..Default::default() });
    }

    fn not_due(&mut self, due: Option<Instant>, id: i64) {
        if let Some(at) = due {
            self.due.remove(&(at, id));
        }
    }

    /// Ends watches for a reason of the store's.
    async fn end(&mut self, watches: Vec<Watch>, oldest: Revision, why: &Status) -> Result<(), Gone> {
        for watch in watches {
            if let Some(known) = self.known.remove(&watch.id) {
                self.not_due(known.due, watch.id);
            }
            let header = self.api.header();
            self.tell(&pb::WatchResponse {
                header,
                watch_id: watch.id,
                canceled: true,
                compact_revision: oldest as i64,
                cancel_reason: why.message().to_owned(),
                ..Default::default()
            });
            self.make_room().await?;
        }
        Ok(())
    }

    /// Takes in what the feed brought, with what else is there already.
    async fn take(&mut self, first: Result<Parcel, WatchError>) -> Result<(), Gone> {
        let first = match first {
            Ok(parcel) => parcel,
            Err(WatchError::Lagged { delivered }) => {
                self.fell_behind(delivered);
                return Ok(());
            }
            Err(_) => return self.end_all().await,
        };
        let mut next = Some(first);
        while let Some(parcel) = next {
            let mut news: Vec<(Token, Vec<Arc<Published>>)> = Vec::new();
            let mut places: HashMap<Token, usize> = HashMap::new();
            let (mut events, mut bytes) = (0, 0);
            next = Some(parcel);
            while let Some(parcel) = next {
                for (token, published) in parcel {
                    events += published.events.len();
                    bytes += published.events.iter().map(|e| e.kv.value.len()).sum::<usize>();
                    let place = *places.entry(token).or_insert_with(|| {
                        news.push((token, Vec::new()));
                        news.len() - 1
                    });
                    news[place].1.push(published);
                }
                let full = events >= EVENTS_AN_ANSWER || bytes >= BYTES_AN_ANSWER;
                next = if full { None } else { self.feed.as_mut().and_then(Feed::try_next) };
                if full {
                    break;
                }
            }
            for (token, news) in news {
                // What was cancelled meanwhile has no group any more.
                if let Some(mut group) = self.live.remove(&token) {
                    let told = self.pass_on(&mut group, &news).await;
                    self.live.insert(token, group);
                    told?;
                }
            }
            if next.is_none() {
                next = self.feed.as_mut().and_then(Feed::try_next);
            }
        }
        Ok(())
    }

    /// Passes events of a group's range on to its watches, an answer each.
    async fn pass_on(&mut self, group: &mut Group, news: &[Arc<Published>]) -> Result<(), Gone> {
        let Some(revision) = news.last().map(|published| published.revision) else { return Ok(()) };
        let head = self.api.header_at(revision).map(|header| encode::header(&header)).unwrap_or_default();
        let bytes_max = self.api.settings.request_bytes_max;
        let mut events = Events::new(news);
        let mut space = [0; 16];
        for watch in &group.watches {
            let wanted = events.of(watch.flavour);
            if wanted.is_empty() {
                continue;
            }
            if watch.fragment && wanted.len() > bytes_max {
                let parts = events.parts_of(watch.flavour, bytes_max);
                for (i, part) in parts.iter().enumerate() {
                    let id = encode::watch_id(watch.id, i + 1 < parts.len(), &mut space);
                    self.outlet.message(&[&head, id, part]);
                    self.make_room().await?;
                }
                continue;
            }
            self.outlet.message(&[&head, encode::watch_id(watch.id, false, &mut space), wanted]);
            self.make_room().await?;
        }
        group.next = group.next.max(revision + 1);
        Ok(())
    }

    /// Tells the first group that catches up a piece of its past; once that was all, it hears the rest by the feed.
    async fn catch_up(&mut self) -> Result<(), Gone> {
        let Some(mut group) = self.catching.pop_front() else { return Ok(()) };
        let found = match self.feed_for(&group) {
            Ok(found) => found,
            // The feed was dropped by the hub; its end is heard of in its turn.
            Err(WatchError::Lagged { .. }) => {
                self.catching.push_back(group);
                return self.fall_behind_now().await;
            }
            Err(WatchError::Compacted { oldest, .. }) => {
                return self.end(group.watches, oldest, &error::compacted()).await;
            }
            Err(WatchError::Stopped) => return self.end(group.watches, 0, &error::stopped()).await,
        };
        if !found.events.is_empty() {
            let published = Published { revision: found.next - 1, events: found.events, ..Default::default() };
            self.pass_on(&mut group, &[Arc::new(published)]).await?;
        }
        group.next = found.next;
        let Some(token) = found.joined else {
            self.catching.push_back(group);
            return Ok(());
        };
        for watch in &mut group.watches {
            // The feed may still hold what these have been told.
            watch.flavour.from = watch.flavour.from.max(found.next);
            if let Some(known) = self.known.get_mut(&watch.id) {
                known.token = Some(token);
            }
        }
        match self.live.get_mut(&token) {
            Some(live) => live.watches.append(&mut group.watches),
            None => drop(self.live.insert(token, group)),
        }
        Ok(())
    }

    fn feed_for(&mut self, group: &Group) -> Result<CatchUp, WatchError> {
        let feed = match &mut self.feed {
            Some(feed) => feed,
            none => none.insert(self.api.store.feed()?),
        };
        self.api.store.catch_up(feed, &group.range, group.next, EVENTS_AN_ANSWER)
    }

    /// Passes on what the feed still holds, up to its end.
    async fn fall_behind_now(&mut self) -> Result<(), Gone> {
        let parcel = parcel(self.feed.as_mut()).await;
        self.take(parcel).await
    }

    /// The feed was too slow for a while: everything up to `delivered` was passed on, and the rest is in the history.
    fn fell_behind(&mut self, delivered: Revision) {
        self.feed = None;
        for (_, mut group) in self.live.drain() {
            group.next = group.next.max(delivered + 1);
            for watch in &group.watches {
                if let Some(known) = self.known.get_mut(&watch.id) {
                    known.token = None;
                }
            }
            self.catching.push_back(group);
        }
    }

    /// The store stopped.
    async fn end_all(&mut self) -> Result<(), Gone> {
        self.feed = None;
        let groups: Vec<_> = self.live.drain().map(|(_, group)| group).chain(self.catching.drain(..)).collect();
        for group in groups {
            self.end(group.watches, 0, &error::stopped()).await?;
        }
        Ok(())
    }

    /// Passes on what is there; then every live watch has come as far as this revision, unless the feed was too slow.
    async fn reach(&mut self) -> Result<Option<Revision>, Gone> {
        let Some(feed) = &mut self.feed else { return Ok(None) };
        let reached = feed.published();
        if let Some(parcel) = feed.try_next() {
            self.take(Ok(parcel)).await?;
        }
        Ok(reached)
    }

    /// Tells the watches whose time has come how far they are. Those that catch up have more to hear first.
    async fn tell_progress(&mut self) -> Result<(), Gone> {
        let reached = self.reach().await?;
        let now = Instant::now();
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, id));
            let Some(known) = self.known.get_mut(&id) else { continue };
            let next = now + self.api.settings.progress_every;
            known.due = Some(next);
            self.due.insert((next, id));
            if let (Some(_), Some(revision)) = (known.token, reached) {
                let header = self.api.header_at(revision);
                self.tell(&pb::WatchResponse { header, watch_id: id, ..Default::default() });
                self.make_room().await?;
            }
        }
        Ok(())
    }

    /// Answers the questions how far all the watches are, as soon as they have come as far as they were when it was asked.
    async fn answer_asks(&mut self) -> Result<(), Gone> {
        if self.asks.is_empty() {
            return Ok(());
        }
        let behind = |group: &Group, asked: Revision| group.next <= asked;
        let reached = self.reach().await?;
        let mut waiting = Vec::new();
        for asked in std::mem::take(&mut self.asks) {
            let live = self.live.is_empty() || reached.is_some_and(|reached| reached >= asked);
            if live && !self.catching.iter().any(|group| behind(group, asked)) {
                let header = self.api.header_at(asked);
                self.tell(&pb::WatchResponse { header, watch_id: WHOLE_STREAM, ..Default::default() });
            } else {
                waiting.push(asked);
            }
        }
        self.asks = waiting;
        self.make_room().await
    }
}

/// The next parcel of a feed that may not be there (yet).
async fn parcel(feed: Option<&mut Feed>) -> Result<Parcel, WatchError> {
    match feed {
        Some(feed) => feed.next().await,
        None => std::future::pending().await,
    }
}

/// Ends once there has been no leader for too long; never, if that does not matter.
async fn leader_lost(store: Store, matters: bool) {
    if !matters {
        return std::future::pending().await;
    }
    let mut leadership = store.leadership();
    loop {
        if leadership.wait_for(|l| l.leader.is_none()).await.is_err() {
            return;
        }
        let back = leadership.wait_for(|l| l.leader.is_some());
        if tokio::time::timeout(LEADER_MISSING_MAX, back).await.is_err() {
            return;
        }
    }
}
