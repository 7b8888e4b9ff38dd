//! The message types of the `raft` crate, on prost 0.14.
//!
//! The published `raft-proto` runs a system protoc while it builds, which a fresh machine does not have. This crate
//! takes its place (`[patch.crates-io]` in the workspace) with the same messages, field for field, and the same
//! few helpers; `raft` itself is used as published.

mod confchange;
pub mod eraftpb;

pub use confchange::{ConfChangeI, conf_state_eq, new_conf_change_single};

pub mod prelude {
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
        HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}

pub mod util {
    use crate::eraftpb::ConfState;

    impl<V: IntoIterator<Item = u64>, L: IntoIterator<Item = u64>> From<(V, L)> for ConfState {
        fn from((voters, learners): (V, L)) -> Self {
            ConfState {
                voters: voters.into_iter().collect(),
                learners: learners.into_iter().collect(),
                ..Default::default()
            }
        }
    }
}
