//! The Watch service: many watches on one stream.
//!
//! ```text
//!   client --create, cancel, progress--> [session] --starts, stops--> [one task a watch] --answers--> client
//! ```
//!
//! A watch that does not keep up is dropped by the store and begins again by itself behind the last event that it has passed on: no event
//! is lost, told twice or out of order, or the watch is cancelled with the revision from which history is kept. A progress answer for
//! the whole stream goes out only behind every event up to its revision.

use crate::api::Api;
use crate::{convert, error};
use prost::Message as _;
use skiff_proto::etcd::etcdserverpb as pb;
use skiff_proto::etcd::mvccpb;
use skiff_store::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Answers that may wait for a client before its watches wait too.
const ANSWERS_MAX: usize = 1024;
/// Events that are put in one answer when they are there at once.
const EVENTS_AN_ANSWER: usize = 1000;
/// The watch id of answers that concern the whole stream.
const WHOLE_STREAM: i64 = -1;
/// A stream that asked for a leader ends when there has been none for so long.
const LEADER_MISSING_MAX: Duration = Duration::from_secs(3);

type Answers = mpsc::Sender<Result<pb::WatchResponse, Status>>;

#[tonic::async_trait]
impl pb::watch_server::Watch for Api {
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let needs_leader = request.metadata().get("hasleader").is_some_and(|v| v == "true");
        if needs_leader && self.store.leadership().borrow().leader.is_none() {
            return Err(error::no_leader());
        }
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let session = Session {
            api: self.clone(),
            answers,
            watches: HashMap::new(),
            ended: mpsc::unbounded_channel(),
            next: 0,
            begun: 0,
        };
        tokio::spawn(session.run(request.into_inner(), needs_leader));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// One stream.
struct Session {
    api: Api,
    answers: Answers,
    watches: HashMap<i64, Running>,
    /// Watches that have ended by themselves.
    ended: (mpsc::UnboundedSender<Ended>, mpsc::UnboundedReceiver<Ended>),
    next: i64,
    /// Watches begun so far: an id may be used again, this may not.
    begun: u64,
}

/// (id, the how-manieth watch it was).
type Ended = (i64, u64);

/// A watch's task, and the way to ask how far it has come. Dropping it ends the watch.
struct Running {
    asks: mpsc::UnboundedSender<Ask>,
    task: tokio::task::JoinHandle<()>,
    number: u64,
}

/// Come at least as far as `revision`, then answer.
struct Ask {
    revision: Revision,
    done: oneshot::Sender<()>,
}

impl Session {
    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>, needs_leader: bool) {
        use pb::watch_request::RequestUnion;
        let lost = leader_lost(self.api.store.clone(), needs_leader);
        tokio::pin!(lost);
        let answers = self.answers.clone();
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                Some((id, number)) = self.ended.1.recv() => {
                    if self.watches.get(&id).is_some_and(|w| w.number == number) {
                        self.watches.remove(&id);
                    }
                    continue;
                }
                () = answers.closed() => return,
                () = &mut lost => return drop(answers.send(Err(error::no_leader())).await),
            };
            let Ok(Some(request)) = request else { return };
            let told = match request.request_union {
                Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
                Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
                Some(RequestUnion::ProgressRequest(_)) => {
                    self.progress();
                    true
                }
                None => true,
            };
            if !told {
                return;
            }
        }
    }

    async fn tell(&self, answer: pb::WatchResponse) -> bool {
        self.answers.send(Ok(answer)).await.is_ok()
    }

    async fn refuse(&self, watch_id: i64, reason: String) -> bool {
        let header = self.api.header();
        let answer = pb::WatchResponse {
            header,
            watch_id,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..Default::default()
        };
        self.tell(answer).await
    }

    /// Begins a watch; false if the client is gone.
    async fn create(&mut self, create: pb::WatchCreateRequest) -> bool {
        let id = match create.watch_id {
            0 => {
                while self.watches.contains_key(&self.next) {
                    self.next += 1;
                }
                self.next += 1;
                self.next - 1
            }
            id if self.watches.contains_key(&id) => {
                let reason = format!("etcdserver: mvcc: duplicate watch ID {id} provided on the WatchStream");
                return self.refuse(WHOLE_STREAM, reason).await;
            }
            id => id,
        };
        // An empty key with an end means from the first key on.
        let start = if create.key.is_empty() { bytes::Bytes::from_static(&[0]) } else { create.key };
        let range = KeyRange { start, end: create.range_end };
        if !range.is_single() && range.end[..] != [0] && range.end <= range.start {
            return self.refuse(WHOLE_STREAM, "etcdserver: mvcc: watcher range is empty".into()).await;
        }
        let now = self.api.store.revision();
        let start_revision = match create.start_revision {
            r if r > 0 => r as Revision,
            _ => now + 1,
        };
        let header = self.api.header_at(now);
        if !self.tell(pb::WatchResponse { header, watch_id: id, created: true, ..Default::default() }).await {
            return false;
        }
        use pb::watch_create_request::FilterType;
        let without = |t: FilterType| create.filters.contains(&(t as i32));
        let (asks, asked) = mpsc::unbounded_channel();
        let watch = Watch {
            api: self.api.clone(),
            id,
            range,
            next_revision: start_revision,
            puts: !without(FilterType::Noput),
            deletes: !without(FilterType::Nodelete),
            prev_kv: create.prev_kv,
            fragment: create.fragment,
            progress_every: create.progress_notify.then_some(self.api.settings.progress_every),
            answers: self.answers.clone(),
            asks: Vec::new(),
        };
        let ended = self.ended.0.clone();
        self.begun += 1;
        let number = self.begun;
        let task = tokio::spawn(async move {
            watch.run(asked).await;
            let _ = ended.send((id, number));
        });
        self.watches.insert(id, Running { asks, task, number });
        true
    }

    async fn cancel(&mut self, id: i64) -> bool {
        match self.watches.remove(&id) {
            Some(running) => {
                // Whatever it still has under way goes out before the word that it is over.
                drop(running.asks);
                let _ = running.task.await;
                let header = self.api.header();
                let answer = pb::WatchResponse { header, watch_id: id, canceled: true, ..Default::default() };
                self.tell(answer).await
            }
            None => true,
        }
    }

    /// Tells the client a revision up to which it has been told everything, on all of its watches.
    fn progress(&self) {
        let revision = self.api.store.revision();
        let asked: Vec<_> = self
            .watches
            .values()
            .filter_map(|running| {
                let (done, reached) = oneshot::channel();
                running.asks.send(Ask { revision, done }).ok().map(|()| reached)
            })
            .collect();
        let (api, answers) = (self.api.clone(), self.answers.clone());
        tokio::spawn(async move {
            for reached in asked {
                // A watch that has ended in between holds nothing back.
                let _ = reached.await;
            }
            let header = api.header_at(revision);
            let _ = answers.send(Ok(pb::WatchResponse { header, watch_id: WHOLE_STREAM, ..Default::default() })).await;
        });
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

/// One watch.
struct Watch {
    api: Api,
    id: i64,
    range: KeyRange,
    /// The first revision that has not been passed on.
    next_revision: Revision,
    puts: bool,
    deletes: bool,
    prev_kv: bool,
    fragment: bool,
    progress_every: Option<Duration>,
    answers: Answers,
    /// Not answered yet.
    asks: Vec<Ask>,
}

/// Why a watch's task ends.
enum End {
    ClientGone,
    Cancelled { compacted: Revision, reason: String },
}

impl Watch {
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Ask>) {
        loop {
            let request = WatchRequest { range: self.range.clone(), start_revision: self.next_revision };
            let ended = match self.api.store.watch(request).await {
                Ok(mut watcher) => self.follow(&mut watcher, &mut asked).await,
                Err(e) => Err(e),
            };
            let end = match ended {
                Ok(end) => end,
                // Too slow for a while: what it missed is in the history.
                Err(WatchError::Lagged { .. }) => continue,
                Err(WatchError::Compacted { oldest, .. }) => {
                    End::Cancelled { compacted: oldest, reason: error::compacted().message().to_owned() }
                }
                Err(WatchError::Stopped) => {
                    End::Cancelled { compacted: 0, reason: error::stopped().message().to_owned() }
                }
            };
            if let End::Cancelled { compacted, reason } = end {
                let answer = pb::WatchResponse {
                    header: self.api.header(),
                    watch_id: self.id,
                    canceled: true,
                    compact_revision: compacted as i64,
                    cancel_reason: reason,
                    ..Default::default()
                };
                let _ = self.answers.send(Ok(answer)).await;
            }
            return;
        }
    }

    /// Passes events on until the watch ends or the store's watcher does.
    async fn follow(
        &mut self,
        watcher: &mut Watcher,
        asked: &mut mpsc::UnboundedReceiver<Ask>,
    ) -> Result<End, WatchError> {
        let mut progress =
            self.progress_every.map(|every| tokio::time::interval_at(tokio::time::Instant::now() + every, every));
        loop {
            let tick = async {
                match &mut progress {
                    Some(progress) => drop(progress.tick().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                batch = watcher.next() => {
                    let batch = batch?;
                    if !batch.events.is_empty() && !self.pass_on(batch, watcher).await {
                        return Ok(End::ClientGone);
                    }
                }
                ask = asked.recv() => match ask {
                    Some(ask) => self.asks.push(ask),
                    None => return Ok(End::ClientGone),
                },
                () = tick => {
                    if !self.drain(watcher).await {
                        return Ok(End::ClientGone);
                    }
                    let revision = watcher.progress().revision;
                    if !self.tell(revision, Vec::new(), false).await {
                        return Ok(End::ClientGone);
                    }
                }
            }
            if !self.asks.is_empty() {
                if !self.drain(watcher).await {
                    return Ok(End::ClientGone);
                }
                // What is published was queued before, so nothing up to there is missing now. An ask that is not reached yet waits for
                // what has just arrived, or for the watch to begin again.
                let reached = watcher.progress().revision;
                for ask in self.asks.extract_if(.., |ask| ask.revision <= reached) {
                    let _ = ask.done.send(());
                }
            }
        }
    }

    /// Passes on everything that is there; false if the client is gone.
    async fn drain(&mut self, watcher: &mut Watcher) -> bool {
        while let Some(batch) = watcher.try_next() {
            if !self.pass_on(batch, watcher).await {
                return false;
            }
        }
        true
    }

    /// Passes on a batch, with what else is there already; false if the client is gone.
    async fn pass_on(&mut self, first: WatchBatch, watcher: &mut Watcher) -> bool {
        let mut events = Vec::with_capacity(first.events.len());
        let mut next = Some(first);
        let mut revision = 0;
        while let Some(batch) = next {
            revision = batch.revision;
            events.extend(batch.events.iter().filter(|e| self.wants(e)).map(|e| self.event(e)));
            next = if events.len() < EVENTS_AN_ANSWER { watcher.try_next() } else { None };
        }
        self.next_revision = self.next_revision.max(revision + 1);
        if events.is_empty() {
            return true;
        }
        if !self.fragment {
            return self.tell(revision, events, false).await;
        }
        for (events, more) in fragments(events, self.api.settings.request_bytes_max) {
            if !self.tell(revision, events, more).await {
                return false;
            }
        }
        true
    }

    fn wants(&self, event: &Arc<Event>) -> bool {
        let kind = match event.kind {
            EventKind::Put => self.puts,
            EventKind::Delete => self.deletes,
        };
        // A batch may begin before a watch that starts in its midst.
        kind && event.kv.mod_revision >= self.next_revision
    }

    fn event(&self, event: &Event) -> mvccpb::Event {
        let kind = match event.kind {
            EventKind::Put => mvccpb::event::EventType::Put,
            EventKind::Delete => mvccpb::event::EventType::Delete,
        };
        let prev_kv = event.prev.as_deref().filter(|_| self.prev_kv).map(convert::pair);
        mvccpb::Event { r#type: kind as i32, kv: Some(convert::pair(&event.kv)), prev_kv }
    }

    async fn tell(&self, revision: Revision, events: Vec<mvccpb::Event>, fragment: bool) -> bool {
        let answer = pb::WatchResponse {
            header: self.api.header_at(revision),
            watch_id: self.id,
            events,
            fragment,
            ..Default::default()
        };
        self.answers.send(Ok(answer)).await.is_ok()
    }
}

/// Splits events into answers of about `bytes_max`, at least one event each; true with all but the last.
fn fragments(events: Vec<mvccpb::Event>, bytes_max: usize) -> Vec<(Vec<mvccpb::Event>, bool)> {
    let mut parts: Vec<(Vec<mvccpb::Event>, bool)> = Vec::new();
    let mut bytes = 0;
    for event in events {
        let size = event.encoded_len() + 8;
        match parts.last_mut() {
            Some((part, _)) if bytes + size <= bytes_max => part.push(event),
            last => {
                if let Some((_, more)) = last {
                    *more = true;
                }
                parts.push((vec![event], false));
                bytes = 0;
            }
        }
        bytes += size;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_too_large_are_split_between_events() {
        let event = |len: usize| mvccpb::Event {
            kv: Some(mvccpb::KeyValue { value: vec![1; len].into(), ..Default::default() }),
            ..Default::default()
        };
        let check = |sizes: &[usize], expect: &[(usize, bool)]| {
            let parts = fragments(sizes.iter().map(|s| event(*s)).collect(), 100);
            let shape: Vec<_> = parts.iter().map(|(events, more)| (events.len(), *more)).collect();
            assert_eq!(shape, expect, "{sizes:?}");
        };
        check(&[10, 10], &[(2, false)]);
        check(&[60, 60, 10], &[(1, true), (2, false)]);
        check(&[500, 10], &[(1, true), (1, false)]);
    }
}
