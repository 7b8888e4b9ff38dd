//! The store's requests and answers, in etcd v3's terms: keys, revisions, ranges, transactions, watches.
//!
//! A revision counts the transactions that changed something; every key carries the revision that made it and the one that
//! changed it last. Values are shared, never copied: a key-value pair is one `Arc` from the log to every reader.

use bytes::Bytes;
use std::sync::Arc;

/// The store's logical clock: it grows by one with every transaction that writes. 0 means "none" or "the latest".
pub type Revision = u64;
/// A Raft term. Leader-only work carries the term it started in (see [`Txn::fence`]).
pub type Term = u64;
/// A lease's id; 0 is no lease.
pub type LeaseId = i64;
/// A member's id; never an address.
pub type MemberId = u64;

/// One key at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// The revision that created the key (since it was last deleted).
    pub create_revision: Revision,
    /// The revision of the last change.
    pub mod_revision: Revision,
    /// The number of changes since the creation, 1 for a new key.
    pub version: u64,
    /// The lease whose end deletes the key; 0 for none.
    pub lease: LeaseId,
}

/// Keys from `start` (included) to `end` (excluded). As in etcd: an empty `end` means just the key `start`; an `end` of one
/// zero byte means every key from `start` on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: Bytes,
}

impl KeyRange {
    /// Just this key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        KeyRange { start: key.into(), end: Bytes::new() }
    }

    /// Every key that begins with `prefix`; an empty prefix means all keys.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        if start.is_empty() {
            return KeyRange { start: Bytes::from_static(&[0]), end: Bytes::from_static(&[0]) };
        }
        let end = match start.iter().rposition(|b| *b != 0xff) {
            Some(last) => {
                let mut end = start[..=last].to_vec();
                end[last] += 1;
                Bytes::from(end)
            }
            None => Bytes::from_static(&[0]),
        };
        KeyRange { start, end }
    }

    /// Whether this names one key only.
    pub fn is_single(&self) -> bool {
        self.end.is_empty()
    }

    /// Whether `key` lies within.
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.is_single() {
            key == &self.start[..]
        } else {
            key >= &self.start[..] && (self.end[..] == [0] || key < &self.end[..])
        }
    }
}

/// A read of some keys at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeRequest {
    pub range: KeyRange,
    /// At most this many pairs; 0 for all.
    pub limit: usize,
    /// Read as of this revision; 0 for the latest.
    pub revision: Revision,
    pub keys_only: bool,
    pub count_only: bool,
    /// Answer from this member's state as it is, which may lag behind; otherwise the read is linearizable. Inside a transaction it
    /// means nothing: the read is at the transaction's revision, after the writes before it (or at `revision`, if that is set).
    pub serializable: bool,
    /// What the answer is sorted by; by key and ascending costs nothing.
    pub sort: SortTarget,
    pub descending: bool,
    /// Pairs outside these bounds are left out of `kvs`, not out of `count`; 0 is no bound.
    pub bounds: Bounds,
}

/// What a range is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    CreateRevision,
    ModRevision,
    Value,
}

/// Bounds (included) on the revisions of the pairs that a range returns; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    pub min_mod: Revision,
    pub max_mod: Revision,
    pub min_create: Revision,
    pub max_create: Revision,
}

impl Bounds {
    /// Whether a pair with these revisions lies within.
    pub fn admit(&self, create_revision: Revision, mod_revision: Revision) -> bool {
        mod_revision >= self.min_mod
            && (self.max_mod == 0 || mod_revision <= self.max_mod)
            && create_revision >= self.min_create
            && (self.max_create == 0 || create_revision <= self.max_create)
    }
}

/// What a range held.
#[derive(Clone, Debug, Default)]
pub struct RangeResponse {
    /// The store's revision when the read was answered (not the revision asked for).
    pub revision: Revision,
    /// In order of key.
    pub kvs: Vec<KeyValue>,
    /// Whether `limit` left pairs out.
    pub more: bool,
    /// All the keys in the range, whatever the limit.
    pub count: usize,
}

/// A condition on one key (or, with a range, on all keys in it).
#[derive(Clone, Debug, PartialEq)]
pub struct Compare {
    pub range: KeyRange,
    pub op: CompareOp,
    pub target: CompareTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// What is compared. A key that does not exist has revision, version and lease 0; a comparison of its value is false.
#[derive(Clone, Debug, PartialEq)]
pub enum CompareTarget {
    Version(u64),
    CreateRevision(Revision),
    ModRevision(Revision),
    Value(Bytes),
    Lease(LeaseId),
}

impl Compare {
    /// True while the key's last change is at `revision`; 0 = the key does not exist.
    pub fn mod_revision(key: impl Into<Bytes>, revision: Revision) -> Self {
        let range = KeyRange::key(key);
        Compare { range, op: CompareOp::Equal, target: CompareTarget::ModRevision(revision) }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Put(Put),
    Delete(Delete),
    Range(RangeRequest),
    Txn(Box<Txn>),
}

#[derive(Clone, Debug, PartialEq, Default)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    pub lease: LeaseId,
    pub prev_kv: bool,
    /// Keep the value that the key has; an error if there is none.
    pub ignore_value: bool,
    /// Keep the lease that the key has; an error if there is no key.
    pub ignore_lease: bool,
}

#[derive(Clone, Debug, PartialEq, Default)]
pub struct Delete {
    pub range: KeyRange,
    pub prev_kv: bool,
}

impl Op {
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Op::Put(Put { key: key.into(), value: value.into(), ..Default::default() })
    }
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Op::Delete(Delete { range: KeyRange::key(key), prev_kv: true })
    }
    /// All the keys of a range, in one revision.
    pub fn delete_range(range: KeyRange) -> Self {
        Op::Delete(Delete { range, prev_kv: false })
    }
    pub fn get(key: impl Into<Bytes>) -> Self {
        Op::Range(RangeRequest { range: KeyRange::key(key), ..Default::default() })
    }
}

/// If every comparison holds, `success` is carried out, otherwise `failure`; all at one revision, or nothing.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
    /// Refuse the transaction if it is applied in another term than this: the mark of work that only a leader may do.
    pub fence: Option<Term>,
}

impl Txn {
    /// Just this operation, whatever the state.
    pub fn of(op: Op) -> Self {
        Txn { success: vec![op], ..Default::default() }
    }

    /// Whether it changes nothing, whichever branch runs.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            Op::Range(_) => true,
            Op::Txn(nested) => nested.is_read_only(),
            Op::Put(_) | Op::Delete(_) => false,
        })
    }

    /// Whether it may store something new, whichever branch runs.
    pub fn may_put(&self) -> bool {
        self.success.iter().chain(&self.failure).any(|op| match op {
            Op::Put(_) => true,
            Op::Txn(nested) => nested.may_put(),
            Op::Range(_) | Op::Delete(_) => false,
        })
    }
}

#[derive(Clone, Debug, Default)]
pub struct TxnResponse {
    /// The store's revision after the transaction.
    pub revision: Revision,
    /// Which branch ran.
    pub succeeded: bool,
    /// One for each operation of that branch.
    pub responses: Vec<OpResponse>,
}

#[derive(Clone, Debug)]
pub enum OpResponse {
    Put { prev: Option<Arc<KeyValue>> },
    Delete { deleted: usize, prev: Vec<Arc<KeyValue>> },
    Range(RangeResponse),
    Txn(TxnResponse),
}

/// What to watch, and from where.
#[derive(Clone, Debug, Default)]
pub struct WatchRequest {
    pub range: KeyRange,
    /// The first revision whose events are wanted; 0 = only what comes after now.
    pub start_revision: Revision,
}

/// One change of one key. Always carries the value before, where there was one and it is not compacted.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventKind,
    /// For a deletion: the key, the revision of the deletion as `mod_revision`, and an empty value.
    pub kv: Arc<KeyValue>,
    pub prev: Option<Arc<KeyValue>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// Events of one or several whole revisions, in order. A revision is never split between two batches.
#[derive(Clone, Debug, Default)]
pub struct WatchBatch {
    /// Everything up to and with this revision has been delivered on this watch.
    pub revision: Revision,
    /// Empty when the batch only says how far the watch has come.
    pub events: Vec<Arc<Event>>,
}

/// What this member knows of the group.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Leadership {
    pub term: Term,
    /// None while there is no known leader.
    pub leader: Option<MemberId>,
    pub this: MemberId,
}

impl Leadership {
    pub fn is_leader(&self) -> bool {
        self.leader == Some(self.this)
    }
}

/// A member of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub id: MemberId,
    pub name: String,
    /// `host:port` of its peer listener.
    pub peer_addr: String,
    /// What the server above the store wants its peers to know (its API address); opaque here.
    pub client_addr: String,
    /// It stays without a vote until it is promoted. Any other new member gets its vote when it has caught up.
    pub learner: bool,
    /// By which key it is known (the hash of its certificate's public key); empty where keys stand for nobody.
    pub key_hash: String,
}

/// A lease as the log knows it. How much of its time is left is the leader's to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: LeaseId,
    /// Seconds.
    pub ttl_s: i64,
}

/// The time that a lease has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTime {
    pub left_ms: i64,
    /// Seconds, as granted.
    pub granted_s: i64,
}

/// A state that a member raised and that holds for the group until it is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    pub member: MemberId,
    pub kind: AlarmKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// Only deletes, reads and compaction are accepted.
    NoSpace,
    Corrupt,
}

/// How a member is doing.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub leadership: Leadership,
    /// Agreed on, as far as this member knows.
    pub committed_index: u64,
    pub applied_index: u64,
    pub revision: Revision,
    pub compacted: Revision,
    /// Keys and values of all versions, in bytes.
    pub size_bytes: usize,
    pub quota_bytes: usize,
    pub learner: bool,
    pub alarms: Vec<Alarm>,
}
