//! Changes of membership: whoever is asked, the leader carries them out; and it makes new members voters by itself once they
//! have caught up.

use crate::command::{Kind, member_from_pb, member_to_pb};
use crate::error::{Error, MemberCode};
use crate::peer::REMOVED;
use crate::replica::{Input, single_change};
use crate::store::{REQUEST_TIMEOUT, Store};
use crate::transport;
use crate::types::*;
use raft::eraftpb::{ConfChangeType, ConfState};
use skiff_proto::store as pb;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A learner may vote once it lacks no more than this many entries.
const CAUGHT_UP_ENTRIES: u64 = 64;
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A member that starts and hears of no leader for so long asks around. Longer than an election takes.
const UNHEARD_MAX: Duration = Duration::from_millis(1500);
const CALL_MAX: Duration = Duration::from_secs(1);

/// A change that an operator asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum MemberChange {
    /// Its id is the caller's choice. It gets its vote when it has caught up, unless it is to stay a learner.
    Add(Member),
    Remove(MemberId),
    Promote(MemberId),
    /// Other names or addresses for a member that is there.
    Update(Member),
}

fn refuse(id: MemberId, code: MemberCode, problem: impl Into<String>) -> Error {
    Error::Member { id, code, problem: problem.into() }
}

impl Store {
    /// The members as they vote: `learner` is true for those that do not vote yet, too.
    pub fn members(&self) -> Vec<Member> {
        let machine = self.shared().look();
        let votes = |id| machine.conf_state.voters.contains(id) || machine.conf_state.voters_outgoing.contains(id);
        machine.members.values().map(|m| Member { learner: !votes(&m.id), ..m.clone() }).collect()
    }

    fn record(&self, id: MemberId) -> Option<Member> {
        self.shared().look().members.get(&id).cloned()
    }

    /// Changes the membership, through the leader wherever it is; this member shows the change when it returns.
    pub async fn change_members(&self, change: MemberChange) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + REQUEST_TIMEOUT;
        let mut leadership = self.leadership();
        loop {
            let now = leadership.borrow_and_update().clone();
            let done = match now.leader {
                None => Err(Error::NoLeader),
                Some(id) if id == self.id() => self.lead_change(change.clone()).await,
                Some(id) => self.forward_change(id, &change).await,
            };
            match done {
                Err(Error::NoLeader | Error::NotLeader) if tokio::time::Instant::now() < deadline => {
                    let _ = tokio::time::timeout(LOOK_EVERY, leadership.changed()).await;
                }
                done => return done,
            }
        }
    }

    async fn forward_change(&self, leader: MemberId, change: &MemberChange) -> Result<(), Error> {
        use pb::change_request::Change;
        let channel = self.transport().channel_to(leader).ok_or(Error::NoLeader)?;
        let change = match change {
            MemberChange::Add(member) => Change::Add(member_to_pb(member)),
            MemberChange::Remove(id) => Change::Remove(*id),
            MemberChange::Promote(id) => Change::Promote(*id),
            MemberChange::Update(member) => Change::Update(member_to_pb(member)),
        };
        let answer = transport::client(channel).change(pb::ChangeRequest { change: Some(change) }).await;
        let answer = answer.map_err(|_| Error::NoLeader)?.into_inner();
        if answer.refused {
            return Err(Error::NotLeader);
        }
        if !answer.code.is_empty() {
            return Err(refuse(0, MemberCode::from_word(&answer.code), answer.problem));
        }
        self.wait_index(answer.index).await
    }

    /// Answers another member's request for a change.
    pub(crate) async fn answer_change(&self, request: pb::ChangeRequest) -> pb::ChangeAnswer {
        use pb::change_request::Change;
        let change = match request.change {
            Some(Change::Add(member)) => MemberChange::Add(member_from_pb(member)),
            Some(Change::Remove(id)) => MemberChange::Remove(id),
            Some(Change::Promote(id)) => MemberChange::Promote(id),
            Some(Change::Update(member)) => MemberChange::Update(member_from_pb(member)),
            None => return pb::ChangeAnswer::default(),
        };
        match self.lead_change(change).await {
            Ok(()) => pb::ChangeAnswer { index: self.status().applied_index, ..Default::default() },
            Err(Error::Member { code, problem, .. }) => {
                pb::ChangeAnswer { problem, code: code.word().to_owned(), ..Default::default() }
            }
            Err(_) => pb::ChangeAnswer { refused: true, ..Default::default() },
        }
    }

    async fn lead_change(&self, change: MemberChange) -> Result<(), Error> {
        if !self.leadership().borrow().is_leader() {
            return Err(Error::NotLeader);
        }
        match change {
            MemberChange::Add(member) => self.add_member(member).await,
            MemberChange::Remove(id) => self.remove(id).await,
            MemberChange::Promote(id) => self.promote(id).await,
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
                let member = Member { name, client_addr, learner: old.learner, ..member };
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
        self.change(id, ConfChangeType::AddLearnerNode).await
    }

    /// Who was added by this address and has not been started: whoever comes from there is that member.
    pub(crate) fn awaited(&self, peer_addr: &str) -> Option<Member> {
        let machine = self.shared().look();
        machine.members.values().find(|m| m.peer_addr == peer_addr && m.name.is_empty()).cloned()
    }

    /// Tells the other members, wherever this one knows them, at which address it is now. Whoever leads may be dialling the one of before
    /// its restart, so that this member hears of no leader that it could tell in the usual way.
    async fn call_out(&self, this: &Member) {
        for other in self.members().into_iter().filter(|m| m.id != this.id) {
            let Some(channel) = self.transport().channel_to(other.id) else { continue };
            let change = Some(pb::change_request::Change::Update(member_to_pb(this)));
            let mut client = transport::client(channel);
            let told = tokio::time::timeout(CALL_MAX, client.change(pb::ChangeRequest { change })).await;
            // Only the leader takes it.
            let Some(answer) = told.ok().and_then(Result::ok).map(tonic::Response::into_inner) else { continue };
            if answer.code == MemberCode::NotFound.word() {
                return self.shared().fail(removed(&format!("member {:x}", other.id)));
            }
            if !answer.refused {
                return;
            }
        }
    }

    /// Whether a member that still sends messages has been removed, as far as this one can be sure: only a leader is, and one that
    /// has seen all that came before it.
    pub(crate) fn was_removed(&self, id: MemberId) -> bool {
        let shared = self.shared();
        let sure = shared.has_lease() && shared.has_applied(shared.committed_index.load(Ordering::Acquire));
        let machine = shared.look();
        sure && !machine.members.contains_key(&id) && !in_any_half(&machine.conf_state, id)
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
        if id == self.id() {
            // Whoever leads next removes this member: a leader that is no member could not say that it is done.
            let progress = self.progress().await;
            let heir = progress.iter().filter(|(other, _, voter)| *voter && *other != id).max_by_key(|(_, m, _)| *m);
            if let Some((heir, ..)) = heir {
                self.move_leader(*heir).await?;
            }
            return Err(Error::NotLeader);
        }
        self.change(id, ConfChangeType::RemoveNode).await?;
        // An entry of those who are left, behind the change on their disks: from now on none of them needs the one that left, not even
        // after a restart. If it is not answered the removal has been agreed on all the same.
        let _ = self.submit(0, Kind::Nothing).await;
        Ok(())
    }

    async fn promote(&self, id: MemberId) -> Result<(), Error> {
        let member = self.record(id).ok_or_else(|| unknown(id))?;
        if self.shows(id, ConfChangeType::AddNode) {
            return Err(refuse(id, MemberCode::NotLearner, "it votes already"));
        }
        if !self.has_caught_up(id).await {
            return Err(refuse(id, MemberCode::NotInSync, "it lacks too much of the log still; try again later"));
        }
        self.change(id, ConfChangeType::AddNode).await?;
        self.submit(0, Kind::Member(Member { learner: false, ..member })).await.map(|_| ())
    }

    async fn has_caught_up(&self, id: MemberId) -> bool {
        let progress = self.progress().await;
        let newest = progress.iter().map(|(_, matched, _)| *matched).max().unwrap_or(0);
        progress.iter().any(|(other, matched, _)| *other == id && *matched > 0 && matched + CAUGHT_UP_ENTRIES >= newest)
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
        Err(refuse(id, MemberCode::Undecided, "the change of membership was not agreed on within 10 s"))
    }

    fn shows(&self, id: MemberId, change: ConfChangeType) -> bool {
        let machine = self.shared().look();
        let (votes, learns) = (machine.conf_state.voters.contains(&id), machine.conf_state.learners.contains(&id));
        match change {
            ConfChangeType::AddNode => votes,
            ConfChangeType::AddLearnerNode => votes || learns,
            ConfChangeType::RemoveNode => !votes && !learns,
        }
    }
}

/// Why a member that was removed stops.
pub(crate) fn removed(who: &str) -> String {
    format!("{REMOVED}, says {who}. To take it in again, start it with an empty data directory and --join")
}

/// Stops a member that finds its own removal in the log: it hears of nothing any more, and would wait for a leader for ever.
pub async fn leave_when_removed(store: Store) {
    let mut stopped = store.stopped();
    let mut belonged = false;
    loop {
        tokio::select! {
            _ = stopped.wait_for(|s| *s) => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let belongs = {
            let machine = store.shared().look();
            machine.members.contains_key(&store.id()) || in_any_half(&machine.conf_state, store.id())
        };
        if belonged && !belongs {
            return store.shared().fail(removed("its own log"));
        }
        belonged = belongs;
    }
}

fn in_any_half(conf: &ConfState, id: MemberId) -> bool {
    [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next]
        .into_iter()
        .any(|half| half.contains(&id))
}

fn unknown(id: MemberId) -> Error {
    refuse(id, MemberCode::NotFound, "there is no such member")
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
        for id in ready {
            if store.has_caught_up(id).await {
                let _ = store.change(id, ConfChangeType::AddNode).await;
            }
        }
    }
}

/// Tells the group this member's name and addresses, where they changed with this start.
pub async fn announce(store: Store, mut this: Member) {
    let (mut leadership, mut stopped) = (store.leadership(), store.stopped());
    loop {
        let led = tokio::select! {
            _ = stopped.wait_for(|s| *s) => return,
            led = tokio::time::timeout(UNHEARD_MAX, leadership.wait_for(|l| l.leader.is_some())) => led.map(|led| led.is_ok()),
        };
        match led {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => {
                store.call_out(&this).await;
                continue;
            }
        }
        if let Some(known) = store.record(this.id) {
            this.learner = known.learner;
            if known == this || store.submit(0, Kind::Member(this.clone())).await.is_ok() {
                return;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
