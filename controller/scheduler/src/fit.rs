//! Whether a node can take a pod, and the words for why not.

use crate::affinity::{Required, node_matches};
use crate::node::{HostPort, Load, NodeState};
use k8s_openapi::api::core::v1::{Pod, Taint};
use skiff_api::taints::tolerates;
use std::fmt;

/// Why a node cannot take a pod. The display is kube-scheduler's wording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    Cordoned,
    Taint,
    Affinity,
    Ports,
    TooManyPods,
    /// Even the empty node has less.
    Never(String),
    /// Other pods have taken it.
    Insufficient(String),
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
    Spread,
}

impl Misfit {
    /// Whether removing other pods could help.
    pub fn ends_with_other_pods(&self) -> bool {
        matches!(
            self,
            Misfit::Ports
                | Misfit::TooManyPods
                | Misfit::Insufficient(_)
                | Misfit::PodAntiAffinity
                | Misfit::ExistingAntiAffinity
                | Misfit::Spread
        )
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::Cordoned => f.write_str("node(s) were unschedulable"),
            Misfit::Taint => f.write_str("node(s) had untolerated taint(s)"),
            Misfit::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Misfit::Ports => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Misfit::TooManyPods => f.write_str("Too many pods"),
            Misfit::Never(resource) | Misfit::Insufficient(resource) => write!(f, "Insufficient {resource}"),
            Misfit::PodAffinity => f.write_str("node(s) didn't match pod affinity rules"),
            Misfit::PodAntiAffinity => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Misfit::ExistingAntiAffinity => f.write_str("node(s) didn't satisfy existing pods anti-affinity rules"),
            Misfit::Spread => f.write_str("node(s) didn't match pod topology spread constraints"),
        }
    }
}

/// The first filter that refuses gives the reasons, as in kube-scheduler; only missing resources are all named.
pub fn check(node: &NodeState, pod: &Pod, load: &Load, required: &Required) -> Result<(), Vec<Misfit>> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let cordon =
        Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Default::default() };
    if node.cordoned && !tolerations.iter().any(|t| tolerates(t, &cordon)) {
        return Err(vec![Misfit::Cordoned]);
    }
    let hard = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    if node.taints.iter().filter(hard).any(|taint| !tolerations.iter().any(|t| tolerates(t, taint))) {
        return Err(vec![Misfit::Taint]);
    }
    if !node_matches(pod, node) {
        return Err(vec![Misfit::Affinity]);
    }
    if load.ports.iter().any(|wanted| node.ports.iter().any(|taken| clash(wanted, taken))) {
        return Err(vec![Misfit::Ports]);
    }
    resources(node, load)?;
    required.check(node).map_err(|m| vec![m])
}

fn clash(a: &HostPort, b: &HostPort) -> bool {
    let any = |address: &str| address == "0.0.0.0" || address == "::";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
}

fn resources(node: &NodeState, load: &Load) -> Result<(), Vec<Misfit>> {
    let mut missing = Vec::new();
    let most = node.allocatable.get("pods").copied().unwrap_or(0) / 1000;
    if node.residents.len() as i128 + 1 > most {
        missing.push(Misfit::TooManyPods);
    }
    for (resource, asked) in load.requests.iter().filter(|(_, asked)| **asked > 0) {
        let has = node.allocatable.get(resource).copied().unwrap_or(0);
        let used = node.used.get(resource).copied().unwrap_or(0);
        if *asked > has {
            missing.push(Misfit::Never(resource.clone()));
        } else if *asked > has - used {
            missing.push(Misfit::Insufficient(resource.clone()));
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}
