//! How a member is started, and the identity that its data directory holds.
//!
//! A member is an id and the cluster's id, drawn once and kept on disk; names and addresses may change with every start.

use crate::command::{COMMAND_FORMAT, member_from_pb, member_to_pb};
use crate::disk::Disk;
use crate::machine::Machine;
use crate::peer_tls::PeerTls;
use crate::transport;
use crate::types::*;
use crate::{record, snapshot};
use anyhow::{Context as _, bail};
use prost::Message as _;
use raft::eraftpb::ConfState;
use rand::RngExt as _;
use skiff_proto::store as pb;
use std::path::PathBuf;

/// The file that says whose data this is.
const IDENTITY: &str = "identity";

/// How a member is started. The default is one member in memory without peers.
#[derive(Default)]
pub struct Config {
    /// Where the data lies; None keeps it in memory.
    pub dir: Option<PathBuf>,
    /// A name for people.
    pub name: String,
    /// `host:port` at which peers reach this member.
    pub peer_addr: String,
    /// Told to the other members, opaque to the store.
    pub client_addr: String,
    /// The bound listener for peers; None serves none.
    pub listener: Option<std::net::TcpListener>,
    /// None: plain connections, for loopback.
    pub tls: Option<PeerTls>,
    /// Peer addresses of a running group to join; empty begins a new group (when there is no data yet).
    pub join: Vec<String>,
    /// A new group that begins with several members at once: all of them, this one too, and each is told the same. Empty: alone.
    pub initial: Vec<Peer>,
    /// Tells new groups apart that begin with the same addresses.
    pub initial_token: String,
    /// Joins without a vote, until it is promoted.
    pub learner: bool,
    pub limits: Limits,
}

/// A member of a group that is about to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// `host:port`.
    pub addr: String,
}

/// When history is dropped, and how large the store may grow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Revisions of history kept at least.
    pub history_revisions: usize,
    /// Bytes that only history holds, above which it is dropped sooner.
    pub history_bytes: usize,
    /// History older than this is dropped, whatever there is of it; None keeps it.
    pub history_age: Option<std::time::Duration>,
    /// Bytes of all versions together, above which only deletes and compaction are accepted; 0 for no limit.
    pub quota_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { history_revisions: 5_000, history_bytes: 64 << 20, history_age: None, quota_bytes: 2 << 30 }
    }
}

/// Whether `dir` holds a member's data already: it is that member then, whatever it is told to join.
pub fn has_data(dir: &std::path::Path) -> bool {
    dir.join(IDENTITY).exists()
}

/// What the data directory says.
pub struct Data {
    pub cluster_id: u64,
    pub member: Member,
    /// Members as they were when this one joined: until it has its first snapshot, it knows no others.
    pub seeds: Vec<Member>,
}

impl Data {
    /// Reads the identity, or makes one: by founding a group, or by joining one.
    pub async fn open(disk: &dyn Disk, config: &Config) -> anyhow::Result<Data> {
        let mut member = Member {
            id: 0,
            name: config.name.clone(),
            peer_addr: config.peer_addr.clone(),
            client_addr: config.client_addr.clone(),
            learner: false,
            key_hash: config.tls.as_ref().and_then(PeerTls::bound_key).unwrap_or_default(),
        };
        if disk.list()?.iter().any(|name| name == IDENTITY) {
            let (cluster_id, id) = read_identity(disk)?;
            member.id = id;
            return Ok(Data { cluster_id, member, seeds: read_seeds(disk)? });
        }
        if !config.initial.is_empty() {
            let group = Group::new(&config.initial, &config.initial_token);
            member.id = group.find(&config.peer_addr)?;
            let mut machine = Machine::new();
            group.begin(&mut machine);
            snapshot::write_whole(disk, machine, group.cluster_id).context("writing the first snapshot")?;
            write_identity(disk, group.cluster_id, member.id, &[])?;
            return Ok(Data { cluster_id: group.cluster_id, member, seeds: Vec::new() });
        }
        member.id = rand::rng().random_range(1..u64::MAX);
        if config.join.is_empty() {
            let cluster_id = rand::rng().random_range(1..u64::MAX);
            found(disk, cluster_id, &member)?;
            write_identity(disk, cluster_id, member.id, &[])?;
            return Ok(Data { cluster_id, member, seeds: Vec::new() });
        }
        member.learner = config.learner;
        let (cluster_id, seeds, id) = transport::join(&config.join, config.tls.as_ref(), &member).await?;
        member.id = id;
        write_identity(disk, cluster_id, member.id, &seeds)?;
        Ok(Data { cluster_id, member, seeds })
    }
}

/// A new group begins with a snapshot at index 1 that makes this member its only voter: whoever joins later begins from one too.
fn found(disk: &dyn Disk, cluster_id: u64, member: &Member) -> anyhow::Result<()> {
    let mut machine = Machine::new();
    (machine.index, machine.term) = (1, 1);
    machine.conf_state = ConfState { voters: vec![member.id], ..Default::default() };
    machine.members.insert(member.id, member.clone());
    snapshot::write_whole(disk, machine, cluster_id).context("writing the first snapshot")?;
    Ok(())
}

/// A group that begins with several members, none of which has heard of the others yet: ids come from the addresses, so that
/// all compute the same.
pub struct Group {
    pub cluster_id: u64,
    members: Vec<Member>,
}

impl Group {
    pub fn new(peers: &[Peer], token: &str) -> Self {
        let mut addrs: Vec<_> = peers.iter().map(|p| p.addr.as_str()).collect();
        addrs.sort_unstable();
        let members = peers.iter().map(|p| Member {
            id: digest(&[token, "member", &p.addr]),
            name: p.name.clone(),
            peer_addr: p.addr.clone(),
            client_addr: String::new(),
            learner: false,
            // Each says its own when it starts.
            key_hash: String::new(),
        });
        Group { cluster_id: digest(&[token, "cluster", &addrs.join(",")]), members: members.collect() }
    }

    /// The id of the member at this address.
    pub fn find(&self, addr: &str) -> anyhow::Result<MemberId> {
        let found = self.members.iter().find(|m| m.peer_addr == addr).map(|m| m.id);
        found.with_context(|| {
            let known: Vec<_> = self.members.iter().map(|m| m.peer_addr.as_str()).collect();
            format!("this member's peer address {addr} is not in the initial cluster ({})", known.join(", "))
        })
    }

    /// Makes these the machine's members, as if a first entry had said so.
    pub fn begin(&self, machine: &mut Machine) {
        (machine.index, machine.term) = (1, 1);
        machine.conf_state = ConfState { voters: self.members.iter().map(|m| m.id).collect(), ..Default::default() };
        machine.members = self.members.iter().map(|m| (m.id, m.clone())).collect();
    }
}

/// A number that is never 0, the same wherever it is computed.
fn digest(parts: &[&str]) -> u64 {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let sum = hasher.finalize();
    let mut number = [0; 8];
    number.copy_from_slice(&sum[..8]);
    (u64::from_be_bytes(number) >> 1).max(1)
}

/// Writes who this member is; behind it, a record each, where those are that it joined.
pub fn write_identity(disk: &dyn Disk, cluster_id: u64, id: MemberId, seeds: &[Member]) -> anyhow::Result<()> {
    let mut file = Vec::new();
    record::push(&mut file, format!("{COMMAND_FORMAT} {cluster_id:x} {id:x}").as_bytes());
    seeds.iter().for_each(|seed| record::push(&mut file, &member_to_pb(seed).encode_to_vec()));
    let unfinished = "tmp-identity";
    disk.remove(unfinished)?;
    disk.append(unfinished, &file)?;
    disk.sync(unfinished)?;
    disk.rename(unfinished, IDENTITY).context("writing this member's identity")
}

pub fn read_identity(disk: &dyn Disk) -> anyhow::Result<(u64, MemberId)> {
    let data = disk.read(IDENTITY).context("reading this member's identity")?;
    let record::Next::Record(text, _) = record::next(&data, 0) else {
        bail!(
            "the file `{IDENTITY}` in the data directory is damaged; restore the directory from a backup, or remove it and let this server join again"
        )
    };
    let text = String::from_utf8_lossy(text).into_owned();
    let mut words = text.split(' ');
    let format: u32 = words.next().and_then(|w| w.parse().ok()).unwrap_or(u32::MAX);
    if format > COMMAND_FORMAT {
        bail!(
            "this data directory was written by a newer version of Skiff (format {format}, this version knows {COMMAND_FORMAT}); use that version, or another directory"
        );
    }
    if format < 2 {
        bail!(
            "this data directory was written by a development version of Skiff whose log cannot be read any more; begin with an empty one"
        );
    }
    let mut number = || words.next().and_then(|w| u64::from_str_radix(w, 16).ok());
    match (number(), number()) {
        (Some(cluster_id), Some(id)) => Ok((cluster_id, id)),
        _ => bail!("the file `{IDENTITY}` in the data directory makes no sense: {text:?}"),
    }
}

/// The members that this one joined; none in a directory of before this was written down.
fn read_seeds(disk: &dyn Disk) -> anyhow::Result<Vec<Member>> {
    let data = disk.read(IDENTITY).context("reading this member's identity")?;
    let (mut seeds, mut at) = (Vec::new(), 0);
    while let record::Next::Record(payload, after) = record::next(&data, at) {
        if at > 0 {
            seeds.push(member_from_pb(pb::MemberRecord::decode(payload).context("the members that this one joined")?));
        }
        at = after;
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    #[test]
    fn who_a_member_is_and_whom_it_joined_are_read_back() {
        let disk = MemoryDisk::default();
        let seed = |id: u64| Member { id, peer_addr: format!("10.0.0.{id}:2380"), ..Default::default() };
        let check = |seeds: &[Member]| {
            write_identity(&disk, 0xc1, 7, seeds).unwrap();
            assert_eq!(read_identity(&disk).unwrap(), (0xc1, 7));
            assert_eq!(read_seeds(&disk).unwrap(), seeds);
        };
        check(&[]);
        check(&[seed(1), seed(2)]);
    }
}
