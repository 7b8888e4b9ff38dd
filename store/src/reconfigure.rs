//! Changes of membership, as the leader carries them out; and it makes new members voters by itself once they have caught up.
//!
//! Whatever changes at once is one step of Raft's joint consensus, so that there is no moment between in which the group stands on fewer
//! members than before and after.

use crate::command::Kind;
use crate::error::{Error, MemberCode};
use crate::membership::{LOOK_EVERY, MemberChange, refuse};
use crate::replica::{Input, change_of, foremost};
use crate::store::Store;
use crate::types::*;
use raft::eraftpb::ConfChangeType;
use std::time::Duration;

/// A learner may vote once it lacks no more than this many entries.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// A change that is not agreed on by then is given up.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// A member that runs answers sooner.
const ANSWER_MAX: Duration = Duration::from_secs(2);

fn unknown(id: MemberId) -> Error {
    refuse(id, MemberCode::NotFound, "there is no such member")
}

impl Store {
    pub(crate) async fn lead_change(&self, change: MemberChange) -> Result<(), Error> {
        if !self.leadership().borrow().is_leader() {
            return Err(Error::NotLeader);
        }
        match change {
            MemberChange::Add(member) => self.add_member(member).await,
            MemberChange::Remove(id) => self.remove(id).await,
            MemberChange::Promote(id) => self.promote(id).await,
            MemberChange::Voters(ids) => self.set_voters(ids).await,
            MemberChange::Update(member) => {
                let old = match self.record(member.id) {
                    Some(old) => old,
                    None if self.was_removed(member.id) => return Err(unknown(member.id)),
                    // It may be in what this leader has not seen yet.
                    None => return Err(Error::NotLeader),
                };
                self.check_address(&member)?;
                let name = if member.name.is_empty() { old.name } else { member.name };
                let client_addr = if member.client_addr.is_empty() { old.client_addr } else { member.client_addr };
                let key_hash = if member.key_hash.is_empty() { old.key_hash } else { member.key_hash };
                let member = Member { name, client_addr, key_hash, learner: old.learner, ..member };
                if self.record(member.id).as_ref() == Some(&member) {
                    return Ok(());
                }
                self.submit(0, Kind::Member(member)).await.map(|_| ())
            }
        }
    }

    fn check_address(&self, member: &Member) -> Result<(), Error> {
        let machine = self.shared().look();
        let taken = |m: &&Member| m.id != member.id && m.peer_addr == member.peer_addr && !m.peer_addr.is_empty();
        match machine.members.values().find(taken) {
            Some(other) => {
                let problem = format!("the address {} belongs to member {:x}", other.peer_addr, other.id);
                Err(refuse(member.id, MemberCode::AddressTaken, problem))
            }
            None => Ok(()),
        }
    }

    /// Takes a member in; it becomes a voter when it has caught up. Done again for a member that is there already (its last attempt
    /// may have been cut off).
    pub(crate) async fn add_member(&self, member: Member) -> Result<(), Error> {
        let taken = |m: &Member| m.id != member.id && m.name == member.name && !m.name.is_empty();
        if let Some(other) = self.members().into_iter().find(taken) {
            let problem = format!("the name {:?} belongs to member {:x}; choose another name", other.name, other.id);
            return Err(refuse(member.id, MemberCode::NameTaken, problem));
        }
        self.check_address(&member)?;
        let id = member.id;
        self.submit(0, Kind::Member(member)).await?;
        self.change(&[(id, ConfChangeType::AddLearnerNode)]).await
    }

    async fn remove(&self, id: MemberId) -> Result<(), Error> {
        let voters = {
            let machine = self.shared().look();
            if !machine.members.contains_key(&id) {
                return Err(unknown(id));
            }
            machine.conf_state.voters.clone()
        };
        if voters == [id] {
            let problem = "it is the only voter: add another and wait until it has caught up, then remove this one";
            return Err(refuse(id, MemberCode::NotEnoughStarted, problem));
        }
        let left: Vec<_> = voters.iter().filter(|voter| **voter != id).copied().collect();
        if left.len() < voters.len() {
            self.check_majority(&left).await?;
        }
        if id == self.id() {
            // Whoever leads next removes this member: a leader that is no member could not say that it is done.
            self.hand_over(&left).await?;
            return Err(Error::NotLeader);
        }
        self.change(&[(id, ConfChangeType::RemoveNode)]).await?;
        self.settle().await;
        Ok(())
    }

    async fn promote(&self, id: MemberId) -> Result<(), Error> {
        self.record(id).ok_or_else(|| unknown(id))?;
        if self.shows(id, ConfChangeType::AddNode) {
            return Err(refuse(id, MemberCode::NotLearner, "it votes already"));
        }
        self.check_caught_up(id).await?;
        self.change(&[(id, ConfChangeType::AddNode)]).await?;
        self.note_promoted(id).await
    }

    async fn set_voters(&self, mut wanted: Vec<MemberId>) -> Result<(), Error> {
        wanted.sort_unstable();
        wanted.dedup();
        let now = self.shared().look().conf_state.voters.clone();
        for id in &wanted {
            self.record(*id).ok_or_else(|| unknown(*id))?;
            if !now.contains(id) {
                self.check_caught_up(*id).await?;
            }
        }
        self.check_majority(&wanted).await?;
        let stay: Vec<_> = now.iter().filter(|id| wanted.contains(id)).copied().collect();
        if !wanted.contains(&self.id()) && !stay.is_empty() {
            // Whoever leads next carries it out: a leader that is no member could not say that it is done.
            self.hand_over(&stay).await?;
            return Err(Error::NotLeader);
        }
        let leaves_last = (!wanted.contains(&self.id())).then(|| self.id());
        let new = wanted.iter().filter(|id| !now.contains(id)).map(|id| (*id, ConfChangeType::AddNode));
        let old = now.iter().filter(|id| !wanted.contains(id) && Some(**id) != leaves_last);
        let steps: Vec<_> = new.chain(old.map(|id| (*id, ConfChangeType::RemoveNode))).collect();
        if !steps.is_empty() {
            self.change(&steps).await?;
            self.settle().await;
        }
        for id in wanted {
            self.note_promoted(id).await?;
        }
        // Those that are new have a vote now, so one of them can lead, and removes this one.
        if leaves_last.is_some() { Err(Error::NotLeader) } else { Ok(()) }
    }

    /// An entry of those who are left, behind the change on their disks: from now on none of them needs those that left, not even after a
    /// restart. If it is not answered the removal has been agreed on all the same.
    async fn settle(&self) {
        let _ = self.submit(0, Kind::Nothing).await;
    }

    /// The list says that it votes, too.
    async fn note_promoted(&self, id: MemberId) -> Result<(), Error> {
        match self.record(id).filter(|m| m.learner) {
            Some(member) => self.submit(0, Kind::Member(Member { learner: false, ..member })).await.map(|_| ()),
            None => Ok(()),
        }
    }

    async fn check_caught_up(&self, id: MemberId) -> Result<(), Error> {
        match self.has_caught_up(id).await {
            true => Ok(()),
            false => Err(refuse(id, MemberCode::NotInSync, "it lacks too much of the log still; try again later")),
        }
    }

    async fn has_caught_up(&self, id: MemberId) -> bool {
        let progress = self.progress().await;
        let newest = progress.iter().map(|m| m.matched).max().unwrap_or(0);
        progress.iter().any(|m| m.id == id && m.matched > 0 && m.matched + CAUGHT_UP_ENTRIES >= newest)
    }

    /// Refuses to make voters of these alone unless a majority of them answers: without one, nothing could be agreed on afterwards, this
    /// mistake's undoing included. Who has an entry that was written just now has answered just now.
    async fn check_majority(&self, voters: &[MemberId]) -> Result<(), Error> {
        self.submit(0, Kind::Nothing).await?;
        let newest = self.progress().await.iter().map(|m| m.matched).max().unwrap_or(0);
        let deadline = tokio::time::Instant::now() + ANSWER_MAX;
        loop {
            let progress = self.progress().await;
            let answered = |id: &&MemberId| progress.iter().any(|m| m.id == **id && m.matched >= newest);
            let count = voters.iter().filter(answered).count();
            if count > voters.len() / 2 {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                let problem = format!(
                    "of the {} voters that there would be {count} answer, which is no majority: start the others first",
                    voters.len()
                );
                return Err(refuse(0, MemberCode::NotEnoughStarted, problem));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Hands the leadership to the best of these.
    async fn hand_over(&self, heirs: &[MemberId]) -> Result<(), Error> {
        let progress = self.progress().await;
        match foremost(&progress, |m| heirs.contains(&m.id)) {
            Some(heir) => self.move_leader(heir).await,
            None => Err(Error::NotLeader),
        }
    }

    /// Hands the leadership to another voter. Only the leader can.
    pub async fn move_leader(&self, to: MemberId) -> Result<(), Error> {
        if !self.leadership().borrow().is_leader() {
            return Err(Error::NotLeader);
        }
        if !self.shows(to, ConfChangeType::AddNode) {
            return Err(refuse(to, MemberCode::BadTransferee, "it is not a voting member"));
        }
        if to == self.id() {
            return Ok(());
        }
        self.shared().input(Input::TransferTo(to));
        let mut leadership = self.leadership();
        let moved = leadership.wait_for(|l| l.leader.is_some_and(|id| id != self.id()));
        match tokio::time::timeout(Duration::from_secs(3), moved).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(refuse(to, MemberCode::Undecided, "it did not take over within 3 s")),
        }
    }

    /// Proposes a change (again, while another one is under way) until the membership shows it.
    async fn change(&self, steps: &[(MemberId, ConfChangeType)]) -> Result<(), Error> {
        let mut applied = self.shared().applied.subscribe();
        let deadline = tokio::time::Instant::now() + CHANGE_MAX;
        while tokio::time::Instant::now() < deadline {
            self.shared().input(Input::Change(change_of(steps)));
            let done = applied.wait_for(|_| steps.iter().all(|(id, change)| self.shows(*id, *change)));
            if tokio::time::timeout(LOOK_EVERY, done).await.is_ok() {
                return Ok(());
            }
            if !self.leadership().borrow().is_leader() {
                return Err(Error::NoLeader);
            }
        }
        let id = steps.first().map_or(0, |(id, _)| *id);
        let problem = format!("the change of membership was not agreed on within {} s", CHANGE_MAX.as_secs());
        Err(refuse(id, MemberCode::Undecided, problem))
    }

    /// Whether the membership is so, in both halves of it.
    fn shows(&self, id: MemberId, change: ConfChangeType) -> bool {
        let machine = self.shared().look();
        let conf = &machine.conf_state;
        let (votes, learns) = (conf.voters.contains(&id), conf.learners.contains(&id));
        let is_so = match change {
            ConfChangeType::AddNode => votes,
            ConfChangeType::AddLearnerNode => votes || learns,
            ConfChangeType::RemoveNode => !votes && !learns,
        };
        is_so && conf.voters_outgoing.is_empty()
    }
}

/// Runs on every member; acts only while this one leads.
pub async fn lead(store: Store) {
    let mut leadership = store.leadership();
    let mut stopped = store.stopped();
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
        let ready: Vec<_> = {
            let machine = store.shared().look();
            let learners = machine.conf_state.learners.iter();
            learners.filter(|id| machine.members.get(id).is_some_and(|m| !m.learner)).copied().collect()
        };
        let mut steps = Vec::new();
        for id in ready {
            if store.has_caught_up(id).await {
                steps.push((id, ConfChangeType::AddNode));
            }
        }
        if !steps.is_empty() {
            let _ = store.change(&steps).await;
        }
    }
}
