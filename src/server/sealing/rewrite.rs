//! Seals anew what lies in the store in the clear, or sealed with an older key.

use anyhow::Context as _;
use skiff_apiserver::Objects;
use skiff_identity::sealing::{KeyId, sealed_with};
use skiff_store::{Compare, KeyRange, Op, RangeRequest, Term, Txn};

/// Objects that are read at once.
const PAGE: usize = 200;

/// Writes every object below `prefix` again that is not sealed with `key`, with what it holds. Gives how many were written.
///
/// Each write holds only if the object did not change meanwhile (whoever changed it has sealed it), and only in this term: all servers seal with `key`, and what
/// was written since does too. An object's resourceVersion changes with it.
///
/// # Errors
/// The store cannot be reached, this server leads no more, or an object does not open.
pub async fn rewrite(objects: &Objects, prefix: &str, key: KeyId, term: Term) -> anyhow::Result<usize> {
    let store = objects.store();
    let mut range = KeyRange::prefix(prefix.as_bytes().to_vec());
    let mut written = 0;
    loop {
        let request = RangeRequest { range: range.clone(), limit: PAGE, ..Default::default() };
        let found = store.range(request).await.with_context(|| format!("reading {prefix}"))?;
        for kv in found.kvs.iter().filter(|kv| sealed_with(&kv.value) != Some(key)) {
            let what = String::from_utf8_lossy(&kv.key).into_owned();
            let opened = objects.sealing().keys.open(&kv.key, &kv.value).with_context(|| what.clone())?;
            let value = opened.map_or_else(|| kv.value.clone(), Into::into);
            let txn = Txn {
                compare: vec![Compare::mod_revision(kv.key.clone(), kv.mod_revision)],
                success: vec![Op::put(kv.key.clone(), value)],
                fence: Some(term),
                ..Default::default()
            };
            let done = objects.txn(txn).await.with_context(|| format!("sealing {what}"))?;
            written += usize::from(done.succeeded);
        }
        match found.kvs.last() {
            Some(last) if found.more => range.start = [&last.key[..], &[0]].concat().into(),
            _ => return Ok(written),
        }
    }
}
