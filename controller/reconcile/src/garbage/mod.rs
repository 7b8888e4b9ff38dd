//! Owner references: what an owner's end means for its dependents. The one controller that destroys what nobody asked to be destroyed, so it
//! acts only on what it knows: an owner of a kind that is not served is unknown, not absent, and its dependents stay.
//!
//! - A dependent none of whose owners is there any more is deleted. One that has another owner only loses the reference to the one that went.
//! - An owner with the finalizer `foregroundDeletion` waits until the dependents that block it are gone. Its dependents look at it as they would at an
//!   owner that is gone: they go too, in the foreground where they have dependents themselves, unless somebody else owns them as well.
//! - Two that wait for each other: the one that is found to own something that waits blocks nobody any longer.
//! - An owner with the finalizer `orphan` goes alone: its dependents lose the reference.
//!
//! Every write names the version that it was decided from, so that an owner or a finalizer that is added meanwhile is never lost.
//!
//! Source of the rules: Kubernetes documentation, "Garbage Collection", "Owners and Dependents" and "Use Cascading Deletion in a Cluster".
//! Keys here are uids (in `name`, with an empty namespace): owners may be of any kind.

mod owners;
#[cfg(test)]
mod tests;

use crate::Controller;
use crate::action::{Action, Context, EventNote, Plan};
use crate::clock::after;
use jiff::SignedDuration;
use owners::{Standing, standing};
use serde_json::{Value, json};
use skiff_api::view::{Change, Identity, Key, Owner, View};
use std::collections::BTreeSet;

pub(crate) const CONTROLLER: Controller = Controller { name: "garbage", keys, all, plan, refused: crate::untold };

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// An owner of a kind that is not served is looked for again this much later: its kind may come to be served.
const UNKNOWN_AGAIN: SignedDuration = SignedDuration::from_secs(30);

fn uid_key(uid: &str) -> Key {
    Key::new("", uid)
}

fn all(view: &View) -> Vec<Key> {
    view.identities().filter(|i| !i.owners.is_empty() || i.deleting).map(|i| uid_key(&i.uid)).collect()
}

/// Whether an object is being deleted and waits for its dependents.
fn waits_for_dependents(object: &Identity) -> bool {
    object.deleting && object.finalizers.iter().any(|f| f == FOREGROUND)
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    let mut keys = Vec::new();
    if let Some(now) = &change.after {
        if !now.owners.is_empty() || now.deleting {
            keys.push(uid_key(&now.uid));
        }
        let waited = change.before.as_ref().is_some_and(|b| b.uid == now.uid && waits_for_dependents(b));
        if waits_for_dependents(now) && !waited {
            keys.extend(view.dependents(&now.uid).map(|d| uid_key(&d.uid)));
        }
    }
    if let Some(before) = &change.before {
        let replaced = change.after.as_ref().is_none_or(|a| a.uid != before.uid);
        if replaced {
            keys.extend(view.dependents(&before.uid).map(|d| uid_key(&d.uid)));
        }
        // Owners that wait for their last dependent: it went, is theirs no longer, or holds them no longer.
        let now = change.after.iter().filter(|_| !replaced).flat_map(|a| &a.owners);
        let as_before = |o: &Owner| now.clone().any(|n| n.uid == o.uid && n.blocks_deletion >= o.blocks_deletion);
        keys.extend(before.owners.iter().filter(|o| !as_before(o)).map(|o| uid_key(&o.uid)));
    }
    keys
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(object) = c.view.identity(&key.name) else { return plan };
    if object.deleting {
        if object.finalizers.iter().any(|f| f == ORPHAN) {
            orphan(c.view, object, &mut plan);
        } else if waits_for_dependents(object) && !c.view.dependents(&object.uid).any(|d| blocks(d, object)) {
            plan.push(without_finalizer(object, FOREGROUND));
        } else if waits_for_dependents(object) && waits_in_a_circle(c.view, object) {
            plan.push(unblock(object));
        }
        return plan;
    }
    collect(c, object, &mut plan);
    plan
}

/// What becomes of an object that is not being deleted, by what its owners are.
fn collect(c: &Context<'_>, object: &Identity, plan: &mut Plan) {
    if object.owners.is_empty() {
        return;
    }
    let standings: Vec<_> = object.owners.iter().map(|o| (o, standing(c.view, object, o))).collect();
    let are = |wanted: Standing| standings.iter().filter(move |(_, s)| *s == wanted).map(|(o, _)| *o);
    if are(Standing::Unknown).next().is_some() {
        plan.again(after(c.now, UNKNOWN_AGAIN));
        return;
    }
    if are(Standing::Elsewhere).next().is_some() {
        plan.push(Action::Event(wrong_namespace(object)));
    }
    let solid: Vec<_> = are(Standing::Solid).map(reference).collect();
    let waiting = are(Standing::Waiting).next().is_some();
    if !solid.is_empty() {
        if solid.len() < object.owners.len() {
            plan.push(set_owners(object, solid));
        }
        return;
    }
    let mut dependents = c.view.dependents(&object.uid).peekable();
    let propagation = if waiting && dependents.peek().is_some() {
        // One of its own waits in turn, perhaps for this one: then this one must hold nobody.
        if dependents.any(|d| waits_for_dependents(d)) && object.owners.iter().any(|o| o.blocks_deletion) {
            plan.push(unblock(object));
            return;
        }
        "Foreground"
    } else if object.finalizers.iter().any(|f| f == ORPHAN) {
        "Orphan"
    } else if object.finalizers.iter().any(|f| f == FOREGROUND) {
        "Foreground"
    } else {
        "Background"
    };
    plan.push(delete(object, propagation));
}

/// Whether `dependent` holds `owner` until it is gone.
fn blocks(dependent: &Identity, owner: &Identity) -> bool {
    dependent.owners.iter().any(|o| o.uid == owner.uid && o.blocks_deletion)
}

/// Whether an object that waits for its dependents is itself what one of them, or one of theirs, waits for.
fn waits_in_a_circle(view: &View, object: &Identity) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![object];
    while let Some(owner) = next.pop() {
        for dependent in view.dependents(&owner.uid).filter(|d| blocks(d, owner) && waits_for_dependents(d)) {
            if dependent.uid == object.uid {
                return true;
            }
            if seen.insert(&dependent.uid) {
                next.push(dependent);
            }
        }
    }
    false
}

fn reference(o: &Owner) -> Value {
    let mut reference = json!({"apiVersion": o.api_version, "kind": o.kind, "name": o.name, "uid": o.uid});
    if o.controller {
        reference["controller"] = true.into();
    }
    if o.blocks_deletion {
        reference["blockOwnerDeletion"] = true.into();
    }
    reference
}

/// A merge patch of metadata that holds only for the object as it was read.
fn patch(object: &Identity, field: &str, new: Value) -> Action {
    let patch = json!({"metadata": {"uid": object.uid, "resourceVersion": object.resource_version, field: new}});
    Action::Patch { resource: object.resource.clone(), key: object.key.clone(), subresource: None, patch }
}

fn set_owners(object: &Identity, owners: Vec<Value>) -> Action {
    let owners = if owners.is_empty() { Value::Null } else { owners.into() };
    patch(object, "ownerReferences", owners)
}

/// The object goes on having its owners, but holds none of them any longer.
fn unblock(object: &Identity) -> Action {
    let free = object.owners.iter().map(|o| reference(&Owner { blocks_deletion: false, ..o.clone() }));
    set_owners(object, free.collect())
}

fn without_finalizer(object: &Identity, finalizer: &str) -> Action {
    let left: Vec<_> = object.finalizers.iter().filter(|f| *f != finalizer).collect();
    patch(object, "finalizers", json!(left))
}

fn delete(object: &Identity, propagation: &'static str) -> Action {
    Action::Delete {
        resource: object.resource.clone(),
        key: object.key.clone(),
        uid: object.uid.clone(),
        resource_version: Some(object.resource_version.clone()),
        propagation: Some(propagation),
        grace_seconds: None,
    }
}

fn orphan(view: &View, owner: &Identity, plan: &mut Plan) {
    for dependent in view.dependents(&owner.uid) {
        let keep = dependent.owners.iter().filter(|o| o.uid != owner.uid).map(reference).collect();
        plan.push(set_owners(dependent, keep));
    }
    if plan.actions.is_empty() {
        plan.push(without_finalizer(owner, ORPHAN));
    }
}

/// An owner must live in its dependent's namespace, or in none.
fn wrong_namespace(object: &Identity) -> EventNote {
    EventNote {
        resource: object.resource.clone(),
        kind: owners::kind_name(&object.resource).into(),
        key: object.key.clone(),
        uid: object.uid.clone(),
        warning: true,
        reason: "OwnerRefInvalidNamespace",
        message: format!(
            "an owner of {} is in another namespace: such a reference counts as absent. Owners must be in namespace {:?}, or be of a kind without namespaces",
            object.key, object.key.namespace
        ),
    }
}
