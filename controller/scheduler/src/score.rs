//! Which of the fitting nodes is best. A score is an ordered struct: the first field that differs decides, and the node's name decides last, so that
//! a decision can be repeated and explained.

use crate::affinity::term_matches;
use crate::node::{Load, NodeState};
use k8s_openapi::api::core::v1::Pod;
use skiff_api::taints::tolerates;
use skiff_api::view::View;
use std::cmp::Reverse;

/// Smaller is better.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Weights of the pod's preferred node affinities that this node has.
    preferred: Reverse<i32>,
    /// Soft taints that the pod does not tolerate.
    soft_taints: usize,
    /// Pods of the same owner here: the fewer, the less is lost with the node.
    siblings: usize,
    /// The larger share of CPU or memory that would be taken, in thousandths.
    load: i128,
    pods: usize,
    node: String,
}

pub fn score(node: &NodeState, pod: &Pod, load: &Load, _: &View) -> Score {
    let spec = pod.spec.as_ref();
    let affinity = spec.and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let wishes = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let preferred = wishes.into_iter().flatten().filter(|w| term_matches(&w.preference, node)).map(|w| w.weight).sum();
    let tolerations = spec.and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let soft = node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    let owner = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
    let share = |resource: &str| {
        let has = node.allocatable.get(resource).copied().unwrap_or(0).max(1);
        let used = node.used.get(resource).copied().unwrap_or(0) + load.requests.get(resource).copied().unwrap_or(0);
        used * 1000 / has
    };
    Score {
        preferred: Reverse(preferred),
        soft_taints: soft.filter(|taint| !tolerations.iter().any(|t| tolerates(t, taint))).count(),
        siblings: owner.and_then(|o| node.siblings.get(&o.uid)).copied().unwrap_or(0),
        load: share("cpu").max(share("memory")),
        pods: node.residents.len(),
        node: node.name.clone(),
    }
}
