//! Links, addresses, routes and neighbours of one network namespace (rtnetlink(7)).

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::wire::{self, Message};
use crate::{Cidr, Result, socket::Socket};

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
const REPLACE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
const IFLA_LINKINFO: u16 = libc::IFLA_LINKINFO;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFINFO_LENGTH: usize = 16;
const UP: u32 = libc::IFF_UP as u32;

/// A link-layer address.
pub type Mac = [u8; 6];

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// The free text that can be put on a device: where a restarted owner finds what a device is for.
    pub alias: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
}

/// One end of a veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    pub name: &'a str,
    pub mac: Option<Mac>,
    /// The namespace it is made in; none is the socket's.
    pub namespace: Option<BorrowedFd<'a>>,
}

/// An address on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub ip: Ipv4Addr,
    pub prefix: u8,
    /// `RT_SCOPE_HOST` keeps it from being chosen as a source.
    pub scope: u8,
}

/// A route in the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub to: Cidr,
    pub device: Option<u32>,
    pub via: Option<Ipv4Addr>,
    /// The source to prefer.
    pub source: Option<Ipv4Addr>,
    /// Who made it (rtm_protocol); how an owner finds its own again.
    pub protocol: u8,
    /// `RTN_UNICAST`, or `RTN_UNREACHABLE` to refuse at once.
    pub kind: u8,
    /// The gateway is on the device although no subnet says so.
    pub onlink: bool,
}

impl Route {
    /// A route straight to what is on a device.
    pub fn direct(to: Cidr, device: u32, protocol: u8) -> Route {
        Route { to, device: Some(device), via: None, source: None, protocol, kind: libc::RTN_UNICAST, onlink: false }
    }
}

/// The network configuration of the namespace it was opened in.
#[derive(Debug)]
pub struct Rt {
    socket: Socket,
}

impl Rt {
    pub fn open() -> Result<Rt> {
        Ok(Rt { socket: Socket::route()? })
    }

    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        let mut message = Message::new(libc::RTM_GETLINK, 0);
        message.raw(&[0; IFINFO_LENGTH]);
        self.socket.dump("list the network devices", message, |_, payload| links.extend(link_of(payload)))?;
        Ok(links)
    }

    /// The device of a name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// Makes a veth pair; each end may be in a namespace of its own from the start.
    pub fn add_veth(&mut self, one: End<'_>, other: End<'_>, mtu: u32, alias: &str) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE);
        message.raw(&[0; IFINFO_LENGTH]);
        put_end(&mut message, &one, mtu);
        message.nest(IFLA_LINKINFO, |info| {
            info.attr(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&[0; IFINFO_LENGTH]);
                    put_end(peer, &other, mtu);
                });
            });
        });
        self.socket.request(&format!("make the veth pair {} and {}", one.name, other.name), message)?;
        // The alias is taken only by a change of an existing device.
        if alias.is_empty() {
            return Ok(());
        }
        let mut message = Message::new(libc::RTM_SETLINK, 0);
        message.raw(&[0; IFINFO_LENGTH]).text(libc::IFLA_IFNAME, one.name).attr(libc::IFLA_IFALIAS, alias.as_bytes());
        self.socket.request(&format!("label the device {}", one.name), message)
    }

    /// Makes a bridge.
    pub fn add_bridge(&mut self, name: &str) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE);
        message.raw(&[0; IFINFO_LENGTH]).text(libc::IFLA_IFNAME, name);
        message.nest(IFLA_LINKINFO, |info| {
            info.attr(IFLA_INFO_KIND, b"bridge");
        });
        self.socket.request(&format!("make the bridge {name}"), message)
    }

    /// Makes a VXLAN device that learns nothing by itself: `id` and UDP `port` name the overlay, `local` is the outer source address.
    pub fn add_vxlan(&mut self, name: &str, id: u32, port: u16, local: Ipv4Addr, mac: Mac, mtu: u32) -> Result<()> {
        const IFLA_VXLAN_ID: u16 = 1;
        const IFLA_VXLAN_LOCAL: u16 = 4;
        const IFLA_VXLAN_LEARNING: u16 = 7;
        const IFLA_VXLAN_PORT: u16 = 15;
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE);
        message
            .raw(&[0; IFINFO_LENGTH])
            .text(libc::IFLA_IFNAME, name)
            .attr(libc::IFLA_ADDRESS, &mac)
            .number(libc::IFLA_MTU, mtu);
        message.nest(IFLA_LINKINFO, |info| {
            info.attr(IFLA_INFO_KIND, b"vxlan").nest(IFLA_INFO_DATA, |data| {
                data.number(IFLA_VXLAN_ID, id)
                    .address(IFLA_VXLAN_LOCAL, local)
                    .attr(IFLA_VXLAN_LEARNING, &[0])
                    .attr(IFLA_VXLAN_PORT, &port.to_be_bytes());
            });
        });
        self.socket.request(&format!("make the VXLAN device {name}"), message)
    }

    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let mut header = [0; IFINFO_LENGTH];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..12].copy_from_slice(&UP.to_ne_bytes());
        header[12..16].copy_from_slice(&UP.to_ne_bytes());
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.raw(&header);
        self.socket.request(&format!("bring device {index} up"), message)
    }

    /// Makes a device a port of a bridge.
    pub fn set_master(&mut self, index: u32, master: u32) -> Result<()> {
        let mut message = Message::new(libc::RTM_SETLINK, 0);
        message.raw(&header_for(index)).number(libc::IFLA_MASTER, master);
        self.socket.request(&format!("join device {index} to bridge {master}"), message)
    }

    /// Deletes a device (and its pair). One that is gone is not an error.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut message = Message::new(libc::RTM_DELLINK, 0);
        message.raw(&header_for(index));
        gone_is_fine(self.socket.request(&format!("delete device {index}"), message))
    }

    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let mut found = Vec::new();
        let mut message = Message::new(libc::RTM_GETADDR, 0);
        message.raw(&[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0]);
        self.socket.dump("list the addresses", message, |_, payload| found.extend(address_of(payload)))?;
        Ok(found)
    }

    /// Puts an address on a device. One that is there is not an error.
    pub fn add_address(&mut self, address: Address) -> Result<()> {
        let message = address_message(libc::RTM_NEWADDR, REPLACE, &address);
        self.socket.request(&format!("put {}/{} on device {}", address.ip, address.prefix, address.index), message)
    }

    /// Takes an address away. One that is gone is not an error.
    pub fn delete_address(&mut self, address: Address) -> Result<()> {
        let message = address_message(libc::RTM_DELADDR, 0, &address);
        gone_is_fine(self.socket.request(&format!("take {} from device {}", address.ip, address.index), message))
    }

    /// The IPv4 routes of the main table.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let mut found = Vec::new();
        let mut message = Message::new(libc::RTM_GETROUTE, 0);
        message.raw(&[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        self.socket.dump("list the routes", message, |_, payload| found.extend(route_of(payload)))?;
        Ok(found)
    }

    /// Adds a route, or replaces the one to the same range.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        self.socket.request(&format!("add a route to {}", route.to), route_message(libc::RTM_NEWROUTE, REPLACE, route))
    }

    /// Deletes a route. One that is gone is not an error.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        let what = format!("delete the route to {}", route.to);
        gone_is_fine(self.socket.request(&what, route_message(libc::RTM_DELROUTE, 0, route)))
    }

    /// Says once and for all which link-layer address an IP has on a device: nobody asks by ARP.
    pub fn add_neighbour(&mut self, device: u32, ip: Ipv4Addr, mac: Mac) -> Result<()> {
        let mut message = neighbour_message(libc::RTM_NEWNEIGH, REPLACE, libc::AF_INET, device, 0);
        message.address(libc::NDA_DST, ip).attr(libc::NDA_LLADDR, &mac);
        self.socket.request(&format!("set the neighbour {ip}"), message)
    }

    pub fn delete_neighbour(&mut self, device: u32, ip: Ipv4Addr) -> Result<()> {
        let mut message = neighbour_message(libc::RTM_DELNEIGH, 0, libc::AF_INET, device, 0);
        message.address(libc::NDA_DST, ip);
        gone_is_fine(self.socket.request(&format!("forget the neighbour {ip}"), message))
    }

    /// Says behind which machine a link-layer address of a VXLAN device is.
    pub fn add_forwarding(&mut self, device: u32, mac: Mac, machine: Ipv4Addr) -> Result<()> {
        let mut message = neighbour_message(libc::RTM_NEWNEIGH, REPLACE, libc::AF_BRIDGE, device, NTF_SELF);
        message.attr(libc::NDA_LLADDR, &mac).address(libc::NDA_DST, machine);
        self.socket.request(&format!("forward to the machine {machine}"), message)
    }

    pub fn delete_forwarding(&mut self, device: u32, mac: Mac, machine: Ipv4Addr) -> Result<()> {
        let mut message = neighbour_message(libc::RTM_DELNEIGH, 0, libc::AF_BRIDGE, device, NTF_SELF);
        message.attr(libc::NDA_LLADDR, &mac).address(libc::NDA_DST, machine);
        gone_is_fine(self.socket.request(&format!("stop forwarding to the machine {machine}"), message))
    }
}

const NTF_SELF: u8 = 2;
const NUD_PERMANENT: u16 = 0x80;
const RTNH_F_ONLINK: u32 = 4;

fn gone_is_fine(answer: Result<()>) -> Result<()> {
    match answer {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}

fn header_for(index: u32) -> [u8; IFINFO_LENGTH] {
    let mut header = [0; IFINFO_LENGTH];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

fn put_end(message: &mut Message, end: &End<'_>, mtu: u32) {
    message.text(libc::IFLA_IFNAME, end.name).number(libc::IFLA_MTU, mtu);
    if let Some(mac) = end.mac {
        message.attr(libc::IFLA_ADDRESS, &mac);
    }
    if let Some(namespace) = end.namespace {
        message.number(libc::IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
    }
}

fn link_of(payload: &[u8]) -> Option<Link> {
    let attributes = payload.get(IFINFO_LENGTH..)?;
    let text = |kind| wire::find(attributes, kind).map(wire::text).unwrap_or_default();
    Some(Link {
        index: wire::number(&payload[4..])?,
        name: text(libc::IFLA_IFNAME),
        alias: text(libc::IFLA_IFALIAS),
        mac: wire::find(attributes, libc::IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        mtu: wire::find(attributes, libc::IFLA_MTU).and_then(wire::number).unwrap_or(0),
        up: wire::number(&payload[8..])? & UP != 0,
    })
}

fn address_message(kind: u16, flags: i32, address: &Address) -> Message {
    let mut message = Message::new(kind, flags);
    message.raw(&[libc::AF_INET as u8, address.prefix, 0, address.scope]).raw(&address.index.to_ne_bytes());
    message.address(libc::IFA_LOCAL, address.ip).address(libc::IFA_ADDRESS, address.ip);
    if address.prefix < 31 {
        let broadcast = address.ip.to_bits() | !Cidr::around(address.ip, address.prefix).mask().to_bits();
        message.address(libc::IFA_BROADCAST, Ipv4Addr::from_bits(broadcast));
    }
    message
}

fn address_of(payload: &[u8]) -> Option<Address> {
    let attributes = payload.get(8..)?;
    let ip = wire::find(attributes, libc::IFA_LOCAL).or_else(|| wire::find(attributes, libc::IFA_ADDRESS))?;
    Some(Address { index: wire::number(&payload[4..])?, ip: wire::address(ip)?, prefix: payload[1], scope: payload[3] })
}

fn route_message(kind: u16, flags: i32, route: &Route) -> Message {
    let scope = match (route.kind, route.via) {
        (libc::RTN_UNICAST, None) => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    let mut message = Message::new(kind, flags);
    message.raw(&[
        libc::AF_INET as u8,
        route.to.prefix(),
        0,
        0,
        libc::RT_TABLE_MAIN,
        route.protocol,
        scope,
        route.kind,
    ]);
    message.raw(&(if route.onlink { RTNH_F_ONLINK } else { 0 }).to_ne_bytes());
    message.address(libc::RTA_DST, route.to.base());
    if let Some(device) = route.device {
        message.number(libc::RTA_OIF, device);
    }
    if let Some(via) = route.via {
        message.address(libc::RTA_GATEWAY, via);
    }
    if let Some(source) = route.source {
        message.address(libc::RTA_PREFSRC, source);
    }
    message
}

fn route_of(payload: &[u8]) -> Option<Route> {
    let header = payload.get(..12)?;
    let attributes = &payload[12..];
    let table = wire::find(attributes, libc::RTA_TABLE).and_then(wire::number).unwrap_or(u32::from(header[4]));
    if table != u32::from(libc::RT_TABLE_MAIN) || header[0] != libc::AF_INET as u8 {
        return None;
    }
    let address = |kind| wire::find(attributes, kind).and_then(wire::address);
    Some(Route {
        to: Cidr::around(address(libc::RTA_DST).unwrap_or(Ipv4Addr::UNSPECIFIED), header[1]),
        device: wire::find(attributes, libc::RTA_OIF).and_then(wire::number),
        via: address(libc::RTA_GATEWAY),
        source: address(libc::RTA_PREFSRC),
        protocol: header[5],
        kind: header[7],
        onlink: wire::number(&header[8..])? & RTNH_F_ONLINK != 0,
    })
}

fn neighbour_message(kind: u16, flags: i32, family: libc::c_int, device: u32, entry: u8) -> Message {
    let mut message = Message::new(kind, flags);
    message.raw(&[family as u8, 0, 0, 0]).raw(&device.to_ne_bytes());
    let state = NUD_PERMANENT.to_ne_bytes();
    message.raw(&[state[0], state[1], entry, 0]);
    message
}
