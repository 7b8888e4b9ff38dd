//! LimitRanges of the namespace: fill what a new pod leaves open, refuse what is out of bounds.

use super::{Admission, Operation};
use crate::state::State;
use crate::storage::keys;
use serde_json::Value;
use skiff_api::admission::limits;
use skiff_api::status::{Status, aggregate};

async fn ranges(state: &State, namespace: &str) -> Result<Vec<Value>, Status> {
    let found = state.scan(&format!("{}{namespace}/", keys::prefix_of("", "limitranges"))).await?;
    Ok(found.kvs.iter().filter_map(|kv| serde_json::from_slice(&kv.value).ok()).collect())
}

/// Whether limits say anything about this write. Containers of a pod do not change, so only new pods count.
fn concerns(admission: &Admission<'_>) -> bool {
    let kind = &admission.call.kind;
    admission.call.info.subresource.is_empty()
        && match admission.operation {
            Operation::Create => kind.is("", "Pod") || kind.is("", "PersistentVolumeClaim"),
            Operation::Update => kind.is("", "PersistentVolumeClaim"),
            Operation::Delete => false,
        }
}

pub async fn fill(admission: &Admission<'_>, object: &mut Value) -> Result<(), Status> {
    if concerns(admission) && admission.call.kind.is("", "Pod") {
        for range in ranges(admission.state, admission.call.namespace()).await? {
            limits::fill(object, &range);
        }
    }
    Ok(())
}

pub async fn check(admission: &Admission<'_>, object: &Value) -> Result<(), Status> {
    if !concerns(admission) {
        return Ok(());
    }
    for range in ranges(admission.state, admission.call.namespace()).await? {
        if let Some(all) = aggregate(limits::violations(object, &range).into_iter()) {
            return Err(admission.forbidden(skiff_api::meta::name(object), &all));
        }
    }
    Ok(())
}
