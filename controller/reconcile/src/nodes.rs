//! Nodes that fall silent: their condition and taints say so at once, and after a grace their pods are replaced elsewhere.
//!
//! A lost node's pods get a deletion timestamp: ReplicaSets no longer count them and make others, while the node, if it comes back, stops
//! just those and keeps the rest running. When more than half of the nodes are silent, nothing is moved.

use crate::Controller;
use crate::action::{Action, Context, EventNote, Plan, time, value};
use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint, Toleration};
use skiff_api::view::{Change, Key, Resource, View};
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "nodes", keys, all, plan };

/// The reason in a pod's Ready condition when only its node's silence made it unready.
pub const NODE_LOST: &str = "NodeLost";

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const MEMORY: &str = "node.kubernetes.io/memory-pressure";
const DISK: &str = "node.kubernetes.io/disk-pressure";
const PIDS: &str = "node.kubernetes.io/pid-pressure";
const NETWORK: &str = "node.kubernetes.io/network-unavailable";

pub fn resource() -> Resource {
    Resource::new("", "v1", "nodes")
}

fn all(view: &View) -> Vec<Key> {
    view.nodes.iter().map(|(k, _)| k.clone()).collect()
}

fn keys(_: &View, change: &Change) -> Vec<Key> {
    match change.resource.plural.as_str() {
        "nodes" if !change.gone => vec![change.key.clone()],
        // A pod that is bound to a node, also to one that is already lost.
        "pods" => change.nodes[1].iter().map(|n| Key::new("", n)).collect(),
        _ => Vec::new(),
    }
}

fn ready_status(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.as_str())
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = c.view.nodes.get(key) else { return plan };
    let lost = c.liveness.lost_since(&key.name);
    if let Some(since) = lost {
        mark_unknown(c, node, since, &mut plan);
    }
    if !subnet(c, node, &mut plan) && !lifetime(node, &mut plan) {
        taint(c, node, lost.is_some(), &mut plan);
    }
    if let Some(since) = lost {
        for (_, pod) in c.view.pods_on(&key.name) {
            mark_unready(c, pod, &mut plan);
        }
        evict(c, node, since, &mut plan);
    }
    plan
}

/// Gives a new node its part of the pods' addresses: the first that no other node has. True if it did.
fn subnet(c: &Context<'_>, node: &Arc<Node>, plan: &mut Plan) -> bool {
    let has = |n: &Node| n.spec.as_ref().and_then(|s| s.pod_cidr.clone());
    if has(node).is_some() || c.settings.cluster_cidr.1 > 24 {
        return false;
    }
    let taken: std::collections::BTreeSet<_> = c.view.nodes.values().filter_map(|n| has(n)).collect();
    let (base, bits) = c.settings.cluster_cidr;
    let free = (0..1u32 << (24 - bits)).map(|n| format!("{}/24", std::net::Ipv4Addr::from(u32::from(base) + (n << 8))));
    let Some(cidr) = free.into_iter().find(|cidr| !taken.contains(cidr)) else {
        let message = "Every part of the cluster's pod range belongs to a node already; widen --cluster-cidr".into();
        plan.push(event(node, true, "CIDRNotAvailable", message));
        return false;
    };
    let mut changed = (**node).clone();
    let spec = changed.spec.get_or_insert_default();
    spec.pod_cidrs = Some(vec![cidr.clone()]);
    spec.pod_cidr = Some(cidr);
    // One write for all that a new node needs.
    changed.metadata.annotations.get_or_insert_default().entry(TTL.into()).or_insert_with(|| "0".into());
    plan.push(Action::Update { resource: resource(), object: value(&changed), subresource: None });
    true
}

const TTL: &str = "node.alpha.kubernetes.io/ttl";

/// How long an agent may keep what it knows of secrets and settings, seconds: not at all, because it is told of changes. Agents of
/// Kubernetes read this annotation. True if it had to be written.
fn lifetime(node: &Arc<Node>, plan: &mut Plan) -> bool {
    if node.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(TTL)) {
        return false;
    }
    let patch = serde_json::json!({"metadata": {"annotations": {TTL: "0"}}});
    plan.push(Action::Patch { resource: resource(), key: Key::new("", name(node)), subresource: None, patch });
    true
}

/// The agent cannot say it any more: the control plane says that it does not know.
fn mark_unknown(c: &Context<'_>, node: &Arc<Node>, since: Timestamp, plan: &mut Plan) {
    if ready_status(node) == Some("Unknown") {
        return;
    }
    let mut changed = (**node).clone();
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let heartbeat = conditions.iter().find(|o| o.type_ == type_).and_then(|o| o.last_heartbeat_time.clone());
        let unknown = NodeCondition {
            type_: type_.into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusUnknown".into()),
            message: Some("Kubelet stopped posting node status.".into()),
            last_heartbeat_time: heartbeat.or_else(|| Some(time(since))),
            last_transition_time: Some(time(c.now)),
        };
        match conditions.iter_mut().find(|o| o.type_ == type_) {
            Some(condition) => *condition = unknown,
            None => conditions.push(unknown),
        }
    }
    plan.push(Action::Update { resource: resource(), object: value(&changed), subresource: Some("status") });
    plan.push(event(node, true, "NodeNotReady", format!("Node {} stopped sending heartbeats", name(node))));
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

fn event(node: &Node, warning: bool, reason: &'static str, message: String) -> Action {
    let uid = node.metadata.uid.clone().unwrap_or_default();
    Action::Event(EventNote {
        resource: resource(),
        kind: "Node",
        key: Key::new("", name(node)),
        uid,
        warning,
        reason,
        message,
    })
}

/// The taints that follow from the node's state, kept in step with it.
fn taint(c: &Context<'_>, node: &Arc<Node>, lost: bool, plan: &mut Plan) {
    let cordoned = node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
    let status = if lost { Some("Unknown") } else { ready_status(node) };
    let (unreachable, not_ready) = match status {
        Some("True") => (false, false),
        Some("Unknown") => (true, false),
        _ => (false, true),
    };
    let under = |type_: &str| {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == type_ && c.status == "True")
    };
    let wanted = [
        (MEMORY, "NoSchedule", under("MemoryPressure")),
        (DISK, "NoSchedule", under("DiskPressure")),
        (PIDS, "NoSchedule", under("PIDPressure")),
        (NETWORK, "NoSchedule", under("NetworkUnavailable")),
        (UNREACHABLE, "NoSchedule", unreachable),
        (UNREACHABLE, "NoExecute", unreachable),
        (NOT_READY, "NoSchedule", not_ready),
        (NOT_READY, "NoExecute", not_ready),
        (UNSCHEDULABLE, "NoSchedule", cordoned),
    ];
    let old = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut taints = old.clone();
    for (key, effect, wanted) in wanted {
        let is = |t: &Taint| t.key == key && t.effect == effect;
        match (taints.iter().any(is), wanted) {
            (false, true) => taints.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(time(c.now)),
                value: None,
            }),
            (true, false) => taints.retain(|t| !is(t)),
            _ => {}
        }
    }
    if taints != old {
        let mut changed = (**node).clone();
        changed.spec.get_or_insert_default().taints = Some(taints).filter(|t| !t.is_empty());
        plan.push(Action::Update { resource: resource(), object: value(&changed), subresource: None });
    }
}

fn mark_unready(c: &Context<'_>, pod: &Arc<Pod>, plan: &mut Plan) {
    if !pods::is_ready(pod) {
        return;
    }
    let mut changed = (**pod).clone();
    for condition in changed.status.get_or_insert_default().conditions.get_or_insert_default() {
        if condition.type_ == "Ready" {
            *condition = PodCondition {
                status: "False".into(),
                reason: Some(NODE_LOST.into()),
                message: Some("The node stopped sending heartbeats".into()),
                last_transition_time: Some(time(c.now)),
                ..condition.clone()
            };
        }
    }
    plan.push(Action::Update { resource: pods::resource(), object: value(&changed), subresource: Some("status") });
}

/// How long a pod bears the taint of an unreachable node. The default toleration that admission writes into every pod (300 s) counts as
/// the operator's grace instead: a policy is judged when the node is lost, not copied into pods.
fn tolerates(c: &Context<'_>, pod: &Pod) -> Option<SignedDuration> {
    let grace = SignedDuration::from_millis(c.settings.eviction_grace_ms);
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_ref());
    let bears = |t: &&Toleration| {
        let key = t.key.as_deref().unwrap_or_default();
        let effect = t.effect.as_deref().unwrap_or_default();
        (key.is_empty() && t.operator.as_deref() == Some("Exists") || key == UNREACHABLE)
            && matches!(effect, "" | "NoExecute")
    };
    match tolerations.into_iter().flatten().find(bears) {
        None => Some(grace),
        Some(Toleration { toleration_seconds: None, .. }) => None,
        Some(Toleration { toleration_seconds: Some(300), .. }) => Some(grace),
        Some(Toleration { toleration_seconds: Some(s), .. }) => Some(SignedDuration::from_secs((*s).max(0))),
    }
}

fn evict(c: &Context<'_>, node: &Node, since: Timestamp, plan: &mut Plan) {
    if c.liveness.is_partitioned() {
        plan.again(c.now + SignedDuration::from_secs(1));
        return;
    }
    for (key, pod) in c.view.pods_on(name(node)) {
        // What nothing would replace stays: it may still be running over there.
        let replaced = crate::owned::controller_of(&pod.metadata).is_some_and(|o| o.kind == "ReplicaSet");
        if !pods::is_active(pod) || !replaced {
            continue;
        }
        let Some(grace) = tolerates(c, pod) else { continue };
        if c.now < since + grace {
            plan.again(since + grace);
            continue;
        }
        plan.push(Action::Delete {
            resource: pods::resource(),
            key: key.clone(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            propagation: None,
            grace_seconds: None,
        });
        plan.push(Action::Event(EventNote {
            resource: pods::resource(),
            kind: "Pod",
            key: key.clone(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            warning: false,
            reason: "TaintManagerEviction",
            message: format!("Replacing the pod: its node {} stopped sending heartbeats", name(node)),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Liveness, NodeLiveness, Settings};
    use serde_json::json;
    use skiff_api::view::View;

    fn settings() -> Settings {
        Settings {
            ca: String::new(),
            eviction_grace_ms: 1500,
            event_ttl_seconds: 3600,
            cluster_cidr: (std::net::Ipv4Addr::new(10, 42, 0, 0), 16),
        }
    }

    fn cluster(nodes: usize) -> View {
        let mut view = View::default();
        for n in 0..nodes {
            let node = json!({"metadata": {"name": format!("n{n}"), "uid": format!("node-{n}")},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
            view.apply(&resource(), &Key::new("", format!("n{n}")), Some(node.to_string().as_bytes())).unwrap();
        }
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "p1",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r1", "controller": true}]},
            "spec": {"nodeName": "n0", "containers": [], "tolerations": [{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        view.apply(&pods::resource(), &Key::new("d", "p"), Some(pod.to_string().as_bytes())).unwrap();
        view
    }

    fn check(nodes: usize, lost: usize, after_ms: i64, evicted: bool) {
        let view = cluster(nodes);
        let since = Timestamp::from_second(1000).unwrap();
        let state = |n| if n < lost { NodeLiveness::Lost { since } } else { NodeLiveness::Live };
        let liveness = Liveness((0..nodes).map(|n| (format!("n{n}"), state(n))).collect());
        let now = since + SignedDuration::from_millis(after_ms);
        let context = Context { view: &view, now, settings: &settings(), liveness: &liveness };
        let plan = plan(&context, &Key::new("", "n0"));
        let deletes = plan.actions.iter().any(|a| matches!(a, Action::Delete { .. }));
        assert_eq!(deletes, evicted, "{nodes} nodes, {lost} lost, {after_ms} ms");
        if !evicted && lost > 0 {
            assert!(plan.again_at.is_some(), "it must be looked at again");
        }
    }

    #[test]
    fn pods_are_replaced_after_the_grace_and_never_when_most_nodes_are_silent() {
        check(3, 0, 5000, false);
        check(3, 1, 1000, false);
        check(3, 1, 1500, true);
        check(2, 1, 1500, true);
        check(3, 2, 9000, false);
        check(1, 1, 9000, false);
    }
}
