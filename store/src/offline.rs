//! What is done with data while no member runs on it: snapshots that were taken away, checks of a data directory, and the way
//! back after a lost quorum.
//!
//! A snapshot that leaves the store is the store's own file, padded to a multiple of 512 bytes, and a SHA-256 of all that behind it:
//! the frame in which etcd's clients expect one.

use crate::claim::Claim;
use crate::command::decode_batch;
use crate::config::{self, Group, Peer};
use crate::disk::{Disk, RealDisk};
use crate::kv::sweep::Hasher;
use crate::log::Log;
use crate::machine::Machine;
use crate::snapshot;
use crate::types::*;
use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use raft::eraftpb::{ConfState, EntryType};
use sha2::{Digest as _, Sha256};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

const CHUNK_BYTES: usize = 256 << 10;
const BLOCK: usize = 512;
const SUM: usize = 32;

/// Sends a snapshot file in its frame. Each chunk comes with the bytes that follow it.
pub(crate) fn stream(
    disk: &dyn Disk,
    name: &str,
    chunks: &mpsc::Sender<std::io::Result<(u64, Bytes)>>,
) -> std::io::Result<()> {
    let mut reader = disk.open_read(name)?;
    let mut hasher = Sha256::new();
    let size = disk.size(name)?;
    let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    let mut left = size + padding + SUM as u64;
    let mut send = |data: Vec<u8>| {
        left = left.saturating_sub(data.len() as u64);
        chunks.blocking_send(Ok((left, data.into()))).is_ok()
    };
    loop {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        if reader.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut data)? == 0 {
            break;
        }
        hasher.update(&data);
        if !send(data) {
            return Ok(());
        }
    }
    let mut tail = vec![0; padding as usize];
    hasher.update(&tail);
    tail.extend_from_slice(&hasher.finalize());
    send(tail);
    Ok(())
}

/// Reads a snapshot that was taken away; checks its sum and every record.
fn load(file: &Path) -> anyhow::Result<Machine> {
    let mut data: Bytes =
        std::fs::read(file).with_context(|| format!("reading the snapshot {}", file.display()))?.into();
    let damaged = || format!("{} is not a whole snapshot of Skiff's store", file.display());
    ensure!(data.len() > SUM && data.len() % BLOCK == SUM, "{}: its size is {} bytes", damaged(), data.len());
    let sum = data.split_off(data.len() - SUM);
    ensure!(Sha256::digest(&data)[..] == *sum, "{}: its checksum is wrong", damaged());
    let (header, pairs) = snapshot::parse(&data).map_err(|e| anyhow::anyhow!("{}: {e}", damaged()))?;
    Ok(Machine::restore(header, pairs))
}

/// What a snapshot holds.
#[derive(Debug, Clone)]
pub struct SnapshotStatus {
    /// Over everything that can be read from it.
    pub hash: u32,
    pub revision: Revision,
    pub compacted: Revision,
    pub keys: usize,
    pub leases: usize,
    pub size_bytes: u64,
    pub members: Vec<Member>,
}

/// Checks a snapshot file and says what it holds.
pub fn snapshot_status(file: &Path) -> anyhow::Result<SnapshotStatus> {
    let machine = load(file)?;
    Ok(SnapshotStatus {
        hash: digest(&machine),
        revision: machine.kv.revision(),
        compacted: machine.kv.compacted(),
        keys: live_keys(&machine),
        leases: machine.kv.leases().count(),
        size_bytes: std::fs::metadata(file)?.len(),
        members: machine.members.into_values().collect(),
    })
}

/// Keys that are not deleted.
fn live_keys(machine: &Machine) -> usize {
    let request = RangeRequest { range: KeyRange::prefix(""), count_only: true, ..Default::default() };
    machine.kv.range(&request).map_or(0, |found| found.count)
}

fn digest(machine: &Machine) -> u32 {
    let mut hasher = Hasher::new(machine.kv.compacted(), machine.kv.revision());
    machine.kv.chunk_after(None, usize::MAX, machine.kv.revision()).0.iter().for_each(|pair| hasher.feed(pair));
    hasher.finish()
}

/// How a snapshot becomes a new cluster.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Must not hold a member's data.
    pub data_dir: PathBuf,
    /// All members of the new cluster. Each restores the same file with the same list.
    pub initial: Vec<Peer>,
    pub initial_token: String,
    /// Which of them this is.
    pub peer_addr: String,
    /// Added to the revision, so that no client meets a revision that it has seen with other contents.
    pub revision_bump: u64,
}

/// Makes the data of a new cluster's member from a snapshot. All history before it counts as compacted, so that watchers begin
/// again.
pub fn restore(file: &Path, options: &RestoreOptions) -> anyhow::Result<MemberId> {
    let dir = &options.data_dir;
    ensure!(
        !config::has_data(dir),
        "{} holds a member's data already; give a directory that does not exist yet",
        dir.display()
    );
    let mut machine = load(file)?;
    let group = Group::new(&options.initial, &options.initial_token);
    let id = group.find(&options.peer_addr)?;
    machine = forget_past(machine, options.revision_bump);
    group.begin(&mut machine);
    begin(dir, machine, group.cluster_id, id)?;
    Ok(id)
}

/// The same keys at a later revision, nothing before it, and nobody's unanswered commands. Who was removed from the group before
/// says nothing of the new one: its members may be machines that keep their keys.
fn forget_past(machine: Machine, bump: u64) -> Machine {
    let header = machine.header(0);
    let revision = header.revision + bump;
    let header = skiff_proto::store::SnapshotHeader {
        revision,
        compacted: if bump > 0 { revision } else { header.revision },
        sessions: Vec::new(),
        alarms: Vec::new(),
        removed_keys: Vec::new(),
        ..header
    };
    let all = KeyRange::prefix("");
    let request = RangeRequest { range: all, ..Default::default() };
    let live = machine.kv.range(&request).map(|found| found.kvs).unwrap_or_default();
    Machine::restore(header, live)
}

fn begin(dir: &Path, machine: Machine, cluster_id: u64, id: MemberId) -> anyhow::Result<()> {
    let disk = RealDisk::new(dir.to_owned()).with_context(|| format!("making the data directory {}", dir.display()))?;
    snapshot::write_whole(&disk, machine, cluster_id).context("writing the first snapshot")?;
    config::write_identity(&disk, cluster_id, id, &[])
}

/// What a check of a data directory found.
#[derive(Debug, Clone)]
pub struct Report {
    pub cluster_id: u64,
    pub member_id: MemberId,
    /// Of the newest snapshot.
    pub snapshot_index: u64,
    /// (first, last) entry behind it in the log; None if there is none.
    pub entries: Option<(u64, u64)>,
    pub committed: u64,
    pub term: Term,
    /// With the whole log applied: a member learns only later what of its end was committed.
    pub revision: Revision,
    pub hash: u32,
    /// Bytes at the end of the log that a crash left half written; the next start cuts them off.
    pub torn_bytes: usize,
}

/// What lies in a data directory, read without changing anything.
struct Loaded {
    report: Report,
    machine: Machine,
    /// Until this is dropped, no member can start on the directory.
    _claim: Option<Claim>,
}

fn read_dir(dir: &Path) -> anyhow::Result<Loaded> {
    ensure!(config::has_data(dir), "{} holds no member's data", dir.display());
    let claim = Claim::look(dir)?;
    look(dir, claim).with_context(|| format!("the data directory {}", dir.display()))
}

fn look(dir: &Path, claim: Option<Claim>) -> anyhow::Result<Loaded> {
    let disk = Arc::new(RealDisk::new(dir.to_owned())?);
    let (cluster_id, member_id) = config::read_identity(&*disk)?;
    let file = snapshot::newest(&*disk)?
        .context("there is no snapshot, and every member begins with one: files are missing")?;
    let (header, pairs) = snapshot::read(&*disk, &file)?;
    ensure!(header.cluster_id == cluster_id, "the snapshot {file} is of another cluster");
    let mut machine = Machine::restore(header, pairs);
    let found = Log::look(disk)?;
    found.check_joins(machine.index)?;
    let snapshot_index = machine.index;
    let entries: Vec<_> = found.entries.into_iter().filter(|e| e.index > snapshot_index).collect();
    if let Some(first) = entries.first() {
        ensure!(
            first.index == snapshot_index + 1,
            "the log begins at entry {} and the snapshot ends at {snapshot_index}: part of the log is missing",
            first.index
        );
    }
    let committed = found.hard_state.commit.max(snapshot_index);
    let range = entries.first().zip(entries.last()).map(|(a, b)| (a.index, b.index));
    for entry in entries {
        if entry.get_entry_type() == EntryType::EntryNormal {
            let commands =
                decode_batch(entry.data.clone()).with_context(|| format!("entry {} of the log", entry.index))?;
            for command in &commands {
                machine.apply(entry.index, entry.term, command);
            }
        }
        (machine.index, machine.term) = (entry.index, entry.term);
    }
    let report = Report {
        cluster_id,
        member_id,
        snapshot_index,
        entries: range,
        committed,
        term: found.hard_state.term.max(machine.term),
        revision: machine.kv.revision(),
        hash: digest(&machine),
        torn_bytes: found.torn_bytes,
    };
    Ok(Loaded { report, machine, _claim: claim })
}

/// Reads everything in a data directory that no member runs on, checks every record, and changes nothing.
pub fn verify(dir: &Path) -> anyhow::Result<Report> {
    read_dir(dir).map(|loaded| loaded.report)
}

/// What a recovery will do, or did.
#[derive(Debug, Clone)]
pub struct Recovery {
    pub report: Report,
    /// Where the directory is kept as it was.
    pub backup: PathBuf,
    /// Members that will have to join again, with empty directories.
    pub lost: Vec<Member>,
    /// Entries at the end of the log of which it is not known whether a majority had them. They are kept: some may have been
    /// acknowledged.
    pub uncertain_entries: u64,
}

/// Makes a group of one from the data of a member whose group has lost its majority for good. With `carry_out` false it only says
/// what it would do. The new group has a new id, so that survivors of the old one cannot disturb it.
pub fn recover(dir: &Path, peer_addr: Option<&str>, carry_out: bool) -> anyhow::Result<Recovery> {
    let Loaded { report, mut machine, _claim } = read_dir(dir)?;
    let id = report.member_id;
    let mut member = machine.members.get(&id).cloned().with_context(|| {
        format!("member {id:x} is not in its own group's list of members: it was removed, and its data is no base for a recovery")
    })?;
    if let Some(addr) = peer_addr {
        member.peer_addr = addr.to_owned();
    }
    member.learner = false;
    let lost = machine.members.values().filter(|m| m.id != id).cloned().collect();
    let last = report.entries.map_or(report.snapshot_index, |(_, last)| last);
    let recovery =
        Recovery { backup: free_name(dir)?, lost, uncertain_entries: last.saturating_sub(report.committed), report };
    if !carry_out {
        return Ok(recovery);
    }
    std::fs::rename(dir, &recovery.backup)
        .with_context(|| format!("keeping {} as {}", dir.display(), recovery.backup.display()))?;
    let revision = machine.kv.revision();
    machine.conf_state = ConfState { voters: vec![id], ..Default::default() };
    machine.members = [(id, member)].into();
    machine.alarms.clear();
    // Who joins the new group may come with the key that it had in the old one, removed there or not.
    machine.removed_keys.clear();
    // A term that nobody has seen, so that nothing of the old group counts as newer.
    machine.term = recovery.report.term + 1;
    machine.index += 1;
    let cluster_id = rand::random_range(1..u64::MAX);
    begin(dir, machine, cluster_id, id).with_context(|| {
        format!(
            "the recovery stopped half way at revision {revision}; the data is whole in {}: put it back and try again",
            recovery.backup.display()
        )
    })?;
    Ok(recovery)
}

fn free_name(dir: &Path) -> anyhow::Result<PathBuf> {
    let name = dir.file_name().and_then(|n| n.to_str()).context("the data directory has no name")?;
    for number in 1..1000 {
        let backup = dir.with_file_name(format!("{name}.before-recovery-{number}"));
        if !backup.exists() {
            return Ok(backup);
        }
    }
    bail!("there are a thousand backups beside {} already", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group in which somebody was removed, of the one member `1`.
    fn with_a_removed_member() -> Machine {
        let mut machine = Machine::new();
        (machine.index, machine.term) = (1, 1);
        machine.conf_state = ConfState { voters: vec![1], ..Default::default() };
        machine.members = [(1, Member { id: 1, key_hash: "mine".into(), ..Default::default() })].into();
        machine.removed_keys = vec!["gone".into()];
        machine
    }

    #[test]
    fn whoever_was_removed_may_be_a_member_of_the_restored_group() {
        for bump in [0, 1_000_000] {
            assert_eq!(forget_past(with_a_removed_member(), bump).removed_keys, Vec::<String>::new());
        }
    }

    #[test]
    fn whoever_was_removed_may_join_the_recovered_group() {
        let base = std::env::temp_dir().join(format!("skiff-store-recover-{}", std::process::id()));
        let dir = base.join("store");
        begin(&dir, with_a_removed_member(), 7, 1).unwrap();
        assert_eq!(read_dir(&dir).unwrap().machine.removed_keys, ["gone"]);
        recover(&dir, None, true).unwrap();
        let machine = read_dir(&dir).unwrap().machine;
        assert_eq!(machine.removed_keys, Vec::<String>::new());
        assert_eq!(machine.members[&1].key_hash, "mine", "it is the same member");
        std::fs::remove_dir_all(base).unwrap();
    }
}
