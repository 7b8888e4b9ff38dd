//! Who belongs to the group: whoever is asked for a change, the leader carries it out (see `reconfigure`); members announce themselves when
//! they start, and stop when they were removed.

use crate::command::{Kind, member_from_pb, member_to_pb};
use crate::error::{Error, MemberCode};
use crate::peer::REMOVED;
use crate::store::{REQUEST_TIMEOUT, Store};
use crate::transport;
use crate::types::*;
use raft::eraftpb::ConfState;
use skiff_proto::store as pb;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(200);
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
    /// From now on exactly these vote, all at once: learners among them are promoted, and voters that are not among them removed.
    Voters(Vec<MemberId>),
    /// Other names or addresses for a member that is there.
    Update(Member),
}

pub(crate) fn refuse(id: MemberId, code: MemberCode, problem: impl Into<String>) -> Error {
    Error::Member { id, code, problem: problem.into() }
}

impl Store {
    /// The members as they vote: `learner` is true for those that do not vote yet, too.
    pub fn members(&self) -> Vec<Member> {
        let machine = self.shared().look();
        let votes = |id| machine.conf_state.voters.contains(id) || machine.conf_state.voters_outgoing.contains(id);
        machine.members.values().map(|m| Member { learner: !votes(&m.id), ..m.clone() }).collect()
    }

    pub(crate) fn record(&self, id: MemberId) -> Option<Member> {
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
            MemberChange::Voters(ids) => Change::Voters(pb::Voters { ids: ids.clone() }),
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
            Some(Change::Voters(voters)) => MemberChange::Voters(voters.ids),
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

/// Tells the group this member's name and addresses, where they changed with this start; and by which key it is known (`bound`), in any case and
/// again (see [`say_key_again`]): a member of an older version may have kept nothing of it.
pub async fn announce(store: Store, mut this: Member, bound: bool) {
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
        let occasion = Occasion::look(&store);
        if let Some(known) = store.record(this.id) {
            this.learner = known.learner;
            if !bound {
                this.key_hash = known.key_hash.clone();
            }
            if (known == this && !bound) || store.submit(0, Kind::Member(this.clone())).await.is_ok() {
                if bound {
                    say_key_again(store, this, occasion).await;
                }
                return;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// When a member says its key again: another term, and other keys that are known.
#[derive(PartialEq)]
struct Occasion {
    term: Term,
    keys: BTreeMap<MemberId, String>,
}

impl Occasion {
    fn look(store: &Store) -> Occasion {
        let machine = store.shared().look();
        let keys = machine.members.values().map(|m| (m.id, m.key_hash.clone())).collect();
        Occasion { term: store.term(), keys }
    }
}

/// Says this member's key on every [`Occasion`] from now on, until the member stops. What its own record holds does not matter: a member that ran an
/// older version when the key was said last has dropped it, from its snapshots too. Such a member says its own key once it is upgraded, which the
/// others see as news. Where all know the key it changes nothing, so members that answer each other come to an end.
async fn say_key_again(store: Store, this: Member, mut last: Occasion) {
    let mut stopped = store.stopped();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|s| *s) => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = Occasion::look(&store);
        if now == last {
            continue;
        }
        // The rest as it is known now: an operator may have changed it since the start.
        let Some(known) = store.record(this.id) else { continue };
        let said = Kind::Member(Member { key_hash: this.key_hash.clone(), ..known });
        if store.submit(0, said).await.is_ok() {
            last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn known(store: &Store, what: impl Fn(&Member) -> bool) {
        let until = async {
            while !store.record(store.id()).is_some_and(|m| what(&m)) {
                tokio::time::sleep(LOOK_EVERY / 10).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), until).await.expect("the group never knew it");
    }

    /// A member that was upgraded last has dropped what it was told before, and says its own key then.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_is_said_again_to_whoever_did_not_keep_it() {
        let store = Store::in_memory().await;
        let this = Member { key_hash: "mine".into(), ..store.record(store.id()).unwrap() };
        tokio::spawn(announce(store.clone(), this.clone(), true));
        known(&store, |m| m.key_hash == "mine").await;
        // Not empty, as it was at first: that it changed twice between two looks would be no news.
        let dropped = Member { key_hash: "dropped".into(), client_addr: "changed since".into(), ..this };
        store.submit(0, Kind::Member(dropped)).await.unwrap();
        known(&store, |m| m.key_hash == "mine" && m.client_addr == "changed since").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_is_said_once_where_nothing_changes() {
        let store = Store::in_memory().await;
        let this = Member { key_hash: "mine".into(), ..store.record(store.id()).unwrap() };
        tokio::spawn(announce(store.clone(), this, true));
        known(&store, |m| m.key_hash == "mine").await;
        // That its own key is known now is news to it, once.
        tokio::time::sleep(LOOK_EVERY * 4).await;
        let said = store.status().applied_index;
        tokio::time::sleep(LOOK_EVERY * 4).await;
        assert_eq!(store.status().applied_index, said);
    }
}
