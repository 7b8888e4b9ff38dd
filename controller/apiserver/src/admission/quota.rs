//! ResourceQuotas of the namespace: what a write uses is noted in the same transaction, or the write is refused.

use crate::call::Call;
use crate::state::State;
use crate::storage::encode::Stored;
use crate::storage::keys;
use crate::verbs::commit::Put;
use serde_json::Value;
use skiff_api::admission::quota;
use skiff_api::meta;
use skiff_api::status::Status;

/// The quotas as they are after this write; `old` is None for a create.
pub async fn charge(state: &State, call: &Call, new: &Value, old: Option<&Value>) -> Result<Vec<Put>, Status> {
    let namespace = call.key_namespace();
    let main = matches!(call.info.subresource.as_str(), "" | "resize");
    // What exists changes its use only where it can grow.
    let grows = matches!(call.kind.plural.as_str(), "pods" | "services" | "persistentvolumeclaims");
    if namespace.is_empty() || !main || old.is_some() && !(call.kind.group.is_empty() && grows) {
        return Ok(Vec::new());
    }
    let found = state.scan(&format!("{}{namespace}/", keys::prefix_of("", "resourcequotas"))).await?;
    let mut puts = Vec::new();
    for kv in &found.kvs {
        let Ok(held) = serde_json::from_slice::<Value>(&kv.value) else { continue };
        let charged = quota::charge(&held, &call.kind, new, old)
            .map_err(|why| Status::forbidden(&call.kind.group, &call.kind.plural, meta::name(new), &why))?;
        if let Some(charged) = charged {
            puts.push(Put {
                key: String::from_utf8_lossy(&kv.key).into_owned(),
                expected: kv.mod_revision,
                value: Stored::encode(&charged, "ResourceQuota", "v1"),
            });
        }
    }
    Ok(puts)
}
