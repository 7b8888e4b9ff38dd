//! Counts the leases' time, on the leader only and in its memory.
//!
//! Renewals are not written to the log, so a new leader does not know when the last one was: it gives every lease its full time
//! again. A lease may therefore live longer than it was granted, never shorter. What is due is proposed for its end; only
//! when that is applied is the lease gone. Time comes in as a number (see `clock`).

use crate::machine::LeaseNews;
use crate::types::*;
use std::collections::{BTreeSet, HashMap};

/// The leases' deadlines.
#[derive(Default)]
pub struct Lessor {
    /// The term that this member counts for; 0 = it does not.
    term: Term,
    leases: HashMap<LeaseId, Counted>,
    by_deadline: BTreeSet<(u64, LeaseId)>,
}

struct Counted {
    ttl_s: i64,
    deadline_ms: u64,
}

impl Lessor {
    /// The term that is counted for; None while this member does not.
    pub fn term(&self) -> Option<Term> {
        (self.term != 0).then_some(self.term)
    }

    /// Begins to count: every lease has its full time from now.
    pub fn lead(&mut self, term: Term, leases: impl Iterator<Item = Lease>, now_ms: u64) {
        self.stop();
        self.term = term;
        let early_ms = if bug!("new_leader_counts_leases_from_before") { 1_500 } else { 0 };
        leases.for_each(|lease| self.set(lease, now_ms.saturating_sub(early_ms)));
    }

    /// Another member counts, or nobody does.
    pub fn stop(&mut self) {
        *self = Lessor::default();
    }

    /// A lease was granted or has ended.
    pub fn heard(&mut self, news: LeaseNews, now_ms: u64) {
        match news {
            _ if self.term == 0 => {}
            LeaseNews::Granted(lease) => self.set(lease, now_ms),
            LeaseNews::Ended(id) => self.remove(id),
        }
    }

    fn set(&mut self, lease: Lease, now_ms: u64) {
        self.remove(lease.id);
        let deadline_ms = now_ms.saturating_add((lease.ttl_s.max(0) as u64).saturating_mul(1000));
        self.leases.insert(lease.id, Counted { ttl_s: lease.ttl_s, deadline_ms });
        self.by_deadline.insert((deadline_ms, lease.id));
    }

    fn remove(&mut self, id: LeaseId) {
        if let Some(counted) = self.leases.remove(&id) {
            self.by_deadline.remove(&(counted.deadline_ms, id));
        }
    }

    /// Begins a lease's time anew. None if there is no such lease or its time is up: its end is being proposed.
    pub fn renew(&mut self, id: LeaseId, now_ms: u64) -> Option<LeaseTime> {
        let counted = self.leases.get(&id).filter(|c| c.deadline_ms > now_ms)?;
        let ttl_s = counted.ttl_s;
        self.set(Lease { id, ttl_s }, now_ms);
        Some(LeaseTime { left_ms: ttl_s.saturating_mul(1000), granted_s: ttl_s })
    }

    /// What a lease has left; 0 once its time is up.
    pub fn left(&self, id: LeaseId, now_ms: u64) -> Option<LeaseTime> {
        let counted = self.leases.get(&id)?;
        let left_ms = counted.deadline_ms.saturating_sub(now_ms).min(i64::MAX as u64) as i64;
        Some(LeaseTime { left_ms, granted_s: counted.ttl_s })
    }

    /// Up to `max` leases whose time is up, the longest overdue first.
    pub fn due(&self, now_ms: u64, max: usize) -> Vec<LeaseId> {
        self.by_deadline.iter().take_while(|(at, _)| *at <= now_ms).take(max).map(|(_, id)| *id).collect()
    }

    /// When the next lease is due.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.by_deadline.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: LeaseId, ttl_s: i64) -> Lease {
        Lease { id, ttl_s }
    }

    #[test]
    fn leases_are_due_after_their_time_and_renewals_put_that_off() {
        let mut lessor = Lessor::default();
        lessor.heard(LeaseNews::Granted(lease(1, 5)), 0);
        assert_eq!(lessor.due(u64::MAX, 9), [0; 0], "who does not lead does not count");
        lessor.lead(3, [lease(1, 5), lease(2, 10)].into_iter(), 1_000);
        lessor.heard(LeaseNews::Granted(lease(3, 1)), 2_000);
        assert_eq!(lessor.due(2_999, 9), [0; 0]);
        assert_eq!(lessor.due(3_000, 9), [3]);
        assert!(lessor.renew(3, 3_000).is_none(), "too late: its end is being proposed");
        assert_eq!(lessor.renew(1, 5_999), Some(LeaseTime { left_ms: 5_000, granted_s: 5 }));
        assert_eq!(lessor.due(10_998, 9), [3]);
        assert_eq!(lessor.due(11_000, 9), [3, 1, 2]);
        assert_eq!(lessor.due(11_000, 2), [3, 1]);
        lessor.heard(LeaseNews::Ended(3), 11_000);
        assert_eq!(lessor.left(3, 11_000), None);
        assert_eq!(lessor.left(2, 4_000), Some(LeaseTime { left_ms: 7_000, granted_s: 10 }));
        assert_eq!(lessor.next_due_ms(), Some(10_999));
    }

    #[test]
    fn a_new_leader_gives_every_lease_its_full_time() {
        let mut lessor = Lessor::default();
        lessor.lead(3, [lease(1, 5)].into_iter(), 0);
        lessor.stop();
        lessor.lead(4, [lease(1, 5)].into_iter(), 4_000);
        assert_eq!(lessor.due(8_999, 9), [0; 0]);
        assert_eq!(lessor.due(9_000, 9), [1]);
    }
}
