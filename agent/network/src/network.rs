//! The node's network as one owner: its state and its two kernel sockets behind one lock, each change made by a blocking task.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use skiff_netlink::nft::{Batch, Data, Nft};
use skiff_netlink::route::{Address, Link, Route, Rt};
use skiff_netlink::socket::Socket;
use skiff_netlink::{Cidr, conntrack, netns};

use crate::config::{Config, HostPort, Overlay, Peer};
use crate::layout::{self, FAMILY, OWN_ADDRESSES, OWN_PODS, TABLE};
use crate::lease::Pool;
use crate::peers::{self, Way};
use crate::pods::{self, PROTOCOL};
use crate::program::{self, Program};
use crate::ranges;
use crate::rules::{Endpoint, ServiceState};

/// Within a cluster a connection is answered within this time, or by nobody. Sooner than a client's first repetition (1 s, RFC 6298), so that it
/// reaches another endpoint.
const HANDSHAKE_MAX: Duration = Duration::from_millis(200);

/// The network of one node, in the network namespace in which it was started. Cheap to clone; all clones are the same network.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Mutex<Inner>>,
}

/// A pod that is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub uid: String,
    pub ip: Ipv4Addr,
}

#[derive(Debug)]
struct Attached {
    ip: Ipv4Addr,
    device: u32,
    host_ports: Vec<HostPort>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    rt: Rt,
    nft: Nft,
    conntrack: Socket,
    loopback: u32,
    uplink: Link,
    uplink_range: Cidr,
    pool: Pool,
    pods: BTreeMap<String, Attached>,
    ways: BTreeMap<Cidr, Way>,
    services: ServiceState,
    own_addresses: Vec<Ipv4Addr>,
    /// What the kernel holds; none when that is not known: an earlier process wrote it, or a change failed.
    programmed: Option<Program>,
}

impl Network {
    /// Takes over the calling thread's network namespace: kernel parameters, the table `skiff`, and the pods that are attached already. Rules that
    /// an earlier process left go on working until the first [`Network::set_services`] replaces them.
    ///
    /// # Errors
    /// No device holds the node's address; ranges overlap each other or the node's own link; the kernel refuses (its words are given).
    pub fn start(config: Config) -> Result<Network> {
        Ok(Network { inner: Arc::new(Mutex::new(Inner::start(config)?)) })
    }

    /// Gives a pod its address, wire, routes and host ports. Asked again for the same pod and namespace it only confirms.
    pub async fn attach(&self, uid: &str, netns: &Path, host_ports: Vec<HostPort>) -> Result<Ipv4Addr> {
        let (uid, netns) = (uid.to_owned(), netns.to_owned());
        self.with(move |inner| inner.attach(&uid, &netns, host_ports)).await
    }

    /// Takes a pod's address and wire away. One that is not attached is not an error.
    pub async fn detach(&self, uid: &str) -> Result<()> {
        let uid = uid.to_owned();
        self.with(move |inner| inner.detach(&uid)).await
    }

    /// The pods that are attached, by uid.
    pub fn pods(&self) -> Vec<Pod> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.pods.iter().map(|(uid, pod)| Pod { uid: uid.clone(), ip: pod.ip }).collect()
    }

    /// Tells all other nodes there are; opens and closes only the ways that differ.
    pub async fn set_nodes(&self, peers: Vec<Peer>) -> Result<()> {
        self.with(move |inner| inner.set_nodes(&peers)).await
    }

    /// Programs all services there are, in one transaction that holds only what changed.
    pub async fn set_services(&self, state: ServiceState) -> Result<()> {
        let lost_endpoints = self.with(move |inner| inner.set_services(state)).await?;
        if lost_endpoints {
            let network = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(HANDSHAKE_MAX).await;
                if let Err(error) = network.with(Inner::forget_unanswered).await {
                    tracing::warn!(%error, "connections to endpoints that went away stay tracked until they time out");
                }
            });
        }
        Ok(())
    }

    /// Puts an address on the node's loopback and keeps service rules away from it, so that a server of this node answers there for local pods
    /// without any translation. Its scope is the host, so it is never chosen as a source.
    pub async fn add_local_address(&self, ip: Ipv4Addr) -> Result<()> {
        self.with(move |inner| inner.add_local_address(ip)).await
    }

    /// Removes everything: pods' wires, routes, the overlay, the rules.
    pub async fn teardown(&self) -> Result<()> {
        self.with(Inner::teardown).await
    }

    async fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = self.inner.clone();
        let task = tokio::task::spawn_blocking(move || work(&mut inner.lock().unwrap_or_else(PoisonError::into_inner)));
        task.await.context("the network task ended early")?
    }
}

impl Inner {
    fn start(config: Config) -> Result<Inner> {
        check_ranges(&config)?;
        let mut rt = Rt::open()?;
        let mut nft = Nft::open()?;
        let links = rt.links()?;
        let addresses = rt.addresses()?;
        let held = addresses.iter().find(|address| address.ip == config.node_ip).ok_or_else(|| {
            anyhow!("no network device here has the node's address {}: give the address by which other nodes reach this one", config.node_ip)
        })?;
        let uplink_range = Cidr::around(held.ip, held.prefix);
        ranges::check_host(config.cluster_cidr, config.service_cidr, &rt.routes()?)?;
        let find = |wanted: &dyn Fn(&Link) -> bool| {
            links.iter().find(|link| wanted(link)).cloned().context("a network device vanished")
        };
        let uplink = find(&|link| link.index == held.index)?;
        let loopback = find(&|link| link.name == "lo")?.index;
        rt.set_up(loopback)?;
        parameters()?;
        // Pods here that are not there are refused at once rather than sent to the default gateway.
        rt.add_route(&unreachable(config.pod_cidr))?;
        let to_services =
            Route { source: Some(config.node_ip), ..Route::direct(config.service_cidr, loopback, PROTOCOL) };
        rt.add_route(&to_services)?;
        let mut inner = Inner {
            pool: Pool::new(config.pod_cidr),
            rt,
            conntrack: Socket::netfilter()?,
            loopback,
            uplink,
            uplink_range,
            pods: BTreeMap::new(),
            ways: BTreeMap::new(),
            services: ServiceState::default(),
            own_addresses: Vec::new(),
            programmed: None,
            config,
            nft: Nft::open()?,
        };
        inner.adopt_pods(&links);
        inner.adopt_ways()?;
        if !nft.has_table(FAMILY, TABLE)? {
            inner.rebuild()?;
        }
        if let Some(ip) = inner.config.dns_ip {
            inner.add_local_address(ip)?;
        }
        Ok(inner)
    }

    fn adopt_pods(&mut self, links: &[Link]) {
        let remembered = self.load_host_ports();
        for link in links {
            let Some((uid, ip)) = pods::labelled(link) else { continue };
            if self.pool.adopt(ip) {
                let host_ports = remembered.get(&uid).cloned().unwrap_or_default();
                self.pods.insert(uid, Attached { ip, device: link.index, host_ports });
            } else {
                tracing::warn!(uid, %ip, "a pod's device carries an address that is not of this node's range, or another pod's; left alone");
            }
        }
    }

    fn adopt_ways(&mut self) -> Result<()> {
        let tunnel = self.rt.link(peers::DEVICE)?.map(|link| link.index);
        for route in self.rt.routes()?.into_iter().filter(|route| route.protocol == PROTOCOL) {
            let (Some(via), Some(device)) = (route.via, route.device) else { continue };
            // Behind which machine a tunnel ends is not in the route; an unknown one is replaced by the first list of nodes.
            let way = if Some(device) == tunnel {
                Way::Tunnel { node_ip: Ipv4Addr::UNSPECIFIED }
            } else {
                Way::Direct { node_ip: via }
            };
            self.ways.insert(route.to, way);
        }
        Ok(())
    }

    fn attach(&mut self, uid: &str, path: &Path, host_ports: Vec<HostPort>) -> Result<Ipv4Addr> {
        let namespace = netns::open(path)?;
        if let Some(pod) = self.pods.get_mut(uid) {
            let ip = pod.ip;
            if pods::is_connected(&namespace, ip)? {
                if pod.host_ports != host_ports {
                    pod.host_ports = host_ports;
                    self.save_host_ports()?;
                    self.reprogram()?;
                }
                return Ok(ip);
            }
            self.detach(uid)?;
        }
        let ip = self.pool.take().ok_or_else(|| {
            anyhow!(
                "all {} pod addresses of {} are taken: fewer pods, or a wider range a node",
                self.pool.capacity(),
                self.config.pod_cidr
            )
        })?;
        let mtu = self.pod_mtu();
        let connected = pods::connect(&mut self.rt, uid, &namespace, ip, mtu);
        let device = connected.inspect_err(|_| self.pool.free(ip)).with_context(|| format!("attach pod {uid}"))?;
        let some_ports = !host_ports.is_empty();
        self.pods.insert(uid.to_owned(), Attached { ip, device, host_ports });
        let finish = (|| {
            if some_ports {
                self.save_host_ports()?;
            }
            let mut batch = Batch::new(FAMILY, TABLE);
            batch.add_elements(OWN_PODS, &[(twice(ip), Data::None)]);
            self.commit_or_rebuild("admit a pod", batch)?;
            if some_ports { self.reprogram().map(drop) } else { Ok(()) }
        })();
        if let Err(error) = finish {
            self.detach(uid)?;
            return Err(error);
        }
        Ok(ip)
    }

    fn detach(&mut self, uid: &str) -> Result<()> {
        let Some(pod) = self.pods.get(uid) else { return Ok(()) };
        let (ip, device, some_ports) = (pod.ip, pod.device, !pod.host_ports.is_empty());
        self.rt.delete_link(device)?;
        self.pods.remove(uid);
        self.pool.free(ip);
        let mut batch = Batch::new(FAMILY, TABLE);
        // Added before it is deleted, because deleting what is not there fails.
        batch.add_elements(OWN_PODS, &[(twice(ip), Data::None)]);
        batch.delete_elements(OWN_PODS, &[twice(ip)]);
        self.commit_or_rebuild("forget a pod", batch)?;
        if some_ports {
            self.save_host_ports()?;
            self.reprogram()?;
        }
        Ok(())
    }

    fn set_nodes(&mut self, peers: &[Peer]) -> Result<()> {
        let wanted = peers::ways(&self.config, self.uplink_range, peers);
        let stale: Vec<_> =
            self.ways.iter().filter(|(to, way)| wanted.get(to) != Some(way)).map(|(to, way)| (*to, *way)).collect();
        for (to, way) in stale {
            if let Some(device) = self.device_of(way, false)? {
                peers::close(&mut self.rt, device, to, way)?;
            }
            self.ways.remove(&to);
        }
        for (to, way) in wanted {
            if self.ways.get(&to) == Some(&way) {
                continue;
            }
            let device = self.device_of(way, true)?.context("the overlay's device vanished")?;
            peers::open(&mut self.rt, &self.config, device, to, way)
                .with_context(|| format!("open the way to {to}"))?;
            self.ways.insert(to, way);
        }
        Ok(())
    }

    fn device_of(&mut self, way: Way, make: bool) -> Result<Option<u32>> {
        Ok(match way {
            Way::Direct { .. } => Some(self.uplink.index),
            Way::Tunnel { .. } if make => {
                let mtu = self.uplink.mtu.saturating_sub(peers::OVERHEAD_BYTES);
                Some(peers::tunnel_device(&mut self.rt, &self.config, mtu)?)
            }
            Way::Tunnel { .. } => self.rt.link(peers::DEVICE)?.map(|link| link.index),
        })
    }

    /// True when endpoints went away, or may have.
    fn set_services(&mut self, state: ServiceState) -> Result<bool> {
        if self.programmed.is_some() && self.services == state {
            return Ok(false);
        }
        self.services = state;
        self.reprogram()
    }

    /// From what the kernel holds to what it should; all anew when that is not known. True when endpoints went away, or may have.
    fn reprogram(&mut self) -> Result<bool> {
        let wanted = self.program();
        let lost_endpoints = match self.programmed.clone() {
            None => {
                self.rebuild()?;
                true
            }
            Some(now) => {
                let mut batch = Batch::new(FAMILY, TABLE);
                program::change(&mut batch, &now, &wanted);
                let lost_endpoints = now.loses_endpoints(&wanted);
                self.commit_or_rebuild("change the service rules", batch)?;
                self.programmed = Some(wanted);
                lost_endpoints
            }
        };
        if lost_endpoints {
            self.forget_flows(|flow| flow.original.protocol == libc::IPPROTO_UDP as u8)?;
        }
        Ok(lost_endpoints)
    }

    /// Forgets connections that were begun towards an endpoint which is none any more, and that nobody answered. The kernel would keep them for two
    /// minutes, and send there whatever connection uses the same port again.
    fn forget_unanswered(&mut self) -> Result<()> {
        self.forget_flows(|flow| !flow.answered)
    }

    /// Of the flows that rules of ours sent to a pod, forgets those whose endpoint is none any more.
    fn forget_flows(&mut self, which: impl Fn(&conntrack::Flow) -> bool) -> Result<()> {
        let Some(programmed) = &self.programmed else { return Ok(()) };
        let cluster = self.config.cluster_cidr;
        let stale = |flow: &conntrack::Flow| {
            let at = Endpoint { ip: flow.reply.source, port: flow.reply.source_port };
            let sent_there = flow.original.destination != at.ip && cluster.contains(at.ip);
            sent_there && which(flow) && !programmed.leads_to(flow.original.protocol, at)
        };
        conntrack::delete(&mut self.conntrack, stale)?;
        Ok(())
    }

    fn program(&self) -> Program {
        let hosts =
            self.pods.values().filter(|pod| !pod.host_ports.is_empty()).map(|pod| (pod.ip, pod.host_ports.as_slice()));
        Program::new(&self.services, hosts, self.config.cluster_cidr)
    }

    /// Commits a small change; when the kernel refuses, somebody else changed the table, and it is made again as a whole.
    fn commit_or_rebuild(&mut self, what: &str, batch: Batch) -> Result<()> {
        if let Err(error) = self.nft.commit(what, batch) {
            tracing::warn!(%error, "the table skiff is not as it was left; it is made again");
            self.rebuild()?;
        }
        Ok(())
    }

    /// Replaces the whole table in one transaction: no packet meets an empty one.
    fn rebuild(&mut self) -> Result<()> {
        self.programmed = None;
        let wanted = self.program();
        let mut batch = Batch::new(FAMILY, TABLE);
        batch.add_table();
        batch.delete_table();
        layout::base(&mut batch, &self.config);
        let own: Vec<_> = self.pods.values().map(|pod| (twice(pod.ip), Data::None)).collect();
        batch.add_elements(OWN_PODS, &own);
        let addresses: Vec<_> = self.own_addresses.iter().map(|ip| (ip.octets().to_vec(), Data::None)).collect();
        batch.add_elements(OWN_ADDRESSES, &addresses);
        program::change(&mut batch, &Program::default(), &wanted);
        self.nft.commit("make the nftables table skiff", batch)?;
        self.programmed = Some(wanted);
        Ok(())
    }

    fn add_local_address(&mut self, ip: Ipv4Addr) -> Result<()> {
        self.rt.add_address(Address { index: self.loopback, ip, prefix: 32, scope: libc::RT_SCOPE_HOST })?;
        if !self.own_addresses.contains(&ip) {
            self.own_addresses.push(ip);
        }
        let mut batch = Batch::new(FAMILY, TABLE);
        batch.add_elements(OWN_ADDRESSES, &[(ip.octets().to_vec(), Data::None)]);
        self.commit_or_rebuild("admit a local address", batch)
    }

    fn pod_mtu(&self) -> u32 {
        let room = if self.config.overlay == Overlay::Vxlan
            || self.ways.values().any(|way| matches!(way, Way::Tunnel { .. }))
        {
            peers::OVERHEAD_BYTES
        } else {
            0
        };
        self.config.mtu.unwrap_or(self.uplink.mtu.saturating_sub(room))
    }

    fn teardown(&mut self) -> Result<()> {
        for pod in std::mem::take(&mut self.pods).into_values() {
            self.rt.delete_link(pod.device)?;
            self.pool.free(pod.ip);
        }
        if let Some(link) = self.rt.link(peers::DEVICE)? {
            self.rt.delete_link(link.index)?;
        }
        for route in self.rt.routes()?.iter().filter(|route| route.protocol == PROTOCOL) {
            self.rt.delete_route(route)?;
        }
        for ip in std::mem::take(&mut self.own_addresses) {
            self.rt.delete_address(Address { index: self.loopback, ip, prefix: 32, scope: libc::RT_SCOPE_HOST })?;
        }
        self.ways.clear();
        self.services = ServiceState::default();
        self.programmed = None;
        self.nft.drop_table(FAMILY, TABLE)?;
        match std::fs::remove_file(self.host_ports_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove the record of host ports")
            }
            _ => Ok(()),
        }
    }

    fn host_ports_file(&self) -> PathBuf {
        self.config.state_dir.join("host-ports.json")
    }

    /// What a restart needs until the pods are attached again; a damaged record only means that it waits for that.
    fn load_host_ports(&self) -> BTreeMap<String, Vec<HostPort>> {
        let bytes = std::fs::read(self.host_ports_file()).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn save_host_ports(&self) -> Result<()> {
        let all: BTreeMap<_, _> = self
            .pods
            .iter()
            .filter(|(_, pod)| !pod.host_ports.is_empty())
            .map(|(uid, pod)| (uid, &pod.host_ports))
            .collect();
        let file = self.host_ports_file();
        let fresh = file.with_extension("json.new");
        let write = || {
            std::fs::create_dir_all(&self.config.state_dir)?;
            std::fs::write(&fresh, serde_json::to_vec(&all)?)?;
            std::fs::rename(&fresh, &file)
        };
        write().with_context(|| format!("write the record of host ports {}", file.display()))
    }
}

fn twice(ip: Ipv4Addr) -> Vec<u8> {
    [ip.octets(), ip.octets()].concat()
}

fn unreachable(to: Cidr) -> Route {
    Route { to, device: None, via: None, source: None, protocol: PROTOCOL, kind: libc::RTN_UNREACHABLE, onlink: false }
}

fn check_ranges(config: &Config) -> Result<()> {
    let Config { pod_cidr, cluster_cidr, service_cidr, .. } = config;
    if !cluster_cidr.contains(pod_cidr.base()) || pod_cidr.prefix() < cluster_cidr.prefix() {
        bail!("the node's pod range {pod_cidr} is not within the cluster's {cluster_cidr}");
    }
    if pod_cidr.prefix() > 30 {
        bail!("the node's pod range {pod_cidr} has no room for a pod: /30 is the smallest");
    }
    ranges::check_apart(*cluster_cidr, *service_cidr)
}

/// Kernel parameters a router of pods needs.
fn parameters() -> Result<()> {
    netns::set_parameter("net/ipv4/ip_forward", "1")?;
    // A packet may come back by another device than the one its source is reached by (VXLAN, several uplinks): loose, where it was strict.
    let strict = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or_default();
    if strict.trim() == "1" {
        netns::set_parameter("net/ipv4/conf/all/rp_filter", "2")?;
    }
    Ok(())
}
