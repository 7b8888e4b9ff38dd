//! Changes to one table, collected and committed as one transaction.

use crate::nft::Expr;
use crate::socket::Socket;
use crate::wire::{self, Message};
use crate::{Error, Result};

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const SET_ANONYMOUS: u32 = 1;
const SET_CONSTANT: u32 = 2;
const SET_MAP: u32 = 8;
const SET_DATA_VERDICT: u32 = 0xffff_ff00;
/// Elements in one message: a list is one attribute, and an attribute ends at 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 200;

/// The protocol family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Ipv4 = 2,
    /// Packets at a device, whatever they carry.
    Netdev = 5,
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Filter,
    Nat,
}

/// Where and when a base chain sees packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub kind: Kind,
    /// `NF_INET_PRE_ROUTING` (0), `LOCAL_IN` (1), `FORWARD` (2), `LOCAL_OUT` (3), `POST_ROUTING` (4); at a device ingress (0), egress (1).
    pub number: u32,
    /// Smaller is earlier.
    pub priority: i32,
    /// The device, for [`Family::Netdev`].
    pub device: Option<String>,
    /// Drop what no rule decided (otherwise accept).
    pub drop: bool,
}

/// A chain: a base chain when it has a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    pub hook: Option<Hook>,
}

/// Where a packet goes next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Drop,
    Accept,
    Return,
    Jump(String),
    Goto(String),
}

/// What a map gives for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A set has no data.
    None,
    Value(Vec<u8>),
    Verdict(Verdict),
}

/// A named set or map. The types are nft's numbers, of use only to who prints the rules (7 IPv4 address, 12 protocol, 13 port, 4 integer; joined
/// six bits apart).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    pub name: String,
    pub key_type: u32,
    pub key_length: u32,
    /// None for a set; `Some(None)` for verdicts; otherwise type and length of the data.
    pub data: Option<Option<(u32, u32)>>,
}

/// Changes to one table, in order.
#[derive(Debug, Clone)]
pub struct Batch {
    family: Family,
    table: String,
    messages: Vec<Message>,
    sets: u32,
}

impl Batch {
    pub fn new(family: Family, table: &str) -> Batch {
        Batch { family, table: table.to_owned(), messages: Vec::new(), sets: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many messages it has: a measure of what it costs.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Makes the table unless it is there.
    pub fn add_table(&mut self) {
        let table = self.table.clone();
        self.push(NEWTABLE, libc::NLM_F_CREATE, |message| {
            message.text(1, &table).number_be(2, 0);
        });
    }

    /// Makes the table so that the kernel deletes it when the socket that commits this closes, however its process ends (Linux 5.12).
    pub fn add_table_of_socket(&mut self) {
        const OWNER: u32 = 2;
        let table = self.table.clone();
        self.push(NEWTABLE, libc::NLM_F_CREATE, |message| {
            message.text(1, &table).number_be(2, OWNER);
        });
    }

    /// Deletes the table with all in it; it must be there.
    pub fn delete_table(&mut self) {
        let table = self.table.clone();
        self.push(DELTABLE, 0, |message| {
            message.text(1, &table);
        });
    }

    pub fn add_chain(&mut self, chain: &Chain) {
        let table = self.table.clone();
        self.push(NEWCHAIN, libc::NLM_F_CREATE, |message| {
            message.text(1, &table).text(3, &chain.name);
            if let Some(hook) = &chain.hook {
                message.nest(4, |place| {
                    place.number_be(1, hook.number).number_be(2, hook.priority as u32);
                    if let Some(device) = &hook.device {
                        place.text(3, device);
                    }
                });
                message.number_be(5, u32::from(!hook.drop));
                message.text(7, if hook.kind == Kind::Nat { "nat" } else { "filter" });
            }
        });
    }

    /// Deletes a chain that nothing refers to.
    pub fn delete_chain(&mut self, name: &str) {
        let table = self.table.clone();
        self.push(DELCHAIN, 0, |message| {
            message.text(1, &table).text(3, name);
        });
    }

    /// Empties a chain.
    pub fn flush_chain(&mut self, name: &str) {
        let table = self.table.clone();
        self.push(DELRULE, 0, |message| {
            message.text(1, &table).text(2, name);
        });
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, chain: &str, expressions: &[Expr]) {
        let table = self.table.clone();
        self.push(NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |message| {
            message.text(1, &table).text(2, chain).nest(4, |list| {
                for expression in expressions {
                    list.nest(LIST_ELEM, |element| expression.write(element));
                }
            });
        });
    }

    pub fn add_map(&mut self, map: &Map) {
        self.new_set(map, 0);
    }

    /// Makes a constant map without a name of its own, for one rule; [`Expr::LookupAnonymous`] refers to it by the number given back.
    pub fn add_anonymous(&mut self, key: (u32, u32), data: (u32, u32), elements: &[(Vec<u8>, Data)]) -> u32 {
        let map = Map { name: "__map%d".to_owned(), key_type: key.0, key_length: key.1, data: Some(Some(data)) };
        let id = self.new_set(&map, SET_ANONYMOUS | SET_CONSTANT);
        self.elements(NEWSETELEM, &map.name, Some(id), elements);
        id
    }

    fn new_set(&mut self, map: &Map, flags: u32) -> u32 {
        self.sets += 1;
        let (table, id) = (self.table.clone(), self.sets);
        self.push(NEWSET, libc::NLM_F_CREATE, |message| {
            let flags = flags | if map.data.is_some() { SET_MAP } else { 0 };
            message.text(1, &table).text(2, &map.name).number_be(3, flags);
            message.number_be(4, map.key_type).number_be(5, map.key_length);
            match map.data {
                None => {}
                Some(None) => {
                    message.number_be(6, SET_DATA_VERDICT).number_be(7, 0);
                }
                Some(Some((kind, length))) => {
                    message.number_be(6, kind).number_be(7, length);
                }
            }
            message.number_be(10, id);
        });
        id
    }

    /// Adds elements to a named map; one that is there with the same data is not an error.
    pub fn add_elements(&mut self, map: &str, elements: &[(Vec<u8>, Data)]) {
        self.elements(NEWSETELEM, map, None, elements);
    }

    /// Deletes elements of a named map; each must be there.
    pub fn delete_elements(&mut self, map: &str, keys: &[Vec<u8>]) {
        let elements: Vec<_> = keys.iter().map(|key| (key.clone(), Data::None)).collect();
        self.elements(DELSETELEM, map, None, &elements);
    }

    fn elements(&mut self, kind: u16, set: &str, id: Option<u32>, elements: &[(Vec<u8>, Data)]) {
        let flags = if kind == NEWSETELEM { libc::NLM_F_CREATE } else { 0 };
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let table = self.table.clone();
            self.push(kind, flags, |message| {
                message.text(1, &table).text(2, set);
                if let Some(id) = id {
                    message.number_be(4, id);
                }
                message.nest(3, |list| {
                    for (key, data) in part {
                        list.nest(LIST_ELEM, |element| {
                            element.nest(1, |value| {
                                value.attr(DATA_VALUE, key);
                            });
                            if *data != Data::None {
                                element.nest(2, |value| write_data(value, data));
                            }
                        });
                    }
                });
            });
        }
    }

    fn push(&mut self, kind: u16, flags: i32, fill: impl FnOnce(&mut Message)) {
        let mut message = Message::new(SUBSYSTEM | kind, flags);
        message.raw(&[self.family as u8, 0, 0, 0]);
        fill(&mut message);
        self.messages.push(message);
    }
}

pub(super) fn write_data(value: &mut Message, data: &Data) {
    match data {
        Data::None => {}
        Data::Value(bytes) => {
            value.attr(DATA_VALUE, bytes);
        }
        Data::Verdict(verdict) => {
            let (code, chain) = match verdict {
                Verdict::Drop => (0, None),
                Verdict::Accept => (1, None),
                Verdict::Jump(chain) => (-3, Some(chain)),
                Verdict::Goto(chain) => (-4, Some(chain)),
                Verdict::Return => (-5, None),
            };
            value.nest(DATA_VERDICT, |verdict| {
                verdict.number_be(1, code as u32);
                if let Some(chain) = chain {
                    verdict.text(2, chain);
                }
            });
        }
    }
}

/// nftables of the namespace it was opened in.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

impl Nft {
    pub fn open() -> Result<Nft> {
        Ok(Nft { socket: Socket::netfilter()? })
    }

    /// All of the batch, or nothing and the first refusal.
    pub fn commit(&mut self, what: &str, batch: Batch) -> Result<()> {
        let mark = |kind| {
            let mut message = Message::new(kind, 0);
            let subsystem = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
            message.raw(&[libc::AF_UNSPEC as u8, 0, subsystem[0], subsystem[1]]);
            message
        };
        self.socket.batch(what, mark(BATCH_BEGIN), batch.messages, mark(BATCH_END))
    }

    /// Whether a table is there.
    pub fn has_table(&mut self, family: Family, name: &str) -> Result<bool> {
        let mut found = false;
        let mut message = Message::new(SUBSYSTEM | GETTABLE, 0);
        message.raw(&[family as u8, 0, 0, 0]);
        let each = |_, payload: &[u8]| {
            let table = payload.get(4..).and_then(|attributes| wire::find(attributes, 1)).map(wire::text);
            found |= table.as_deref() == Some(name);
        };
        self.socket.dump("list the nftables tables", message, each)?;
        Ok(found)
    }

    /// Deletes a table if it is there.
    pub fn drop_table(&mut self, family: Family, name: &str) -> Result<()> {
        let mut batch = Batch::new(family, name);
        batch.add_table();
        batch.delete_table();
        self.commit(&format!("delete the nftables table {name}"), batch)
            .or_else(|error: Error| if error.is_gone() { Ok(()) } else { Err(error) })
    }
}
