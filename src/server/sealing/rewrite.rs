//! Looks through the store for what is sealed with which key, and seals anew what lies in the clear or sealed with an older key.

use super::Shared;
use super::records::{PLAN, Plan, Records};
use anyhow::Context as _;
use skiff_identity::sealing::{KeyId, sealed_with};
use skiff_store::{Compare, KeyRange, KeyValue, Op, RangeRequest, Store, Term, Txn};
use std::collections::BTreeMap;

/// Values that are read at once.
const PAGE: usize = 200;
/// Below it lies everything that a cluster keeps.
const ROOT: &str = "/";

/// Reads the whole store, page by page.
struct Pages<'s> {
    store: &'s Store,
    rest: Option<KeyRange>,
}

impl<'s> Pages<'s> {
    fn of(store: &'s Store) -> Pages<'s> {
        Pages { store, rest: Some(KeyRange::prefix(ROOT)) }
    }

    async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, skiff_store::Error> {
        let Some(range) = self.rest.take() else { return Ok(None) };
        let request = RangeRequest { range: range.clone(), limit: PAGE, ..Default::default() };
        let found = self.store.range(request).await?;
        if let (Some(last), true) = (found.kvs.last(), found.more) {
            let after = [&last.key[..], &[0]].concat();
            self.rest = Some(KeyRange { start: after.into(), ..range });
        }
        Ok(Some(found.kvs))
    }
}

/// What is sealed with which key, wherever it lies, and how much is not that should be.
#[derive(Debug, Default)]
pub struct Sealed {
    pub sealed: BTreeMap<KeyId, usize>,
    pub clear: usize,
}

pub async fn count(store: &Store, prefixes: &[String]) -> Result<Sealed, skiff_store::Error> {
    let (mut found, mut pages) = (Sealed::default(), Pages::of(store));
    while let Some(page) = pages.next().await? {
        for kv in page {
            match sealed_with(&kv.value) {
                Some(id) => *found.sealed.entry(id).or_default() += 1,
                None => found.clear += usize::from(is_named(&kv, prefixes)),
            }
        }
    }
    Ok(found)
}

fn is_named(kv: &KeyValue, prefixes: &[String]) -> bool {
    prefixes.iter().any(|prefix| kv.key.starts_with(prefix.as_bytes()))
}

/// Writes again, with what it holds, whatever is sealed with another key than the plan's, and what lies in the clear below `prefixes`. What is sealed stays sealed, also where
/// its kind is named no longer. An object's resourceVersion changes with it.
///
/// Each write holds only if the object did not change meanwhile, and only by this plan and in this term: whoever changed it by this plan has sealed it with its key.
///
/// # Errors
/// The store cannot be reached, this server leads no more, the plan has moved; or something does not open, which is told when everything else is done.
pub async fn rewrite(
    shared: &Shared,
    records: &Records,
    plan: &Plan,
    prefixes: &[String],
    term: Term,
) -> anyhow::Result<()> {
    let ring = &shared.sealing.ring;
    let (mut unopened, mut pages) = (Vec::new(), Pages::of(&shared.store));
    while let Some(page) = pages.next().await.context("reading the store")? {
        for kv in page {
            let id = sealed_with(&kv.value);
            let due = if id.is_some() { id != Some(plan.key) } else { is_named(&kv, prefixes) };
            if !due {
                continue;
            }
            let plain = match ring.open(&kv.key, &kv.value) {
                Ok(opened) => opened.map_or_else(|| kv.value.clone(), Into::into),
                Err(why) => {
                    unopened.push(format!("{}: {why}", String::from_utf8_lossy(&kv.key)));
                    continue;
                }
            };
            let sealed = ring.seal(&kv.key, &plain)?.context("this server has no key in use")?;
            let txn = Txn {
                compare: vec![
                    Compare::mod_revision(kv.key.clone(), kv.mod_revision),
                    Compare::mod_revision(PLAN, records.plan_revision),
                ],
                success: vec![Op::put(kv.key.clone(), sealed)],
                fence: Some(term),
                ..Default::default()
            };
            shared.store.txn(txn).await.with_context(|| format!("sealing {}", String::from_utf8_lossy(&kv.key)))?;
        }
    }
    match unopened.first() {
        None => Ok(()),
        Some(first) => {
            anyhow::bail!("{} values in the store do not open and were left as they are; {first}", unopened.len())
        }
    }
}

/// Deletes what is sealed with a key and does not open with it, here. Gives how many.
pub async fn drop_unopened(shared: &Shared, key: KeyId) -> Result<usize, skiff_store::Error> {
    let (mut dropped, mut pages) = (0, Pages::of(&shared.store));
    while let Some(page) = pages.next().await? {
        for kv in page.into_iter().filter(|kv| sealed_with(&kv.value) == Some(key)) {
            if shared.sealing.ring.open(&kv.key, &kv.value).is_ok() {
                continue;
            }
            let txn = Txn {
                compare: vec![Compare::mod_revision(kv.key.clone(), kv.mod_revision)],
                success: vec![Op::delete(kv.key.clone())],
                ..Default::default()
            };
            dropped += usize::from(shared.store.txn(txn).await?.succeeded);
            tracing::warn!(key = %String::from_utf8_lossy(&kv.key), "a value that does not open was given up, by order of an administrator");
        }
    }
    Ok(dropped)
}
