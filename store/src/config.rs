//! How a member is started, and the identity that its data directory holds.
//!
//! A member is an id and the cluster's id, drawn once and kept on disk; names and addresses may change with every start.

use crate::command::COMMAND_FORMAT;
use crate::disk::Disk;
use crate::machine::Machine;
use crate::transport::{self, PeerTls};
use crate::types::*;
use crate::{record, snapshot};
use anyhow::{Context as _, bail};
use raft::eraftpb::ConfState;
use rand::RngExt as _;
use std::path::PathBuf;
use std::sync::RwLock;

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
    pub limits: Limits,
}

/// When history is dropped.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Revisions of history kept at least.
    pub history_revisions: usize,
    /// Bytes of all versions together, above which history is dropped sooner.
    pub history_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { history_revisions: 5_000, history_bytes: 64 << 20 }
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
    /// Members known before the log is read (only just after joining).
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
        };
        if disk.list()?.iter().any(|name| name == IDENTITY) {
            let (cluster_id, id) = read_identity(disk)?;
            member.id = id;
            return Ok(Data { cluster_id, member, seeds: Vec::new() });
        }
        member.id = rand::rng().random_range(1..u64::MAX);
        if config.join.is_empty() {
            let cluster_id = rand::rng().random_range(1..u64::MAX);
            found(disk, cluster_id, &member)?;
            write_identity(disk, cluster_id, member.id)?;
            return Ok(Data { cluster_id, member, seeds: Vec::new() });
        }
        member.learner = true;
        let (cluster_id, seeds) = transport::join(&config.join, config.tls.as_ref(), &member).await?;
        write_identity(disk, cluster_id, member.id)?;
        Ok(Data { cluster_id, member, seeds })
    }
}

/// A new group begins with a snapshot at index 1 that makes this member its only voter: whoever joins later begins from one too.
fn found(disk: &dyn Disk, cluster_id: u64, member: &Member) -> anyhow::Result<()> {
    let mut machine = Machine::new();
    (machine.index, machine.term) = (1, 1);
    machine.conf_state = ConfState { voters: vec![member.id], ..Default::default() };
    machine.members.insert(member.id, member.clone());
    snapshot::write(disk, &RwLock::new(machine), cluster_id).context("writing the first snapshot")?;
    Ok(())
}

fn write_identity(disk: &dyn Disk, cluster_id: u64, id: MemberId) -> anyhow::Result<()> {
    let mut file = Vec::new();
    record::push(&mut file, format!("{COMMAND_FORMAT} {cluster_id:x} {id:x}").as_bytes());
    let unfinished = "tmp-identity";
    disk.remove(unfinished)?;
    disk.append(unfinished, &file)?;
    disk.sync(unfinished)?;
    disk.rename(unfinished, IDENTITY).context("writing this member's identity")
}

fn read_identity(disk: &dyn Disk) -> anyhow::Result<(u64, MemberId)> {
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
    let mut number = || words.next().and_then(|w| u64::from_str_radix(w, 16).ok());
    match (number(), number()) {
        (Some(cluster_id), Some(id)) => Ok((cluster_id, id)),
        _ => bail!("the file `{IDENTITY}` in the data directory makes no sense: {text:?}"),
    }
}
