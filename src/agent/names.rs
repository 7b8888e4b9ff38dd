//! Cluster DNS on this node, kept in step with the tables.

use super::tables::Tables;
use anyhow::Context as _;
use skiff_dns::{Server, Zone};
use skiff_proto::fleet::Welcome;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::sync::watch;

/// The running server, and where new zones go. Cheap to clone.
#[derive(Clone)]
pub struct Names {
    domain: String,
    address: Ipv4Addr,
    zone: Arc<watch::Sender<Arc<Zone>>>,
    _server: Arc<Server>,
}

/// Answers at the cluster DNS address, which the network has put on this node's loopback.
pub async fn start(welcome: &Welcome) -> anyhow::Result<Names> {
    let address: Ipv4Addr = welcome.cluster_dns.parse().context("the cluster DNS address from the server")?;
    let domain = welcome.cluster_domain.clone();
    let (zone, follower) = watch::channel(Arc::new(Zone::new(&domain, &[], &[]).answered_at(address)));
    let listen = vec![SocketAddr::new(IpAddr::V4(address), 53)];
    let server = Server::start(listen, skiff_dns::host_upstreams(Some(address)), follower).await?;
    Ok(Names { domain, address, zone: Arc::new(zone), _server: Arc::new(server) })
}

impl Names {
    pub fn update(&self, tables: &Tables) {
        let services: Vec<_> = tables.services.values().cloned().collect();
        let slices: Vec<_> = tables.slices.values().cloned().collect();
        self.zone.send_replace(Arc::new(Zone::new(&self.domain, &services, &slices).answered_at(self.address)));
    }
}
