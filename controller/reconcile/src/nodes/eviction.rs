//! Which pods must leave a node: those that do not bear its `NoExecute` taints, or not for so long.
//!
//! A silent node counts as tainted from the moment its silence was noticed. Pods that leave get a deletion timestamp: whoever made them makes
//! others, while the node, if it comes back, stops just those and keeps the rest running. When more than half of the nodes are silent, the fault is
//! elsewhere, and nothing leaves for that reason.
//!
//! Source of the rules: Kubernetes documentation, "Taints and Tolerations", "Taint based Evictions".

use super::{NOT_READY, UNREACHABLE, name};
use crate::action::{Action, Context, EventNote, Plan, time, value};
use crate::clock::after;
use crate::{owned, pods};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint};
use skiff_api::taints::tolerates;
use skiff_api::view::Key;

/// The condition of a pod that ends because something else needs it to.
const DISRUPTED: &str = "DisruptionTarget";

/// What admission writes into every pod that does not say how long it bears a node's silence, seconds.
const DEFAULT_TOLERATION: i64 = 300;

/// While nothing may be moved, it is looked at this often whether that is over.
const PARTITIONED_AGAIN: SignedDuration = SignedDuration::from_secs(1);

pub fn plan(c: &Context<'_>, node: &Node, lost: Option<Timestamp>, plan: &mut Plan) {
    let moves = lost.filter(|_| !c.liveness.is_partitioned());
    if lost.is_some() && moves.is_none() {
        plan.again(after(c.now, PARTITIONED_AGAIN));
    }
    let taints = taints(node, moves);
    if taints.is_empty() {
        return;
    }
    for (key, pod) in c.view.pods_on(name(node)).filter(|(_, pod)| pods::is_active(pod)) {
        match leaves_at(pod, &taints, SignedDuration::from_millis(c.settings.eviction_grace_ms)) {
            Some(at) if at <= c.now => evict(c, node, key, pod, moves.is_some(), plan),
            Some(at) => plan.again(at),
            None => {}
        }
    }
}

/// The taints that drive pods away. What a silent node's own say of its silence is left to how long it has been silent.
fn taints(node: &Node, lost: Option<Timestamp>) -> Vec<Taint> {
    let spec = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let mut taints: Vec<_> =
        spec.into_iter().flatten().filter(|t| t.effect == "NoExecute" && t.key != UNREACHABLE).cloned().collect();
    if let Some(since) = lost {
        taints.retain(|t| t.key != NOT_READY);
        let silence = Taint { time_added: Some(time(since)), ..Taint::default() };
        taints.push(Taint { key: UNREACHABLE.into(), effect: "NoExecute".into(), ..silence });
    }
    taints
}

/// When a pod must leave a node with these taints; None: never.
///
/// The default toleration of a node's silence counts as the operator's grace, for pods that somebody makes anew: a policy is judged when the
/// node is lost, not copied into pods. What nobody would replace keeps the whole time: it may still be running over there.
fn leaves_at(pod: &Pod, taints: &[Taint], grace: SignedDuration) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let replaced = owned::controller_of(&pod.metadata).is_some_and(|o| o.kind == "ReplicaSet");
    let leaves = taints.iter().filter_map(|taint| {
        let since = taint.time_added.as_ref().map(|t| t.0);
        let bears = tolerations.iter().find(|t| tolerates(t, taint));
        let is_silence = taint.key == UNREACHABLE && replaced;
        let stay = match bears {
            None if is_silence => grace,
            None => SignedDuration::ZERO,
            Some(toleration) => match toleration.toleration_seconds? {
                DEFAULT_TOLERATION if is_silence => grace,
                seconds => SignedDuration::from_secs(seconds.max(0)),
            },
        };
        // A taint that says no time is given one in this same plan; until then only those leave who do not bear it at all.
        match since {
            Some(since) => Some(after(since, stay)),
            None if stay.is_zero() => Some(Timestamp::MIN),
            None => None,
        }
    });
    leaves.min()
}

fn evict(c: &Context<'_>, node: &Node, key: &Key, pod: &Pod, lost: bool, plan: &mut Plan) {
    if let Some(told) = told_why(pod, c.now) {
        plan.push(Action::Update { resource: pods::resource(), object: value(&told), subresource: Some("status") });
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    plan.push(Action::Delete {
        resource: pods::resource(),
        key: key.clone(),
        uid: uid.clone(),
        resource_version: None,
        propagation: None,
        grace_seconds: None,
    });
    let message = match lost {
        true => format!("Replacing the pod: its node {} stopped sending heartbeats", name(node)),
        false => format!("Stopping the pod: it does not tolerate a NoExecute taint of its node {}", name(node)),
    };
    plan.push(Action::Event(EventNote {
        resource: pods::resource(),
        kind: "Pod".into(),
        key: key.clone(),
        uid,
        warning: false,
        reason: "TaintManagerEviction",
        message,
    }));
}

/// The pod with the condition that says why it ends; None when it says so already. A Job's failure policy asks for it.
///
/// Source: Kubernetes documentation, "Disruptions", "Pod disruption conditions".
fn told_why(pod: &Pod, now: Timestamp) -> Option<Pod> {
    let mut pod = pod.clone();
    let generation = pod.metadata.generation;
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    if conditions.iter().any(|c| c.type_ == DISRUPTED && c.status == "True") {
        return None;
    }
    conditions.retain(|c| c.type_ != DISRUPTED);
    conditions.push(PodCondition {
        type_: DISRUPTED.into(),
        status: "True".into(),
        reason: Some("DeletionByTaintManager".into()),
        message: Some("Taint manager: deleting due to NoExecute taint".into()),
        last_transition_time: Some(time(now)),
        observed_generation: generation,
        ..PodCondition::default()
    });
    Some(pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Liveness, NodeLiveness, Settings};
    use serde_json::{Value, json};
    use skiff_api::view::View;

    const GRACE_MS: i64 = 1500;

    fn default_tolerations() -> Value {
        json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}])
    }

    /// A cluster whose node `n0` has these taints and a pod with these tolerations.
    fn cluster(nodes: usize, taints: Value, tolerations: Value, replaced: bool) -> View {
        let mut view = View::default();
        for n in 0..nodes {
            let node = json!({"metadata": {"name": format!("n{n}"), "uid": format!("node-{n}"), "annotations": {crate::nodes::TTL: "0"}}, "spec": {"taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
            view.apply(&crate::nodes::resource(), &Key::new("", format!("n{n}")), Some(node.to_string().as_bytes()))
                .unwrap();
        }
        let owners =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r1", "controller": true}]);
        let pod = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "p1", "ownerReferences": if replaced { owners } else { json!([]) }},
            "spec": {"nodeName": "n0", "containers": [], "tolerations": tolerations}, "status": {"phase": "Running"}});
        view.apply(&pods::resource(), &Key::new("d", "p"), Some(pod.to_string().as_bytes())).unwrap();
        view
    }

    /// Whether the pod leaves, and whether it is looked at again, `after_ms` after second 1000.
    fn planned(view: &View, lost: usize, after_ms: i64) -> (bool, bool) {
        let since = Timestamp::from_second(1000).unwrap();
        let state = |n| if n < lost { NodeLiveness::Lost { since } } else { NodeLiveness::Live };
        let liveness = Liveness((0..view.nodes.len()).map(|n| (format!("n{n}"), state(n))).collect());
        let now = since + SignedDuration::from_millis(after_ms);
        let settings = Settings {
            ca: String::new(),
            eviction_grace_ms: GRACE_MS,
            event_ttl_seconds: 3600,
            cluster_cidr: (std::net::Ipv4Addr::new(10, 42, 0, 0), 16),
        };
        let context = Context { view, now, settings: &settings, liveness: &liveness };
        let plan = (crate::nodes::CONTROLLER.plan)(&context, &Key::new("", "n0"));
        (plan.actions.iter().any(|a| matches!(a, Action::Delete { .. })), plan.again_at.is_some())
    }

    #[test]
    fn pods_are_replaced_after_the_grace_and_never_when_most_nodes_are_silent() {
        let check = |nodes, lost, after_ms, evicted| {
            let view = cluster(nodes, json!([]), default_tolerations(), true);
            let (leaves, again) = planned(&view, lost, after_ms);
            assert_eq!(leaves, evicted, "{nodes} nodes, {lost} lost, {after_ms} ms");
            assert!(leaves || lost == 0 || again, "it must be looked at again");
        };
        check(3, 0, 5000, false);
        check(3, 1, 1000, false);
        check(3, 1, 1500, true);
        check(2, 1, 1500, true);
        check(3, 2, 9000, false);
        check(1, 1, 9000, false);
    }

    #[test]
    fn a_silent_node_keeps_what_nobody_would_replace_for_as_long_as_the_pod_says() {
        let check = |tolerations, replaced, after_ms, evicted| {
            let view = cluster(3, json!([]), tolerations, replaced);
            assert_eq!(planned(&view, 1, after_ms).0, evicted, "{replaced} {after_ms}");
        };
        let bears = |seconds: Value| json!([{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": seconds}]);
        check(default_tolerations(), false, 299_000, false);
        check(default_tolerations(), false, 300_000, true);
        check(bears(json!(10)), true, 9_000, false);
        check(bears(json!(10)), true, 10_000, true);
        check(bears(json!(i64::MAX)), true, 1_000_000_000, false);
        check(bears(json!(i64::MIN)), true, 0, true);
        check(json!([{"operator": "Exists"}]), true, 1_000_000_000, false);
    }

    #[test]
    fn taints_that_a_user_sets_drive_away_who_does_not_bear_them() {
        let check = |what, taint: Value, tolerations: Value, after_ms, evicted| {
            let view = cluster(1, json!([taint]), tolerations, false);
            assert_eq!(planned(&view, 0, after_ms).0, evicted, "{what}");
        };
        let at = "1970-01-01T00:16:40Z";
        let taint = json!({"key": "a", "value": "b", "effect": "NoExecute", "timeAdded": at});
        let bears =
            |seconds: Value| json!([{"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        check("not borne", taint.clone(), default_tolerations(), 0, true);
        check("not borne, and nobody said since when", json!({"key": "a", "effect": "NoExecute"}), json!([]), 0, true);
        check("another value", taint.clone(), json!([{"key": "a", "value": "c"}]), 0, true);
        check("borne for ever", taint.clone(), bears(Value::Null), 1_000_000_000, false);
        check("borne for a while", taint.clone(), bears(json!(30)), 29_000, false);
        check("and no longer", taint.clone(), bears(json!(30)), 30_000, true);
        check("for longer than time lasts", taint.clone(), bears(json!(i64::MAX)), 1_000_000_000, false);
        check("only new pods are kept away", json!({"key": "a", "effect": "NoSchedule"}), json!([]), 1_000_000, false);
    }

    /// Before it is deleted, and once.
    #[test]
    fn a_pod_that_leaves_is_told_why() {
        let pod = |conditions: Value| {
            let pod = json!({"metadata": {"name": "p", "generation": 3}, "status": {"conditions": conditions}});
            serde_json::from_value::<Pod>(pod).unwrap()
        };
        let now = Timestamp::from_second(1000).unwrap();
        let check = |before: Value, expect: Option<usize>| {
            let told = told_why(&pod(before.clone()), now).map(|pod| pod.status.unwrap().conditions.unwrap());
            assert_eq!(told.as_ref().map(Vec::len), expect, "{before}");
            if let Some(last) = told.and_then(|mut conditions| conditions.pop()) {
                assert_eq!((last.type_.as_str(), last.status.as_str()), (DISRUPTED, "True"));
                assert_eq!(last.reason.as_deref(), Some("DeletionByTaintManager"));
                assert_eq!((last.last_transition_time, last.observed_generation), (Some(time(now)), Some(3)));
            }
        };
        check(Value::Null, Some(1));
        check(json!([{"type": "Ready", "status": "True"}]), Some(2));
        check(json!([{"type": DISRUPTED, "status": "False"}]), Some(1));
        check(json!([{"type": DISRUPTED, "status": "True", "reason": "EvictionByEvictionAPI"}]), None);
        let view = cluster(
            1,
            json!([{"key": "a", "effect": "NoExecute", "timeAdded": "1970-01-01T00:16:40Z"}]),
            json!([]),
            false,
        );
        let settings = Settings {
            ca: String::new(),
            eviction_grace_ms: 0,
            event_ttl_seconds: 0,
            cluster_cidr: ([10, 42, 0, 0].into(), 25),
        };
        let context = Context { view: &view, now, settings: &settings, liveness: &Liveness::default() };
        let plan = (crate::nodes::CONTROLLER.plan)(&context, &Key::new("", "n0"));
        let at = |wanted: fn(&Action) -> bool| plan.actions.iter().position(wanted).unwrap();
        let told = at(
            |a| matches!(a, Action::Update { subresource: Some("status"), object, .. } if object["kind"] != "Node" && !object["status"]["conditions"].is_null() && object["metadata"]["name"] == "p"),
        );
        assert!(told < at(|a| matches!(a, Action::Delete { .. })));
    }

    /// A taint that says no time gets one, so that waiting for it outlives a change of leader.
    #[test]
    fn a_taint_is_given_its_time() {
        let view = cluster(1, json!([{"key": "a", "effect": "NoExecute"}]), json!([]), false);
        let now = Timestamp::from_second(1000).unwrap();
        let settings = Settings {
            ca: String::new(),
            eviction_grace_ms: 0,
            event_ttl_seconds: 0,
            cluster_cidr: ([10, 42, 0, 0].into(), 25),
        };
        let context = Context { view: &view, now, settings: &settings, liveness: &Liveness::default() };
        let taints = |plan: Plan| {
            let update = plan.actions.into_iter().find_map(|a| match a {
                Action::Update { object, .. } => Some(object["spec"]["taints"].clone()),
                _ => None,
            });
            update.unwrap_or_default()
        };
        let written = taints((crate::nodes::CONTROLLER.plan)(&context, &Key::new("", "n0")));
        assert_eq!(written[0]["timeAdded"], "1970-01-01T00:16:40Z", "{written}");
    }
}
