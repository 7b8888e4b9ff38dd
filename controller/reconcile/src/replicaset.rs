//! ReplicaSets: as many active pods as the spec asks for, made and removed in bulk; and the counts in their status.

use crate::Controller;
use crate::action::{Action, Context, EventNote, Plan, time, value};
use crate::owned::{self, Claim, claim, controller_of, matches, owner_reference};
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use skiff_api::view::{Change, Key, Resource, View};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "replicaset", keys, all, plan, refused };

/// The condition of a set whose pods are refused.
pub const FAILURE: &str = "ReplicaFailure";

/// Pods made or removed in one plan; the rest follows once these are seen.
const BURST: usize = 500;

pub fn resource() -> Resource {
    Resource::new("apps", "v1", "replicasets")
}

fn all(view: &View) -> Vec<Key> {
    view.replica_sets.iter().map(|(k, _)| k.clone()).collect()
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    match (change.resource.group.as_str(), change.resource.plural.as_str()) {
        ("apps", "replicasets") => vec![change.key.clone()],
        ("", "pods") => {
            let owners = [&change.before, &change.after].into_iter().flatten().flat_map(|i| &i.owners);
            let mut keys: Vec<_> = owners
                .filter(|o| o.controller && o.kind == "ReplicaSet")
                .map(|o| Key::new(&change.key.namespace, &o.name))
                .collect();
            let orphan = change.after.as_ref().is_some_and(|i| !i.owners.iter().any(|o| o.controller));
            if orphan && let Some(pod) = view.pods.get(&change.key) {
                let fits = |rs: &ReplicaSet| {
                    rs.spec
                        .as_ref()
                        .is_some_and(|s| matches(&owned::selector(&s.selector), pod.metadata.labels.as_ref()))
                };
                let sets = view.replica_sets.namespace(&change.key.namespace);
                keys.extend(sets.filter(|(_, rs)| fits(rs)).map(|(k, _)| k.clone()));
            }
            keys.dedup();
            keys
        }
        _ => Vec::new(),
    }
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = c.view.replica_sets.get(key) else { return plan };
    let (Some(spec), Some(uid)) = (&set.spec, &set.metadata.uid) else { return plan };
    let selector = owned::selector(&spec.selector);
    let deleting = set.metadata.deletion_timestamp.is_some();
    let mut ours = Vec::new();
    for (_, pod) in c.view.pods.namespace(&key.namespace) {
        let fits = matches(&selector, pod.metadata.labels.as_ref());
        match claim(uid, deleting, &pod.metadata, fits) {
            Claim::Ours => ours.push(pod.clone()),
            Claim::Adopt if !pods::is_finished(pod) => {
                let owner = owner_reference("apps/v1", "ReplicaSet", &set.metadata);
                plan.push(owned::adopt(pods::resource(), &pod.metadata, owner));
                ours.push(pod.clone());
            }
            Claim::Release => plan.push(owned::release(pods::resource(), &pod.metadata, uid)),
            _ => {}
        }
    }
    let terminating = ours.iter().filter(|p| pods::is_deleting(p) && !pods::is_finished(p)).count();
    let active: Vec<_> = ours.into_iter().filter(|p| pods::is_active(p)).collect();
    if !deleting {
        let wanted = spec.replicas.unwrap_or(1).max(0) as usize;
        if active.len() < wanted {
            create(set, wanted - active.len(), &mut plan);
        } else {
            remove(c.view, set, &active, active.len() - wanted, &mut plan);
        }
    }
    status(c, set, &active, terminating, &mut plan);
    plan
}

fn create(set: &ReplicaSet, count: usize, plan: &mut Plan) {
    let Some(template) = set.spec.as_ref().and_then(|s| s.template.as_ref()) else { return };
    let meta = template.metadata.clone().unwrap_or_default();
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{}-", set.metadata.name.as_deref().unwrap_or_default()),
            "namespace": set.metadata.namespace,
            "ownerReferences": [owner_reference("apps/v1", "ReplicaSet", &set.metadata)],
        },
        "spec": value(&template.spec),
    });
    for (field, present) in [
        ("labels", value(&meta.labels)),
        ("annotations", value(&meta.annotations)),
        ("finalizers", value(&meta.finalizers)),
    ] {
        if !present.is_null() {
            object["metadata"][field] = present;
        }
    }
    for _ in 0..count.min(BURST) {
        let announce = note(set, "SuccessfulCreate", "Created pod: ".into());
        plan.push(Action::Create { resource: pods::resource(), object: object.clone(), announce: Some(announce) });
    }
}

/// Removes the pods that would be missed least.
fn remove(view: &View, set: &ReplicaSet, active: &[Arc<Pod>], count: usize, plan: &mut Plan) {
    if count == 0 {
        return;
    }
    let doubled = related_per_node(view, set);
    let mut ranked: Vec<_> = active.iter().collect();
    ranked.sort_by_key(|pod| rank(pod, &doubled));
    for pod in ranked.into_iter().take(count.min(BURST)) {
        let meta = &pod.metadata;
        let pod_key = Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        plan.push(Action::Delete {
            resource: pods::resource(),
            key: pod_key.clone(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: None,
            propagation: None,
            grace_seconds: None,
        });
        plan.push(event(set, "SuccessfulDelete", format!("Deleted pod: {}", pod_key.name)));
    }
}

/// Its pods are refused (by a quota, a level of Pod Security, an account that is not there): a condition says so as long as pods are missing, and an event
/// when it begins and when the words change.
fn refused(c: &Context<'_>, key: &Key, why: &str) -> Vec<Action> {
    let Some(set) = c.view.replica_sets.get(key) else { return Vec::new() };
    let mut status = set.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().find(|o| o.type_ == FAILURE);
    if old.is_some_and(|old| same_words(old.message.as_deref().unwrap_or_default(), why)) {
        return Vec::new();
    }
    let since = old.and_then(|old| old.last_transition_time.clone());
    conditions.retain(|o| o.type_ != FAILURE);
    conditions.push(ReplicaSetCondition {
        type_: FAILURE.into(),
        status: "True".into(),
        reason: Some("FailedCreate".into()),
        message: Some(why.to_owned()),
        last_transition_time: since.or_else(|| Some(time(c.now))),
    });
    let note = EventNote { warning: true, ..note(set, "FailedCreate", format!("Error creating: {why}")) };
    let object = ReplicaSet { status: Some(status), ..(**set).clone() };
    let update = Action::Update { resource: resource(), object: value(&object), subresource: Some("status") };
    vec![update, Action::Event(note)]
}

/// Whether two refusals say the same but for the first quoted word, which is the name that was made up for the pod.
fn same_words(one: &str, other: &str) -> bool {
    let but_name = |text: &str| {
        let parts: Vec<_> = text.splitn(3, '"').map(str::to_owned).collect();
        (parts.first().cloned(), parts.get(2).cloned())
    };
    but_name(one) == but_name(other)
}

fn event(set: &ReplicaSet, reason: &'static str, message: String) -> Action {
    Action::Event(note(set, reason, message))
}

fn note(set: &ReplicaSet, reason: &'static str, message: String) -> EventNote {
    let meta = &set.metadata;
    EventNote {
        resource: resource(),
        kind: "ReplicaSet".into(),
        key: Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
        uid: meta.uid.clone().unwrap_or_default(),
        warning: false,
        reason,
        message,
    }
}

/// Active pods on each node that belong to any ReplicaSet of the same owner: two on one node serve less than two on two.
fn related_per_node(view: &View, set: &ReplicaSet) -> BTreeMap<String, usize> {
    let owner = controller_of(&set.metadata).map(|o| o.uid.as_str());
    let mut count = BTreeMap::new();
    let siblings = view.replica_sets.namespace(set.metadata.namespace.as_deref().unwrap_or_default());
    for (_, sibling) in siblings {
        let same = sibling.metadata.uid == set.metadata.uid
            || (owner.is_some() && controller_of(&sibling.metadata).map(|o| o.uid.as_str()) == owner);
        let Some(uid) = sibling.metadata.uid.as_deref().filter(|_| same) else { continue };
        for identity in view.dependents(uid) {
            if let Some(pod) = view.pods.get(&identity.key).filter(|p| pods::is_active(p))
                && let Some(node) = pods::node(pod)
            {
                *count.entry(node.to_owned()).or_default() += 1;
            }
        }
    }
    count
}

/// The smaller, the sooner it goes: unassigned, pending, not ready, cheap to delete, crowded, ready for a shorter time, restarted more, newer.
type Rank = (bool, u8, bool, i64, Reverse<usize>, Reverse<Timestamp>, Reverse<i32>, Reverse<Timestamp>, String);

fn rank(pod: &Pod, per_node: &BTreeMap<String, usize>) -> Rank {
    let phase = match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let annotations = pod.metadata.annotations.as_ref();
    let cost =
        annotations.and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost")).and_then(|c| c.parse().ok());
    let crowd = pods::node(pod).and_then(|n| per_node.get(n)).copied().unwrap_or(0);
    let containers = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    let restarts = containers.into_iter().flatten().map(|c| c.restart_count).max().unwrap_or(0);
    let made = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    (
        pods::node(pod).is_some(),
        phase,
        pods::is_ready(pod),
        cost.unwrap_or(0),
        Reverse(crowd),
        Reverse(pods::ready_since(pod).unwrap_or(Timestamp::MAX)),
        Reverse(restarts),
        Reverse(made),
        pod.metadata.name.clone().unwrap_or_default(),
    )
}

fn status(c: &Context<'_>, set: &ReplicaSet, active: &[Arc<Pod>], terminating: usize, plan: &mut Plan) {
    let Some(spec) = &set.spec else { return };
    let template_labels =
        spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone()).unwrap_or_default();
    let labelled = |pod: &Pod| {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        template_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    };
    let mut available = 0;
    for pod in active {
        match pods::availability(pod, spec.min_ready_seconds.unwrap_or(0), c.now) {
            Ok(()) => available += 1,
            Err(Some(at)) => plan.again(at),
            Err(None) => {}
        }
    }
    let count = |n: usize| Some(n as i32).filter(|n| *n != 0);
    let old = set.status.clone().unwrap_or_default();
    let missing = (active.len() as i64) < i64::from(spec.replicas.unwrap_or(1));
    let mut kept = old.conditions.clone();
    if let Some(list) = &mut kept {
        list.retain(|o| o.type_ != FAILURE || missing);
    }
    let kept = kept.filter(|list| !list.is_empty());
    let new = ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: count(active.iter().filter(|p| labelled(p)).count()),
        ready_replicas: count(active.iter().filter(|p| pods::is_ready(p)).count()),
        available_replicas: count(available),
        terminating_replicas: Some(terminating as i32),
        observed_generation: set.metadata.generation,
        conditions: kept,
    };
    if new != old {
        let object = ReplicaSet { status: Some(new), ..set.clone() };
        plan.push(Action::Update { resource: resource(), object: value(&object), subresource: Some("status") });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Liveness, Settings};

    /// A set of which two pods are wanted: how many there are, what its condition says, and what is done of it (by a plan, or when a pod is refused).
    fn check(pods: usize, said: &str, refused_with: Option<&str>, expect: &[&str]) {
        let mut view = View::default();
        let mut put = |resource: Resource, name: &str, object: serde_json::Value| {
            view.apply(&resource, &Key::new("d", name), Some(object.to_string().as_bytes())).unwrap();
        };
        let condition = json!({"type": FAILURE, "status": "True", "reason": "FailedCreate", "message": said});
        let conditions = if said.is_empty() { json!([]) } else { json!([condition]) };
        put(
            resource(),
            "s",
            json!({"metadata": {"name": "s", "namespace": "d", "uid": "u"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}}},
            "status": {"replicas": 0, "conditions": conditions}}),
        );
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": "u", "controller": true}]);
        for n in 0..pods {
            let name = format!("p{n}");
            put(
                pods::resource(),
                &name,
                json!({"metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"a": "b"},
                "ownerReferences": owner}, "spec": {"containers": []}}),
            );
        }
        let settings = Settings {
            ca: String::new(),
            eviction_grace_ms: 0,
            event_ttl_seconds: 0,
            cluster_cidr: ([10, 42, 0, 0].into(), 16),
        };
        let context =
            Context { view: &view, now: Timestamp::UNIX_EPOCH, settings: &settings, liveness: &Liveness::default() };
        let key = Key::new("d", "s");
        let actions = match refused_with {
            Some(why) => refused(&context, &key, why),
            None => plan(&context, &key).actions,
        };
        let done: Vec<_> = actions
            .iter()
            .map(|action| match action {
                Action::Create { .. } => "a pod".to_owned(),
                Action::Update { object, .. } => {
                    let message = object.pointer("/status/conditions/0/message").and_then(|m| m.as_str());
                    format!("condition: {}", message.unwrap_or("none"))
                }
                Action::Event(note) => format!("{} {}", note.reason, note.message),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(done, expect, "{pods} pods, {said:?}, {refused_with:?}");
    }

    #[test]
    fn a_refusal_is_told_once_and_as_long_as_pods_are_missing() {
        let quota = "pods \"s-x2\" is forbidden: exceeded quota: q";
        check(0, "", Some(quota), &[&format!("condition: {quota}"), &format!("FailedCreate Error creating: {quota}")]);
        // The name is another one each time.
        check(0, "pods \"s-b7\" is forbidden: exceeded quota: q", Some(quota), &[]);
        check(
            0,
            "pods \"s-b7\" is forbidden: violates PodSecurity",
            Some(quota),
            &[&format!("condition: {quota}"), &format!("FailedCreate Error creating: {quota}")],
        );
        check(1, quota, None, &["a pod", &format!("condition: {quota}")]);
        check(2, quota, None, &["condition: none"]);
    }
}
