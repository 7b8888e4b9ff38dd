//! A namespace that is being deleted: its content goes first, then its finalizer, then itself.

use crate::Controller;
use crate::action::{Action, Context, Plan, value};
use jiff::SignedDuration;
use skiff_api::view::{Change, Key, View};

pub(crate) const CONTROLLER: Controller = Controller { name: "namespaces", keys, all, plan };

fn all(view: &View) -> Vec<Key> {
    view.namespaces.iter().map(|(k, _)| k.clone()).collect()
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    if change.resource.plural == "namespaces" && change.resource.group.is_empty() {
        return vec![change.key.clone()];
    }
    let namespace = Key::new("", &change.key.namespace);
    let deleting = view.namespaces.get(&namespace).is_some_and(|n| n.metadata.deletion_timestamp.is_some());
    if change.gone && deleting { vec![namespace] } else { Vec::new() }
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(namespace) = c.view.namespaces.get(key) else { return plan };
    if namespace.metadata.deletion_timestamp.is_none() {
        return plan;
    }
    let mut left = false;
    for object in c.view.identities().filter(|i| i.key.namespace == key.name) {
        // Events are only about what goes.
        left = true;
        if !object.deleting {
            plan.push(Action::Delete {
                resource: object.resource.clone(),
                key: object.key.clone(),
                uid: object.uid.clone(),
                propagation: Some("Background"),
                grace_seconds: None,
            });
        }
    }
    if left {
        plan.again(c.now + SignedDuration::from_secs(2));
        return plan;
    }
    let mut finalized = (**namespace).clone();
    let spec = finalized.spec.get_or_insert_default();
    let ours = spec.finalizers.as_ref().is_some_and(|f| f.iter().any(|f| f == "kubernetes"));
    if ours {
        if let Some(finalizers) = &mut spec.finalizers {
            finalizers.retain(|f| f != "kubernetes");
        }
        plan.push(Action::Finalize { object: value(&finalized) });
    }
    plan
}
