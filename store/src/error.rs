//! Why the store did not do what it was asked.

use crate::types::{MemberId, Revision, Term};

/// Why a request was not carried out. Only [`Error::Unknown`] leaves open whether it was.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("revision {asked} has been compacted; the oldest readable revision is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("revision {asked} is in the future; the store is at {current}")]
    Future { asked: Revision, current: Revision },
    #[error("this work began in term {fence}, but the store is in term {term}: another leader took over")]
    Fenced { fence: Term, term: Term },
    #[error("the store has no leader (quorum lost or an election is running); try again")]
    NoLeader,
    #[error("the request was sent, but its outcome is unknown: {0}")]
    Unknown(String),
    #[error("key not found: {0}")]
    KeyNotFound(String),
    #[error("a transaction may change a key only once: {0}")]
    DuplicateKey(String),
    #[error("the request of {size} bytes is over the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("the store is out of space: only deletes and compaction are accepted")]
    NoSpace,
    #[error("member {id:x}: {problem}")]
    Member { id: MemberId, problem: String },
    #[error("the store is shutting down")]
    Stopped,
    #[error("this replica has stopped: {0}")]
    Failed(String),
}

/// Why a watch ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    #[error("revision {asked} has been compacted; the oldest readable revision is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("the watcher fell behind and its queue is full; start again after revision {delivered}")]
    Lagged { delivered: Revision },
    #[error("the store stopped")]
    Stopped,
}
