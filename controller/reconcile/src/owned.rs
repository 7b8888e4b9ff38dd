//! Owners and their pods or ReplicaSets: who controls what, what may be adopted, what must be let go.

use crate::action::{Action, value};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as TypedSelector, ObjectMeta, OwnerReference};
use serde_json::json;
use skiff_api::selector::LabelSelector;
use skiff_api::view::{Key, Resource};
use std::collections::BTreeMap;

/// The reference by which an object is controlled.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// A selector ready to match. A selector that cannot be read matches nothing: validation has refused it long before.
pub fn selector(typed: &TypedSelector) -> LabelSelector {
    LabelSelector::from_json(&value(typed)).unwrap_or_else(|_| LabelSelector::nothing())
}

pub fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
}

/// What an owner should do about one candidate.
#[derive(Debug, PartialEq)]
pub enum Claim {
    Ours,
    /// An orphan that fits: take it.
    Adopt,
    /// Ours no longer fits: let it go.
    Release,
    NotOurs,
}

/// Decides by controller reference and selector, as Kubernetes' ControllerRefManager does.
pub fn claim(owner_uid: &str, owner_deleting: bool, candidate: &ObjectMeta, fits: bool) -> Claim {
    match controller_of(candidate) {
        Some(owner) if owner.uid != owner_uid => Claim::NotOurs,
        Some(_) if fits => Claim::Ours,
        Some(_) if owner_deleting => Claim::Ours,
        Some(_) => Claim::Release,
        None if fits && !owner_deleting && candidate.deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::NotOurs,
    }
}

fn key(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The write that adopts.
pub fn adopt(resource: Resource, candidate: &ObjectMeta, owner: OwnerReference) -> Action {
    let mut owners = candidate.owner_references.clone().unwrap_or_default();
    owners.push(owner);
    // The uid makes it fail rather than adopt a namesake made meanwhile.
    let patch = json!({"metadata": {"uid": candidate.uid, "ownerReferences": owners}});
    Action::Patch { resource, key: key(candidate), subresource: None, patch }
}

/// The write that lets go.
pub fn release(resource: Resource, candidate: &ObjectMeta, owner_uid: &str) -> Action {
    let owners: Vec<_> = candidate.owner_references.iter().flatten().filter(|o| o.uid != owner_uid).collect();
    let patch = json!({"metadata": {"uid": candidate.uid, "ownerReferences": owners}});
    Action::Patch { resource, key: key(candidate), subresource: None, patch }
}

pub fn owner_reference(api_version: &str, kind: &str, meta: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.into(),
        kind: kind.into(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
