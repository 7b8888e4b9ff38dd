//! The store as the API sees it: whatever holds values passes here, so that some of them are sealed on their way in and opened on their way out.
//!
//! Every reader gets values as they were written, and none can forget to open one. What a key of the store is for decides whether it is sealed when it is written;
//! what a value looks like decides whether it is opened when it is read. So kinds may be added and taken away, and a cluster that sealed nothing before goes on.

use crate::storage::keys;
use anyhow::Context as _;
use bytes::Bytes;
use skiff_api::kinds;
use skiff_identity::sealing::{Keyring, Unopened};
use skiff_store::{
    Compare, Event, KeyRange, KeyValue, Op, OpResponse, RangeRequest, RangeResponse, Revision, Store, Txn, TxnResponse,
    WatchBatch, WatchRequest,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a write waits until this server has the keys that the plan asks for.
const READY_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Which kinds are sealed, and with what. The default: none, and no key.
#[derive(Clone, Debug, Default)]
pub struct Sealing {
    pub keys: Keyring,
    /// The prefixes of the kinds' keys in the store.
    prefixes: Arc<[String]>,
    plan: Option<Following>,
}

/// A value is sealed by the plan of its moment, or it is not written: a write holds only while the plan in the store is the one that this server's keys follow. So what
/// was sealed by an older plan, and came late, cannot land after everything was sealed anew.
#[derive(Clone, Debug)]
pub struct Following {
    /// The plan's key in the store.
    pub plan: &'static str,
    /// The revision of the plan that the keys follow (0: there is none); None while this server lacks what it asks for.
    pub follows: watch::Receiver<Option<Revision>>,
}

impl Sealing {
    /// Seals the kinds that are named as `resource` or `resource.group`.
    ///
    /// # Errors
    /// A name is of no kind that is stored.
    pub fn new(keys: Keyring, resources: &[String]) -> anyhow::Result<Sealing> {
        let prefix = |name: &String| {
            let (resource, group) = name.split_once('.').unwrap_or((name, ""));
            let kind = kinds::stored(group, resource).with_context(|| {
                format!("{name:?} names nothing that can be sealed; give resources such as secrets, configmaps or leases.coordination.k8s.io")
            })?;
            Ok(keys::prefix(&kind))
        };
        let prefixes = resources.iter().map(prefix).collect::<anyhow::Result<_>>()?;
        Ok(Sealing { keys, prefixes, plan: None })
    }

    /// Seals by a plan that changes.
    #[must_use]
    pub fn following(self, following: Following) -> Sealing {
        Sealing { plan: Some(following), ..self }
    }

    /// Seals what lies below a further prefix of the store, outside of the objects.
    pub fn and(self, prefix: &str) -> Sealing {
        let prefixes = self.prefixes.iter().cloned().chain([prefix.to_owned()]).collect();
        Sealing { prefixes, ..self }
    }

    /// The prefixes of the keys whose values are sealed.
    pub fn prefixes(&self) -> &[String] {
        &self.prefixes
    }

    fn concerns(&self, key: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
    }
}

/// Why something was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] skiff_store::Error),
    #[error("{key} cannot be read: {why}")]
    Sealed { key: String, why: Unopened },
    #[error("{key} cannot be written: {why}")]
    NotSealed { key: String, why: skiff_identity::Error },
    #[error(
        "{key} cannot be written: this server does not have the key that seals it; it is given the key by another server, or from a backup of server/sealing.keys (see `skiff sealing status`)"
    )]
    NotReady { key: String },
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error(transparent)]
    Store(#[from] skiff_store::WatchError),
    #[error(transparent)]
    Sealed(Error),
}

/// The store with the values of some kinds sealed in it. Clones are the same one.
#[derive(Clone)]
pub struct Objects {
    store: Store,
    sealing: Sealing,
}

/// Nothing is sealed.
impl From<Store> for Objects {
    fn from(store: Store) -> Objects {
        Objects::new(store, Sealing::default())
    }
}

impl Objects {
    pub fn new(store: Store, sealing: Sealing) -> Objects {
        Objects { store, sealing }
    }

    /// For what concerns no value: members, leadership, how far it is.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn sealing(&self) -> &Sealing {
        &self.sealing
    }

    pub fn revision(&self) -> Revision {
        self.store.revision()
    }

    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let mut found = self.store.range(request).await?;
        open_all(&self.sealing.keys, &mut found)?;
        Ok(found)
    }

    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        let concerned = txn.success.iter().chain(&txn.failure).find_map(|op| match op {
            Op::Put(put) if self.sealing.concerns(&put.key) => Some(shown(&put.key)),
            _ => None,
        });
        let mut done = match (concerned, &self.sealing.plan) {
            (Some(key), Some(following)) => self.txn_by_plan(txn, key, following.clone()).await?,
            (Some(_), None) => self.store.txn(self.sealed(txn)?).await?,
            (None, _) => self.store.txn(txn).await?,
        };
        for response in &mut done.responses {
            if let OpResponse::Range(found) = response {
                open_all(&self.sealing.keys, found)?;
            }
        }
        Ok(done)
    }

    pub async fn watch(&self, request: WatchRequest) -> Result<Watcher, WatchError> {
        Ok(Watcher { watcher: self.store.watch(request).await?, keys: self.sealing.keys.clone() })
    }

    /// A transaction that holds only while the plan is the one that this server's keys follow; it is sealed and tried again where the plan has moved.
    async fn txn_by_plan(&self, txn: Txn, key: String, mut following: Following) -> Result<TxnResponse, Error> {
        let tried = async {
            loop {
                let Ok(follows) = following.follows.wait_for(Option::is_some).await.map(|r| *r) else {
                    return Err(Error::Store(skiff_store::Error::Stopped));
                };
                let follows = follows.unwrap_or_default();
                let mut sealed = self.sealed(txn.clone())?;
                sealed.compare.push(Compare::mod_revision(following.plan, follows));
                let plan = RangeRequest { range: KeyRange::key(following.plan), ..Default::default() };
                sealed.failure.push(Op::Range(plan));
                let mut done = self.store.txn(sealed).await?;
                if done.succeeded {
                    return Ok(done);
                }
                let Some(OpResponse::Range(plan)) = done.responses.pop() else { return Ok(done) };
                if plan.kvs.first().map_or(0, |kv| kv.mod_revision) == follows {
                    return Ok(done);
                }
                let Ok(_) = following.follows.wait_for(|now| *now != Some(follows)).await else {
                    return Err(Error::Store(skiff_store::Error::Stopped));
                };
            }
        };
        tokio::time::timeout(READY_MAX, tried).await.unwrap_or(Err(Error::NotReady { key }))
    }

    fn sealed(&self, mut txn: Txn) -> Result<Txn, Error> {
        txn.success.iter_mut().chain(&mut txn.failure).try_for_each(|op| self.seal(op))?;
        Ok(txn)
    }

    fn seal(&self, op: &mut Op) -> Result<(), Error> {
        let Op::Put(put) = op else { return Ok(()) };
        if !self.sealing.concerns(&put.key) {
            return Ok(());
        }
        let sealed = self.sealing.keys.seal(&put.key, &put.value);
        if let Some(sealed) = sealed.map_err(|why| Error::NotSealed { key: shown(&put.key), why })? {
            put.value = Bytes::from(sealed);
        }
        Ok(())
    }
}

fn open_all(keys: &Keyring, found: &mut RangeResponse) -> Result<(), Error> {
    found.kvs.iter_mut().try_for_each(|kv| {
        if let Some(value) = open(keys, kv)? {
            kv.value = value;
        }
        Ok(())
    })
}

/// The value of a pair where it was sealed.
fn open(keys: &Keyring, kv: &KeyValue) -> Result<Option<Bytes>, Error> {
    let opened = keys.open(&kv.key, &kv.value);
    Ok(opened.map_err(|why| Error::Sealed { key: shown(&kv.key), why })?.map(Bytes::from))
}

fn open_batch(keys: &Keyring, mut batch: WatchBatch) -> Result<WatchBatch, WatchError> {
    for event in &mut batch.events {
        if let Some(open) = open_event(keys, event).map_err(WatchError::Sealed)? {
            *event = Arc::new(open);
        }
    }
    Ok(batch)
}

/// An event in the clear, where something in it was sealed.
fn open_event(keys: &Keyring, event: &Event) -> Result<Option<Event>, Error> {
    let now = open(keys, &event.kv)?;
    let before = event.prev.as_deref().map(|kv| open(keys, kv)).transpose()?.flatten();
    if now.is_none() && before.is_none() {
        return Ok(None);
    }
    let with = |kv: &Arc<KeyValue>, open: Option<Bytes>| match open {
        Some(value) => Arc::new(KeyValue { value, ..KeyValue::clone(kv) }),
        None => kv.clone(),
    };
    let prev = event.prev.as_ref().map(|kv| with(kv, before));
    Ok(Some(Event { kind: event.kind, kv: with(&event.kv, now), prev }))
}

/// A key of the store as it is shown: the object that it stands for.
fn shown(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key);
    text.strip_prefix(keys::ROOT).unwrap_or(&text).to_owned()
}

/// A watch of the store whose events are in the clear.
pub struct Watcher {
    watcher: skiff_store::Watcher,
    keys: Keyring,
}

impl Watcher {
    /// As the store's. Cancel safe.
    pub async fn next(&mut self) -> Result<WatchBatch, WatchError> {
        let batch = self.watcher.next().await?;
        open_batch(&self.keys, batch)
    }

    /// The next events if they are there already. Never waits.
    pub fn try_next(&mut self) -> Result<Option<WatchBatch>, WatchError> {
        self.watcher.try_next().map(|batch| open_batch(&self.keys, batch)).transpose()
    }

    /// How far this watch has come, if nothing is waiting.
    pub fn progress(&mut self) -> WatchBatch {
        self.watcher.progress()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_identity::sealing::{SealingKeys, sealed_with};
    use skiff_store::EventKind;

    const SECRET: &str = "/registry/core/secrets/a/b";
    const OTHER: &str = "/registry/core/configmaps/a/b";

    async fn objects() -> Objects {
        let keys = Keyring::new(SealingKeys::generate().unwrap()).unwrap();
        Objects::new(Store::in_memory().await, Sealing::new(keys, &["secrets".into()]).unwrap())
    }

    fn get(key: &str) -> RangeRequest {
        RangeRequest { range: KeyRange::key(key.as_bytes().to_vec()), ..Default::default() }
    }

    fn put(key: &str, value: &str) -> Txn {
        Txn::of(Op::put(key.as_bytes().to_vec(), value.as_bytes().to_vec()))
    }

    #[tokio::test]
    async fn the_kinds_that_are_named_lie_sealed_and_are_read_in_the_clear() {
        let objects = objects().await;
        let mut watcher =
            objects.watch(WatchRequest { range: KeyRange::prefix(b"/".to_vec()), start_revision: 1 }).await.unwrap();
        for (key, sealed) in [(SECRET, true), (OTHER, false)] {
            objects.txn(put(key, "one")).await.unwrap();
            objects.txn(put(key, "two")).await.unwrap();
            let raw = objects.store().range(get(key)).await.unwrap().kvs.remove(0);
            assert_eq!(sealed_with(&raw.value).is_some(), sealed, "{key}");
            assert_eq!(objects.range(get(key)).await.unwrap().kvs[0].value, "two");
            objects.txn(Txn::of(Op::delete(key.as_bytes().to_vec()))).await.unwrap();
        }
        let mut seen = Vec::new();
        while seen.len() < 6 {
            for event in watcher.next().await.unwrap().events {
                let text = |kv: &KeyValue| String::from_utf8_lossy(&kv.value).into_owned();
                let now = if event.kind == EventKind::Put { text(&event.kv) } else { "gone".into() };
                seen.push((event.prev.as_deref().map(text).unwrap_or_default(), now));
            }
        }
        let expect = [("", "one"), ("one", "two"), ("two", "gone")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(seen, [expect.clone(), expect].concat());
    }

    /// What a cluster wrote before it had a key is read as it is; what it cannot open is an error that says what to do, for lists and watches alike.
    #[tokio::test]
    async fn old_values_are_read_and_a_missing_key_is_told() {
        let objects = objects().await;
        objects.store().txn(put(SECRET, "{plain}")).await.unwrap();
        assert_eq!(objects.range(get(SECRET)).await.unwrap().kvs[0].value, "{plain}");
        objects.txn(put(SECRET, "{}")).await.unwrap();
        let keyless = Objects::from(objects.store().clone());
        let error = keyless.range(get(SECRET)).await.unwrap_err().to_string();
        assert!(error.contains("core/secrets/a/b") && error.contains("sealing.keys"), "{error}");
        let mut watcher =
            keyless.watch(WatchRequest { range: KeyRange::prefix(b"/".to_vec()), start_revision: 1 }).await.unwrap();
        let ended = loop {
            match watcher.next().await {
                Ok(_) => continue,
                Err(ended) => break ended,
            }
        };
        assert!(matches!(ended, WatchError::Sealed(_)), "{ended}");
    }

    /// What is sealed by a plan that has moved is not written: it is sealed anew once the keys follow, and refused while they do not.
    #[tokio::test]
    async fn a_write_holds_by_the_plan_of_its_moment() {
        const PLAN: &str = "/plan";
        let keys = Keyring::new(SealingKeys::generate().unwrap()).unwrap();
        let (moved, follows) = watch::channel(Some(0));
        let sealing = Sealing::new(keys.clone(), &["secrets".into()]).unwrap();
        let sealing = sealing.following(Following { plan: PLAN, follows });
        let objects = Objects::new(Store::in_memory().await, sealing);
        let with = async || sealed_with(&objects.store().range(get(SECRET)).await.unwrap().kvs[0].value);
        objects.txn(put(SECRET, "one")).await.unwrap();
        let old = keys.keys().current;
        assert_eq!(with().await, old);
        // The plan moves; this server has not heard of it.
        let plan = objects.store().txn(put(PLAN, "another key")).await.unwrap().revision;
        let refused = objects.txn(put(SECRET, "two")).await.unwrap_err().to_string();
        assert!(refused.contains("core/secrets/a/b") && refused.contains("skiff sealing status"), "{refused}");
        assert_eq!(objects.range(get(SECRET)).await.unwrap().kvs[0].value, "one");
        // Others do not wait for it.
        objects.txn(put(OTHER, "two")).await.unwrap();
        let (writer, late) = (objects.clone(), put(SECRET, "three"));
        let writing = tokio::spawn(async move { writer.txn(late).await });
        tokio::task::yield_now().await;
        let mut newer = keys.keys();
        let key = skiff_identity::sealing::SealingKey::generate().unwrap();
        newer.add(key.clone());
        newer.current = Some(key.id);
        keys.replace(newer).unwrap();
        moved.send_replace(Some(plan));
        assert!(writing.await.unwrap().unwrap().succeeded);
        assert_eq!(with().await, Some(key.id));
        // What fails by its own condition says so, with its own answers.
        let mut raced = put(SECRET, "four");
        raced.compare.push(Compare::mod_revision(SECRET, 0));
        let raced = objects.txn(raced).await.unwrap();
        assert!(!raced.succeeded && raced.responses.is_empty());
    }

    #[test]
    fn only_kinds_that_are_stored_can_be_sealed() {
        let ok = |name: &str| Sealing::new(Keyring::default(), &[name.to_owned()]).is_ok();
        for (name, expect) in [
            ("secrets", true),
            ("configmaps", true),
            ("deployments.apps", true),
            ("secret", false),
            ("deployments", false),
            ("", false),
        ] {
            assert_eq!(ok(name), expect, "{name}");
        }
    }
}
