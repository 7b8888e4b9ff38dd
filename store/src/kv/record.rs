//! How one version of a key lies in memory: a few small numbers, the key and the value, one behind the other.
//!
//! ```text
//!   key's length, key, mod revision, version, (mod - create revision, lease), value's length, value
//! ```
//!
//! Numbers are LEB128, so that the usual ones take a byte or three. What is in brackets is there unless the version is a deletion, whose version is 0.
//! The key comes first because it is what searches look at.

use crate::types::{KeyValue, LeaseId, Revision};
use bytes::Bytes;

/// What the numbers take at most.
pub const NUMBERS_MAX: usize = 6 * 10;

/// One version of a key, to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// 0 for a deletion.
    pub version: u64,
    pub lease: LeaseId,
}

impl<'a> Record<'a> {
    pub fn of(kv: &'a KeyValue) -> Self {
        let KeyValue { create_revision, mod_revision, version, lease, .. } = *kv;
        Record { key: &kv.key, value: &kv.value, create_revision, mod_revision, version, lease }
    }

    /// The deletion of a key.
    pub fn tombstone(key: &'a [u8], mod_revision: Revision) -> Self {
        Record { key, value: &[], create_revision: 0, mod_revision, version: 0, lease: 0 }
    }

    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Key and value, in bytes.
    pub fn size(&self) -> usize {
        self.key.len() + self.value.len()
    }

    /// Appends it to a buffer.
    pub fn encode(&self, to: &mut Vec<u8>) {
        push_number(to, self.key.len() as u64);
        to.extend_from_slice(self.key);
        push_number(to, self.mod_revision);
        push_number(to, self.version);
        if !self.is_tombstone() {
            push_number(to, self.mod_revision - self.create_revision);
            push_number(to, self.lease as u64);
        }
        push_number(to, self.value.len() as u64);
        to.extend_from_slice(self.value);
    }

    /// Reads what [`Record::encode`] wrote at the beginning of `data`; with it, the bytes that it takes.
    pub fn decode(data: &'a [u8]) -> (Self, usize) {
        let (key, mut rest) = split_key(data);
        let mod_revision = take_number(&mut rest);
        let version = take_number(&mut rest);
        let (mut create_revision, mut lease) = (0, 0);
        if version != 0 {
            create_revision = mod_revision - take_number(&mut rest);
            lease = take_number(&mut rest) as LeaseId;
        }
        let length = take_number(&mut rest) as usize;
        let (value, rest) = rest.split_at(length);
        (Record { key, value, create_revision, mod_revision, version, lease }, data.len() - rest.len())
    }

    /// The pair, with bytes of its own: key and value share one piece of memory.
    pub fn to_pair(self) -> KeyValue {
        let mut both = Vec::with_capacity(self.size());
        both.extend_from_slice(self.key);
        both.extend_from_slice(self.value);
        let mut key = Bytes::from(both);
        let value = key.split_off(self.key.len());
        self.with_bytes(key, value)
    }

    /// The pair, sharing the memory that it lies in.
    pub fn slice_of(self, memory: &Bytes) -> KeyValue {
        self.with_bytes(memory.slice_ref(self.key), memory.slice_ref(self.value))
    }

    fn with_bytes(self, key: Bytes, value: Bytes) -> KeyValue {
        let Record { create_revision, mod_revision, version, lease, .. } = self;
        KeyValue { key, value, create_revision, mod_revision, version, lease }
    }
}

/// The key of the record at the beginning of `data`, and what follows it.
pub fn split_key(mut data: &[u8]) -> (&[u8], &[u8]) {
    let length = take_number(&mut data) as usize;
    data.split_at(length)
}

fn push_number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take_number(from: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    while let Some((byte, rest)) = from.split_first() {
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            break;
        }
        shift += 7;
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let check = |record: Record, numbers: usize| {
            let mut data = Vec::new();
            record.encode(&mut data);
            assert_eq!(data.len(), record.size() + numbers, "{record:?}");
            let length = data.len();
            data.extend_from_slice(b"what follows");
            assert_eq!(Record::decode(&data), (record, length));
            assert_eq!(split_key(&data).0, record.key);
            assert_eq!(Record::of(&record.to_pair()), record);
            let memory = Bytes::from(data);
            assert_eq!(Record::of(&Record::decode(&memory).0.slice_of(&memory)), record);
        };
        let record = Record { key: b"k", value: b"v", create_revision: 7, mod_revision: 7, version: 1, lease: 0 };
        check(record, 6);
        check(Record { value: &[7; 256], mod_revision: 1_000_000, create_revision: 1_000_000, ..record }, 9);
        check(Record { value: b"", create_revision: 1, ..record }, 6);
        check(Record { mod_revision: u64::MAX, create_revision: 1, version: u64::MAX, lease: -1, ..record }, 42);
        check(Record::tombstone(b"gone", 300), 5);
    }
}
