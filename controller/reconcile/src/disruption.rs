//! Disruption budgets: how many of their pods may be evicted now.
//!
//! Evictions take from the number that stands in the status; here it is counted anew whenever a pod changes. A pod whose eviction
//! was granted a moment ago counts as gone, also before its deletion is seen.

use crate::Controller;
use crate::action::{Action, Context, Plan, time, value};
use crate::clock::after;
use crate::owned;
use crate::pods;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_api::view::{Change, Key, Resource, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "disruption", keys, all, plan, refused: crate::untold };

/// How long a granted eviction may take to show; then it is taken to have failed.
const GRANTED_FOR: SignedDuration = SignedDuration::from_mins(2);

fn resource() -> Resource {
    Resource::new("policy", "v1", "poddisruptionbudgets")
}

fn all(view: &View) -> Vec<Key> {
    view.disruption_budgets.iter().map(|(k, _)| k.clone()).collect()
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    match change.resource.plural.as_str() {
        "poddisruptionbudgets" => vec![change.key.clone()],
        "pods" | "replicasets" | "deployments" if !view.disruption_budgets.is_empty() => {
            view.disruption_budgets.namespace(&change.key.namespace).map(|(k, _)| k.clone()).collect()
        }
        _ => Vec::new(),
    }
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(budget) = c.view.disruption_budgets.get(key) else { return plan };
    let pods = selected(c.view, budget);
    let old = budget.status.clone().unwrap_or_default();
    let granted = still_granted(c, &old, &pods, &mut plan);
    let healthy = pods.iter().filter(|p| {
        let name = p.metadata.name.as_deref().unwrap_or_default();
        !pods::is_deleting(p) && pods::is_ready(p) && !granted.contains_key(name)
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let (expected, desired) = wanted(c.view, budget, &pods);
    let allowed = if expected > 0 { healthy.saturating_sub(desired).max(0) } else { 0 };
    let mut status = PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation,
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(granted).filter(|g| !g.is_empty()),
        ..old.clone()
    };
    set_condition(c, budget, &mut status);
    if status != old {
        let changed = PodDisruptionBudget { status: Some(status), ..(**budget).clone() };
        plan.push(Action::Update { resource: resource(), object: value(&changed), subresource: Some("status") });
    }
    plan
}

/// The pods that a budget is about: none without a selector.
fn selected(view: &View, budget: &PodDisruptionBudget) -> Vec<Arc<Pod>> {
    let Some(selector) = budget.spec.as_ref().and_then(|s| s.selector.as_ref()).map(owned::selector) else {
        return Vec::new();
    };
    let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
    let pods = view.pods.namespace(namespace).map(|(_, pod)| pod);
    pods.filter(|p| owned::matches(&selector, p.metadata.labels.as_ref()) && !pods::is_finished(p)).cloned().collect()
}

type Granted = BTreeMap<String, k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>;

/// Evictions that were granted and have not shown yet.
fn still_granted(c: &Context<'_>, old: &PodDisruptionBudgetStatus, pods: &[Arc<Pod>], plan: &mut Plan) -> Granted {
    let mut granted = old.disrupted_pods.clone().unwrap_or_default();
    granted.retain(|name, since| {
        let pod = pods.iter().find(|p| p.metadata.name.as_deref() == Some(name));
        let until = after(since.0, GRANTED_FOR);
        let waits = pod.is_some_and(|p| !pods::is_deleting(p)) && c.now < until;
        if waits {
            plan.again(until);
        }
        waits
    });
    granted
}

/// How many pods there should be, and how many of them must be healthy.
fn wanted(view: &View, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> (i32, i32) {
    let spec = budget.spec.as_ref();
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let share = |percent: &str, of: i32| {
        let percent: i64 = percent.trim_end_matches('%').parse().unwrap_or(0);
        i32::try_from(percent.saturating_mul(i64::from(of)).saturating_add(99) / 100).unwrap_or(i32::MAX)
    };
    match (spec.and_then(|s| s.max_unavailable.as_ref()), spec.and_then(|s| s.min_available.as_ref())) {
        (Some(most), _) => {
            let expected = scale(view, pods);
            let away = match most {
                IntOrString::Int(n) => *n,
                IntOrString::String(percent) => share(percent, expected),
            };
            (expected, expected.saturating_sub(away).max(0))
        }
        (None, Some(IntOrString::Int(least))) => (count, *least),
        (None, Some(IntOrString::String(percent))) => {
            let expected = scale(view, pods);
            (expected, share(percent, expected))
        }
        (None, None) => (count, 0),
    }
}

/// How many pods their owners want; a pod without an owner that has a size counts as one.
fn scale(view: &View, pods: &[Arc<Pod>]) -> i32 {
    let (mut owners, mut alone) = (BTreeSet::new(), 0);
    for pod in pods {
        match owned::controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet") {
            Some(owner) => drop(owners.insert(owner.uid.clone())),
            None => alone += 1,
        }
    }
    let sized = owners.iter().filter_map(|uid| view.identity(uid)).filter_map(|i| view.replica_sets.get(&i.key));
    let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
    for set in sized {
        // Sets of one Deployment come and go: the Deployment's size is what is meant.
        let deployment = owned::controller_of(&set.metadata).filter(|o| o.kind == "Deployment");
        let deployment = deployment.and_then(|o| view.identity(&o.uid)).and_then(|i| view.deployments.get(&i.key));
        let (uid, size) = match deployment {
            Some(d) => (d.metadata.uid.clone(), d.spec.as_ref().and_then(|s| s.replicas)),
            None => (set.metadata.uid.clone(), set.spec.as_ref().and_then(|s| s.replicas)),
        };
        sizes.insert(uid.unwrap_or_default(), size.unwrap_or(1));
    }
    sizes.values().fold(alone, |sum: i32, size| sum.saturating_add(*size))
}

fn set_condition(c: &Context<'_>, budget: &PodDisruptionBudget, status: &mut PodDisruptionBudgetStatus) {
    let (word, reason) = match status.disruptions_allowed.unwrap_or(0) {
        0 => ("False", "InsufficientPods"),
        _ => ("True", "SufficientPods"),
    };
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter_mut().find(|o| o.type_ == "DisruptionAllowed");
    let since = old.as_ref().filter(|o| o.status == word).map(|o| o.last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".into(),
        status: word.into(),
        reason: reason.into(),
        message: String::new(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since.unwrap_or_else(|| time(c.now)),
    };
    match old {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Liveness, Settings};
    use jiff::Timestamp;
    use serde_json::json;

    fn check(spec: serde_json::Value, ready: usize, all: usize, allowed: i32, desired: i32) {
        let mut view = View::default();
        let budget = json!({"metadata": {"name": "b", "namespace": "d", "uid": "b", "generation": 1}, "spec": spec});
        view.apply(&resource(), &Key::new("d", "b"), Some(budget.to_string().as_bytes())).unwrap();
        for n in 0..all {
            let status = if n < ready { "True" } else { "False" };
            let pod = json!({"metadata": {"name": format!("p{n}"), "namespace": "d", "uid": format!("p{n}"), "labels": {"a": "b"}},
                "spec": {"containers": []}, "status": {"conditions": [{"type": "Ready", "status": status}]}});
            view.apply(&pods::resource(), &Key::new("d", format!("p{n}")), Some(pod.to_string().as_bytes())).unwrap();
        }
        let settings = Settings {
            ca: String::new(),
            eviction_grace_ms: 0,
            event_ttl_seconds: 0,
            cluster_cidr: (std::net::Ipv4Addr::LOCALHOST, 25),
        };
        let liveness = Liveness::default();
        let context = Context { view: &view, now: Timestamp::UNIX_EPOCH, settings: &settings, liveness: &liveness };
        let plan = plan(&context, &Key::new("d", "b"));
        let [Action::Update { object, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
        let told = (&object["status"]["disruptionsAllowed"], &object["status"]["desiredHealthy"]);
        assert_eq!(told, (&json!(allowed), &json!(desired)), "{object}");
    }

    #[test]
    fn allowances() {
        let selector = json!({"matchLabels": {"a": "b"}});
        check(json!({"minAvailable": 1, "selector": selector}), 2, 2, 1, 1);
        check(json!({"minAvailable": 1, "selector": selector}), 1, 2, 0, 1);
        check(json!({"maxUnavailable": 1, "selector": selector}), 3, 3, 1, 2);
        check(json!({"minAvailable": "50%", "selector": selector}), 3, 3, 1, 2);
        check(json!({"minAvailable": 1}), 2, 2, 0, 1);
    }
}
