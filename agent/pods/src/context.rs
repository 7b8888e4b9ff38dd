//! What all pods of a node share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use skiff_runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::desired::{Desired, Report};
use crate::events::{Events, Told};
use crate::fields::Situation;
use crate::files::Resolver;
use crate::resources::NodeCapacity;
use crate::traits::{ImageSource, PodNetwork, TokenSource};
use crate::translate::identity;

/// Where things are and what the node is.
#[derive(Debug, Clone)]
pub struct PodsConfig {
    /// Records, volumes and small files of pods, a directory each. Must outlive the agent.
    pub root_dir: PathBuf,
    /// Container logs.
    pub log_dir: PathBuf,
    /// The node's name.
    pub node_name: String,
    /// Its addresses, the first one preferred.
    pub host_ips: Vec<String>,
    /// Addresses of the cluster's DNS; empty leaves pods with the node's resolver.
    pub cluster_dns: Vec<String>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// What the node can give.
    pub capacity: NodeCapacity,
    /// Most processes and threads in a pod; 0 for no limit.
    pub pod_pids_max: u64,
    /// Sysctls beyond the safe ones that pods may set: names, or prefixes that end in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
}

/// What the pods need from outside.
#[derive(Clone)]
pub struct PodsDeps {
    /// Containers.
    pub runtime: Runtime,
    /// Addresses.
    pub network: Arc<dyn PodNetwork>,
    /// Service account tokens.
    pub tokens: Arc<dyn TokenSource>,
    /// Images.
    pub images: Arc<dyn ImageSource>,
}

/// Shared by all tasks.
pub struct Context {
    /// Where and what.
    pub config: PodsConfig,
    /// From outside.
    pub deps: PodsDeps,
    /// The newest level.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// News.
    pub reports: mpsc::Sender<Report>,
    /// What events were told lately.
    pub events: Mutex<Events>,
}

impl Context {
    /// The newest level, as it is now.
    pub fn now(&self) -> Arc<Desired> {
        self.desired.borrow().clone()
    }

    /// What the node knows about a pod.
    pub fn situation(&self, pod_ip: Option<&str>) -> Situation {
        Situation {
            node_name: self.config.node_name.clone(),
            host_ips: self.config.host_ips.clone(),
            pod_ips: pod_ip.map(str::to_owned).into_iter().collect(),
        }
    }

    /// The node's resolver.
    pub fn host_resolver(&self) -> Resolver {
        Resolver::of_host()
    }

    /// Tells an event. `container`: none for the pod itself; init containers are told apart by the pod's object.
    pub async fn event(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: &str, message: String) {
        let id = identity(pod);
        let init = |name: &str| {
            pod.spec
                .iter()
                .flat_map(|spec| spec.init_containers.iter().flatten())
                .any(|container| container.name == name)
        };
        let field_path = container.map_or(String::new(), |name| {
            let list = if init(name) { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        });
        let told = Told { pod: id, field_path, warning, reason: reason.to_owned(), message };
        let event = self.events.lock().unwrap_or_else(PoisonError::into_inner).take(told, now_ms());
        if let Some(event) = event {
            let _ = self.reports.send(Report::Event(event)).await;
        }
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
