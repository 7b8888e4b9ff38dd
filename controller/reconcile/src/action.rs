//! What a plan is made of, and what it is made from.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::Value;
use skiff_api::view::{Key, Resource, View};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// One write. Each goes through the API like anybody's.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `announce`: an event once it is there; the name that it got is put behind the message.
    Create {
        resource: Resource,
        object: Value,
        announce: Option<EventNote>,
    },
    /// The whole object with its resourceVersion: refused if somebody was faster, and then planned anew.
    Update {
        resource: Resource,
        object: Value,
        subresource: Option<&'static str>,
    },
    /// A merge patch.
    Patch {
        resource: Resource,
        key: Key,
        subresource: Option<&'static str>,
        patch: Value,
    },
    Delete {
        resource: Resource,
        key: Key,
        uid: String,
        /// Where the decision rests on what the object says: it fails if somebody has written meanwhile.
        resource_version: Option<String>,
        propagation: Option<&'static str>,
        grace_seconds: Option<i64>,
    },
    /// A Secret that gets a token of an account, good for as long as both are there; then as [`Action::Update`].
    Sign {
        object: Value,
        account: String,
        account_uid: String,
    },
    /// PUT of a namespace's `finalize`.
    Finalize {
        object: Value,
    },
    Event(EventNote),
}

/// An event about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct EventNote {
    pub resource: Resource,
    pub kind: Cow<'static, str>,
    pub key: Key,
    pub uid: String,
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// The next writes for a key, and when to look again though nothing has changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub again_at: Option<Timestamp>,
}

impl Plan {
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }
    /// Looks again at `at`, or sooner.
    pub fn again(&mut self, at: Timestamp) {
        self.again_at = Some(self.again_at.map_or(at, |t| t.min(at)));
    }
}

/// What every plan may read.
pub struct Context<'a> {
    pub view: &'a View,
    pub now: Timestamp,
    pub settings: &'a Settings,
    pub liveness: &'a Liveness,
}

/// What the operator sets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's CA, PEM: goes into every namespace's `kube-root-ca.crt`.
    pub ca: String,
    /// How long a lost node keeps its pods before they are replaced, milliseconds.
    pub eviction_grace_ms: i64,
    /// Where pods' addresses come from, a /24 for each node: base and length of the prefix (at most 24).
    pub cluster_cidr: (std::net::Ipv4Addr, u8),
    /// How long events are kept, seconds.
    pub event_ttl_seconds: i64,
}

/// Whether a node has been heard of, as the leader counts it.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeLiveness {
    Live,
    /// Silent, and suspected, since then.
    Lost {
        since: Timestamp,
    },
}

/// What the leader knows of all nodes' heartbeats. A node that is not listed has never been heard of by this leader.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Liveness(pub BTreeMap<String, NodeLiveness>);

impl Liveness {
    pub fn lost_since(&self, node: &str) -> Option<Timestamp> {
        match self.0.get(node) {
            Some(NodeLiveness::Lost { since }) => Some(*since),
            _ => None,
        }
    }

    /// What is known next, after this: `lost` says of every node whether its silence is too long now.
    ///
    /// A silence keeps the time at which it was noticed. When so many nodes were silent that nothing was moved, and no longer are, those that still are count
    /// from now: the fault was elsewhere, and they get their whole grace to come back too.
    pub fn next(&self, lost: impl IntoIterator<Item = (String, bool)>, now: Timestamp) -> Liveness {
        let state = |(name, lost): (String, bool)| {
            let state = match (lost, self.0.get(&name)) {
                (false, _) => NodeLiveness::Live,
                (true, Some(known @ NodeLiveness::Lost { .. })) => known.clone(),
                (true, _) => NodeLiveness::Lost { since: now },
            };
            (name, state)
        };
        let mut next = Liveness(lost.into_iter().map(state).collect());
        if self.is_partitioned() && !next.is_partitioned() {
            for state in next.0.values_mut() {
                if let NodeLiveness::Lost { since } = state {
                    *since = now;
                }
            }
        }
        next
    }

    /// More than half of the nodes are silent: then it is more likely that this server is cut off than that they are all dead, and
    /// nothing is moved.
    pub fn is_partitioned(&self) -> bool {
        let lost = self.0.values().filter(|l| matches!(l, NodeLiveness::Lost { .. })).count();
        lost * 2 > self.0.len()
    }
}

pub(crate) fn value(object: &impl Serialize) -> Value {
    // Kubernetes' types serialize to JSON without fail: they hold no maps with other keys than strings.
    serde_json::to_value(object).unwrap_or(Value::Null)
}

pub(crate) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_counts_from_when_it_was_noticed_and_anew_after_a_partition() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let step = |known: &Liveness, lost: [bool; 3], second| {
            known.next((0..3).map(|n| (format!("n{n}"), lost[n])), at(second))
        };
        let since = |liveness: &Liveness, n: usize| liveness.lost_since(&format!("n{n}")).map(|t| t.as_second());
        let one = step(&Liveness::default(), [true, false, false], 10);
        assert_eq!(since(&step(&one, [true, false, false], 11), 0), Some(10));
        let two = step(&one, [true, true, false], 12);
        assert!(two.is_partitioned());
        assert_eq!((since(&two, 0), since(&two, 1)), (Some(10), Some(12)));
        let over = step(&two, [true, false, false], 50);
        assert_eq!((since(&over, 0), since(&over, 1)), (Some(50), None));
        assert_eq!(since(&step(&over, [false, false, false], 51), 0), None);
    }
}
