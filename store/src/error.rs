//! Why the store did not do what it was asked.

use crate::types::{LeaseId, MemberId, Revision, Term};

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
    #[error("there is no lease {0:x}")]
    LeaseNotFound(LeaseId),
    #[error("lease {0:x} exists already")]
    LeaseExists(LeaseId),
    #[error("member {id:x}: {problem}")]
    Member { id: MemberId, code: MemberCode, problem: String },
    #[error("this member does not lead")]
    NotLeader,
    #[error("the store is shutting down")]
    Stopped,
    #[error("this replica has stopped: {0}")]
    Failed(String),
}

/// What is wrong with a change of membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberCode {
    NotFound,
    AddressTaken,
    NameTaken,
    BadAddress,
    NotLearner,
    NotInSync,
    /// The group would be left without a majority that runs.
    NotEnoughStarted,
    BadTransferee,
    /// It was not agreed on in time.
    Undecided,
}

impl MemberCode {
    const ALL: [(MemberCode, &str); 9] = [
        (MemberCode::NotFound, "not-found"),
        (MemberCode::AddressTaken, "address-taken"),
        (MemberCode::NameTaken, "name-taken"),
        (MemberCode::BadAddress, "bad-address"),
        (MemberCode::NotLearner, "not-learner"),
        (MemberCode::NotInSync, "not-in-sync"),
        (MemberCode::NotEnoughStarted, "not-enough-started"),
        (MemberCode::BadTransferee, "bad-transferee"),
        (MemberCode::Undecided, "undecided"),
    ];

    /// The word for it between members.
    pub(crate) fn word(self) -> &'static str {
        Self::ALL.iter().find(|(code, _)| *code == self).map_or("undecided", |(_, word)| word)
    }

    pub(crate) fn from_word(word: &str) -> Self {
        Self::ALL.iter().find(|(_, w)| *w == word).map_or(MemberCode::Undecided, |(code, _)| *code)
    }
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
