//! `watch`: the changes of a collection, from a version on, without a gap.
//!
//! The state machine of one watch: first the initial events (when the client gave no version, or asked for them), then what
//! the store's watch delivers. A selector turns changes into appearances: an object that begins to match is ADDED, one
//! that ceases to match is DELETED.

use crate::call::{Answer, Call};
use crate::state::{Fresh, State, store_status};
use crate::storage::encode::Stored;
use crate::storage::objects::{WatchError, Watcher};
use crate::verbs::read::{check_options, parse_version, reach};
use crate::verbs::selection::Selection;
use skiff_api::Kind;
use skiff_api::status::Status;
use skiff_store::{Event, EventKind, RangeRequest, Revision, WatchError as StoreWatchError, WatchRequest};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a client that asked for bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(55);
/// A watch without a time-out ends somewhere between this and twice this, so that clients spread over servers.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// No watch lasts longer, whatever its client asks for.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    pub fn name(self) -> &'static str {
        match self {
            Change::Added => "ADDED",
            Change::Modified => "MODIFIED",
            Change::Deleted => "DELETED",
        }
    }
}

/// What a watch says.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "an error ends the watch; boxing it would only clutter")]
pub enum Notice {
    Change {
        change: Change,
        object: Stored,
    },
    /// Everything up to this revision has been told; `initial_end` closes the initial events.
    Bookmark {
        revision: Revision,
        initial_end: bool,
    },
    /// The watch cannot go on; it ends after this.
    Error(Status),
}

/// A running watch.
pub struct WatchStream {
    pub kind: Arc<Kind>,
    selection: Selection,
    watcher: Option<Watcher>,
    ready: VecDeque<Notice>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    seen: Revision,
    last_bookmark: Revision,
    failed: bool,
}

pub async fn watch(state: &State, call: &Call) -> Result<Answer, Status> {
    check_options(call, true)?;
    let timeout = call.query.integer("timeoutSeconds")?.filter(|s| *s > 0);
    let timeout = timeout.map(|s| Duration::from_secs(s.unsigned_abs()).min(TIMEOUT_MAX));
    let selection = Selection::parse(call)?;
    let version = parse_version(call.query.text("resourceVersion"))?;
    let wants_initial = call.query.flag("sendInitialEvents");
    let mut options = Options {
        bookmarks: call.query.flag("allowWatchBookmarks"),
        initial: wants_initial || matches!(version, None | Some(0)) && !call.query.has("sendInitialEvents"),
        initial_bookmark: wants_initial,
        version: version.unwrap_or(0),
        timeout,
    };
    options.initial_bookmark &= options.bookmarks;
    let stream = open(state, &call.kind, call.key_namespace(), selection, options).await?;
    Ok(Answer::Watch(Box::new(stream)))
}

/// How a watch begins and ends.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub bookmarks: bool,
    /// Tell what is there before telling what changes.
    pub initial: bool,
    /// Close the initial events with a marked bookmark.
    pub initial_bookmark: bool,
    /// Changes after this revision; with `initial`, the state at least as new as this.
    pub version: Revision,
    pub timeout: Option<Duration>,
}

/// Starts a watch.
pub async fn open(
    state: &State,
    kind: &Arc<Kind>,
    namespace: &str,
    selection: Selection,
    options: Options,
) -> Result<WatchStream, Status> {
    let range = selection.range(kind, namespace);
    let mut ready = VecDeque::new();
    let mut from = options.version;
    if options.initial {
        reach(state, options.version).await?;
        let fresh = if options.version == 0 && !options.initial_bookmark { Fresh::Linearizable } else { Fresh::Local };
        let request = RangeRequest { range: range.clone(), serializable: fresh == Fresh::Local, ..Default::default() };
        let response = state.store.range(request).await.map_err(store_status)?;
        for kv in response.kvs.iter().filter(|kv| selection.matches(kv)) {
            ready.push_back(Notice::Change { change: Change::Added, object: Stored::of(kv) });
        }
        from = response.revision;
        if options.initial_bookmark {
            ready.push_back(Notice::Bookmark { revision: from, initial_end: true });
        }
    }
    let watcher = state.store.watch(WatchRequest { range, start_revision: from.saturating_add(1) }).await;
    let (watcher, failed) = match watcher {
        Ok(watcher) => (Some(watcher), false),
        Err(error) => {
            ready.push_back(Notice::Error(watch_status(&error, options.version)));
            (None, true)
        }
    };
    let now = Instant::now();
    let lifetime =
        options.timeout.unwrap_or_else(|| LIFETIME + Duration::from_secs(rand::random_range(0..LIFETIME.as_secs())));
    Ok(WatchStream {
        kind: kind.clone(),
        selection,
        watcher,
        ready,
        bookmarks: options.bookmarks,
        next_bookmark: now + BOOKMARK_EVERY,
        deadline: now + lifetime,
        seen: from,
        last_bookmark: from,
        failed,
    })
}

fn watch_status(error: &WatchError, asked: Revision) -> Status {
    let error = match error {
        WatchError::Store(error) => error,
        WatchError::Sealed(error) => return Status::internal_error(error),
    };
    match error {
        StoreWatchError::Compacted { oldest, .. } => {
            Status::expired(format!("too old resource version: {asked} ({oldest})"))
        }
        StoreWatchError::Lagged { .. } => {
            Status::expired("The watch fell behind and its queue is full; list again and watch from there.")
        }
        StoreWatchError::Stopped => Status::service_unavailable("the server is stopping; watch again at another one"),
    }
}

impl WatchStream {
    /// The next thing to tell; None when the watch is over. Cancel safe.
    pub async fn next(&mut self) -> Option<Notice> {
        loop {
            if let Some(notice) = self.ready.pop_front() {
                return Some(notice);
            }
            if self.failed {
                return None;
            }
            let watcher = self.watcher.as_mut()?;
            let wake = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
            match tokio::time::timeout_at(wake, watcher.next()).await {
                Ok(Ok(batch)) => {
                    self.seen = self.seen.max(batch.revision);
                    for event in &batch.events {
                        if let Some(notice) = self.notice(event) {
                            self.ready.push_back(notice);
                        }
                    }
                }
                Ok(Err(error)) => {
                    self.failed = true;
                    self.ready.push_back(Notice::Error(watch_status(&error, self.seen)));
                }
                Err(_) if Instant::now() >= self.deadline => {
                    self.watcher = None;
                    // The last word of a watch that ends in order: where to go on.
                    if self.bookmarks && self.seen > self.last_bookmark {
                        self.last_bookmark = self.seen;
                        return Some(Notice::Bookmark { revision: self.seen, initial_end: false });
                    }
                    return None;
                }
                Err(_) => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    self.last_bookmark = self.seen;
                    return Some(Notice::Bookmark { revision: self.seen, initial_end: false });
                }
            }
        }
    }

    /// Whether something can be told without waiting.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn notice(&self, event: &Arc<Event>) -> Option<Notice> {
        let revision = event.kv.mod_revision;
        let matched = event.prev.as_ref().is_some_and(|prev| self.selection.matches(prev));
        let matches = event.kind == EventKind::Put && self.selection.matches(&event.kv);
        let change = match (matched, matches) {
            (false, false) => return None,
            (false, true) => Change::Added,
            (true, true) => Change::Modified,
            (true, false) => Change::Deleted,
        };
        let object = match change {
            Change::Deleted => Stored::at(event.prev.as_ref()?, revision),
            _ => Stored::of(&event.kv),
        };
        Some(Notice::Change { change, object })
    }
}
