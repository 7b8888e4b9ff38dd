//! Membership changes: the older form seen as the newer one, and when a change must be joint.

use crate::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// One step of a membership change.
pub fn new_conf_change_single(node_id: u64, change: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle { node_id, change_type: change as i32 }
}

/// Both forms of a membership change, read as the newer one.
pub trait ConfChangeI {
    fn into_v2(self) -> ConfChangeV2;
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;
    /// The older form, where that is what this is; the newer one never turns back.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(self) -> ConfChangeV2 {
        let step = new_conf_change_single(self.node_id, self.get_change_type());
        ConfChangeV2 { changes: vec![step], context: self.context, ..Default::default() }
    }
    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }
    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }
    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }
    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// `Some(leave automatically)` where this change goes through a joint configuration: it has more than one
    /// step, or asks for it.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.get_transition() {
            ConfChangeTransition::Auto if self.changes.len() <= 1 => None,
            ConfChangeTransition::Explicit => Some(false),
            _ => Some(true),
        }
    }

    /// An empty change ends a joint configuration.
    pub fn leave_joint(&self) -> bool {
        self.get_transition() == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}

/// Whether two memberships are the same, whatever the order in which they list their members.
#[must_use]
pub fn conf_state_eq(a: &ConfState, b: &ConfState) -> bool {
    let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
    set(&a.voters) == set(&b.voters)
        && set(&a.learners) == set(&b.learners)
        && set(&a.voters_outgoing) == set(&b.voters_outgoing)
        && set(&a.learners_next) == set(&b.learners_next)
        && a.auto_leave == b.auto_leave
}
