//! What clients did and what they were told, with the times of both.

use crate::linear::{Event, State, Step};
use std::collections::HashMap;
use std::time::Instant;

/// The two keys that are only ever written together.
pub const BOTH: [&str; 2] = ["p/a", "p/b"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Get {
        serializable: bool,
    },
    Put {
        value: u64,
    },
    /// Puts `value` if `expected` is there.
    Swap {
        expected: State,
        value: u64,
    },
    Delete,
    /// Both keys of [`BOTH`] in one transaction, and both in one range.
    PutBoth {
        value: u64,
    },
    GetBoth {
        serializable: bool,
    },
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The header's.
    pub revision: u64,
    /// What was there of the keys that were read: (value, mod revision).
    pub found: Vec<Option<(u64, u64)>>,
    /// What a write says it found; the outer None: it was not asked.
    pub before: Option<State>,
    /// Whether something was changed.
    pub changed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(Done),
    /// It was not carried out, and never will be.
    Refused,
    Unknown,
}

/// One operation. Times are nanoseconds of the run's clock.
#[derive(Clone, Debug)]
pub struct Operation {
    pub key: String,
    pub kind: Kind,
    pub call: u64,
    pub end: u64,
    pub outcome: Outcome,
    /// Who was asked, for messages.
    pub member: String,
}

/// The clock that all clients of a run share.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn new() -> Clock {
        Clock(Instant::now())
    }

    pub fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

impl Operation {
    pub fn keys(&self) -> Vec<&str> {
        match self.kind {
            Kind::PutBoth { .. } | Kind::GetBoth { .. } => BOTH.to_vec(),
            _ => vec![&self.key],
        }
    }

    pub fn value(&self) -> Option<u64> {
        match self.kind {
            Kind::Put { value } | Kind::Swap { value, .. } | Kind::PutBoth { value } => Some(value),
            _ => None,
        }
    }

    pub fn is_serializable(&self) -> bool {
        matches!(self.kind, Kind::Get { serializable: true } | Kind::GetBoth { serializable: true })
    }

    /// The same for the checker of registers; None if it has nothing to say of them.
    fn step(&self) -> Option<Step> {
        let found = |done: &Done| done.found.first().copied().flatten().map(|(value, _)| value);
        let step = match (&self.outcome, self.kind) {
            (Outcome::Refused, _) | (_, Kind::PutBoth { .. } | Kind::GetBoth { .. }) => return None,
            (_, Kind::Get { serializable: true }) | (Outcome::Unknown, Kind::Get { .. }) => return None,
            (Outcome::Unknown, Kind::Put { value }) => Step::Write { value, before: None },
            (Outcome::Unknown, Kind::Delete) => Step::Delete { before: None },
            (Outcome::Unknown, Kind::Swap { expected, value }) => Step::MaybeSwapped { expected, value },
            (Outcome::Done(done), Kind::Get { .. }) => Step::Read(found(done)),
            (Outcome::Done(done), Kind::Put { value }) => Step::Write { value, before: done.before },
            (Outcome::Done(done), Kind::Delete) => Step::Delete { before: done.before },
            (Outcome::Done(Done { changed: true, .. }), Kind::Swap { expected, value }) => {
                Step::Swapped { expected, value }
            }
            (Outcome::Done(done), Kind::Swap { expected, .. }) => Step::NotSwapped { expected, found: found(done) },
        };
        Some(step)
    }
}

/// Operations on registers by key, for the checker.
pub fn by_key(operations: &[Operation]) -> HashMap<String, Vec<Event>> {
    let mut keys: HashMap<String, Vec<Event>> = HashMap::new();
    for operation in operations {
        let Some(step) = operation.step() else { continue };
        let end = (operation.outcome != Outcome::Unknown).then_some(operation.end);
        keys.entry(operation.key.clone()).or_default().push(Event { call: operation.call, end, step });
    }
    keys
}
