//! The network between the nodes: a bridge in a namespace of its own, a wire from it to each node's namespace, and cuts.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, anyhow};
use skiff_netlink::nft::{Batch, Chain, Expr, Family, Hook, Kind, Load, Nft};
use skiff_netlink::route::{Address, End, Link, Route, Rt};
use skiff_netlink::{Cidr, netns};

use crate::plan;
use crate::spec::Direction;

const BRIDGE: &str = "switch";
const INSIDE: &str = "eth0";
const CUTS: &str = "cuts";
const MTU: u32 = 1500;
/// Hooks of a device (enum nf_dev_hooks).
const INGRESS: u32 = 0;
const EGRESS: u32 = 1;

/// A node's place at the switch.
#[derive(Debug)]
pub struct Port {
    pub namespace: File,
    pub address: Ipv4Addr,
    pub cut: Option<Direction>,
}

/// The switch and the nodes' namespaces, all held by this value's files.
#[derive(Debug)]
pub struct Switch {
    namespace: File,
    subnet: Cidr,
    bridge: u32,
    /// Opened inside the switch's namespace.
    rt: Rt,
    nft: Nft,
    ports: BTreeMap<String, Port>,
    /// Holds the root namespace's masquerade rules, which the kernel removes when this closes.
    uplink: Option<Nft>,
}

impl Switch {
    pub fn new(subnet: Cidr) -> Result<Switch> {
        let namespace = netns::create()?;
        let (rt, nft, bridge) = netns::inside_file(&namespace, || -> Result<_> {
            let mut rt = Rt::open()?;
            up(&mut rt, "lo")?;
            rt.add_bridge(BRIDGE)?;
            let bridge = up(&mut rt, BRIDGE)?.index;
            rt.add_address(address(bridge, subnet, plan::SWITCH_HOST)?)?;
            // Bridged packets are not for IP rules; where the kernel has no such parameter they never were.
            let _ = netns::set_parameter("net/bridge/bridge-nf-call-iptables", "0");
            Ok((rt, Nft::open()?, bridge))
        })??;
        Ok(Switch { namespace, subnet, bridge, rt, nft, ports: BTreeMap::new(), uplink: None })
    }

    /// The switch's own namespace, from which every node can be dialled.
    pub fn namespace(&self) -> &File {
        &self.namespace
    }

    pub fn ports(&self) -> &BTreeMap<String, Port> {
        &self.ports
    }

    /// A node's place, made when it is not there.
    pub fn port(&mut self, name: &str) -> Result<&Port> {
        if !self.ports.contains_key(name) {
            let port = self.add(name).with_context(|| format!("connect {name} to the switch"))?;
            self.ports.insert(name.to_owned(), port);
        }
        Ok(&self.ports[name])
    }

    fn add(&mut self, name: &str) -> Result<Port> {
        let ip = plan::address(self.subnet, name)?;
        let namespace = netns::create()?;
        let here = End { name, mac: None, namespace: None };
        let there = End { name: INSIDE, mac: None, namespace: Some(namespace.as_fd()) };
        self.rt.add_veth(here, there, MTU, "")?;
        let link = up(&mut self.rt, name)?;
        self.rt.set_master(link.index, self.bridge)?;
        let (subnet, uplink) = (self.subnet, self.uplink.is_some());
        netns::inside_file(&namespace, || -> Result<()> {
            let mut rt = Rt::open()?;
            up(&mut rt, "lo")?;
            let inside = up(&mut rt, INSIDE)?;
            rt.add_address(Address {
                index: inside.index,
                ip,
                prefix: subnet.prefix(),
                scope: libc::RT_SCOPE_UNIVERSE,
            })?;
            if uplink {
                let everywhere = Cidr::around(Ipv4Addr::UNSPECIFIED, 0);
                let via = subnet.nth(plan::UPLINK_HOST);
                rt.add_route(&Route { via, ..Route::direct(everywhere, inside.index, libc::RTPROT_STATIC) })?;
            }
            Ok(())
        })??;
        Ok(Port { namespace, address: ip, cut: None })
    }

    /// Drops a node's packets at its port. ARP goes too, as on a cable that was pulled, but nobody sees the link go down.
    pub fn cut(&mut self, name: &str, direction: Direction) -> Result<()> {
        self.heal(name)?;
        let port = self.ports.get_mut(name).ok_or_else(|| unknown(name))?;
        let mut batch = Batch::new(Family::Netdev, CUTS);
        batch.add_table();
        for (number, chain) in hooks(name, direction) {
            let hook = Hook { kind: Kind::Filter, number, priority: 0, device: Some(name.to_owned()), drop: true };
            batch.add_chain(&Chain { name: chain, hook: Some(hook) });
        }
        self.nft.commit(&format!("cut {name} off"), batch)?;
        port.cut = Some(direction);
        Ok(())
    }

    pub fn heal(&mut self, name: &str) -> Result<()> {
        let port = self.ports.get_mut(name).ok_or_else(|| unknown(name))?;
        let Some(direction) = port.cut else { return Ok(()) };
        let mut batch = Batch::new(Family::Netdev, CUTS);
        for (_, chain) in hooks(name, direction) {
            batch.delete_chain(&chain);
        }
        self.nft.commit(&format!("heal the cut of {name}"), batch)?;
        port.cut = None;
        Ok(())
    }

    /// Lets the nodes reach what this machine reaches: a wire to the root namespace, forwarding there, and masquerade. Call it from a thread in
    /// the root namespace, before any node is added.
    pub fn add_uplink(&mut self, instance: &str) -> Result<()> {
        let name = plan::uplink_device(instance);
        let mut root = Rt::open()?;
        let here = End { name: &name, mac: None, namespace: None };
        let there = End { name: "uplink", mac: None, namespace: Some(self.namespace.as_fd()) };
        root.add_veth(here, there, MTU, "")?;
        let link = up(&mut root, &name)?;
        root.add_address(address(link.index, self.subnet, plan::UPLINK_HOST)?)?;
        let other = up(&mut self.rt, "uplink")?;
        self.rt.set_master(other.index, self.bridge)?;
        netns::set_parameter("net/ipv4/ip_forward", "1")?;
        let mut nft = Nft::open()?;
        let mut batch = Batch::new(Family::Ipv4, &name);
        batch.add_table_of_socket();
        let hook = Hook { kind: Kind::Nat, number: 4, priority: 100, device: None, drop: false };
        batch.add_chain(&Chain { name: "postrouting".into(), hook: Some(hook) });
        let mut rule = Expr::within(Load::Source, self.subnet, true);
        rule.extend(Expr::within(Load::Destination, self.subnet, false));
        rule.push(Expr::Masquerade);
        batch.add_rule("postrouting", &rule);
        nft.commit("masquerade the local cluster", batch)?;
        self.uplink = Some(nft);
        Ok(())
    }
}

impl Port {
    pub fn fd(&self) -> i32 {
        self.namespace.as_raw_fd()
    }
}

fn hooks(name: &str, direction: Direction) -> Vec<(u32, String)> {
    // What a node sends comes in at the switch's end of its wire.
    let sent = (INGRESS, format!("{name}-sends"));
    let received = (EGRESS, format!("{name}-receives"));
    match direction {
        Direction::Out => vec![sent],
        Direction::In => vec![received],
        Direction::Both => vec![sent, received],
    }
}

fn unknown(name: &str) -> anyhow::Error {
    anyhow!("no node {name} was started")
}

fn up(rt: &mut Rt, name: &str) -> Result<Link> {
    let link = rt.link(name)?.with_context(|| format!("the device {name} is not there"))?;
    rt.set_up(link.index)?;
    Ok(link)
}

fn address(index: u32, subnet: Cidr, host: u64) -> Result<Address> {
    let ip = subnet.nth(host).with_context(|| format!("the subnet {subnet} is too small: give a /24"))?;
    Ok(Address { index, ip, prefix: subnet.prefix(), scope: libc::RT_SCOPE_UNIVERSE })
}
