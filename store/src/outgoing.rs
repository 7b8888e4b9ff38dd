//! A snapshot that goes to another member: which file it is, byte by byte, and that it stays on the disk meanwhile.
//!
//! What is sent is always the newest one, because that is what Raft names; a receiver that has a part of an older one begins anew. A file is
//! held only while a transfer runs, so a peer that cannot be reached costs no disk.

use crate::disk::Disk;
use crate::driver::lock;
use crate::incoming::{Identity, Offer};
use crate::snapshot;
use raft::eraftpb::Message;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Mutex, MutexGuard};

/// The snapshots that are on their way to other members.
#[derive(Default)]
pub struct Sending {
    /// How often each file is being sent.
    held: Mutex<BTreeMap<String, usize>>,
    /// What was found out about the file that was offered last. A name is never given to other bytes.
    known: Mutex<Option<Identity>>,
}

impl Sending {
    /// The files that must stay. While this is looked at, none is added.
    pub fn held(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        lock(&self.held)
    }

    /// The file of the snapshot at this index stays until it is let go as often.
    pub fn hold(&self, index: u64) {
        *lock(&self.held).entry(snapshot::file_name(index)).or_default() += 1;
    }

    /// The opposite; if nobody else sends it and there is a newer one, it goes.
    pub fn let_go(&self, disk: &dyn Disk, index: u64) -> io::Result<()> {
        let name = snapshot::file_name(index);
        let mut held = lock(&self.held);
        if let Some(count) = held.get_mut(&name) {
            *count -= 1;
        }
        held.retain(|_, count| *count > 0);
        drop(held);
        snapshot::tidy(disk, self)
    }

    /// What to offer for Raft's message. Reads the file once, if it was not offered before.
    pub fn offer(&self, disk: &dyn Disk, message: Message, cluster_id: u64) -> io::Result<Offer> {
        let place = message.get_snapshot().get_metadata();
        let (index, term) = (place.index, place.term);
        let known = (*lock(&self.known)).filter(|known| (known.index, known.term) == (index, term));
        let identity = match known {
            Some(known) => known,
            None => identify(disk, index, term)?,
        };
        *lock(&self.known) = Some(identity);
        Ok(Offer { message, cluster_id, identity })
    }
}

fn identify(disk: &dyn Disk, index: u64, term: u64) -> io::Result<Identity> {
    let mut file = disk.open_read(&snapshot::file_name(index))?;
    let (mut buffer, mut sum, mut size) = (vec![0; 64 << 10], crc32fast::Hasher::new(), 0);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(Identity { index, term, size, sum: sum.finalize() });
        }
        sum.update(buffer.get(..count).unwrap_or_default());
        size += count as u64;
    }
}

/// The next bytes of a file, at most so many; fewer at its end only.
pub fn read_chunk(file: &mut dyn Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(bytes_max);
    file.take(bytes_max as u64).read_to_end(&mut data)?;
    Ok(data)
}
