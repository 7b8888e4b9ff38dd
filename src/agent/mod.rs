//! `skiff agent`: one node. It dials the servers, runs what they name, and keeps the node's network and names in step.
//!
//! ```text
//!   link (one state stream to a server)  ->  tables  ->  pods      (what runs)
//!                                              |----->  network   (routes, service rules)
//!                                              \----->  dns       (names)
//!   pods' reports -> link -> server           rules in force -> beats -> every server
//! ```
//!
//! The pods outlive this process: a restarted agent finds them from the kernel and their records, before any server answers.

pub mod enrol;
mod images;
mod link;
mod machine;
mod names;
mod removed;
mod streams;
mod tables;
pub mod wire;
mod wiring;

use crate::supervise;
use anyhow::Context as _;
use skiff_pods::{Pods, PodsConfig, PodsDeps};
use skiff_runtime::{Runtime, RuntimeConfig};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// The machine's address towards the outside, as its default route has it.
pub fn default_address() -> anyhow::Result<Ipv4Addr> {
    machine::address_towards("192.0.2.1:9")
}

/// How an agent is started.
#[derive(Clone)]
pub struct Options {
    pub node: String,
    /// `host:port` of any server.
    pub server: String,
    pub token: Option<String>,
    pub data_dir: PathBuf,
    /// The address at which other nodes reach this one; found by the route to the server when not given.
    pub node_ip: Option<Ipv4Addr>,
    /// Labels `key=value` for the node.
    pub labels: Vec<(String, String)>,
    /// Part of the names of control groups: two agents on one machine need two.
    pub cgroup: String,
    pub insecure_registries: Vec<String>,
    /// Most processes and threads in a pod; 0 for no limit.
    pub pod_pids_limit: u64,
    /// Sysctls beyond the safe ones that pods may set: names, or prefixes that end in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
}

/// Runs an agent until it is told to stop; its pods go on.
pub async fn run(options: Options) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("an agent makes namespaces, mounts and control groups: it has to run as root");
    }
    let dir = options.data_dir.join("agent");
    skiff_runtime::private::dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    let _only_one = machine::lock(&dir)?;
    let enrolled = enrol::enrol(&dir, &options.node, &options.server, options.token.as_deref()).await?;
    let node_ip = match options.node_ip {
        Some(ip) => ip,
        None => machine::address_towards(&enrolled.servers[0])?,
    };
    let runtime = Runtime::open(RuntimeConfig {
        state_dir: dir.join("run"),
        image_dir: dir.join("images"),
        cgroup_parent: options.cgroup.clone(),
        insecure_registries: options.insecure_registries.clone(),
    })?;
    runtime.images().trust(options.data_dir.join("registries"));
    let machine = machine::Machine::read(&options.node, node_ip, &options.labels);
    let token = options.token.as_deref().map(str::parse).transpose()?;
    let link = link::Link::start(dir.clone(), enrolled, machine.clone(), token)?;
    let welcome = link.welcome(&dir).await?;
    let network = wiring::network(&options, &dir, node_ip, &welcome).await?;
    let (desired_in, desired) = watch::channel(Arc::default());
    let (reports_in, reports) = mpsc::channel(1024);
    let deps = PodsDeps {
        runtime: runtime.clone(),
        network: Arc::new(wiring::PodLinks(network.clone())),
        tokens: Arc::new(wiring::Tokens(link.clone())),
        images: Arc::new(images::ClusterImages::new(runtime.images().clone(), link.clone())),
    };
    let config = PodsConfig {
        root_dir: dir.join("pods"),
        log_dir: options.data_dir.join("logs"),
        node_name: options.node.clone(),
        host_ips: vec![node_ip.to_string()],
        cluster_dns: vec![welcome.cluster_dns.clone()],
        cluster_domain: welcome.cluster_domain.clone(),
        capacity: machine.capacity(),
        pod_pids_max: options.pod_pids_limit,
        allowed_unsafe_sysctls: options.allowed_unsafe_sysctls.clone(),
    };
    let pods = Pods::start(config, deps, desired, reports_in).await?;
    let ranges: Vec<_> =
        [&welcome.cluster_cidr, &welcome.service_cidr].into_iter().filter_map(|text| text.parse().ok()).collect();
    let names = names::start(&welcome).await?;
    tokio::spawn(link.clone().report(reports));
    tokio::spawn(streams::serve(link.clone(), pods.streams().clone()));
    let (following, node) = (link.clone(), options.node.clone());
    let desired_in = Arc::new(desired_in);
    let follow = move || {
        let parts = (network.clone(), names.clone(), desired_in.clone());
        wiring::follow(following.clone(), parts, node.clone(), ranges.clone())
    };
    tokio::spawn(supervise::forever("wiring", follow));
    tokio::spawn(crate::memory::give_back());
    link.ready();
    tracing::info!(node = options.node, %node_ip, pod_cidr = welcome.pod_cidr, "this node runs");
    machine::wait_for_signal().await;
    link.goodbye().await;
    Ok(())
}
