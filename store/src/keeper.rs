//! What the leader does so that the store stays healthy by itself: ends leases whose time is up, drops old history, watches the
//! quota, and leaves its office to another when its disk is full.

use crate::command::Kind;
use crate::config::Limits;
use crate::driver::lock;
use crate::error::Error;
use crate::replica::{Progress, foremost};
use crate::store::Store;
use crate::types::*;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

const COMPACT_EVERY: Duration = Duration::from_secs(5);
/// Leases whose end is proposed at once.
const ENDS_AT_ONCE: usize = 256;
/// How long an end that failed waits for another attempt.
const ENDS_AGAIN: Duration = Duration::from_millis(200);
/// How often a leader looks whether its disk is full.
const ROOM_EVERY: Duration = Duration::from_secs(1);
/// How long a leader with a full disk waits before it asks the others again to take over, when none could; twice as long each time.
const HEIRS_AGAIN: Duration = Duration::from_secs(30);
const HEIRS_AGAIN_MAX: Duration = Duration::from_secs(300);
/// Entries that a voter may lack to be asked: it must get them before it can lead.
const HEIR_BEHIND_MAX: u64 = 1000;
/// An alarm about space ends by itself when this much of the quota, in percent, is used.
const QUOTA_EASED_PERCENT: usize = 90;

/// Counts the leases' time while this member leads, and proposes the end of those whose time is up.
pub async fn count_leases(store: Store) {
    let shared = store.shared().clone();
    let mut stopped = store.stopped();
    let mut leadership = store.leadership();
    loop {
        let now = leadership.borrow_and_update().clone();
        let counting = lock(&shared.lessor).term();
        if !now.is_leader() {
            lock(&shared.lessor).stop();
            tokio::select! {
                _ = stopped.wait_for(|s| *s) => return,
                _ = leadership.changed() => continue,
            }
        }
        if counting != Some(now.term) {
            // Whatever earlier leaders granted is applied first.
            if store.barrier().await.is_err() || store.term() != now.term {
                continue;
            }
            let machine = shared.look();
            lock(&shared.lessor).lead(now.term, machine.kv.leases(), shared.clock.now_ms());
        }
        let now_ms = shared.clock.now_ms();
        let (due, next) = {
            let lessor = lock(&shared.lessor);
            (lessor.due(now_ms, ENDS_AT_ONCE), lessor.next_due_ms())
        };
        if !due.is_empty() {
            let ends: Vec<_> = due
                .into_iter()
                .map(|id| {
                    let store = store.clone();
                    let term = now.term;
                    tokio::spawn(async move { store.submit(term, Kind::LeaseRevoke(id)).await })
                })
                .collect();
            let mut failed = false;
            for end in ends {
                failed |= !matches!(end.await, Ok(Ok(_) | Err(Error::LeaseNotFound(_))));
            }
            if failed {
                tokio::time::sleep(ENDS_AGAIN).await;
            }
            continue;
        }
        let wait = next.map_or(Duration::from_secs(60), |at| Duration::from_millis(at.saturating_sub(now_ms).max(1)));
        tokio::select! {
            _ = stopped.wait_for(|s| *s) => return,
            _ = leadership.changed() => {}
            () = shared.lessor_changed.notified() => {}
            // The clock of deadlines counts suspends and that of timers does not: look again within a second or so.
            () = tokio::time::sleep(wait.min(Duration::from_millis(500))) => {}
        }
    }
}

/// Drops old history and keeps the alarm about space in step with the quota.
pub async fn keep_small(store: Store) {
    let mut stopped = store.stopped();
    let mut seen = History::default();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|s| *s) => return,
            () = tokio::time::sleep(COMPACT_EVERY) => {}
        }
        if !store.leadership().borrow().is_leader() {
            seen = History::default();
            continue;
        }
        let limits = store.limits();
        let (due, full, eased) = {
            let machine = store.shared().look();
            let kv = &machine.kv;
            let aged = seen.note(store.shared().clock.now_ms(), kv.revision(), limits.history_age);
            let due = compaction_due(limits, kv.revision(), kv.compacted(), kv.history_size(), aged);
            let quota = limits.quota_bytes;
            let full = quota > 0 && kv.size() > quota && !machine.is_full();
            let eased = machine.is_full() && (quota == 0 || kv.size() < quota / 100 * QUOTA_EASED_PERCENT);
            let eased: Vec<_> = match eased {
                true => machine.alarms.iter().filter(|a| a.kind == AlarmKind::NoSpace).copied().collect(),
                false => Vec::new(),
            };
            (due, full, eased)
        };
        if let Some(revision) = due {
            let _ = store.compact(revision, false).await;
        }
        if full {
            let _ = store.alarm(Alarm { member: store.id(), kind: AlarmKind::NoSpace }, true).await;
        }
        for alarm in eased {
            let _ = store.alarm(alarm, false).await;
        }
    }
}

/// Lets another voter lead while this member's disk is full: a group can do without one member's disk, but its leader refuses puts then.
/// A voter without room does not take over.
pub async fn leave_office_when_full(store: Store) {
    let mut stopped = store.stopped();
    let mut heirs = Heirs::default();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|s| *s) => return,
            () = tokio::time::sleep(ROOM_EVERY) => {}
        }
        let full = store.shared().disk_full.load(Ordering::Acquire);
        if !full || !store.leadership().borrow().is_leader() {
            heirs = Heirs::default();
            continue;
        }
        let committed = store.shared().committed_index.load(Ordering::Acquire);
        let now_ms = store.shared().clock.now_ms();
        let Some(heir) = heirs.next(&store.progress().await, store.id(), committed, now_ms) else { continue };
        match store.move_leader(heir).await {
            Ok(()) => tracing::info!("member {heir:x} leads now, because this one's disk is full"),
            Err(error) => {
                tracing::info!("this member's disk is full, but {heir:x} does not lead in its place: {error}")
            }
        }
    }
}

/// Who was asked to lead in the place of a leader whose disk is full.
#[derive(Default)]
struct Heirs {
    asked: BTreeSet<MemberId>,
    /// Since when there is nobody left to ask.
    idle_since_ms: Option<u64>,
    /// How often all were asked again.
    rounds: u32,
}

impl Heirs {
    /// Whom to ask next: of the voters that were not asked yet and have nearly all that is agreed on, the one with most of the log.
    fn next(&mut self, group: &[Progress], own: MemberId, committed: u64, now_ms: u64) -> Option<MemberId> {
        let wait = HEIRS_AGAIN_MAX.min(HEIRS_AGAIN * 2u32.saturating_pow(self.rounds));
        if self.idle_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= wait.as_millis() as u64) {
            *self = Heirs { rounds: self.rounds.saturating_add(1).min(16), ..Default::default() };
        }
        let can = |m: &Progress| m.votes && m.id != own && m.matched + HEIR_BEHIND_MAX >= committed;
        let heir = foremost(group, |m| can(m) && !self.asked.contains(&m.id));
        match heir {
            Some(heir) => drop(self.asked.insert(heir)),
            None => self.idle_since_ms = self.idle_since_ms.or(Some(now_ms)),
        }
        heir
    }
}

/// What the revision was when.
#[derive(Default)]
struct History {
    seen: VecDeque<(u64, Revision)>,
}

impl History {
    /// Notes the revision of now; gives the newest that is older than `age`.
    fn note(&mut self, now_ms: u64, revision: Revision, age: Option<Duration>) -> Option<Revision> {
        let age_ms = age?.as_millis() as u64;
        self.seen.push_back((now_ms, revision));
        let mut aged = None;
        while self.seen.front().is_some_and(|(at, _)| now_ms.saturating_sub(*at) >= age_ms) {
            aged = self.seen.pop_front().map(|(_, revision)| revision);
        }
        aged
    }
}

/// The revision to compact to, if there is more history than the limits ask for.
fn compaction_due(
    limits: Limits,
    revision: Revision,
    compacted: Revision,
    history_bytes: usize,
    aged: Option<Revision>,
) -> Option<Revision> {
    let keep =
        if history_bytes > limits.history_bytes { limits.history_revisions / 10 } else { limits.history_revisions }
            as u64;
    let held = revision - compacted;
    let by_count = (held > keep * 2).then(|| revision - keep);
    by_count.max(aged).filter(|at| *at > compacted)
}

impl Store {
    /// Refuses what brings new values while this member leads and its disk is full: the room that is left in the log is for deletions
    /// and compaction.
    pub(crate) fn check_disk(&self) -> Result<(), Error> {
        let full = self.shared().disk_full.load(Ordering::Acquire);
        if full && self.leadership().borrow().is_leader() { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// Refuses a transaction that would take the store over its quota, and raises the alarm that tells everyone so. What is
    /// over the quota already keeps the room to be deleted and compacted.
    pub(crate) async fn check_room(&self, txn: &Txn) -> Result<(), Error> {
        let quota = self.limits().quota_bytes;
        let (size, full) = {
            let machine = self.shared().look();
            (machine.kv.size(), machine.is_full())
        };
        if full {
            return Err(Error::NoSpace);
        }
        if size + put_bytes(txn) <= quota {
            return Ok(());
        }
        let _ = self.alarm(Alarm { member: self.id(), kind: AlarmKind::NoSpace }, true).await;
        Err(Error::NoSpace)
    }
}

fn put_bytes(txn: &Txn) -> usize {
    let of = |ops: &[Op]| -> usize {
        let bytes = ops.iter().map(|op| match op {
            Op::Put(put) => put.key.len() + put.value.len(),
            Op::Txn(nested) => put_bytes(nested),
            Op::Range(_) | Op::Delete(_) => 0,
        });
        bytes.sum()
    };
    of(&txn.success).max(of(&txn.failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_dropped_by_count_bytes_and_age() {
        let limits = Limits { history_revisions: 100, history_bytes: 1000, history_age: None, quota_bytes: 0 };
        let check = |revision, compacted, bytes, aged, expect| {
            assert_eq!(compaction_due(limits, revision, compacted, bytes, aged), expect);
        };
        check(200, 0, 0, None, None);
        check(201, 0, 0, None, Some(101));
        check(150, 0, 1001, None, Some(140));
        check(150, 0, 0, Some(70), Some(70));
        check(150, 70, 0, Some(70), None);
    }

    #[test]
    fn the_office_goes_to_who_can_hold_it() {
        let member = |id, matched, votes| Progress { id, matched, votes };
        let group = [member(1, 5000, true), member(2, 4900, true), member(3, 5000, true), member(4, 5000, false)];
        let mut heirs = Heirs::default();
        let mut check = |committed, now_s: u64, expect: Option<MemberId>| {
            assert_eq!(heirs.next(&group, 1, committed, now_s * 1000), expect, "{committed} {now_s}");
        };
        check(5000, 0, Some(3));
        // The other lacks too much, until it has caught up.
        check(5950, 1, None);
        check(5000, 2, Some(2));
        check(5000, 3, None);
        // All over again, after longer and longer.
        check(5000, 30, None);
        check(5000, 31, Some(3));
        check(5000, 32, Some(2));
        check(5000, 33, None);
        check(5000, 92, None);
        check(5000, 93, Some(3));
    }

    #[test]
    fn the_revision_of_a_while_ago() {
        let mut history = History::default();
        let age = Some(Duration::from_secs(10));
        assert_eq!(history.note(0, 5, age), None);
        assert_eq!(history.note(5_000, 9, age), None);
        assert_eq!(history.note(10_000, 20, age), Some(5));
        assert_eq!(history.note(20_000, 30, age), Some(20));
    }
}
