//! Snapshots: the whole state at one revision in one file, written beside the running store.
//!
//! The file is records (see `record`): a header, chunks of pairs, and a last record that says how many pairs there are. The writer
//! pins a revision, walks the map a thousand keys at a time under a read lock, and so stops nobody; while it runs, the
//! history before the pinned revision is not compacted. The file gets its name only when it is whole and synced.

use crate::disk::Disk;
use crate::machine::Machine;
use crate::outgoing::Sending;
use crate::record::{self, Next};
use crate::sizes::Sizes;
use crate::types::{KeyValue, Revision};
use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{ConfState, SnapshotMetadata};
use skiff_proto::store as pb;
use std::io;
use std::sync::{Arc, RwLock};

const PREFIX: &str = "snap-";
const UNFINISHED: &str = "tmp-snap";
const FLUSH_BYTES: usize = 512 << 10;
const RECORD_BYTES: usize = 512 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot {file}: {source}")]
    Io { file: String, source: io::Error },
    #[error(
        "snapshot {file} is damaged: {problem}. Remove this server's data directory and let it join again, or restore a backup"
    )]
    Damaged { file: String, problem: String },
}

/// The name of the snapshot at a log index.
pub fn file_name(index: u64) -> String {
    format!("{PREFIX}{index:016x}")
}

/// The newest snapshot in the folder.
pub fn newest(disk: &dyn Disk) -> io::Result<Option<String>> {
    Ok(disk.list()?.into_iter().filter(|n| n.starts_with(PREFIX)).max())
}

/// The index in a snapshot's name.
pub fn index_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()
}

/// Removes all snapshots but the newest and those that are being sent: a large file is cut short before it is removed, so that it would
/// end early for whoever has it open.
pub fn tidy(disk: &dyn Disk, sending: &Sending) -> io::Result<()> {
    let held = sending.held();
    let newest = newest(disk)?;
    for name in disk.list()? {
        let goes = !held.contains_key(&name) || bug!("snapshot_removed_while_it_is_sent");
        if name.starts_with(PREFIX) && Some(&name) != newest.as_ref() && goes {
            disk.remove(&name)?;
        }
    }
    Ok(())
}

/// Removes what interrupted writers left, and keeps what was received of a newer snapshot. Only before anything else is begun: files that
/// are being written have such names, too.
pub fn sweep_unfinished(disk: &dyn Disk) -> io::Result<()> {
    for name in disk.list()?.into_iter().filter(|name| name.starts_with("tmp-")) {
        disk.remove(&name)?;
    }
    let newest = newest(disk)?;
    crate::incoming::sweep(disk, newest.as_deref().and_then(index_of))
}

/// Writes the state as it is now to disk, so many keys a record; returns the header that was written.
pub fn write(
    disk: &dyn Disk,
    machine: &RwLock<Machine>,
    cluster_id: u64,
    keys: usize,
) -> io::Result<pb::SnapshotHeader> {
    let header = {
        let mut machine = machine.write().unwrap_or_else(|e| e.into_inner());
        machine.kv.pin();
        machine.header(cluster_id)
    };
    let name = file_name(header.index);
    // One that is there stays as it is: others may have a part of it.
    let is_there = disk.list().map(|names| names.contains(&name));
    let written = match is_there {
        Ok(false) => {
            write_pinned(disk, machine, &header, UNFINISHED, keys).and_then(|()| disk.rename(UNFINISHED, &name))
        }
        Ok(true) => Ok(()),
        Err(e) => Err(e),
    };
    machine.write().unwrap_or_else(|e| e.into_inner()).kv.unpin();
    if written.is_err() {
        // Where there is no room, a part of a snapshot must not take what others make.
        let _ = disk.remove(UNFINISHED);
    }
    written?;
    Ok(header)
}

/// Writes the state as it is now to a file of this name, which is no part of this member's data: for somebody to take away.
pub fn export(disk: &dyn Disk, machine: &RwLock<Machine>, cluster_id: u64, name: &str) -> io::Result<()> {
    let header = {
        let mut machine = machine.write().unwrap_or_else(|e| e.into_inner());
        machine.kv.pin();
        machine.header(cluster_id)
    };
    let written = write_pinned(disk, machine, &header, name, Sizes::default().snapshot_keys);
    machine.write().unwrap_or_else(|e| e.into_inner()).kv.unpin();
    written
}

/// Writes a state that nobody else holds.
pub fn write_whole(disk: &dyn Disk, machine: Machine, cluster_id: u64) -> io::Result<pb::SnapshotHeader> {
    write(disk, &RwLock::new(machine), cluster_id, Sizes::default().snapshot_keys)
}

fn write_pinned(
    disk: &dyn Disk,
    machine: &RwLock<Machine>,
    header: &pb::SnapshotHeader,
    name: &str,
    keys: usize,
) -> io::Result<()> {
    disk.remove(name)?;
    let mut buffer = Vec::with_capacity(FLUSH_BYTES * 2);
    record::push(&mut buffer, &header.encode_to_vec());
    let (mut after, mut total) = (None::<Bytes>, 0);
    loop {
        let (pairs, last) = {
            let machine = machine.read().unwrap_or_else(|e| e.into_inner());
            machine.kv.chunk_after(after.as_ref(), keys, header.revision)
        };
        total += pairs.len() as u64;
        for some in pairs.chunk_by(small_together()) {
            let pairs = some.iter().map(stored).collect();
            record::push(&mut buffer, &pb::SnapshotPairs { pairs, ..Default::default() }.encode_to_vec());
            if buffer.len() >= FLUSH_BYTES {
                disk.append(name, &buffer)?;
                // A little at a time: one large sync at the end would hold up those of the log, and so would a sync each time, which has the
                // device empty its cache and the file system close its journal.
                disk.write_out(name)?;
                buffer.clear();
            }
        }
        match last {
            Some(key) => after = Some(key),
            None => break,
        }
    }
    record::push(&mut buffer, &pb::SnapshotPairs { pairs: Vec::new(), total, last: true }.encode_to_vec());
    disk.append(name, &buffer)?;
    disk.sync(name)
}

/// Whether a pair goes into the record of the one before it: a record is not much larger than this, for whoever receives it continues behind
/// whole ones, and reads them one at a time.
fn small_together() -> impl FnMut(&Arc<KeyValue>, &Arc<KeyValue>) -> bool {
    let mut bytes = 0;
    move |before, _| {
        bytes += before.key.len() + before.value.len();
        let is_small = bytes < RECORD_BYTES;
        if !is_small {
            bytes = 0;
        }
        is_small
    }
}

fn stored(kv: &Arc<KeyValue>) -> pb::StoredPair {
    pb::StoredPair {
        key: kv.key.clone(),
        value: kv.value.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// Reads a snapshot back, checking every record and the count.
pub fn read(disk: &dyn Disk, file: &str) -> Result<(pb::SnapshotHeader, Vec<KeyValue>), SnapshotError> {
    let data = disk.read(file).map_err(|source| SnapshotError::Io { file: file.to_owned(), source })?;
    parse(&data.into()).map_err(|problem| SnapshotError::Damaged { file: file.to_owned(), problem })
}

/// The header and the pairs in a snapshot's bytes, which the pairs share; anything behind the last record is not looked at.
pub fn parse(data: &Bytes) -> Result<(pb::SnapshotHeader, Vec<KeyValue>), String> {
    let Next::Record(payload, mut at) = record::next(data, 0) else { return Err("no header at byte 0".into()) };
    let header = pb::SnapshotHeader::decode(payload).map_err(|e| e.to_string())?;
    if header.format > crate::command::COMMAND_FORMAT {
        return Err(format!("its format {} is newer than this version of Skiff", header.format));
    }
    let mut pairs = Vec::new();
    loop {
        let Next::Record(payload, after) = record::next(data, at) else {
            return Err(format!("bad record at byte {at}"));
        };
        at = after;
        let chunk = pb::SnapshotPairs::decode(data.slice_ref(payload)).map_err(|e| e.to_string())?;
        pairs.extend(chunk.pairs.into_iter().map(|p| KeyValue {
            key: p.key,
            value: p.value,
            create_revision: p.create_revision,
            mod_revision: p.mod_revision as Revision,
            version: p.version,
            lease: p.lease,
        }));
        if chunk.last {
            return match chunk.total == pairs.len() as u64 {
                true => Ok((header, pairs)),
                false => Err(format!("{} pairs where {} were written", pairs.len(), chunk.total)),
            };
        }
    }
}

/// A header's place in the log, as Raft wants it.
pub fn metadata(header: &pb::SnapshotHeader) -> SnapshotMetadata {
    let conf_state = Some(ConfState::decode(&header.conf_state[..]).unwrap_or_default());
    SnapshotMetadata { index: header.index, term: header.term, conf_state }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::kv::Kv;
    use crate::types::{Op, Txn};

    #[test]
    fn a_snapshot_is_read_back_whole_or_refused() {
        let mut machine = Machine::new();
        for i in 0..2500 {
            let txn = Txn { success: vec![Op::put(format!("k{i}"), "v")], ..Default::default() };
            machine.kv.txn(&txn).unwrap();
        }
        machine.index = 77;
        let revision = machine.kv.revision();
        let hash = |kv: &Kv| {
            let mut hasher = crate::kv::sweep::Hasher::new(kv.compacted(), kv.revision());
            kv.chunk_after(None, usize::MAX, kv.revision()).0.iter().for_each(|p| hasher.feed(p));
            hasher.finish()
        };
        let before = hash(&machine.kv);
        let (disk, machine) = (MemoryDisk::default(), RwLock::new(machine));
        write(&disk, &machine, 5, 1000).unwrap();
        let name = newest(&disk).unwrap().unwrap();
        let (header, pairs) = read(&disk, &name).unwrap();
        assert_eq!((header.index, header.cluster_id, pairs.len()), (77, 5, 2500));
        let back = Machine::restore(header, pairs);
        assert_eq!((back.kv.revision(), hash(&back.kv)), (revision, before));
        let len = disk.read(&name).unwrap().len() as u64;
        disk.truncate(&name, len - 1).unwrap();
        assert!(matches!(read(&disk, &name), Err(SnapshotError::Damaged { .. })));
    }
}
