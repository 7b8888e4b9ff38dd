//! The messages of Raft as prost types, with the accessors that the `raft` crate calls.
//!
//! Field numbers are those of the crate's eraftpb.proto, so that the bytes are the same. The two macros at the
//! end give each message the getters and setters of rust-protobuf's generated code, and the few methods of its
//! `Message` trait that the crate uses, carried out by prost.

use bytes::Bytes;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum EntryType {
    EntryNormal = 0,
    EntryConfChange = 1,
    EntryConfChangeV2 = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MessageType {
    MsgHup = 0,
    MsgBeat = 1,
    MsgPropose = 2,
    MsgAppend = 3,
    MsgAppendResponse = 4,
    MsgRequestVote = 5,
    MsgRequestVoteResponse = 6,
    MsgSnapshot = 7,
    MsgHeartbeat = 8,
    MsgHeartbeatResponse = 9,
    MsgUnreachable = 10,
    MsgSnapStatus = 11,
    MsgCheckQuorum = 12,
    MsgTransferLeader = 13,
    MsgTimeoutNow = 14,
    MsgReadIndex = 15,
    MsgReadIndexResp = 16,
    MsgRequestPreVote = 17,
    MsgRequestPreVoteResponse = 18,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeTransition {
    Auto = 0,
    Implicit = 1,
    Explicit = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeType {
    AddNode = 0,
    RemoveNode = 1,
    AddLearnerNode = 2,
}

/// One slot of the Raft log. `data` is the command, or an encoded configuration change.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    #[prost(enumeration = "EntryType", tag = "1")]
    pub entry_type: i32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    #[prost(bytes = "bytes", tag = "6")]
    pub context: Bytes,
    #[prost(bool, tag = "5")]
    pub sync_log: bool,
}

/// Where in the log a snapshot stands, and the membership at that point.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotMetadata {
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

/// A state that replaces a prefix of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Snapshot {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

/// Everything one member says to another; which fields count depends on `msg_type`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    #[prost(enumeration = "MessageType", tag = "1")]
    pub msg_type: i32,
    #[prost(uint64, tag = "2")]
    pub to: u64,
    #[prost(uint64, tag = "3")]
    pub from: u64,
    #[prost(uint64, tag = "4")]
    pub term: u64,
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    #[prost(uint64, tag = "6")]
    pub index: u64,
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<Entry>,
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    #[prost(uint64, tag = "15")]
    pub commit_term: u64,
    #[prost(message, optional, tag = "9")]
    pub snapshot: Option<Snapshot>,
    #[prost(uint64, tag = "13")]
    pub request_snapshot: u64,
    #[prost(bool, tag = "10")]
    pub reject: bool,
    #[prost(uint64, tag = "11")]
    pub reject_hint: u64,
    #[prost(bytes = "bytes", tag = "12")]
    pub context: Bytes,
    #[prost(uint64, tag = "14")]
    pub deprecated_priority: u64,
    #[prost(int64, tag = "16")]
    pub priority: i64,
}

/// What a member must have on disk before it speaks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HardState {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

/// The membership: voters and learners, and the outgoing halves while a change is joint.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfState {
    #[prost(uint64, repeated, tag = "1")]
    pub voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    pub learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    pub learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    pub auto_leave: bool,
}

/// A change of one member (the older form).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfChange {
    #[prost(enumeration = "ConfChangeType", tag = "2")]
    pub change_type: i32,
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub context: Bytes,
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// One step of a `ConfChangeV2`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfChangeSingle {
    #[prost(enumeration = "ConfChangeType", tag = "1")]
    pub change_type: i32,
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
}

/// A change of any number of members, by joint consensus when more than one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfChangeV2 {
    #[prost(enumeration = "ConfChangeTransition", tag = "1")]
    pub transition: i32,
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}

/// Accessors in the shape of rust-protobuf's generated code, a line a field.
macro_rules! accessors {
    ($name:ident { $($kind:ident $get:ident $set:ident $take:ident $field:ident : $ty:ty;)* }) => {
        impl $name {
            $(accessors!(@ $kind $get $set $take $field $ty);)*
        }
        legacy_message!($name);
    };
    (@ copy $get:ident $set:ident $take:ident $field:ident $ty:ty) => {
        pub fn $get(&self) -> $ty { self.$field }
        pub fn $set(&mut self, v: $ty) { self.$field = v; }
    };
    (@ choice $get:ident $set:ident $take:ident $field:ident $ty:ty) => {
        /// An unknown number (from a newer member) reads as the first value, as proto3 says.
        pub fn $get(&self) -> $ty {
            <$ty>::try_from(self.$field).unwrap_or(<$ty>::default())
        }
    };
    (@ list $get:ident $set:ident $take:ident $field:ident $ty:ty) => {
        pub fn $get(&self) -> &[$ty] {
            &self.$field
        }
        pub fn $set(&mut self, v: Vec<$ty>) {
            self.$field = v;
        }
        pub fn $take(&mut self) -> Vec<$ty> {
            std::mem::take(&mut self.$field)
        }
    };
    (@ blob $get:ident $set:ident $take:ident $field:ident $ty:ty) => {
        pub fn $get(&self) -> &[u8] { &self.$field }
        pub fn $set(&mut self, v: Bytes) { self.$field = v; }
        pub fn $take(&mut self) -> Bytes { std::mem::take(&mut self.$field) }
    };
    (@ nested $get:ident $set:ident $take:ident $field:ident $ty:ty) => {
        pub fn $get(&self) -> &$ty {
            static DEFAULT: std::sync::LazyLock<$ty> = std::sync::LazyLock::new(<$ty>::default);
            self.$field.as_ref().unwrap_or_else(|| &DEFAULT)
        }
        pub fn $set(&mut self, v: $ty) { self.$field = Some(v); }
        pub fn $take(&mut self) -> $ty { self.$field.take().unwrap_or_default() }
    };
}

/// The part of rust-protobuf's `Message` that the `raft` crate calls: sizes, and bytes in and out.
/// Its reflection and stream methods have no caller, and say so.
macro_rules! legacy_message {
    ($name:ident) => {
        impl protobuf::Clear for $name {
            fn clear(&mut self) {
                prost::Message::clear(self)
            }
        }
        impl protobuf::Message for $name {
            fn compute_size(&self) -> u32 {
                prost::Message::encoded_len(self) as u32
            }
            fn get_cached_size(&self) -> u32 {
                prost::Message::encoded_len(self) as u32
            }
            fn is_initialized(&self) -> bool {
                true
            }
            fn merge_from_bytes(&mut self, bytes: &[u8]) -> protobuf::ProtobufResult<()> {
                prost::Message::merge(self, bytes)
                    .map_err(|e| protobuf::ProtobufError::IoError(std::io::Error::other(e)))
            }
            fn write_to_bytes(&self) -> protobuf::ProtobufResult<Vec<u8>> {
                Ok(prost::Message::encode_to_vec(self))
            }
            fn new() -> Self {
                Self::default()
            }
            fn descriptor(&self) -> &'static protobuf::reflect::MessageDescriptor {
                no_reflection()
            }
            fn merge_from(&mut self, _: &mut protobuf::CodedInputStream) -> protobuf::ProtobufResult<()> {
                no_reflection()
            }
            fn write_to_with_cached_sizes(&self, _: &mut protobuf::CodedOutputStream) -> protobuf::ProtobufResult<()> {
                no_reflection()
            }
            fn get_unknown_fields(&self) -> &protobuf::UnknownFields {
                no_reflection()
            }
            fn mut_unknown_fields(&mut self) -> &mut protobuf::UnknownFields {
                no_reflection()
            }
            fn as_any(&self) -> &dyn std::any::Any {
                self
            }
            fn default_instance() -> &'static Self {
                static DEFAULT: std::sync::LazyLock<$name> = std::sync::LazyLock::new($name::default);
                &DEFAULT
            }
        }
    };
}

fn no_reflection() -> ! {
    unreachable!("rust-protobuf's streams and reflection are not used by the raft crate")
}

accessors!(Entry {
    choice get_entry_type set_entry_type take_entry_type entry_type: EntryType;
    copy get_term set_term take_term term: u64;
    copy get_index set_index take_index index: u64;
    blob get_data set_data take_data data: Bytes;
    blob get_context set_context take_context context: Bytes;
    copy get_sync_log set_sync_log take_sync_log sync_log: bool;
});
accessors!(SnapshotMetadata {
    nested get_conf_state set_conf_state take_conf_state conf_state: ConfState;
    copy get_index set_index take_index index: u64;
    copy get_term set_term take_term term: u64;
});
accessors!(Snapshot {
    blob get_data set_data take_data data: Bytes;
    nested get_metadata set_metadata take_metadata metadata: SnapshotMetadata;
});
accessors!(Message {
    choice get_msg_type set_msg_type take_msg_type msg_type: MessageType;
    copy get_to set_to take_to to: u64;
    copy get_from set_from take_from from: u64;
    copy get_term set_term take_term term: u64;
    copy get_log_term set_log_term take_log_term log_term: u64;
    copy get_index set_index take_index index: u64;
    list get_entries set_entries take_entries entries: Entry;
    copy get_commit set_commit take_commit commit: u64;
    copy get_commit_term set_commit_term take_commit_term commit_term: u64;
    nested get_snapshot set_snapshot take_snapshot snapshot: Snapshot;
    copy get_request_snapshot set_request_snapshot take_request_snapshot request_snapshot: u64;
    copy get_reject set_reject take_reject reject: bool;
    copy get_reject_hint set_reject_hint take_reject_hint reject_hint: u64;
    blob get_context set_context take_context context: Bytes;
    copy get_deprecated_priority set_deprecated_priority take_deprecated_priority deprecated_priority: u64;
    copy get_priority set_priority take_priority priority: i64;
});
accessors!(HardState {
    copy get_term set_term take_term term: u64;
    copy get_vote set_vote take_vote vote: u64;
    copy get_commit set_commit take_commit commit: u64;
});
accessors!(ConfState {
    list get_voters set_voters take_voters voters: u64;
    list get_learners set_learners take_learners learners: u64;
    list get_voters_outgoing set_voters_outgoing take_voters_outgoing voters_outgoing: u64;
    list get_learners_next set_learners_next take_learners_next learners_next: u64;
    copy get_auto_leave set_auto_leave take_auto_leave auto_leave: bool;
});
accessors!(ConfChange {
    choice get_change_type set_change_type take_change_type change_type: ConfChangeType;
    copy get_node_id set_node_id take_node_id node_id: u64;
    blob get_context set_context take_context context: Bytes;
    copy get_id set_id take_id id: u64;
});
accessors!(ConfChangeSingle {
    choice get_change_type set_change_type take_change_type change_type: ConfChangeType;
    copy get_node_id set_node_id take_node_id node_id: u64;
});
accessors!(ConfChangeV2 {
    choice get_transition set_transition take_transition transition: ConfChangeTransition;
    list get_changes set_changes take_changes changes: ConfChangeSingle;
    blob get_context set_context take_context context: Bytes;
});

// `mut_` accessors and predicates: macros cannot join identifiers, so these few are written out.
impl SnapshotMetadata {
    pub fn has_conf_state(&self) -> bool {
        self.conf_state.is_some()
    }
    pub fn mut_conf_state(&mut self) -> &mut ConfState {
        self.conf_state.get_or_insert_with(Default::default)
    }
}

impl Snapshot {
    pub fn has_metadata(&self) -> bool {
        self.metadata.is_some()
    }
    pub fn mut_metadata(&mut self) -> &mut SnapshotMetadata {
        self.metadata.get_or_insert_with(Default::default)
    }
    /// A snapshot at index 0 is no snapshot.
    pub fn is_empty(&self) -> bool {
        self.get_metadata().index == 0
    }
}

impl Message {
    pub fn mut_entries(&mut self) -> &mut Vec<Entry> {
        &mut self.entries
    }
    pub fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }
    pub fn mut_snapshot(&mut self) -> &mut Snapshot {
        self.snapshot.get_or_insert_with(Default::default)
    }
}

impl ConfState {
    pub fn mut_voters(&mut self) -> &mut Vec<u64> {
        &mut self.voters
    }
    pub fn mut_learners(&mut self) -> &mut Vec<u64> {
        &mut self.learners
    }
    pub fn mut_voters_outgoing(&mut self) -> &mut Vec<u64> {
        &mut self.voters_outgoing
    }
    pub fn mut_learners_next(&mut self) -> &mut Vec<u64> {
        &mut self.learners_next
    }
}

impl ConfChangeV2 {
    pub fn mut_changes(&mut self) -> &mut Vec<ConfChangeSingle> {
        &mut self.changes
    }
}
