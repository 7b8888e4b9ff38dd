//! Nodes: their part of the pods' addresses, the taints that follow from their state, and what is said of a node that falls silent. Which pods must leave is
//! decided in [`eviction`].

mod eviction;

use crate::Controller;
use crate::action::{Action, Context, EventNote, Plan, time, value};
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};
use skiff_api::view::{Change, Key, Resource, View};
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "nodes", keys, all, plan, refused: crate::untold };

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
    if lost.is_some() {
        for (_, pod) in c.view.pods_on(&key.name) {
            mark_unready(c, pod, &mut plan);
        }
    }
    eviction::plan(c, node, lost, &mut plan);
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
        kind: "Node".into(),
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
    // How long pods may stay counts from when the taint came. Who sets one by hand does not say when that was.
    for taint in taints.iter_mut().filter(|t| t.effect == "NoExecute") {
        taint.time_added.get_or_insert_with(|| time(c.now));
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
