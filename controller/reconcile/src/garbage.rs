//! Owner references: what an owner's end means for its dependents.
//!
//! - An object all of whose owners are gone is deleted.
//! - An owner with the finalizer `foregroundDeletion` waits until its blocking dependents are gone; they are deleted first.
//! - An owner with the finalizer `orphan` goes alone: its dependents lose the reference.
//!
//! Keys here are uids (in `name`, with an empty namespace): owners may be of any kind.

use crate::Controller;
use crate::action::{Action, Context, Plan};
use serde_json::json;
use skiff_api::view::{Change, Identity, Key, View};

pub(crate) const CONTROLLER: Controller = Controller { name: "garbage", keys, all, plan };

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

fn uid_key(uid: &str) -> Key {
    Key::new("", uid)
}

fn all(view: &View) -> Vec<Key> {
    view.identities().filter(|i| !i.owners.is_empty() || i.deleting).map(|i| uid_key(&i.uid)).collect()
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    let mut keys = Vec::new();
    if let Some(now) = &change.after
        && (!now.owners.is_empty() || now.deleting)
    {
        keys.push(uid_key(&now.uid));
    }
    if let Some(before) = &change.before {
        let replaced = change.after.as_ref().is_none_or(|a| a.uid != before.uid);
        if replaced {
            keys.extend(view.dependents(&before.uid).map(|d| uid_key(&d.uid)));
        }
        // Owners that wait for their last dependent: it went, or it is theirs no longer.
        let kept =
            |uid: &str| !replaced && change.after.as_ref().is_some_and(|now| now.owners.iter().any(|o| o.uid == uid));
        keys.extend(before.owners.iter().filter(|o| !kept(&o.uid)).map(|o| uid_key(&o.uid)));
    }
    keys
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(object) = c.view.identity(&key.name) else { return plan };
    if object.deleting {
        if object.finalizers.iter().any(|f| f == ORPHAN) {
            orphan(c.view, object, &mut plan);
        } else if object.finalizers.iter().any(|f| f == FOREGROUND) {
            foreground(c.view, object, &mut plan);
        }
        return plan;
    }
    if object.owners.is_empty() {
        return plan;
    }
    let (solid, gone): (Vec<_>, Vec<_>) = object.owners.iter().partition(|o| c.view.identity(&o.uid).is_some());
    if !gone.is_empty() && !solid.is_empty() {
        let keep: Vec<_> = solid.iter().map(|o| reference(o)).collect();
        plan.push(set_owners(object, keep));
    } else if solid.is_empty() {
        plan.push(delete(object, "Background"));
    }
    plan
}

fn reference(o: &skiff_api::view::Owner) -> serde_json::Value {
    let mut reference = json!({"apiVersion": o.api_version, "kind": o.kind, "name": o.name, "uid": o.uid});
    if o.controller {
        reference["controller"] = true.into();
    }
    if o.blocks_deletion {
        reference["blockOwnerDeletion"] = true.into();
    }
    reference
}

fn set_owners(object: &Identity, owners: Vec<serde_json::Value>) -> Action {
    let owners = if owners.is_empty() { serde_json::Value::Null } else { owners.into() };
    let patch = json!({"metadata": {"uid": object.uid, "ownerReferences": owners}});
    Action::Patch { resource: object.resource.clone(), key: object.key.clone(), subresource: None, patch }
}

fn delete(object: &Identity, propagation: &'static str) -> Action {
    Action::Delete {
        resource: object.resource.clone(),
        key: object.key.clone(),
        uid: object.uid.clone(),
        propagation: Some(propagation),
        grace_seconds: None,
    }
}

fn without_finalizer(object: &Identity, finalizer: &str) -> Action {
    let left: Vec<_> = object.finalizers.iter().filter(|f| *f != finalizer).collect();
    let patch = json!({"metadata": {"uid": object.uid, "finalizers": left}});
    Action::Patch { resource: object.resource.clone(), key: object.key.clone(), subresource: None, patch }
}

fn orphan(view: &View, owner: &Identity, plan: &mut Plan) {
    let mut left = false;
    for dependent in view.dependents(&owner.uid) {
        left = true;
        let keep = dependent.owners.iter().filter(|o| o.uid != owner.uid).map(reference).collect();
        plan.push(set_owners(dependent, keep));
    }
    if !left {
        plan.push(without_finalizer(owner, ORPHAN));
    }
}

fn foreground(view: &View, owner: &Identity, plan: &mut Plan) {
    let mut waiting = false;
    for dependent in view.dependents(&owner.uid) {
        waiting |= dependent.owners.iter().any(|o| o.uid == owner.uid && o.blocks_deletion);
        if !dependent.deleting {
            plan.push(delete(dependent, "Foreground"));
        }
    }
    if !waiting {
        plan.push(without_finalizer(owner, FOREGROUND));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_api::view::Resource;

    /// An owner that waits for its dependents is looked at when one of them lets go of it.
    #[test]
    fn an_owner_is_told_when_a_dependent_lets_go() {
        let maps = Resource::new("", "v1", "configmaps");
        let (owner, dependent) = (Key::new("d", "owner"), Key::new("d", "dependent"));
        let mut view = View::default();
        let meta = json!({"metadata": {"name": "owner", "namespace": "d", "uid": "o", "finalizers": [ORPHAN]}});
        view.apply(&maps, &owner, Some(meta.to_string().as_bytes())).unwrap();
        let owned = |owners: serde_json::Value| {
            json!({"metadata": {"name": "dependent", "namespace": "d", "uid": "x", "ownerReferences": owners}})
                .to_string()
        };
        let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": "o"}]);
        let change = view.apply(&maps, &dependent, Some(owned(reference).as_bytes())).unwrap();
        assert_eq!(keys(&view, &change), [uid_key("x")]);
        let change = view.apply(&maps, &dependent, Some(owned(json!([])).as_bytes())).unwrap();
        assert_eq!(keys(&view, &change), [uid_key("o")]);
    }
}
