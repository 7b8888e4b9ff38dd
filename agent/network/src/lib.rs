//! The pod network and the service rules of one node, all by netlink.
//!
//! - [`Network`] is the node's whole network: it attaches pods, knows the way to the other nodes, and programs services.
//! - [`rules::desired`] decides, from watched Services and EndpointSlices, what the node should do with traffic to services. Pure.
//! - [`program`] turns that into nftables chains and map elements, and two such values into the smallest batch between them. Pure.
//! - [`lease`] hands out pod addresses; [`peers`] decides routes. Pure.
//!
//! How a packet goes: a pod has one /32 address and a default route to a link-local gateway that is only a static neighbour entry; the node has a
//! /32 route to each pod. No bridge and no ARP take part. A connection's first packet passes chain `services`, where one map lookup finds the chain
//! of its service port, whatever the number of services; conntrack does the rest.

mod config;
pub mod layout;
pub mod lease;
mod network;
pub mod peers;
mod pods;
pub mod program;
mod ranges;
pub mod rules;

pub use config::{Config, HostPort, Overlay, Peer, Protocol};
pub use network::{Network, Pod};
pub use ranges::check_ranges;
pub use rules::{Protected, ServiceState, desired};
pub use skiff_netlink::Cidr;
