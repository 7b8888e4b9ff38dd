//! The expressions a rule is made of. They talk to one another through registers of four bytes each, numbered from [`REG_1`]
//! (`NFT_REG32_00` in the kernel's header); a longer value lies in consecutive ones.

use std::net::Ipv4Addr;

use crate::Cidr;
use crate::nft::batch::write_data;
use crate::nft::{Data, Verdict};
use crate::wire::Message;

/// The first register.
pub const REG_1: u32 = 8;

/// The n-th register of four bytes, from 0.
pub const REG: [u32; 4] = [8, 9, 10, 11];

/// What of a packet goes into a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    Source,
    Destination,
    /// One byte: TCP 6, UDP 17, SCTP 132.
    Protocol,
    /// Of TCP, UDP or SCTP, in network byte order.
    DestinationPort,
    Mark,
    /// The state of its connection as a bit set in this machine's byte order.
    ConnectionState,
    /// Whether its destination is an address of this node: `RTN_LOCAL` in this machine's byte order.
    DestinationKind,
    /// The name of the device it leaves by, 16 bytes.
    OutputName,
}

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    Load(Load, u32),
    /// Ends the rule unless the register holds the bytes.
    Equal(u32, Vec<u8>),
    NotEqual(u32, Vec<u8>),
    /// Keeps the bits of a mask in place, then flips those of another.
    Bits {
        register: u32,
        mask: [u8; 4],
        flip: [u8; 4],
    },
    /// A constant into a register.
    Put(u32, Vec<u8>),
    SetMark(u32),
    /// Ends the rule unless the set has the key in the register.
    InSet(String, u32),
    /// Goes where the map says; ends the rule when it has no such key.
    Verdicts(String, u32),
    /// The data of an anonymous map of this batch into a register.
    LookupAnonymous {
        set: u32,
        from: u32,
        to: u32,
    },
    /// A random number below the modulus, in this machine's byte order.
    Random {
        register: u32,
        modulus: u32,
    },
    /// A hash of a register of four bytes, below the modulus.
    Hash {
        from: u32,
        to: u32,
        modulus: u32,
    },
    /// To the address in one register and the port in another.
    DestinationNat {
        address: u32,
        port: u32,
    },
    SourceNat {
        address: u32,
    },
    Masquerade,
    RejectTcp,
    /// ICMP port unreachable.
    Reject,
    Verdict(Verdict),
}

impl Expr {
    /// The rule goes on only when an address field is inside (or outside) a range.
    pub fn within(field: Load, range: Cidr, inside: bool) -> Vec<Expr> {
        let base = range.base().octets().to_vec();
        vec![
            Expr::Load(field, REG_1),
            Expr::Bits { register: REG_1, mask: range.mask().octets(), flip: [0; 4] },
            if inside { Expr::Equal(REG_1, base) } else { Expr::NotEqual(REG_1, base) },
        ]
    }

    /// The rule goes on only when an address field is this one.
    pub fn address_is(field: Load, address: Ipv4Addr) -> Vec<Expr> {
        vec![Expr::Load(field, REG_1), Expr::Equal(REG_1, address.octets().to_vec())]
    }

    pub(super) fn write(&self, out: &mut Message) {
        let mut named = |name: &str, fill: &dyn Fn(&mut Message)| {
            out.text(1, name).nest(2, |data| fill(data));
        };
        match self {
            Expr::Load(load, register) => write_load(*load, *register, &mut named),
            Expr::Equal(register, bytes) => named("cmp", &|data| compare(data, *register, 0, bytes)),
            Expr::NotEqual(register, bytes) => named("cmp", &|data| compare(data, *register, 1, bytes)),
            Expr::Bits { register, mask, flip } => named("bitwise", &|data| {
                data.number_be(1, *register).number_be(2, *register).number_be(3, 4);
                data.nest(4, |value| write_data(value, &Data::Value(mask.to_vec())));
                data.nest(5, |value| write_data(value, &Data::Value(flip.to_vec())));
            }),
            Expr::Put(register, bytes) => named("immediate", &|data| {
                data.number_be(1, *register).nest(2, |value| write_data(value, &Data::Value(bytes.clone())));
            }),
            Expr::SetMark(register) => named("meta", &|data| {
                data.number_be(2, META_MARK).number_be(3, *register);
            }),
            Expr::InSet(set, register) => named("lookup", &|data| {
                data.text(1, set).number_be(2, *register);
            }),
            Expr::Verdicts(set, register) => named("lookup", &|data| {
                data.text(1, set).number_be(2, *register).number_be(3, 0);
            }),
            Expr::LookupAnonymous { set, from, to } => named("lookup", &|data| {
                data.text(1, "__map%d").number_be(2, *from).number_be(3, *to).number_be(4, *set);
            }),
            Expr::Random { register, modulus } => named("numgen", &|data| {
                data.number_be(1, *register).number_be(2, *modulus).number_be(3, 1).number_be(4, 0);
            }),
            Expr::Hash { from, to, modulus } => named("hash", &|data| {
                data.number_be(1, *from).number_be(2, *to).number_be(3, 4).number_be(4, *modulus);
                // A seed that does not change, so that rules written again send a client where it was sent before.
                data.number_be(5, 0x5ca1_ab1e).number_be(6, 0).number_be(7, 0);
            }),
            Expr::DestinationNat { address, port } => named("nat", &|data| {
                data.number_be(1, 1).number_be(2, libc::AF_INET as u32).number_be(3, *address).number_be(5, *port);
            }),
            Expr::SourceNat { address } => named("nat", &|data| {
                data.number_be(1, 0).number_be(2, libc::AF_INET as u32).number_be(3, *address);
            }),
            Expr::Masquerade => named("masq", &|data| {
                // Random source ports: two flows never race for the same one.
                data.number_be(1, 16);
            }),
            Expr::RejectTcp => named("reject", &|data| {
                data.number_be(1, 1).attr(2, &[0]);
            }),
            Expr::Reject => named("reject", &|data| {
                data.number_be(1, 0).attr(2, &[3]);
            }),
            Expr::Verdict(verdict) => named("immediate", &|data| {
                data.number_be(1, 0).nest(2, |value| write_data(value, &Data::Verdict(verdict.clone())));
            }),
        }
    }
}

const META_MARK: u32 = 3;
const META_OUTPUT_NAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

fn compare(data: &mut Message, register: u32, operation: u32, bytes: &[u8]) {
    data.number_be(1, register).number_be(2, operation);
    data.nest(3, |value| write_data(value, &Data::Value(bytes.to_vec())));
}

/// Writes an expression of a name, with the data that the filler adds.
type Writer<'a> = dyn FnMut(&str, &dyn Fn(&mut Message)) + 'a;

fn write_load(load: Load, register: u32, named: &mut Writer<'_>) {
    let mut payload = |base: u32, offset: u32, length: u32| {
        named("payload", &|data| {
            data.number_be(1, register).number_be(2, base).number_be(3, offset).number_be(4, length);
        });
    };
    match load {
        Load::Source => payload(NETWORK, 12, 4),
        Load::Destination => payload(NETWORK, 16, 4),
        Load::DestinationPort => payload(TRANSPORT, 2, 2),
        Load::Protocol | Load::Mark | Load::OutputName => named("meta", &|data| {
            let key = match load {
                Load::Protocol => META_L4PROTO,
                Load::Mark => META_MARK,
                _ => META_OUTPUT_NAME,
            };
            data.number_be(1, register).number_be(2, key);
        }),
        Load::ConnectionState => named("ct", &|data| {
            data.number_be(1, register).number_be(2, 0);
        }),
        Load::DestinationKind => named("fib", &|data| {
            data.number_be(1, register).number_be(2, 3).number_be(3, 2);
        }),
    }
}
