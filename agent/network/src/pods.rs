//! A pod's wire: a veth pair, one end the pod's `eth0`, the other on the node, with the addresses and routes at both ends.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use skiff_netlink::route::{Address, End, Link, Mac, Route, Rt};
use skiff_netlink::{Cidr, Error, Result, netns};

/// Marks the routes that are ours (rtm_protocol; those above 4 are free for daemons).
pub const PROTOCOL: u8 = 83;
/// The pods' gateway: nobody has this address; it stands for the node's end of the wire.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The node's end of every wire.
const NODE_MAC: Mac = [0x0e, 0x5c, 0x1f, 0xf0, 0x00, 0x01];
const INSIDE: &str = "eth0";
const LABEL: &str = "skiff-pod";

/// The name of the node's end: within the 15 bytes a device name may have.
pub fn device_name(uid: &str) -> String {
    // FNV-1a, 64 bits.
    let hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("sk{:012x}", hash >> 16)
}

fn pod_mac(ip: Ipv4Addr) -> Mac {
    let [a, b, c, d] = ip.octets();
    [0x0e, 0x5d, a, b, c, d]
}

/// What a restarted agent finds on a device: whose it is and the pod's address.
pub fn label(uid: &str, ip: Ipv4Addr) -> String {
    format!("{LABEL} {uid} {ip}")
}

/// The pod that a device's label names.
pub fn labelled(link: &Link) -> Option<(String, Ipv4Addr)> {
    let mut words = link.alias.split(' ');
    let (mark, uid, ip) = (words.next()?, words.next()?, words.next()?);
    (mark == LABEL).then_some((uid.to_owned(), ip.parse().ok()?))
}

/// Makes the wire. On failure nothing is left.
pub fn connect(rt: &mut Rt, uid: &str, namespace: &File, ip: Ipv4Addr, mtu: u32) -> Result<u32> {
    let name = device_name(uid);
    let node_end = End { name: &name, mac: Some(NODE_MAC), namespace: None };
    let pod_end = End { name: INSIDE, mac: Some(pod_mac(ip)), namespace: Some(namespace.as_fd()) };
    rt.add_veth(node_end, pod_end, mtu, &label(uid, ip))?;
    let gone =
        || Error::new(format!("find the device {name} just made"), std::io::Error::from(std::io::ErrorKind::NotFound));
    let index = rt.link(&name)?.ok_or_else(gone)?.index;
    let finish = (|| {
        rt.set_up(index)?;
        rt.add_neighbour(index, ip, pod_mac(ip))?;
        rt.add_route(&Route::direct(Cidr::around(ip, 32), index, PROTOCOL))?;
        netns::inside_file(namespace, || configure_inside(ip))?
    })();
    if let Err(error) = finish {
        rt.delete_link(index)?;
        return Err(error);
    }
    Ok(index)
}

fn configure_inside(ip: Ipv4Addr) -> Result<()> {
    let mut rt = Rt::open()?;
    let links = rt.links()?;
    for link in links.iter().filter(|link| link.name == "lo" || link.name == INSIDE) {
        rt.set_up(link.index)?;
    }
    let Some(inside) = links.iter().find(|link| link.name == INSIDE) else {
        return Err(Error::new("find eth0 in the pod", std::io::Error::from(std::io::ErrorKind::NotFound)));
    };
    let index = inside.index;
    rt.add_address(Address { index, ip, prefix: 32, scope: libc::RT_SCOPE_UNIVERSE })?;
    rt.add_route(&Route::direct(Cidr::around(GATEWAY, 32), index, libc::RTPROT_STATIC))?;
    rt.add_neighbour(index, GATEWAY, NODE_MAC)?;
    let everywhere = Cidr::around(Ipv4Addr::UNSPECIFIED, 0);
    rt.add_route(&Route { via: Some(GATEWAY), ..Route::direct(everywhere, index, libc::RTPROT_STATIC) })
}

/// Whether the pod whose namespace this is has the address already.
pub fn is_connected(namespace: &File, ip: Ipv4Addr) -> Result<bool> {
    netns::inside_file(namespace, || Ok(Rt::open()?.addresses()?.iter().any(|address| address.ip == ip)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_whose_the_device_is() {
        let link = |alias: &str| Link { index: 1, name: "x".into(), alias: alias.into(), mac: None, mtu: 0, up: true };
        let ip = Ipv4Addr::new(10, 42, 0, 9);
        assert_eq!(labelled(&link(&label("u-1", ip))), Some(("u-1".to_owned(), ip)));
        for other in ["", "skiff-pod", "skiff-pod u", "skiff-pod u x", "other u 10.42.0.9"] {
            assert_eq!(labelled(&link(other)), None);
        }
    }

    #[test]
    fn device_names_fit() {
        let name = device_name("0d0c8d9e-2f6b-4f43-9d51-6f5f0a6c1b11");
        assert!(name.len() <= 15 && name != device_name("another"), "{name}");
    }
}
