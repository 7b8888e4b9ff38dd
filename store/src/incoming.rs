//! A snapshot that comes from another member: what is there of it already, whether it fits, and when it is whole.
//!
//! What was received lies in `part-INDEX-TERM-SIZE-SUM`. The name says which file it is a part of, down to the bytes: two members' files at one
//! index need not be equal (they may have swept differently far). So a part outlasts a broken connection, another sender of the very same file,
//! and a restart. There is one part at a time, and it never grows beyond the size that was offered. A crash may leave holes in what was
//! not synced; a part that this process has not written itself is therefore cut back to its whole records first.
//!
//! When all bytes are there, the whole is checked; only then it is renamed to `whole-...`, and Raft hears of it. The disk's writer gives it its
//! final name once Raft has agreed, so that another transfer that begins meanwhile cannot put something else in its place.

use crate::disk::Disk;
use crate::record;
use crate::snapshot;
use prost::Message as _;
use raft::eraftpb::Message;
use skiff_proto::store as pb;
use std::io;

const PART: &str = "part";
const WHOLE: &str = "whole";
/// What was received is written out so often, for the one sync at the end to be a short one.
const WRITE_OUT_BYTES: u64 = 512 << 10;

/// Which file a snapshot is, byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub index: u64,
    pub term: u64,
    pub size: u64,
    /// CRC-32 of all of it.
    pub sum: u32,
}

impl Identity {
    fn name(&self, kind: &str) -> String {
        format!("{kind}-{:016x}-{:x}-{:x}-{:08x}", self.index, self.term, self.size, self.sum)
    }

    /// Where its bytes are received.
    pub fn part(&self) -> String {
        self.name(PART)
    }

    fn whole(&self) -> String {
        self.name(WHOLE)
    }

    fn parse(name: &str, kind: &str) -> Option<Identity> {
        let mut fields = name.strip_prefix(kind)?.strip_prefix('-')?.split('-');
        let mut next = || u64::from_str_radix(fields.next()?, 16).ok();
        let (index, term, size, sum) = (next()?, next()?, next()?, next()?);
        Some(Identity { index, term, size, sum: sum.try_into().ok()? })
    }
}

/// What another member would send.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The MsgSnapshot that Raft gets in the end.
    pub message: Message,
    pub cluster_id: u64,
    pub identity: Identity,
}

impl Offer {
    pub fn to_pb(&self) -> pb::SnapshotOffer {
        let Identity { size, sum, .. } = self.identity;
        pb::SnapshotOffer { message: self.message.encode_to_vec().into(), cluster_id: self.cluster_id, size, sum }
    }

    pub fn from_pb(offer: &pb::SnapshotOffer) -> Result<Offer, prost::DecodeError> {
        let message = Message::decode(&offer.message[..])?;
        let place = message.get_snapshot().get_metadata();
        let identity = Identity { index: place.index, term: place.term, size: offer.size, sum: offer.sum };
        Ok(Offer { message, cluster_id: offer.cluster_id, identity })
    }
}

/// Why a snapshot is not taken, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("this snapshot is of another cluster")]
    Cluster,
    #[error("a snapshot of a later term is being received here")]
    Older,
    #[error("another transfer took its place, or its snapshot is not needed any more")]
    Superseded,
    #[error("{have} bytes of a snapshot arrived that was offered as {offered}")]
    TooMuch { have: u64, offered: u64 },
    #[error(
        "what was received of the snapshot at index {index} is not what was offered: {problem}. It is thrown away, and sent anew"
    )]
    Wrong { index: u64, problem: String },
    #[error("storing the snapshot: {0}")]
    Io(#[from] io::Error),
}

/// How a transfer begins.
#[derive(Debug, PartialEq, Eq)]
pub enum Begun {
    /// Go on from byte `have`. The ticket stands for this transfer until another takes its place.
    From { ticket: u64, have: u64 },
    /// All of it is here, or this member is past it: Raft can have the message at once.
    Needless,
}

/// The one snapshot that is being received.
#[derive(Default)]
pub struct Incoming {
    tickets: u64,
    current: Option<Transfer>,
    /// The part that this process has written itself, all of it.
    trusted: Option<Identity>,
}

struct Transfer {
    ticket: u64,
    /// The sender's.
    term: u64,
    identity: Identity,
    have: u64,
    written_out: u64,
}

impl Incoming {
    /// Says where to go on with what is offered. A transfer that is under way ends by this, unless it is of a later term: whoever begins anew
    /// has given up the one before, though this end may not have heard of it.
    pub fn begin(&mut self, disk: &dyn Disk, offer: &Offer, cluster_id: u64, applied: u64) -> Result<Begun, Refused> {
        let (wanted, term) = (offer.identity, offer.message.term);
        if offer.cluster_id != cluster_id {
            return Err(Refused::Cluster);
        }
        if self.current.as_ref().is_some_and(|c| c.term > term) {
            return Err(Refused::Older);
        }
        self.current = None;
        let names = disk.list()?;
        if wanted.index <= applied || names.contains(&wanted.whole()) {
            return Ok(Begun::Needless);
        }
        // A whole one that is newer than the state may wait for Raft at this moment.
        for name in &names {
            let old = Identity::parse(name, WHOLE).is_some_and(|w| w.index <= applied);
            let other = Identity::parse(name, PART).is_some_and(|p| p != wanted);
            if other && bug!("part_of_another_snapshot_continued") && disk.size(name)? <= wanted.size {
                disk.rename(name, &wanted.part())?;
                self.trusted = Some(wanted);
            } else if old || other {
                disk.remove(name)?;
            }
        }
        let have = self.what_is_there(disk, &wanted)?;
        self.tickets += 1;
        self.trusted = Some(wanted);
        self.current = Some(Transfer { ticket: self.tickets, term, identity: wanted, have, written_out: have });
        Ok(Begun::From { ticket: self.tickets, have })
    }

    /// Bytes of this very snapshot that can be built on.
    fn what_is_there(&self, disk: &dyn Disk, wanted: &Identity) -> io::Result<u64> {
        let name = wanted.part();
        if !disk.list()?.contains(&name) {
            return Ok(0);
        }
        let size = disk.size(&name)?;
        if self.trusted == Some(*wanted) || bug!("part_not_looked_at_after_a_crash") {
            return Ok(size.min(wanted.size));
        }
        let (mut file, mut record, mut whole) = (disk.open_read(&name)?, Vec::new(), 0);
        while record::read_next(&mut *file, &mut record)? {
            whole += record.len() as u64;
        }
        if whole > wanted.size {
            disk.remove(&name)?;
            return Ok(0);
        }
        if whole < size {
            disk.truncate(&name, whole)?;
        }
        Ok(whole)
    }

    fn transfer(&mut self, ticket: u64) -> Result<&mut Transfer, Refused> {
        self.current.as_mut().filter(|c| c.ticket == ticket).ok_or(Refused::Superseded)
    }

    /// Takes the next bytes; how many are there now.
    pub fn take(&mut self, disk: &dyn Disk, ticket: u64, data: &[u8]) -> Result<u64, Refused> {
        let current = self.transfer(ticket)?;
        let (have, offered) = (current.have + data.len() as u64, current.identity.size);
        if have > offered {
            self.give_up(disk, ticket)?;
            return Err(Refused::TooMuch { have, offered });
        }
        let name = current.identity.part();
        let mut written = disk.append(&name, data);
        if written.is_ok() && have - current.written_out >= WRITE_OUT_BYTES {
            current.written_out = have;
            written = disk.write_out(&name);
        }
        current.have = have;
        if let Err(e) = written {
            // Nobody knows how much of it is there.
            (self.trusted, self.current) = (None, None);
            return Err(e.into());
        }
        Ok(have)
    }

    /// The connection ended. What is there stays.
    pub fn leave(&mut self, ticket: u64) {
        self.current.take_if(|c| c.ticket == ticket);
    }

    /// What is there goes: the next transfer begins anew.
    fn give_up(&mut self, disk: &dyn Disk, ticket: u64) -> Result<(), Refused> {
        let name = self.transfer(ticket)?.identity.part();
        (self.trusted, self.current) = (None, None);
        Ok(disk.remove(&name)?)
    }

    /// Ends a transfer whose bytes are all there, by what [`check_part`] said of them. After this Raft can have the message.
    pub fn finish(&mut self, disk: &dyn Disk, ticket: u64, checked: Result<(), Refused>) -> Result<(), Refused> {
        let identity = self.transfer(ticket)?.identity;
        if let Err(problem) = checked {
            self.give_up(disk, ticket)?;
            return Err(problem);
        }
        (self.trusted, self.current) = (None, None);
        Ok(disk.rename(&identity.part(), &identity.whole())?)
    }

    /// This member is past `index`: what was received of snapshots up to there goes.
    pub fn forget_until(&mut self, disk: &dyn Disk, index: u64) -> io::Result<()> {
        self.current.take_if(|c| c.identity.index <= index);
        for name in disk.list()? {
            if received(&name).is_some_and(|r| r.index <= index) {
                disk.remove(&name)?;
            }
        }
        Ok(())
    }
}

fn received(name: &str) -> Option<Identity> {
    Identity::parse(name, PART).or_else(|| Identity::parse(name, WHOLE))
}

/// At the start of a member whose newest snapshot is at `newest`: of what was received and never taken in, the newest stays as a part.
pub fn sweep(disk: &dyn Disk, newest: Option<u64>) -> io::Result<()> {
    let mut all: Vec<_> = disk.list()?.into_iter().filter_map(|name| Some((received(&name)?, name))).collect();
    all.sort();
    let kept = all.pop_if(|(last, _)| newest.is_none_or(|newest| last.index > newest));
    for (_, name) in all {
        disk.remove(&name)?;
    }
    match kept {
        Some((identity, name)) if name != identity.part() => disk.rename(&name, &identity.part()),
        _ => Ok(()),
    }
}

/// Gives the snapshot that was received of this index and term the name under which members find it.
pub fn name_whole(disk: &dyn Disk, index: u64, term: u64) -> io::Result<()> {
    let fits = |name: &String| Identity::parse(name, WHOLE).is_some_and(|w| (w.index, w.term) == (index, term));
    let found = disk.list()?.into_iter().find(fits);
    let missing = || {
        let text =
            format!("the snapshot at index {index} of term {term} that Raft has accepted is not in the data directory");
        io::Error::new(io::ErrorKind::NotFound, text)
    };
    disk.rename(&found.ok_or_else(missing)?, &snapshot::file_name(index))
}

/// Whether a part whose bytes are all there is the snapshot that was offered: each record whole, the last one there, of this cluster, at this
/// place in the log, and all of it with the checksum that was named. It is synced when this returns. Reads it once, a record at a time.
pub fn check_part(disk: &dyn Disk, identity: &Identity, cluster_id: u64) -> Result<(), Refused> {
    disk.sync(&identity.part())?;
    if bug!("received_snapshot_not_checked") {
        return Ok(());
    }
    let wrong = |problem: String| Refused::Wrong { index: identity.index, problem };
    let (mut file, mut record) = (disk.open_read(&identity.part())?, Vec::new());
    let (mut sum, mut at, mut header, mut last) = (crc32fast::Hasher::new(), 0, None, Vec::new());
    while record::read_next(&mut *file, &mut record)? {
        sum.update(&record);
        at += record.len() as u64;
        if header.is_none() {
            let decoded = pb::SnapshotHeader::decode(record.get(record::HEADER..).unwrap_or_default());
            header = Some(decoded.map_err(|e| wrong(e.to_string()))?);
        }
        std::mem::swap(&mut last, &mut record);
    }
    if !record.is_empty() {
        return Err(wrong(format!("bad record at byte {at}")));
    }
    let header = header.ok_or_else(|| wrong("it has no header".into()))?;
    if header.cluster_id != cluster_id {
        return Err(Refused::Cluster);
    }
    let end = pb::SnapshotPairs::decode(last.get(record::HEADER..).unwrap_or_default()).is_ok_and(|pairs| pairs.last);
    let found = Identity { index: header.index, term: header.term, size: at, sum: sum.finalize() };
    match found == *identity && end {
        true => Ok(()),
        false => Err(wrong(format!("{found:?} (its end is there: {end}) where {identity:?} was offered"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::machine::Machine;
    use crate::outgoing::{Sending, read_chunk};
    use crate::types::{Op, Txn};
    use raft::eraftpb::{Snapshot, SnapshotMetadata};

    const CLUSTER: u64 = 5;

    /// A sender's disk with a snapshot at this index, and its offer.
    fn sender(index: u64, value: &'static str, term: u64) -> (MemoryDisk, Offer) {
        let mut machine = Machine::new();
        for i in 0..50 {
            let txn = Txn { success: vec![Op::put(format!("k{i}"), value)], ..Default::default() };
            machine.kv.txn(&txn).unwrap();
        }
        (machine.index, machine.term) = (index, 3);
        let disk = MemoryDisk::default();
        snapshot::write(&disk, &std::sync::RwLock::new(machine), CLUSTER, 4).unwrap();
        let metadata = Some(SnapshotMetadata { index, term: 3, ..Default::default() });
        let snapshot = Some(Snapshot { metadata, ..Default::default() });
        let message = Message { term, snapshot, ..Default::default() };
        let offer = Sending::default().offer(&disk, message, CLUSTER).unwrap();
        (disk, offer)
    }

    fn bytes(disk: &MemoryDisk, offer: &Offer, from: u64, count: usize) -> Vec<u8> {
        let mut file = disk.open_read_at(&snapshot::file_name(offer.identity.index), from).unwrap();
        read_chunk(&mut *file, count).unwrap()
    }

    fn begin(incoming: &mut Incoming, disk: &MemoryDisk, offer: &Offer) -> (u64, u64) {
        match incoming.begin(disk, offer, CLUSTER, 0) {
            Ok(Begun::From { ticket, have }) => (ticket, have),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn goes_on_where_the_last_attempt_ended_and_installs_what_was_offered_only() {
        let (from, offer) = sender(77, "value", 9);
        for first in [0, 1, 100, offer.identity.size as usize - 1, offer.identity.size as usize] {
            for restart in [false, true] {
                let (disk, mut incoming) = (MemoryDisk::default(), Incoming::default());
                let (ticket, have) = begin(&mut incoming, &disk, &offer);
                assert_eq!(have, 0);
                if first > 0 {
                    incoming.take(&disk, ticket, &bytes(&from, &offer, 0, first)).unwrap();
                }
                if restart {
                    incoming = Incoming::default();
                    sweep(&disk, Some(76)).unwrap();
                }
                let (again, have) = begin(&mut incoming, &disk, &offer);
                assert!(have <= first as u64 && (restart || have == first as u64), "{first} {restart}: {have}");
                assert!(restart || matches!(incoming.take(&disk, ticket, b"late"), Err(Refused::Superseded)));
                incoming.take(&disk, again, &bytes(&from, &offer, have, 1 << 20)).unwrap();
                let checked = check_part(&disk, &offer.identity, CLUSTER);
                incoming.finish(&disk, again, checked).unwrap();
                assert_eq!(incoming.begin(&disk, &offer, CLUSTER, 0).unwrap(), Begun::Needless);
                name_whole(&disk, 77, 3).unwrap();
                let name = snapshot::file_name(77);
                assert_eq!(disk.read(&name).unwrap(), from.read(&name).unwrap());
                assert_eq!(disk.list().unwrap(), [name]);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_begun_anew() {
        let (from, offer) = sender(77, "value", 9);
        let check = |other: Offer, expect: &str| {
            let (disk, mut incoming) = (MemoryDisk::default(), Incoming::default());
            let (ticket, _) = begin(&mut incoming, &disk, &offer);
            incoming.take(&disk, ticket, &bytes(&from, &offer, 0, 200)).unwrap();
            let begun = match incoming.begin(&disk, &other, CLUSTER, 70) {
                Ok(Begun::From { have, .. }) => format!("from {have}, {} files", disk.list().unwrap().len()),
                Ok(Begun::Needless) => "needless".to_owned(),
                Err(refused) => format!("{refused:?}"),
            };
            assert_eq!(begun, expect);
        };
        check(offer.clone(), "from 200, 1 files");
        check(sender(78, "value", 9).1, "from 0, 0 files");
        check(sender(77, "other", 9).1, "from 0, 0 files");
        check(sender(70, "value", 9).1, "needless");
        check(sender(77, "value", 8).1, "Older");
        check(sender(77, "value", 10).1, "from 200, 1 files");
        check(Offer { cluster_id: 6, ..offer.clone() }, "Cluster");
    }

    #[test]
    fn a_wrong_byte_anywhere_is_thrown_away() {
        let (from, offer) = sender(77, "value", 9);
        let size = offer.identity.size as usize;
        for at in (0..size).step_by(7) {
            let (disk, mut incoming) = (MemoryDisk::default(), Incoming::default());
            let (ticket, _) = begin(&mut incoming, &disk, &offer);
            let mut data = bytes(&from, &offer, 0, size);
            data[at] ^= 1;
            incoming.take(&disk, ticket, &data).unwrap();
            let checked = check_part(&disk, &offer.identity, CLUSTER);
            assert!(matches!(incoming.finish(&disk, ticket, checked), Err(Refused::Wrong { .. })), "byte {at}");
            assert_eq!(begin(&mut incoming, &disk, &offer).1, 0);
        }
        let (disk, mut incoming) = (MemoryDisk::default(), Incoming::default());
        let (ticket, _) = begin(&mut incoming, &disk, &offer);
        let much = vec![0; size + 1];
        assert!(matches!(incoming.take(&disk, ticket, &much), Err(Refused::TooMuch { .. })));
        assert!(disk.list().unwrap().is_empty());
    }

    #[test]
    fn what_is_being_sent_stays_until_it_is_let_go() {
        let (disk, _) = sender(77, "value", 9);
        let sending = Sending::default();
        sending.hold(77);
        sending.hold(77);
        disk.append(&snapshot::file_name(78), b"newer").unwrap();
        let names = || disk.list().unwrap().len();
        snapshot::tidy(&disk, &sending).unwrap();
        sending.let_go(&disk, 77).unwrap();
        assert_eq!(names(), 2);
        sending.let_go(&disk, 77).unwrap();
        assert_eq!(names(), 1);
    }

    #[test]
    fn a_start_keeps_the_newest_part_that_is_of_use() {
        let part = |index| Identity { index, term: 3, size: 9, sum: 1 };
        let check = |newest, expect: &[String]| {
            let disk = MemoryDisk::default();
            for name in [part(5).part(), part(7).part(), part(8).whole()] {
                disk.append(&name, b"x").unwrap();
            }
            sweep(&disk, newest).unwrap();
            assert_eq!(disk.list().unwrap(), expect);
        };
        check(None, &[part(8).part()]);
        check(Some(7), &[part(8).part()]);
        check(Some(8), &[]);
    }
}
