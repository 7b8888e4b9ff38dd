//! What a node's network is told.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skiff_netlink::Cidr;

/// A node's network.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name, as endpoints carry it.
    pub node: String,
    /// This node's share of the pod addresses, /8 to /30.
    pub pod_cidr: Cidr,
    /// All pods' addresses; traffic from a pod to anything outside it is masqueraded.
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    /// The address by which other nodes reach this one; a device here must hold it.
    pub node_ip: Ipv4Addr,
    /// Bytes; none: the uplink's, less 50 when the overlay encapsulates.
    pub mtu: Option<u32>,
    /// The cluster DNS address, put on the node's loopback so that its pods' questions are answered here, without translation.
    pub dns_ip: Option<Ipv4Addr>,
    /// Where the little that the kernel does not remember is kept.
    pub state_dir: PathBuf,
    pub overlay: Overlay,
}

/// How packets get to pods of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlay {
    /// A plain route to nodes on the same link, VXLAN to others.
    #[default]
    Auto,
    /// Plain routes only: the network between the nodes knows pods' subnets.
    Direct,
    /// VXLAN always.
    Vxlan,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub node_ip: Ipv4Addr,
    pub pod_cidr: Cidr,
}

/// What a service port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl Protocol {
    /// From a Kubernetes object, where nothing means TCP.
    pub fn named(name: Option<&str>) -> Option<Protocol> {
        match name {
            None | Some("TCP" | "") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }

    /// Its number in an IP header.
    pub fn number(self) -> u8 {
        self as u8
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the node that leads to a port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// None: every address of the node.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}
