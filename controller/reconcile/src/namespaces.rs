//! A namespace that is being deleted: its pods go first, while what they need to end well (their settings, their accounts, their names) is still there;
//! then the rest, then its finalizer, then itself. Its conditions say what is left and what holds it.
//!
//! Source of the order: Kubernetes documentation, "Namespaces" (ordered namespace deletion).

use crate::Controller;
use crate::action::{Action, Context, Plan, time, value};
use crate::clock::after;
use crate::pods;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use skiff_api::view::{Change, Identity, Key, Resource, View};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "namespaces", keys, all, plan, refused: crate::untold };

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
    let content: Vec<_> = c.view.identities().filter(|i| i.key.namespace == key.name).collect();
    let is_pod = |object: &Identity| object.resource == pods::resource();
    let has_pods = content.iter().any(|o| is_pod(o));
    for object in &content {
        if !object.deleting && is_pod(object) == has_pods {
            plan.push(Action::Delete {
                resource: object.resource.clone(),
                key: object.key.clone(),
                uid: object.uid.clone(),
                resource_version: None,
                propagation: Some("Background"),
                grace_seconds: None,
            });
        }
    }
    if !content.is_empty() {
        // What is told is about what does not go at once: that is known when everything was asked to.
        if plan.actions.is_empty() {
            tell(c, namespace, &content, &mut plan);
        }
        plan.again(after(c.now, SignedDuration::from_secs(2)));
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

/// Says in the namespace's status what is left, and what holds it.
fn tell(c: &Context<'_>, namespace: &Arc<Namespace>, content: &[&Arc<Identity>], plan: &mut Plan) {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut holders: BTreeMap<&str, usize> = BTreeMap::new();
    for object in content {
        let Resource { group, plural, .. } = &object.resource;
        let name = if group.is_empty() { plural.clone() } else { format!("{plural}.{group}") };
        *kinds.entry(name).or_default() += 1;
        object.finalizers.iter().for_each(|f| *holders.entry(f).or_default() += 1);
    }
    let list = |all: Vec<String>| all.join(", ");
    let remaining = list(kinds.iter().map(|(kind, n)| format!("{kind}. has {n} resource instances")).collect());
    let held = list(holders.iter().map(|(name, n)| format!("{name} in {n} resource instances")).collect());
    let held = match held.as_str() {
        "" => ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_string()),
        held => {
            let message = format!("Some content in the namespace has finalizers remaining: {held}");
            ("True", "SomeFinalizersRemain", message)
        }
    };
    let told = [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("False", "ResourcesDiscovered", "All resources successfully discovered".to_string()),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("False", "ParsedGroupVersions", "All legacy kube types successfully parsed".to_string()),
        ),
        (
            "NamespaceDeletionContentFailure",
            ("False", "ContentDeleted", "All content successfully deleted, may be waiting on finalization".to_string()),
        ),
        (
            "NamespaceContentRemaining",
            ("True", "SomeResourcesRemain", format!("Some resources are remaining: {remaining}")),
        ),
        ("NamespaceFinalizersRemaining", held),
    ];
    let mut changed = (**namespace).clone();
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    for (type_, (status, reason, message)) in told {
        let old = conditions.iter_mut().find(|o| o.type_ == type_);
        let since = old.as_ref().filter(|o| o.status == status).and_then(|o| o.last_transition_time.clone());
        let new = NamespaceCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: since.or_else(|| Some(time(c.now))),
        };
        match old {
            Some(old) => *old = new,
            None => conditions.push(new),
        }
    }
    if changed.status != namespace.status {
        let resource = Resource::new("", "v1", "namespaces");
        plan.push(Action::Update { resource, object: value(&changed), subresource: Some("status") });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Liveness, Settings};
    use jiff::Timestamp;
    use serde_json::json;

    /// A namespace that is being deleted and holds these (resource, being deleted), and what is done next.
    fn check(content: &[(&str, bool)], expect: &[&str]) {
        let mut view = View::default();
        let mut put = |plural: &str, key: Key, deleting: bool| {
            let mut meta = json!({"name": key.name, "namespace": key.namespace, "uid": format!("{plural}-uid"), "finalizers": ["a.example/b"]});
            if deleting {
                meta["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            let object =
                json!({"metadata": meta, "spec": {"containers": [], "finalizers": ["kubernetes"]}}).to_string();
            view.apply(&Resource::new("", "v1", plural), &key, Some(object.as_bytes())).unwrap();
        };
        put("namespaces", Key::new("", "d"), true);
        content.iter().for_each(|(plural, deleting)| put(plural, Key::new("d", "x"), *deleting));
        let settings = Settings {
            ca: String::new(),
            eviction_grace_ms: 0,
            event_ttl_seconds: 0,
            cluster_cidr: ([10, 42, 0, 0].into(), 16),
        };
        let context =
            Context { view: &view, now: Timestamp::UNIX_EPOCH, settings: &settings, liveness: &Liveness::default() };
        let done: Vec<_> = plan(&context, &Key::new("", "d"))
            .actions
            .into_iter()
            .map(|action| match action {
                Action::Delete { resource, .. } => resource.plural,
                Action::Update { object, .. } => {
                    let conditions = object["status"]["conditions"].as_array().unwrap();
                    let remains = conditions.iter().find(|c| c["type"] == "NamespaceContentRemaining").unwrap();
                    remains["message"].as_str().unwrap().to_owned()
                }
                Action::Finalize { .. } => "finalize".into(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(done, expect, "{content:?}");
    }

    #[test]
    fn pods_first_then_the_rest_then_the_namespace() {
        check(&[("pods", false), ("configmaps", false), ("secrets", false)], &["pods"]);
        check(
            &[("pods", true), ("configmaps", false)],
            &["Some resources are remaining: configmaps. has 1 resource instances, pods. has 1 resource instances"],
        );
        check(&[("configmaps", false), ("secrets", true)], &["configmaps"]);
        check(&[("secrets", true)], &["Some resources are remaining: secrets. has 1 resource instances"]);
        check(&[], &["finalize"]);
    }
}
