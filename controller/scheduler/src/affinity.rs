//! Where a pod may be by labels: of nodes (nodeSelector, node affinity) and of the pods that are there (pod affinity and anti-affinity,
//! topology spread).

use crate::fit::Misfit;
use crate::node::{NodeState, Nodes};
use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, TopologySpreadConstraint,
};
use serde_json::json;
use skiff_api::selector::LabelSelector;
use skiff_api::taints::tolerates;
use skiff_api::view::{Key, View};
use std::collections::{BTreeMap, BTreeSet};

/// nodeSelector and the required node affinity.
pub fn node_matches(pod: &Pod, node: &NodeState) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = |key: &str| node.labels().and_then(|l| l.get(key)).map(String::as_str);
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels(k) == Some(v));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, node)))
}

/// An empty term matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeState) -> bool {
    let labels = |key: &str| node.labels().and_then(|l| l.get(key)).map(String::as_str);
    let fields = |key: &str| (key == "metadata.name").then_some(node.name.as_str());
    let (expressions, by_field) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    let some = term.match_expressions.as_ref().is_some_and(|e| !e.is_empty())
        || term.match_fields.as_ref().is_some_and(|e| !e.is_empty());
    some && expressions.clone().all(|r| requirement(r, labels(&r.key)))
        && by_field.clone().all(|r| requirement(r, fields(&r.key)))
}

fn requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let compare = |greater: bool| {
        let (Some(have), Some(limit)) =
            (value.and_then(|v| v.parse::<i64>().ok()), values.first().and_then(|v| v.parse().ok()))
        else {
            return false;
        };
        if greater { have > limit } else { have < limit }
    };
    match r.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}

/// What the pods that are already placed ask of a node for this one. Computed once a pod, checked for every node.
#[derive(Default)]
pub struct Required {
    /// Each needs a node whose label has one of these values.
    near: Vec<(String, BTreeSet<String>)>,
    /// No node whose label has one of these values: this pod's wish, and that of pods that are there.
    apart: Vec<(String, BTreeSet<String>)>,
    kept_away: Vec<(String, BTreeSet<String>)>,
    /// Values of a label where there are too many already, and the label must exist.
    crowded: Vec<(String, BTreeSet<String>)>,
}

impl Required {
    pub fn check(&self, node: &NodeState) -> Result<(), Misfit> {
        let value = |key: &str| node.labels().and_then(|l| l.get(key));
        let within = |(key, values): &(String, BTreeSet<String>)| value(key).is_some_and(|v| values.contains(v));
        if !self.near.iter().all(within) {
            return Err(Misfit::PodAffinity);
        }
        if self.apart.iter().any(within) {
            return Err(Misfit::PodAntiAffinity);
        }
        if self.kept_away.iter().any(within) {
            return Err(Misfit::ExistingAntiAffinity);
        }
        if self.crowded.iter().any(|c| value(&c.0).is_none() || within(c)) {
            return Err(Misfit::Spread);
        }
        Ok(())
    }

    pub fn of(view: &View, nodes: &Nodes, pod: &Pod) -> Required {
        let mut required = Required::default();
        let Some(spec) = &pod.spec else { return required };
        let affinity = spec.affinity.as_ref();
        let near = affinity
            .and_then(|a| a.pod_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let apart = affinity
            .and_then(|a| a.pod_anti_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        for term in near.into_iter().flatten() {
            let mut values = places(view, nodes, term, &namespace);
            // The first of a group that wants to be together starts it anywhere.
            if values.is_empty() && selects(view, term, &namespace, pod) {
                values = all_values(nodes, &term.topology_key);
            }
            required.near.push((term.topology_key.clone(), values));
        }
        for term in apart.into_iter().flatten() {
            required.apart.push((term.topology_key.clone(), places(view, nodes, term, &namespace)));
        }
        required.kept_away = kept_away(view, nodes, pod);
        for constraint in
            spec.topology_spread_constraints.iter().flatten().filter(|c| c.when_unsatisfiable == "DoNotSchedule")
        {
            required.crowded.push((constraint.topology_key.clone(), crowded(nodes, pod, &namespace, constraint)));
        }
        required
    }
}

/// The values of a spread constraint's label where one more pod would be too many. Source: Kubernetes documentation, "Pod Topology Spread
/// Constraints".
fn crowded(nodes: &Nodes, pod: &Pod, namespace: &str, constraint: &TopologySpreadConstraint) -> BTreeSet<String> {
    let selector =
        LabelSelector::from_json(&json!(constraint.label_selector)).unwrap_or_else(|_| LabelSelector::nothing());
    let own = |key: &String| Some((key.clone(), pod.metadata.labels.as_ref()?.get(key)?.clone()));
    let same: Vec<_> = constraint.match_label_keys.iter().flatten().filter_map(own).collect();
    let counts_here = |key: &Key, other: &Pod| {
        let labels = other.metadata.labels.as_ref();
        key.namespace == namespace
            && other.metadata.deletion_timestamp.is_none()
            && fits(&selector, other)
            && same.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
    };
    let mut counts: BTreeMap<&String, i64> = BTreeMap::new();
    for node in nodes.list.iter().filter(|n| is_eligible(n, pod, constraint)) {
        let Some(value) = node.labels().and_then(|l| l.get(&constraint.topology_key)) else { continue };
        let here = node.residents.iter().filter(|(key, other)| counts_here(key, other)).count();
        *counts.entry(value).or_default() += here as i64;
    }
    // Too few domains: those that are missing count as empty.
    let missing = constraint.min_domains.is_some_and(|least| (counts.len() as i64) < i64::from(least));
    let least = if missing { 0 } else { counts.values().copied().min().unwrap_or(0) };
    let itself = i64::from(fits(&selector, pod));
    let full = counts.into_iter().filter(|(_, n)| n + itself - least > i64::from(constraint.max_skew));
    full.map(|(value, _)| value.clone()).collect()
}

/// Whether a node counts for a spread constraint, as its policies say.
fn is_eligible(node: &NodeState, pod: &Pod, constraint: &TopologySpreadConstraint) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let by_affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore") || node_matches(pod, node);
    let by_taints = constraint.node_taints_policy.as_deref() != Some("Honor")
        || node
            .taints
            .iter()
            .all(|taint| taint.effect == "PreferNoSchedule" || tolerations.iter().any(|t| tolerates(t, taint)));
    by_affinity && by_taints
}

fn fits(selector: &LabelSelector, pod: &Pod) -> bool {
    selector.matches_with(|k| pod.metadata.labels.as_ref().and_then(|l| l.get(k)).map(String::as_str))
}

/// Whether a term, standing in a pod of `own` namespace, means this pod.
fn selects(view: &View, term: &PodAffinityTerm, own: &str, pod: &Pod) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let listed = term.namespaces.as_ref().filter(|n| !n.is_empty());
    // The names and those that the selector finds count together; neither means the pod's own.
    let by_name = listed.is_some_and(|names| names.iter().any(|n| n == namespace));
    let by_label = term.namespace_selector.as_ref().is_some_and(|s| {
        let selector = LabelSelector::from_json(&json!(s)).unwrap_or_else(|_| LabelSelector::nothing());
        let labels = view.namespaces.get(&Key::new("", namespace)).and_then(|n| n.metadata.labels.clone());
        selector.matches_with(|k| labels.as_ref().and_then(|l| l.get(k)).map(String::as_str))
    });
    let own_only = listed.is_none() && term.namespace_selector.is_none() && namespace == own;
    let in_namespace = by_name || by_label || own_only;
    let selector = term.label_selector.as_ref().map(|s| LabelSelector::from_json(&json!(s)));
    in_namespace && matches!(selector, Some(Ok(s)) if fits(&s, pod))
}

/// The values of the term's label on nodes that have a pod which the term means.
fn places(view: &View, nodes: &Nodes, term: &PodAffinityTerm, own: &str) -> BTreeSet<String> {
    let has = |node: &&NodeState| node.residents.iter().any(|(_, p)| selects(view, term, own, p));
    nodes.list.iter().filter(has).filter_map(|n| n.labels()?.get(&term.topology_key).cloned()).collect()
}

fn all_values(nodes: &Nodes, key: &str) -> BTreeSet<String> {
    nodes.list.iter().filter_map(|n| n.labels()?.get(key).cloned()).collect()
}

/// Where pods are that want none like this one beside them.
fn kept_away(view: &View, nodes: &Nodes, pod: &Pod) -> Vec<(String, BTreeSet<String>)> {
    let mut away: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in &nodes.list {
        for (key, other) in &node.residents {
            let anti = other.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.pod_anti_affinity.as_ref());
            let terms = anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
            for term in terms.into_iter().flatten().filter(|t| selects(view, t, &key.namespace, pod)) {
                if let Some(value) = node.labels().and_then(|l| l.get(&term.topology_key)) {
                    away.entry(term.topology_key.clone()).or_default().insert(value.clone());
                }
            }
        }
    }
    away.into_iter().collect()
}
