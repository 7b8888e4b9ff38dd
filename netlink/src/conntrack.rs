//! Tracked flows: found and deleted, so that a client whose endpoint went away is sent to another at its next packet.

use std::net::Ipv4Addr;

use crate::Result;
use crate::socket::Socket;
use crate::wire::{self, Message};

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
/// A packet came back (enum ip_conntrack_status).
const IPS_SEEN_REPLY: u32 = 1 << 1;

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    /// TCP 6, UDP 17.
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

/// A flow as first seen, and as its answers look: the answers' source is the endpoint that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub original: Tuple,
    pub reply: Tuple,
    /// Whether anything came back.
    pub answered: bool,
}

/// Deletes the flows that `matches` picks, and says how many.
pub fn delete(socket: &mut Socket, matches: impl Fn(&Flow) -> bool) -> Result<usize> {
    let mut doomed = Vec::new();
    let mut message = Message::new(SUBSYSTEM | GET, 0);
    message.raw(&[libc::AF_INET as u8, 0, 0, 0]);
    socket.dump("list the tracked connections", message, |_, payload| {
        doomed.extend(flow_of(payload).filter(|flow| matches(flow)));
    })?;
    for flow in &doomed {
        let mut message = Message::new(SUBSYSTEM | DELETE, 0);
        message.raw(&[libc::AF_INET as u8, 0, 0, 0]).nest(CTA_TUPLE_ORIG, |tuple| write_tuple(tuple, &flow.original));
        match socket.request("delete a tracked connection", message) {
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
    }
    Ok(doomed.len())
}

fn flow_of(payload: &[u8]) -> Option<Flow> {
    let attributes = payload.get(4..)?;
    Some(Flow {
        original: tuple_of(wire::find(attributes, CTA_TUPLE_ORIG)?)?,
        reply: tuple_of(wire::find(attributes, CTA_TUPLE_REPLY)?)?,
        answered: wire::find(attributes, CTA_STATUS)
            .and_then(|value| value.try_into().ok())
            .is_some_and(|status| u32::from_be_bytes(status) & IPS_SEEN_REPLY != 0),
    })
}

fn tuple_of(bytes: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (wire::find(bytes, 1)?, wire::find(bytes, 2)?);
    let port = |kind| wire::find(proto, kind).and_then(|value| value.try_into().ok()).map_or(0, u16::from_be_bytes);
    Some(Tuple {
        source: wire::address(wire::find(ip, 1)?)?,
        destination: wire::address(wire::find(ip, 2)?)?,
        protocol: *wire::find(proto, 1)?.first()?,
        source_port: port(2),
        destination_port: port(3),
    })
}

fn write_tuple(message: &mut Message, tuple: &Tuple) {
    message.nest(1, |ip| {
        ip.address(1, tuple.source).address(2, tuple.destination);
    });
    message.nest(2, |proto| {
        proto
            .attr(1, &[tuple.protocol])
            .attr(2, &tuple.source_port.to_be_bytes())
            .attr(3, &tuple.destination_port.to_be_bytes());
    });
}
