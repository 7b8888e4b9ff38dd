//! Where a pod may be by labels: of nodes (nodeSelector, node affinity) and of the pods that are there (pod affinity and anti-affinity,
//! topology spread).

use crate::fit::Misfit;
use crate::node::{NodeState, Nodes};
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm};
use serde_json::json;
use skiff_api::selector::LabelSelector;
use skiff_api::view::View;
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
            if values.is_empty() && selects(term, &namespace, pod) {
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
            let selector = LabelSelector::from_json(&json!(constraint.label_selector))
                .unwrap_or_else(|_| LabelSelector::nothing());
            let mut counts: BTreeMap<String, i32> = BTreeMap::new();
            for node in nodes.list.iter().filter(|n| node_matches(pod, n)) {
                let Some(value) = node.labels().and_then(|l| l.get(&constraint.topology_key)) else { continue };
                let here =
                    view.pods_on(&node.name).filter(|(k, p)| k.namespace == namespace && fits(&selector, p)).count();
                *counts.entry(value.clone()).or_default() += here as i32;
            }
            let least = counts.values().copied().min().unwrap_or(0);
            let full = counts.into_iter().filter(|(_, n)| n + 1 - least > constraint.max_skew).map(|(v, _)| v);
            required.crowded.push((constraint.topology_key.clone(), full.collect()));
        }
        required
    }
}

fn fits(selector: &LabelSelector, pod: &Pod) -> bool {
    selector.matches_with(|k| pod.metadata.labels.as_ref().and_then(|l| l.get(k)).map(String::as_str))
}

/// Whether a term, standing in a pod of `own` namespace, means this pod.
fn selects(term: &PodAffinityTerm, own: &str, pod: &Pod) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let listed = term.namespaces.as_ref().filter(|n| !n.is_empty());
    let in_namespace = match (listed, &term.namespace_selector) {
        (Some(names), _) => names.iter().any(|n| n == namespace),
        (None, Some(_)) => true,
        (None, None) => namespace == own,
    };
    let selector = term.label_selector.as_ref().map(|s| LabelSelector::from_json(&json!(s)));
    in_namespace && matches!(selector, Some(Ok(s)) if fits(&s, pod))
}

/// The values of the term's label on nodes that have a pod which the term means.
fn places(view: &View, nodes: &Nodes, term: &PodAffinityTerm, own: &str) -> BTreeSet<String> {
    let has = |node: &&NodeState| view.pods_on(&node.name).any(|(_, p)| selects(term, own, p));
    nodes.list.iter().filter(has).filter_map(|n| n.labels()?.get(&term.topology_key).cloned()).collect()
}

fn all_values(nodes: &Nodes, key: &str) -> BTreeSet<String> {
    nodes.list.iter().filter_map(|n| n.labels()?.get(key).cloned()).collect()
}

/// Where pods are that want none like this one beside them.
fn kept_away(view: &View, nodes: &Nodes, pod: &Pod) -> Vec<(String, BTreeSet<String>)> {
    let mut away: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in &nodes.list {
        for (key, other) in view.pods_on(&node.name) {
            let anti = other.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.pod_anti_affinity.as_ref());
            let terms = anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
            for term in terms.into_iter().flatten().filter(|t| selects(t, &key.namespace, pod)) {
                if let Some(value) = node.labels().and_then(|l| l.get(&term.topology_key)) {
                    away.entry(term.topology_key.clone()).or_default().insert(value.clone());
                }
            }
        }
    }
    away.into_iter().collect()
}
