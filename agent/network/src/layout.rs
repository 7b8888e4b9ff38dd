//! The table `skiff`: what is in it whatever services there are.
//!
//! ```text
//! nat prerouting, nat output  ->  services:  @own-addresses        leave alone (cluster DNS answers here)
//!                                            address.protocol.port  -> @service-ips   -> a chain a service port
//!                                            in the service range   -> refuse
//!                                            protocol.port on an address of the node -> @node-ports, @host-ports
//! nat postrouting  ->  postrouting:          a pod that meets itself       source: the node
//!                                            marked, to another node       masquerade
//!                                            from a pod, out of the cluster  masquerade
//! ```
//!
//! nat chains see only a connection's first packet, so none of this is paid by the others, and `refuse` may stand here too.

use skiff_netlink::Cidr;
use skiff_netlink::nft::{Batch, Chain, Expr, Family, Hook, Kind, Load, Map, REG, REG_1, Verdict};

use crate::config::Config;

/// The table's name.
pub const TABLE: &str = "skiff";
pub const FAMILY: Family = Family::Ipv4;
/// address . protocol . port : verdict
pub const SERVICE_IPS: &str = "service-ips";
/// protocol . port : verdict
pub const NODE_PORTS: &str = "node-ports";
/// protocol . port : verdict
pub const HOST_PORTS: &str = "host-ports";
/// address . the same address, of this node's pods
pub const OWN_PODS: &str = "own-pods";
/// Addresses of services that this node itself answers.
pub const OWN_ADDRESSES: &str = "own-addresses";
/// Refuses at once: a reset for TCP, port unreachable for the rest.
pub const REFUSE: &str = "refuse";
/// Set on packets from outside that may be sent to another node, whose answer must come back here.
pub const MARK: u32 = 0x4000;

const SERVICES: &str = "services";
const POSTROUTING: &str = "postrouting";
const TYPE_ADDRESS: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

/// nft's number for joined types.
pub fn joined(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| (all << 6) | one)
}

/// Type and length of an endpoint (address . port) as map data.
pub fn endpoint_data() -> (u32, u32) {
    (joined(&[TYPE_ADDRESS, TYPE_PORT]), 8)
}

/// The bytes of a mark as a register holds them.
pub fn mark_bytes() -> [u8; 4] {
    MARK.to_ne_bytes()
}

/// Makes the table with no services in it.
pub fn base(batch: &mut Batch, config: &Config) {
    batch.add_table();
    let verdicts = |name: &str, types: &[u32]| Map {
        name: name.to_owned(),
        key_type: joined(types),
        key_length: 4 * types.len() as u32,
        data: Some(None),
    };
    let set = |name: &str, types: &[u32]| Map { data: None, ..verdicts(name, types) };
    batch.add_map(&verdicts(SERVICE_IPS, &[TYPE_ADDRESS, TYPE_PROTOCOL, TYPE_PORT]));
    batch.add_map(&verdicts(NODE_PORTS, &[TYPE_PROTOCOL, TYPE_PORT]));
    batch.add_map(&verdicts(HOST_PORTS, &[TYPE_PROTOCOL, TYPE_PORT]));
    batch.add_map(&set(OWN_PODS, &[TYPE_ADDRESS, TYPE_ADDRESS]));
    batch.add_map(&set(OWN_ADDRESSES, &[TYPE_ADDRESS]));
    for name in [REFUSE, SERVICES] {
        batch.add_chain(&Chain { name: name.to_owned(), hook: None });
    }
    for (name, number, priority) in [("prerouting", 0, -100), ("output", 3, -100), (POSTROUTING, 4, 100)] {
        let hook = Hook { kind: Kind::Nat, number, priority, device: None, drop: false };
        batch.add_chain(&Chain { name: name.to_owned(), hook: Some(hook) });
    }
    refuse(batch);
    services(batch, config.service_cidr);
    for name in ["prerouting", "output"] {
        batch.add_rule(name, &[Expr::Verdict(Verdict::Jump(SERVICES.to_owned()))]);
    }
    postrouting(batch, config);
}

fn refuse(batch: &mut Batch) {
    batch.add_rule(REFUSE, &[Expr::Load(Load::Protocol, REG_1), Expr::Equal(REG_1, vec![6]), Expr::RejectTcp]);
    batch.add_rule(REFUSE, &[Expr::Reject]);
}

fn services(batch: &mut Batch, service_cidr: Cidr) {
    batch.add_rule(
        SERVICES,
        &[
            Expr::Load(Load::Destination, REG_1),
            Expr::InSet(OWN_ADDRESSES.to_owned(), REG_1),
            Expr::Verdict(Verdict::Return),
        ],
    );
    batch.add_rule(
        SERVICES,
        &[
            Expr::Load(Load::Destination, REG[0]),
            Expr::Load(Load::Protocol, REG[1]),
            Expr::Load(Load::DestinationPort, REG[2]),
            Expr::Verdicts(SERVICE_IPS.to_owned(), REG[0]),
        ],
    );
    // A service address that no service has must not wander on: the route to the range leads back here.
    let mut rule = Expr::within(Load::Destination, service_cidr, true);
    rule.push(Expr::Verdict(Verdict::Goto(REFUSE.to_owned())));
    batch.add_rule(SERVICES, &rule);
    for map in [NODE_PORTS, HOST_PORTS] {
        let mut rule = Expr::within(Load::Destination, Cidr::around(std::net::Ipv4Addr::LOCALHOST, 8), false);
        rule.extend([
            Expr::Load(Load::DestinationKind, REG_1),
            Expr::Equal(REG_1, u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec()),
            Expr::Load(Load::Protocol, REG[0]),
            Expr::Load(Load::DestinationPort, REG[1]),
            Expr::Verdicts(map.to_owned(), REG[0]),
        ]);
        batch.add_rule(SERVICES, &rule);
    }
}

fn postrouting(batch: &mut Batch, config: &Config) {
    batch.add_rule(
        POSTROUTING,
        &[
            Expr::Load(Load::Source, REG[0]),
            Expr::Load(Load::Destination, REG[1]),
            Expr::InSet(OWN_PODS.to_owned(), REG[0]),
            Expr::Put(REG_1, config.node_ip.octets().to_vec()),
            Expr::SourceNat { address: REG_1 },
        ],
    );
    let mut rule = vec![
        Expr::Load(Load::Mark, REG_1),
        Expr::Bits { register: REG_1, mask: mark_bytes(), flip: [0; 4] },
        Expr::Equal(REG_1, mark_bytes().to_vec()),
    ];
    rule.extend(Expr::within(Load::Destination, config.pod_cidr, false));
    rule.push(Expr::Masquerade);
    batch.add_rule(POSTROUTING, &rule);
    let mut rule = Expr::within(Load::Source, config.pod_cidr, true);
    rule.extend(Expr::within(Load::Destination, config.cluster_cidr, false));
    rule.push(Expr::Masquerade);
    batch.add_rule(POSTROUTING, &rule);
}
