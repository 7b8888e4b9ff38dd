//! Services and host ports as nftables chains and map elements, and the smallest batch from one such value to another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use skiff_netlink::Cidr;
use skiff_netlink::nft::{Batch, Chain, Data, Expr, Load, REG, REG_1, Verdict};

use crate::config::{HostPort, Protocol};
use crate::layout::{self, HOST_PORTS, NODE_PORTS, REFUSE, SERVICE_IPS};
use crate::rules::{Choice, Endpoint, PortKey, ServicePort, ServiceState};

/// One rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Send to one of the endpoints; a sticky client always to the same.
    Balance {
        endpoints: Vec<Endpoint>,
        sticky: bool,
    },
    /// Connections from inside the cluster are another chain's.
    FromInside(Cidr, String),
    /// The answer must come back through this node.
    Mark,
    /// To a pod's port, when the packet is for this address of the node (any, when none).
    Host(Option<Ipv4Addr>, Endpoint),
    Drop,
    Refuse,
}

/// All that the table holds beside its layout.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Program {
    chains: BTreeMap<String, Vec<Line>>,
    maps: BTreeMap<&'static str, BTreeMap<Vec<u8>, Verdict>>,
    /// Where the program sends connections, by protocol number.
    endpoints: BTreeSet<(u8, Endpoint)>,
}

impl Program {
    /// The program for services and for the host ports of this node's pods. Where two claim the same address and port, the first by name keeps it.
    pub fn new<'a>(
        state: &ServiceState,
        hosts: impl IntoIterator<Item = (Ipv4Addr, &'a [HostPort])>,
        cluster_cidr: Cidr,
    ) -> Program {
        let mut program = Program::default();
        // Cluster addresses first: they are allocated, while anybody may write what is outside.
        for (key, port) in &state.ports {
            program.cluster_ips(key, port);
        }
        for (key, port) in &state.ports {
            program.outside(key, port, cluster_cidr);
        }
        for (pod, ports) in hosts {
            for port in ports {
                let chain = format!("host/{}/{}", port.protocol.as_str(), port.host_port);
                let to = Endpoint { ip: pod, port: port.container_port };
                program.endpoints.insert((port.protocol.number(), to));
                program.chains.entry(chain.clone()).or_default().push(Line::Host(port.host_ip, to));
                program.element(HOST_PORTS, port_key(port.protocol, port.host_port), Verdict::Goto(chain));
            }
        }
        program
    }

    /// Whether connections may be sent to this endpoint.
    pub fn leads_to(&self, protocol: u8, endpoint: Endpoint) -> bool {
        self.endpoints.contains(&(protocol, endpoint))
    }

    /// Whether `later` lacks an endpoint of this program.
    pub fn loses_endpoints(&self, later: &Program) -> bool {
        !self.endpoints.is_subset(&later.endpoints)
    }

    fn cluster_ips(&mut self, key: &PortKey, port: &ServicePort) {
        let name = name(key);
        let endpoints = port.inside.endpoints.iter().chain(&port.outside.endpoints);
        self.endpoints.extend(endpoints.map(|endpoint| (key.protocol.number(), *endpoint)));
        let inside = format!("svc/{name}");
        self.chains.insert(inside.clone(), vec![balance(&port.inside, port.sticky)]);
        for ip in &port.cluster_ips {
            self.element(SERVICE_IPS, address_key(*ip, key.protocol, key.port), Verdict::Goto(inside.clone()));
        }
    }

    fn outside(&mut self, key: &PortKey, port: &ServicePort, cluster_cidr: Cidr) {
        if port.node_port.is_none() && port.external_ips.is_empty() {
            return;
        }
        let name = name(key);
        let inside = format!("svc/{name}");
        let outside = format!("ext/{name}");
        let first = if port.keep_client { Line::FromInside(cluster_cidr, inside) } else { Line::Mark };
        self.chains.insert(outside.clone(), vec![first, balance(&port.outside, port.sticky)]);
        for ip in &port.external_ips {
            self.element(SERVICE_IPS, address_key(*ip, key.protocol, key.port), Verdict::Goto(outside.clone()));
        }
        if let Some(number) = port.node_port {
            self.element(NODE_PORTS, port_key(key.protocol, number), Verdict::Goto(outside));
        }
    }

    fn element(&mut self, map: &'static str, key: Vec<u8>, verdict: Verdict) {
        self.maps.entry(map).or_default().entry(key).or_insert(verdict);
    }
}

fn name(key: &PortKey) -> String {
    format!("{}/{}/{}/{}", key.namespace, key.service, key.protocol.as_str(), key.port)
}

fn balance(choice: &Choice, sticky: bool) -> Line {
    match (choice.endpoints.is_empty(), choice.elsewhere) {
        (false, _) => Line::Balance { endpoints: choice.endpoints.clone(), sticky },
        (true, true) => Line::Drop,
        (true, false) => Line::Refuse,
    }
}

fn address_key(ip: Ipv4Addr, protocol: Protocol, port: u16) -> Vec<u8> {
    let mut key = ip.octets().to_vec();
    key.extend(port_key(protocol, port));
    key
}

fn port_key(protocol: Protocol, port: u16) -> Vec<u8> {
    let port = port.to_be_bytes();
    vec![protocol.number(), 0, 0, 0, port[0], port[1], 0, 0]
}

/// Adds to `batch` what leads from one program to another: only what differs, in an order in which nothing refers to what is not there.
pub fn change(batch: &mut Batch, from: &Program, to: &Program) {
    for name in to.chains.keys().filter(|name| !from.chains.contains_key(*name)) {
        batch.add_chain(&Chain { name: name.clone(), hook: None });
    }
    let none = BTreeMap::new();
    let maps = [SERVICE_IPS, NODE_PORTS, HOST_PORTS];
    let of = |program: &'_ Program, map| program.maps.get(map).cloned().unwrap_or_else(|| none.clone());
    for map in maps {
        let (old, new) = (of(from, map), of(to, map));
        let gone: Vec<_> =
            old.iter().filter(|(key, verdict)| new.get(*key) != Some(*verdict)).map(|(key, _)| key.clone()).collect();
        batch.delete_elements(map, &gone);
    }
    for (name, lines) in &to.chains {
        match from.chains.get(name) {
            Some(old) if old == lines => continue,
            Some(_) => batch.flush_chain(name),
            None => {}
        }
        for line in lines {
            write(batch, name, line);
        }
    }
    for map in maps {
        let (old, new) = (of(from, map), of(to, map));
        let fresh = new.iter().filter(|(key, verdict)| old.get(*key) != Some(*verdict));
        let fresh: Vec<_> = fresh.map(|(key, verdict)| (key.clone(), Data::Verdict(verdict.clone()))).collect();
        batch.add_elements(map, &fresh);
    }
    let dead: Vec<_> = from.chains.keys().filter(|name| !to.chains.contains_key(*name)).collect();
    for name in &dead {
        batch.flush_chain(name);
    }
    for name in &dead {
        batch.delete_chain(name);
    }
}

fn write(batch: &mut Batch, chain: &str, line: &Line) {
    match line {
        Line::Balance { endpoints, sticky } => balance_rule(batch, chain, endpoints, *sticky),
        Line::FromInside(range, other) => {
            let mut rule = Expr::within(Load::Source, *range, true);
            rule.push(Expr::Verdict(Verdict::Goto(other.clone())));
            batch.add_rule(chain, &rule);
        }
        Line::Mark => {
            let mark = layout::mark_bytes();
            let others = (!layout::MARK).to_ne_bytes();
            let rule = [
                Expr::Load(Load::Mark, REG_1),
                Expr::Bits { register: REG_1, mask: others, flip: mark },
                Expr::SetMark(REG_1),
            ];
            batch.add_rule(chain, &rule);
        }
        Line::Host(address, to) => {
            let mut rule = address.map(|address| Expr::address_is(Load::Destination, address)).unwrap_or_default();
            rule.extend(send_to(*to));
            batch.add_rule(chain, &rule);
        }
        Line::Drop => batch.add_rule(chain, &[Expr::Verdict(Verdict::Drop)]),
        Line::Refuse => batch.add_rule(chain, &[Expr::Verdict(Verdict::Goto(REFUSE.to_owned()))]),
    }
}

fn send_to(to: Endpoint) -> [Expr; 3] {
    [
        Expr::Put(REG[0], to.ip.octets().to_vec()),
        Expr::Put(REG[1], to.port.to_be_bytes().to_vec()),
        Expr::DestinationNat { address: REG[0], port: REG[1] },
    ]
}

fn balance_rule(batch: &mut Batch, chain: &str, endpoints: &[Endpoint], sticky: bool) {
    const TYPE_INTEGER: u32 = 4;
    if let [only] = endpoints {
        return batch.add_rule(chain, &send_to(*only));
    }
    let elements: Vec<_> = (0u32..)
        .zip(endpoints)
        .map(|(nth, endpoint)| {
            let mut data = endpoint.ip.octets().to_vec();
            data.extend(endpoint.port.to_be_bytes());
            data.extend([0, 0]);
            (nth.to_ne_bytes().to_vec(), Data::Value(data))
        })
        .collect();
    let modulus = elements.len() as u32;
    let set = batch.add_anonymous((TYPE_INTEGER, 4), layout::endpoint_data(), &elements);
    let mut rule = match sticky {
        true => vec![Expr::Load(Load::Source, REG[1]), Expr::Hash { from: REG[1], to: REG[0], modulus }],
        false => vec![Expr::Random { register: REG[0], modulus }],
    };
    rule.extend([
        Expr::LookupAnonymous { set, from: REG[0], to: REG[0] },
        Expr::DestinationNat { address: REG[0], port: REG[1] },
    ]);
    batch.add_rule(chain, &rule);
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_netlink::nft::Family;

    fn state(count: u8, changed: Option<u8>) -> ServiceState {
        let mut state = ServiceState::default();
        for n in 0..count {
            let key = PortKey { namespace: "d".into(), service: format!("s{n}"), protocol: Protocol::Tcp, port: 80 };
            let last = if changed == Some(n) { 9 } else { 2 };
            let endpoints = vec![Endpoint { ip: Ipv4Addr::new(10, 42, n, last), port: 8080 }];
            let inside = Choice { endpoints, elsewhere: false };
            let port = ServicePort { cluster_ips: vec![Ipv4Addr::new(10, 43, 0, n)], inside, ..ServicePort::default() };
            state.ports.insert(key, port);
        }
        state
    }

    #[test]
    fn a_change_costs_what_changed() {
        let cluster = "10.42.0.0/16".parse().unwrap();
        let program = |state: &ServiceState| Program::new(state, [], cluster);
        let cost = |from: &Program, to: &Program| {
            let mut batch = Batch::new(Family::Ipv4, "t");
            change(&mut batch, from, to);
            batch.len()
        };
        let (all, one_changed, one_less) =
            (program(&state(200, None)), program(&state(200, Some(7))), program(&state(199, None)));
        assert_eq!(cost(&all, &all), 0);
        assert_eq!(cost(&all, &one_changed), 2, "flush the chain, add its rule");
        assert_eq!(cost(&all, &one_less), 3, "delete the element, flush and delete the chain");
        assert_eq!(cost(&one_less, &all), 3);
    }

    #[test]
    fn an_external_address_never_shadows_a_cluster_address() {
        let mut state = state(2, None);
        let victim = Ipv4Addr::new(10, 43, 0, 1);
        // The first by name claims what the second was given.
        for (key, port) in &mut state.ports {
            if key.service == "s0" {
                port.external_ips = vec![victim];
            }
        }
        let program = Program::new(&state, [], "10.42.0.0/16".parse().unwrap());
        let key = address_key(victim, Protocol::Tcp, 80);
        assert_eq!(program.maps[SERVICE_IPS].get(&key), Some(&Verdict::Goto("svc/d/s1/tcp/80".to_owned())));
    }

    #[test]
    fn two_claims_to_a_port_keep_the_first() {
        let mut state = state(2, None);
        for port in state.ports.values_mut() {
            port.node_port = Some(30001);
        }
        let program = Program::new(&state, [], "10.42.0.0/16".parse().unwrap());
        let taken: Vec<_> = program.maps[NODE_PORTS].values().collect();
        assert_eq!(taken, [&Verdict::Goto("ext/d/s0/tcp/80".to_owned())]);
    }
}
