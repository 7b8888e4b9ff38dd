//! The way to the other nodes' pods: which routes there should be, and what to change.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use skiff_netlink::route::{Mac, Route, Rt};
use skiff_netlink::{Cidr, Result};

use crate::config::{Config, Overlay, Peer};
use crate::pods::PROTOCOL;

/// The overlay's device, VXLAN network and UDP port (IANA's, RFC 7348).
pub const DEVICE: &str = "skiff.vx";
const NETWORK_ID: u32 = 0x5f;
const UDP_PORT: u16 = 4789;
/// What VXLAN adds to a packet: Ethernet, IPv4, UDP and its own header.
pub const OVERHEAD_BYTES: u32 = 50;

/// How to reach one node's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Direct { node_ip: Ipv4Addr },
    Tunnel { node_ip: Ipv4Addr },
}

/// The ways there should be, by the range of pods they lead to. This node itself, and ranges that overlap its own, are left out.
pub fn ways(config: &Config, uplink: Cidr, peers: &[Peer]) -> BTreeMap<Cidr, Way> {
    peers
        .iter()
        .filter(|peer| {
            peer.name != config.node && peer.node_ip != config.node_ip && !peer.pod_cidr.overlaps(&config.pod_cidr)
        })
        .map(|peer| {
            let node_ip = peer.node_ip;
            let direct = match config.overlay {
                Overlay::Auto => uplink.contains(node_ip),
                Overlay::Direct => true,
                Overlay::Vxlan => false,
            };
            (peer.pod_cidr, if direct { Way::Direct { node_ip } } else { Way::Tunnel { node_ip } })
        })
        .collect()
}

/// The link-layer address of a node's overlay device follows from its range of pods, so that nobody has to ask.
pub fn tunnel_mac(pod_cidr: Cidr) -> Mac {
    let [a, b, c, d] = pod_cidr.base().octets();
    [0x0e, 0x5c, a, b, c, d]
}

/// Makes the overlay's device, or finds it.
pub fn tunnel_device(rt: &mut Rt, config: &Config, mtu: u32) -> Result<u32> {
    if let Some(link) = rt.link(DEVICE)? {
        return Ok(link.index);
    }
    rt.add_vxlan(DEVICE, NETWORK_ID, UDP_PORT, config.node_ip, tunnel_mac(config.pod_cidr), mtu)?;
    let index = rt.link(DEVICE)?.map(|link| link.index).unwrap_or_default();
    rt.set_up(index)?;
    rt.add_address(skiff_netlink::route::Address {
        index,
        ip: config.pod_cidr.base(),
        prefix: 32,
        scope: libc::RT_SCOPE_UNIVERSE,
    })?;
    Ok(index)
}

/// Opens a way. `device` is the uplink for a direct one, the overlay's for a tunnel.
pub fn open(rt: &mut Rt, config: &Config, device: u32, to: Cidr, way: Way) -> Result<()> {
    match way {
        Way::Direct { node_ip } => rt.add_route(&Route { via: Some(node_ip), ..Route::direct(to, device, PROTOCOL) }),
        Way::Tunnel { node_ip } => {
            rt.add_forwarding(device, tunnel_mac(to), node_ip)?;
            rt.add_neighbour(device, to.base(), tunnel_mac(to))?;
            let source = Some(config.pod_cidr.base());
            rt.add_route(&Route { via: Some(to.base()), onlink: true, source, ..Route::direct(to, device, PROTOCOL) })
        }
    }
}

/// Closes a way.
pub fn close(rt: &mut Rt, device: u32, to: Cidr, way: Way) -> Result<()> {
    match way {
        Way::Direct { node_ip } => {
            rt.delete_route(&Route { via: Some(node_ip), ..Route::direct(to, device, PROTOCOL) })
        }
        Way::Tunnel { node_ip } => {
            rt.delete_route(&Route { via: Some(to.base()), onlink: true, ..Route::direct(to, device, PROTOCOL) })?;
            rt.delete_neighbour(device, to.base())?;
            rt.delete_forwarding(device, tunnel_mac(to), node_ip)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_on_the_link_is_reached_directly() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let mut config = Config {
            node: "a1".into(),
            pod_cidr: cidr("10.42.1.0/24"),
            cluster_cidr: cidr("10.42.0.0/16"),
            service_cidr: cidr("10.43.0.0/16"),
            node_ip: Ipv4Addr::new(172, 31, 0, 1),
            mtu: None,
            dns_ip: None,
            state_dir: "/nowhere".into(),
            overlay: Overlay::Auto,
        };
        let peer = |name: &str, node_ip: [u8; 4], range: &str| Peer {
            name: name.into(),
            node_ip: node_ip.into(),
            pod_cidr: cidr(range),
        };
        let near = Ipv4Addr::new(172, 31, 0, 2);
        let far = Ipv4Addr::new(192, 168, 7, 7);
        let peers = [
            peer("a1", [172, 31, 0, 1], "10.42.1.0/24"),
            peer("a2", near.octets(), "10.42.2.0/24"),
            peer("a3", far.octets(), "10.42.3.0/24"),
            peer("liar", [172, 31, 0, 9], "10.42.0.0/16"),
        ];
        let uplink = cidr("172.31.0.0/24");
        let expect = |a2, a3| BTreeMap::from([(cidr("10.42.2.0/24"), a2), (cidr("10.42.3.0/24"), a3)]);
        assert_eq!(ways(&config, uplink, &peers), expect(Way::Direct { node_ip: near }, Way::Tunnel { node_ip: far }));
        config.overlay = Overlay::Vxlan;
        assert_eq!(ways(&config, uplink, &peers), expect(Way::Tunnel { node_ip: near }, Way::Tunnel { node_ip: far }));
    }
}
