//! Ties the node's parts together: the tables' newest level goes to pods, network and names; the traits that pods ask for are filled in.

use super::Options;
use super::link::Link;
use super::tables::Tables;
use crate::supervise;
use anyhow::Context as _;
use futures_util::future::BoxFuture;
use skiff_network::{Config, Network, Overlay, Peer};
use skiff_pods::{Desired, HostPort, PodIdentity, PodNetwork, TokenRequest, TokenSource};
use skiff_proto::fleet as pb;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A step of the network that failed is tried again after this.
const RETRY: Duration = Duration::from_millis(500);

/// Starts the node's network as the cluster's ranges want it.
pub async fn network(
    options: &Options,
    dir: &Path,
    node_ip: Ipv4Addr,
    welcome: &pb::Welcome,
) -> anyhow::Result<Network> {
    let cidr = |text: &str, what: &str| {
        text.parse::<skiff_network::Cidr>().map_err(|e| anyhow::anyhow!("the {what} {text:?} from the server: {e}"))
    };
    let config = Config {
        node: options.node.clone(),
        pod_cidr: cidr(&welcome.pod_cidr, "node's pod range")?,
        cluster_cidr: cidr(&welcome.cluster_cidr, "cluster's pod range")?,
        service_cidr: cidr(&welcome.service_cidr, "service range")?,
        node_ip,
        mtu: None,
        dns_ip: Some(welcome.cluster_dns.parse().context("the cluster DNS address from the server")?),
        state_dir: dir.join("network"),
        overlay: Overlay::Auto,
    };
    tokio::task::spawn_blocking(move || Network::start(config)).await?.context("starting the node's network")
}

/// Gives pods their links.
pub struct PodLinks(pub Network);

impl PodNetwork for PodLinks {
    fn attach(
        &self,
        pod: PodIdentity,
        netns: PathBuf,
        ports: Vec<HostPort>,
    ) -> BoxFuture<'static, Result<Ipv4Addr, String>> {
        let network = self.0.clone();
        Box::pin(async move {
            let ports = ports
                .into_iter()
                .filter_map(|p| {
                    Some(skiff_network::HostPort {
                        host_ip: p.host_ip.parse().ok().filter(|ip: &Ipv4Addr| !ip.is_unspecified()),
                        host_port: p.host_port,
                        container_port: p.container_port,
                        protocol: skiff_network::Protocol::named(Some(&p.protocol))?,
                    })
                })
                .collect();
            network.attach(&pod.uid, &netns, ports).await.map_err(|e| format!("{e:#}"))
        })
    }
    fn detach(&self, uid: String) -> BoxFuture<'static, Result<(), String>> {
        let network = self.0.clone();
        Box::pin(async move { network.detach(&uid).await.map_err(|e| format!("{e:#}")) })
    }
}

/// Asks the servers for service account tokens.
pub struct Tokens(pub Link);

impl TokenSource for Tokens {
    fn service_account_token(&self, request: TokenRequest) -> BoxFuture<'static, Result<String, String>> {
        let link = self.0.clone();
        Box::pin(async move {
            link.token(pb::TokenRequest {
                id: 0,
                namespace: request.namespace,
                service_account: request.service_account,
                audience: request.audience,
                expiration_seconds: request.expiration_seconds,
                pod: request.pod_name,
                pod_uid: request.pod_uid,
            })
            .await
        })
    }
}

/// Follows the tables: every new level goes to the pods at once, to routes, rules and names, and then counts as applied.
pub async fn follow(
    link: Link,
    (network, names, pods): (Network, super::names::Names, Arc<watch::Sender<Arc<Desired>>>),
    node: String,
    ranges: Vec<skiff_network::Cidr>,
) {
    let mut tables = link.tables();
    let mut peers = None;
    let mut rules = None;
    loop {
        let now = tables.borrow_and_update().clone();
        if now.synced {
            pods.send_replace(Arc::new(now.desired()));
            // An object that cannot be made a name must not keep the pods and the rules from the others.
            let _ = supervise::caught("names", &"the zone", || names.update(&now));
            if wire(&network, &now, &node, protected(&now, &link, &ranges), &mut peers, &mut rules).await.is_err() {
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => continue,
                    changed = tables.changed() => if changed.is_err() { return } else { continue },
                }
            }
            link.set_applied(now.revision);
        }
        if tables.changed().await.is_err() {
            return;
        }
    }
}

/// Brings routes and rules in step; what did not change is not touched.
async fn wire(
    network: &Network,
    tables: &Tables,
    node: &str,
    protected: skiff_network::Protected,
    peers: &mut Option<Vec<Peer>>,
    rules: &mut Option<skiff_network::ServiceState>,
) -> Result<(), ()> {
    let wanted = peers_in(tables, node);
    if peers.as_ref() != Some(&wanted) {
        if let Err(e) = network.set_nodes(wanted.clone()).await {
            tracing::warn!("routes to the other nodes could not be set, trying again: {e:#}");
            return Err(());
        }
        *peers = Some(wanted);
    }
    let services: Vec<_> = tables.services.values().cloned().collect();
    let slices: Vec<_> = tables.slices.values().cloned().collect();
    let wanted = skiff_network::desired(&services, &slices, node, &protected);
    if rules.as_ref() != Some(&wanted) {
        if let Err(e) = network.set_services(wanted.clone()).await {
            tracing::warn!("service rules could not be set, trying again: {e:#}");
            return Err(());
        }
        *rules = Some(wanted);
    }
    Ok(())
}

/// What no service may take over: the cluster's ranges, its nodes and its servers.
fn protected(tables: &Tables, link: &Link, ranges: &[skiff_network::Cidr]) -> skiff_network::Protected {
    let nodes = tables.nodes.values().flat_map(|n| n.status.iter().flat_map(|s| s.addresses.iter().flatten()));
    let nodes = nodes.filter_map(|a| a.address.parse().ok());
    let servers = link.servers();
    let servers = servers.iter().filter_map(|addr| addr.rsplit_once(':')?.0.parse().ok());
    skiff_network::Protected { ranges: ranges.to_vec(), addresses: nodes.chain(servers).collect() }
}

fn peers_in(tables: &Tables, node: &str) -> Vec<Peer> {
    let others = tables.nodes.values().filter(|n| n.metadata.name.as_deref() != Some(node));
    others
        .filter_map(|n| {
            let addresses = n.status.as_ref()?.addresses.as_ref()?;
            let address = addresses.iter().find(|a| a.type_ == "InternalIP")?;
            Some(Peer {
                name: n.metadata.name.clone()?,
                node_ip: address.address.parse().ok()?,
                pod_cidr: n.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?,
            })
        })
        .collect()
}
