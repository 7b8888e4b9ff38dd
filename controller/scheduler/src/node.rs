//! What a node has, and what the pods on it take.

use k8s_openapi::api::core::v1::{Container, Node, Pod, Taint};
use skiff_api::quantity::Quantity;
use skiff_api::view::{Key, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Amounts by resource, in thousandths (of a core, a byte, a device): exact where Kubernetes is.
pub type Amounts = BTreeMap<String, i128>;

fn amount(quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> i128 {
    Quantity::parse(&quantity.0).map_or(0, |q| {
        let whole = i128::from(q.value());
        // `milli_value` saturates where a byte count is large; whole numbers lose nothing.
        if whole.abs() > i128::from(i64::MAX / 1000) { whole * 1000 } else { i128::from(q.milli_value()) }
    })
}

/// A port that is taken on a node: (address, protocol, number).
pub type HostPort = (String, String, i32);

/// What a pod asks of a node.
#[derive(Clone, Debug, Default)]
pub struct Load {
    pub requests: Amounts,
    pub ports: Vec<HostPort>,
}

impl Load {
    /// Requests as kube-scheduler counts them: containers and sidecars together, or the largest init container where that is more; and the
    /// pod's overhead.
    pub fn of(pod: &Pod) -> Load {
        let Some(spec) = &pod.spec else { return Load::default() };
        let mut sum = Amounts::new();
        spec.containers.iter().for_each(|c| add(&mut sum, &requests(c)));
        let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
        for container in spec.init_containers.iter().flatten() {
            let asked = requests(container);
            if container.restart_policy.as_deref() == Some("Always") {
                add(&mut sidecars, &asked);
                max(&mut peak, &sidecars);
            } else {
                let mut together = sidecars.clone();
                add(&mut together, &asked);
                max(&mut peak, &together);
            }
        }
        add(&mut sum, &sidecars);
        max(&mut sum, &peak);
        let overhead = spec.overhead.iter().flatten().map(|(k, q)| (k.clone(), amount(q))).collect();
        add(&mut sum, &overhead);
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|p| {
            let number = p.host_port.filter(|n| *n > 0)?;
            let address = p.host_ip.clone().filter(|a| !a.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((address, p.protocol.clone().unwrap_or_else(|| "TCP".into()), number))
        });
        Load { requests: sum, ports: ports.collect() }
    }
}

/// A limit without a request is a request.
fn requests(container: &Container) -> Amounts {
    let Some(resources) = &container.resources else { return Amounts::new() };
    let limits = resources.limits.iter().flatten();
    let requests = resources.requests.iter().flatten();
    limits.chain(requests).map(|(k, q)| (k.clone(), amount(q))).collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (k, v) in more {
        *sum.entry(k.clone()).or_default() += v;
    }
}

fn max(sum: &mut Amounts, other: &Amounts) {
    for (k, v) in other {
        let have = sum.entry(k.clone()).or_default();
        *have = (*have).max(*v);
    }
}

/// A node during one round of decisions.
pub struct NodeState {
    pub name: String,
    pub node: Arc<Node>,
    pub allocatable: Amounts,
    pub used: Amounts,
    /// The pods here, those included that were placed a moment ago in the same round: what affinity and spreading look at.
    pub residents: Vec<(Key, Arc<Pod>)>,
    pub ports: BTreeSet<HostPort>,
    /// Pods of each owner (by its uid): what spreading looks at.
    pub siblings: BTreeMap<String, usize>,
    pub taints: Vec<Taint>,
    pub cordoned: bool,
}

impl NodeState {
    fn new(node: &Arc<Node>) -> Self {
        let status = node.status.as_ref();
        let amounts = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        NodeState {
            name: node.metadata.name.clone().unwrap_or_default(),
            allocatable: amounts.into_iter().flatten().map(|(k, q)| (k.clone(), amount(q))).collect(),
            used: Amounts::new(),
            residents: Vec::new(),
            ports: BTreeSet::new(),
            siblings: BTreeMap::new(),
            taints: node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default(),
            cordoned: node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true),
            node: node.clone(),
        }
    }

    /// Puts a pod on the node.
    pub fn take(&mut self, key: &Key, pod: &Arc<Pod>, load: &Load) {
        add(&mut self.used, &load.requests);
        self.residents.push((key.clone(), pod.clone()));
        self.ports.extend(load.ports.iter().cloned());
        for owner in pod.metadata.owner_references.iter().flatten().filter(|o| o.controller == Some(true)) {
            *self.siblings.entry(owner.uid.clone()).or_default() += 1;
        }
    }

    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.node.metadata.labels.as_ref()
    }
}

/// All nodes, by name.
pub struct Nodes {
    pub list: Vec<NodeState>,
}

impl Nodes {
    pub fn new(view: &View) -> Self {
        let list = view.nodes.values().filter(|n| n.metadata.deletion_timestamp.is_none()).map(|node| {
            let mut state = NodeState::new(node);
            for (key, pod) in view.pods_on(&state.name.clone()) {
                let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
                if !matches!(phase, Some("Succeeded" | "Failed")) {
                    state.take(key, pod, &Load::of(pod));
                }
            }
            state
        });
        Nodes { list: list.collect() }
    }
}
