//! What the leader does for the group by itself: takes members in, makes learners voters once they have caught up, and drops
//! old history.

use crate::command::member_to_pb;
use crate::config::Limits;
use crate::error::Error;
use crate::replica::{Input, single_change};
use crate::store::Store;
use crate::types::*;
use raft::eraftpb::ConfChangeType;
use skiff_proto::store::command::Kind;
use std::time::Duration;

/// A learner votes once it lacks no more than this many entries.
const CAUGHT_UP_ENTRIES: u64 = 64;
const LOOK_EVERY: Duration = Duration::from_millis(200);
const COMPACT_EVERY: Duration = Duration::from_secs(5);

impl Store {
    /// Takes a member in as a learner; it becomes a voter when it has caught up. Done again for a member that is there already (its
    /// last attempt may have been cut off).
    pub(crate) async fn add_member(&self, member: Member) -> Result<(), Error> {
        let taken = |m: &Member| m.id != member.id && m.name == member.name && !m.name.is_empty();
        if let Some(other) = self.members().into_iter().find(taken) {
            let problem = format!("the name {:?} belongs to member {:x}; choose another name", other.name, other.id);
            return Err(Error::Member { id: member.id, problem });
        }
        self.submit(0, Kind::Member(member_to_pb(&member))).await?;
        self.change(member.id, ConfChangeType::AddLearnerNode).await
    }

    /// Takes a member out of the group.
    pub async fn remove_member(&self, id: MemberId) -> Result<(), Error> {
        self.change(id, ConfChangeType::RemoveNode).await
    }

    /// Proposes a change (again, while another one is under way) until the membership shows it.
    async fn change(&self, id: MemberId, change: ConfChangeType) -> Result<(), Error> {
        let mut applied = self.shared().applied.subscribe();
        for _ in 0..50 {
            self.shared().input(Input::Change(single_change(id, change)));
            let done = applied.wait_for(|_| self.shows(id, change));
            if tokio::time::timeout(LOOK_EVERY, done).await.is_ok() {
                return Ok(());
            }
            if !self.leadership().borrow().is_leader() {
                return Err(Error::NoLeader);
            }
        }
        Err(Error::Member { id, problem: "the change of membership was not agreed on within 10 s".into() })
    }

    fn shows(&self, id: MemberId, change: ConfChangeType) -> bool {
        let machine = self.shared().machine.read().unwrap_or_else(|e| e.into_inner());
        let (votes, learns) = (machine.conf_state.voters.contains(&id), machine.conf_state.learners.contains(&id));
        match change {
            ConfChangeType::AddNode => votes,
            ConfChangeType::AddLearnerNode => votes || learns,
            ConfChangeType::RemoveNode => !votes && !learns,
        }
    }
}

/// Runs on every member; acts only while this one leads.
pub async fn lead(store: Store, limits: Limits) {
    let mut leadership = store.leadership();
    let mut stopped = store.stopped();
    let mut last_compaction = tokio::time::Instant::now();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|s| *s) => return,
            led = leadership.wait_for(Leadership::is_leader) => {
                if led.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            _ = stopped.wait_for(|s| *s) => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let has_learners = {
            let machine = store.shared().machine.read().unwrap_or_else(|e| e.into_inner());
            !machine.conf_state.learners.is_empty()
        };
        if has_learners {
            promote(&store).await;
        }
        if last_compaction.elapsed() >= COMPACT_EVERY {
            last_compaction = tokio::time::Instant::now();
            if let Some(revision) = compaction_due(&store, limits) {
                let _ = store.compact(revision).await;
            }
        }
    }
}

async fn promote(store: &Store) {
    let progress = store.progress().await;
    let newest = progress.iter().map(|(_, matched, _)| *matched).max().unwrap_or(0);
    for (id, matched, _) in progress.into_iter().filter(|(_, _, voter)| !voter) {
        if matched + CAUGHT_UP_ENTRIES >= newest && store.change(id, ConfChangeType::AddNode).await.is_ok() {
            let record = store.members().into_iter().find(|m| m.id == id);
            if let Some(member) = record {
                let _ = store.submit(0, Kind::Member(member_to_pb(&Member { learner: false, ..member }))).await;
            }
        }
    }
}

/// The revision to compact to, if there is more history than the limits ask for.
fn compaction_due(store: &Store, limits: Limits) -> Option<Revision> {
    let machine = store.shared().machine.read().unwrap_or_else(|e| e.into_inner());
    let (revision, held) = (machine.kv.revision(), machine.kv.history_len());
    let keep =
        if machine.kv.size() > limits.history_bytes { limits.history_revisions / 10 } else { limits.history_revisions };
    (held > keep * 2).then(|| revision - keep as u64).filter(|at| *at > machine.kv.compacted())
}

/// Tells the group this member's name and addresses, where they changed with this start.
pub async fn announce(store: Store, mut this: Member) {
    let mut leadership = store.leadership();
    loop {
        if leadership.wait_for(|l| l.leader.is_some()).await.is_err() || *store.stopped().borrow() {
            return;
        }
        let known = store.members().into_iter().find(|m| m.id == this.id);
        if let Some(known) = known {
            this.learner = known.learner;
            if known == this || store.submit(0, Kind::Member(member_to_pb(&this))).await.is_ok() {
                return;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
