//! Facts about pods that several controllers ask for, and the controller that removes pods nobody will ever finish: bound to a node that
//! is gone from the API.

use crate::Controller;
use crate::action::{Action, Context, Plan};
use crate::clock::after;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use skiff_api::view::{Change, Key, Resource, View};

pub fn resource() -> Resource {
    Resource::new("", "v1", "pods")
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Ended, and will not run again.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts towards what its owner wants.
pub fn is_active(pod: &Pod) -> bool {
    !is_deleting(pod) && !is_finished(pod)
}

pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

pub fn ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).filter(|ip| !ip.is_empty())
}

/// Since when the pod is Ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

pub fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// Why the pod is not ready, as its Ready condition says.
pub fn unready_reason(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "Ready" && c.status != "True")?.reason.as_deref()
}

/// Ready for at least `min_seconds`; if not yet, when it will be.
pub fn availability(pod: &Pod, min_seconds: i32, now: Timestamp) -> Result<(), Option<Timestamp>> {
    let since = ready_since(pod).ok_or(None)?;
    let at = after(since, SignedDuration::from_secs(i64::from(min_seconds.max(0))));
    if min_seconds <= 0 || at <= now { Ok(()) } else { Err(Some(at)) }
}

pub(crate) const CONTROLLER: Controller = Controller { name: "pods", keys, all, plan, refused: crate::untold };

fn keys(view: &View, change: &Change) -> Vec<Key> {
    match change.resource.plural.as_str() {
        "pods" if !change.gone => vec![change.key.clone()],
        "nodes" if change.gone => view.pods_on(&change.key.name).map(|(k, _)| k.clone()).collect(),
        _ => Vec::new(),
    }
}

fn all(view: &View) -> Vec<Key> {
    view.pods.iter().map(|(k, _)| k.clone()).collect()
}

/// How long a pod may wait for a node that is not in the API: its agent may just be about to register.
const ORPHAN_GRACE: SignedDuration = SignedDuration::from_secs(10);

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(pod) = c.view.pods.get(key) else { return plan };
    let Some(node) = node(pod) else { return plan };
    if c.view.nodes.get(&Key::new("", node)).is_some() {
        return plan;
    }
    let made = pod.metadata.creation_timestamp.as_ref().map_or(c.now, |t| t.0);
    if c.now < after(made, ORPHAN_GRACE) {
        plan.again(after(made, ORPHAN_GRACE));
        return plan;
    }
    plan.push(Action::Delete {
        resource: resource(),
        key: key.clone(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        resource_version: None,
        propagation: None,
        grace_seconds: Some(0),
    });
    plan
}
