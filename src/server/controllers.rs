//! Carries out the controllers' plans: one task a controller, one key at a time.
//!
//! A key is planned for when news concerns it, when a plan asked to look again, and every so often in any case. After a plan's writes the task waits until
//! the view has caught up with them, so that no plan is made from a state that its own writes have changed.

use super::control::{Leading, client};
use super::view::Changes;
use crate::supervise;
use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_api::status::Status;
use skiff_api::view::{Key, Resource};
use skiff_apiserver::{Client, DeleteOptions, PatchType};
use skiff_reconcile::{Action, Context, Controller, EventNote, Plan, account};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;

/// Everything is looked at again this often, in case something was missed.
const RESYNC: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// The last instant that is waited for: what is further away is never.
const FAR: Timestamp = Timestamp::MAX;
/// Objects that one plan writes at once.
const WRITES_AT_ONCE: usize = 64;

/// What waits to be planned for.
#[derive(Default)]
struct Queue {
    ready: VecDeque<Key>,
    queued: BTreeSet<Key>,
    later: BTreeMap<Key, Timestamp>,
    failures: BTreeMap<Key, u32>,
}

impl Queue {
    fn add(&mut self, key: Key) {
        if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: Key, at: Timestamp) {
        let sooner = self.later.get(&key).is_none_or(|old| at < *old);
        if sooner {
            self.later.insert(key, at);
        }
    }

    fn pop(&mut self, now: Timestamp) -> Option<Key> {
        let due: Vec<_> = self.later.iter().filter(|(_, at)| **at <= now).map(|(k, _)| k.clone()).collect();
        for key in due {
            self.later.remove(&key);
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        Some(key)
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.later.values().min().copied()
    }

    fn failed(&mut self, key: Key) {
        let count = self.failures.entry(key.clone()).or_default();
        let wait = (RETRY_MIN * 2u32.pow((*count).min(10))).min(RETRY_MAX);
        *count += 1;
        let at = Timestamp::now().checked_add(wait).unwrap_or(FAR);
        self.add_at(key, at);
    }
}

/// Runs one controller while this server leads.
pub async fn run(controller: Controller, leading: Leading) {
    let mut news = leading.changes.subscribe();
    let mut revision = leading.view.revision.clone();
    // The first view: nothing is decided from an empty one.
    if revision.wait_for(|r| *r > 0).await.is_err() {
        return;
    }
    let mut queue = Queue::default();
    (controller.all)(&leading.view.read()).into_iter().for_each(|key| queue.add(key));
    let mut resync = tokio::time::Instant::now() + RESYNC;
    loop {
        while let Some(more) = take_news(&mut news) {
            enqueue(&controller, &leading, &mut queue, more);
        }
        if let Some(key) = queue.pop(Timestamp::now()) {
            work(&controller, &leading, &mut queue, key).await;
            continue;
        }
        let due = queue.next_due().map_or(RESYNC, |at| {
            Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO).min(RESYNC)
        });
        tokio::select! {
            more = news.recv() => match more {
                Ok(changes) => enqueue(&controller, &leading, &mut queue, Some(changes)),
                Err(broadcast::error::RecvError::Lagged(_)) => enqueue(&controller, &leading, &mut queue, None),
                Err(broadcast::error::RecvError::Closed) => return,
            },
            () = tokio::time::sleep(due) => {}
            () = tokio::time::sleep_until(resync) => {
                resync = tokio::time::Instant::now() + RESYNC;
                enqueue(&controller, &leading, &mut queue, None);
            }
        }
    }
}

/// The next news that is there; Some(None) where some were lost.
fn take_news(news: &mut broadcast::Receiver<Changes>) -> Option<Option<Changes>> {
    match news.try_recv() {
        Ok(changes) => Some(Some(changes)),
        Err(TryRecvError::Lagged(_)) => Some(None),
        Err(TryRecvError::Empty | TryRecvError::Closed) => None,
    }
}

fn enqueue(controller: &Controller, leading: &Leading, queue: &mut Queue, changes: Option<Changes>) {
    let view = leading.view.read();
    match changes.filter(|c| !c.is_empty()) {
        Some(changes) => {
            for change in changes.iter() {
                let keys = supervise::caught(controller.name, &change.key, || (controller.keys)(&view, change));
                keys.unwrap_or_default().into_iter().for_each(|key| queue.add(key));
            }
        }
        None => (controller.all)(&view).into_iter().for_each(|key| queue.add(key)),
    }
}

async fn work(controller: &Controller, leading: &Leading, queue: &mut Queue, key: Key) {
    let liveness = leading.liveness.borrow().clone();
    let planned = supervise::caught(controller.name, &key, || {
        let view = leading.view.read();
        let context = Context { view: &view, now: Timestamp::now(), settings: &leading.settings, liveness: &liveness };
        (controller.plan)(&context, &key)
    });
    // A key that cannot be planned for is set aside; the others must not wait for it.
    let Ok(Plan { actions, again_at }) = planned else { return queue.failed(key) };
    if let Some(at) = again_at {
        queue.add_at(key.clone(), at);
    }
    if actions.is_empty() {
        queue.failures.remove(&key);
        return;
    }
    let (mut failed, mut refused) = (None, None);
    for part in skiff_reconcile::lines(&actions).chunks(WRITES_AT_ONCE) {
        let writes = part.iter().map(|line| act_in_turn(leading, line, controller.name, &key));
        for (action, status) in futures_util::future::join_all(writes).await.into_iter().filter_map(Result::err) {
            if matches!(action, Action::Create { .. }) && is_refusal(&status) {
                refused.get_or_insert_with(|| status.message.clone());
            }
            failed = Some(status);
        }
    }
    match failed {
        None => drop(queue.failures.remove(&key)),
        Some(status) => {
            match status.reason.as_str() {
                // Its account's role does not cover what it does.
                "Forbidden" => {
                    tracing::warn!(controller = controller.name, %key, "a write was refused: {}", status.message)
                }
                _ => {
                    tracing::debug!(controller = controller.name, %key, "a write failed, planning again: {}", status.message)
                }
            }
            queue.failed(key.clone());
        }
    }
    if let Some(why) = refused {
        tell(controller, leading, &key, &why).await;
    }
    let written = leading.api.store().revision();
    let mut revision = leading.view.revision.clone();
    let _ = tokio::time::timeout(Duration::from_secs(5), revision.wait_for(|r| *r >= written)).await;
}

/// Carries out the actions that concern one object, in their order. What comes after one that failed is left to the next plan.
///
/// # Errors
/// The action that failed, and why.
async fn act_in_turn<'a>(
    leading: &Leading,
    line: &[&'a Action],
    source: &'static str,
    key: &Key,
) -> Result<(), (&'a Action, Status)> {
    for &action in line {
        let result = supervise::caught_async(source, key, act(leading, action, source)).await;
        result.unwrap_or_else(|panic| Err(Status::internal_error(panic.0))).map_err(|status| (action, status))?;
    }
    Ok(())
}

/// Whether the object is refused as it is: neither somebody was faster, nor is the server in trouble, nor does its namespace go away with it.
fn is_refusal(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let ends = causes.into_iter().any(|cause| cause["reason"] == "NamespaceTerminating");
    (400..500).contains(&status.code) && !matches!(status.code, 409 | 429) && !ends
}

/// Says at its owner why an object cannot be made. What fails of it is tried again with the next refusal.
async fn tell(controller: &Controller, leading: &Leading, key: &Key, why: &str) {
    let liveness = leading.liveness.borrow().clone();
    let words = supervise::caught(controller.name, key, || {
        let view = leading.view.read();
        let context = Context { view: &view, now: Timestamp::now(), settings: &leading.settings, liveness: &liveness };
        (controller.refused)(&context, key, why)
    });
    for action in words.unwrap_or_default() {
        if let Err(status) = act(leading, &action, controller.name).await {
            tracing::debug!(controller = controller.name, %key, "a refusal was not told: {}", status.message);
            return;
        }
    }
}

fn kind(resource: &Resource) -> Result<Arc<kinds::Kind>, Status> {
    kinds::by_resource(&resource.group, &resource.version, &resource.plural)
        .ok_or_else(|| Status::internal_error(format!("no kind {}", resource.plural)))
}

/// Carries out one action. What is done already counts as done; a conflict is a failure, because the plan was made from an older state.
async fn act(leading: &Leading, action: &Action, source: &str) -> Result<(), Status> {
    let client = &client(leading, account(source, action));
    let namespace_of = |object: &Value| object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let result = match action {
        Action::Create { resource, object, announce } => {
            let created = client.create(&*kind(resource)?, &namespace_of(object), object.clone()).await;
            if let (Ok(object), Some(note)) = (&created, announce) {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let note = EventNote { message: format!("{}{name}", note.message), ..note.clone() };
                record(client, &note, source).await;
            }
            created.map(drop)
        }
        Action::Update { resource, object, subresource: None } => {
            client.update(&*kind(resource)?, &namespace_of(object), object.clone()).await.map(drop)
        }
        Action::Update { resource, object, subresource: Some(_) } => {
            client.update_status(&*kind(resource)?, &namespace_of(object), object.clone()).await.map(drop)
        }
        Action::Sign { object, account, account_uid } => {
            let mut object = object.clone();
            let token = leading.api.account_token(&object, account, account_uid);
            object["data"]["token"] = base64::engine::general_purpose::STANDARD.encode(token).into();
            client.update(&*kind(&Resource::new("", "v1", "secrets"))?, &namespace_of(&object), object).await.map(drop)
        }
        Action::Patch { resource, key, subresource, patch } => {
            let sub = subresource.unwrap_or_default();
            client.patch(&*kind(resource)?, &key.namespace, &key.name, sub, PatchType::Merge, patch).await.map(drop)
        }
        Action::Delete { resource, key, uid, resource_version, propagation, grace_seconds } => {
            let options = DeleteOptions {
                grace_seconds: *grace_seconds,
                uid: Some(uid.clone()).filter(|u| !u.is_empty()),
                resource_version: resource_version.clone(),
                propagation: propagation.map(String::from),
                ..Default::default()
            };
            client.delete(&*kind(resource)?, &key.namespace, &key.name, &options).await.map(drop)
        }
        Action::Finalize { object } => client.finalize_namespace(object.clone()).await.map(drop),
        Action::Event(note) => {
            record(client, note, source).await;
            Ok(())
        }
    };
    match result {
        Err(status) if status.reason == "NotFound" && matches!(action, Action::Delete { .. }) => Ok(()),
        Err(status) if status.reason == "AlreadyExists" && matches!(action, Action::Create { .. }) => Ok(()),
        other => other,
    }
}

/// Writes an event; news that cannot be told is not worth a retry.
pub async fn record(client: &Client, note: &EventNote, source: &str) {
    record_as(client, note, note.reason, source).await;
}

/// The same with a reason that came from elsewhere, in place of the note's own.
pub async fn record_as(client: &Client, note: &EventNote, reason: &str, source: &str) {
    let Some(events) = kinds::by_resource("", "v1", "events") else { return };
    let now = skiff_api::meta::format_time(Timestamp::now());
    let namespace = if note.key.namespace.is_empty() { "default" } else { &note.key.namespace };
    let object = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": format!("{}.{:x}", note.key.name, Timestamp::now().as_nanosecond()), "namespace": namespace},
        "involvedObject": {
            "kind": note.kind, "namespace": note.key.namespace, "name": note.key.name, "uid": note.uid,
            "apiVersion": if note.resource.group.is_empty() { "v1".into() } else { format!("{}/v1", note.resource.group) },
        },
        "reason": reason, "message": note.message, "type": if note.warning { "Warning" } else { "Normal" },
        "source": {"component": source}, "reportingComponent": source, "reportingInstance": "",
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    if let Err(status) = client.create(&events, namespace, object).await {
        tracing::debug!("an event was not written: {}", status.message);
    }
}
