//! What comes in (a level: everything this node should run) and what goes out (news).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret, Service};

/// Namespace and name.
pub type Key = (String, String);

/// Everything that this node should run and what those pods refer to. Always complete; the newest replaces all before it.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Pods bound to this node.
    pub pods: Vec<Arc<Pod>>,
    /// Those that the pods refer to (others do no harm); `kube-root-ca.crt` among them.
    pub config_maps: BTreeMap<Key, Arc<ConfigMap>>,
    /// Those that the pods refer to, pull secrets included.
    pub secrets: BTreeMap<Key, Arc<Secret>>,
    /// For the environment variables of services.
    pub services: Vec<Arc<Service>>,
    /// UIDs of pods that are deleted but must go on for now, because traffic still comes to them.
    pub hold: BTreeSet<String>,
    /// The list of pods is known to be whole. Until then nothing is stopped for not being in it.
    pub synced: bool,
}

/// News of a pod.
#[derive(Debug, Clone)]
pub enum Report {
    /// The pod's status changed.
    PodStatus {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Which pod of that name.
        uid: String,
        /// All of it.
        status: Box<PodStatus>,
    },
    /// Something for people.
    Event(PodEvent),
    /// A deleted pod has stopped and left nothing behind: its object can go.
    PodGone {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Which pod of that name.
        uid: String,
    },
}

/// An event about a pod, with the reasons that people know from the kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Which pod of that name.
    pub uid: String,
    /// `spec.containers{web}`, or empty for the pod itself.
    pub field_path: String,
    /// `Warning` rather than `Normal`.
    pub warning: bool,
    /// `Pulled`, `Started`, `Unhealthy`, ...
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Which event this is, among those of this node: a later report of the same series has the same name.
    pub series: String,
    /// How often it has happened so far, from 1.
    pub count: u32,
    /// When it happened first, and last: milliseconds since the epoch.
    pub first_ms: u64,
    /// As above.
    pub last_ms: u64,
}
