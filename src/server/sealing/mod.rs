//! The sealing keys of a cluster: that every server has them, which of them seals, and that they can be exchanged while everything runs.
//!
//! ```text
//!   server/sealing.keys --> keyring --> the API's objects (skiff_apiserver::Objects)
//!          ^                               store: /registry/core/secrets/... sealed
//!          |  act                          store: /skiff/sealing/...        who has which key, never a key
//!        decide  <---------------------------------'
//! ```
//!
//! `decide` looks at what all servers wrote, and this task acts. `orders` answers what an administrator asks over the API.

mod decide;
pub mod orders;
mod records;
mod rewrite;

use super::{Files, Shared};
use anyhow::Context as _;
use decide::{Act, Seen};
use records::{Held, Plan, Records};
use skiff_apiserver::Following;
use skiff_identity::handover::{self, Ask};
use skiff_identity::sealing::{Keyring, SealingKey, SealingKeys};
use skiff_store::{Compare, KeyRange, MemberId, Op, Revision, Term, Txn, WatchRequest};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Members that come and go are seen within this.
const PERIOD: Duration = Duration::from_secs(1);

/// This server's keys, in use and on its disk: the disk first.
pub struct Keeper {
    files: Files,
    pub ring: Keyring,
    /// The revision of the plan that the keys in use follow; None while one is lacking.
    pub follows: watch::Sender<Option<Revision>>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Keeper {
    /// # Errors
    /// The file cannot be read.
    pub fn open(files: &Files) -> anyhow::Result<Keeper> {
        let ring = Keyring::new(files.sealing_keys()?)?;
        Ok(Keeper { files: files.clone(), ring, follows: watch::Sender::new(None), changing: Mutex::default() })
    }

    /// By which plan this server may seal.
    pub fn following(&self) -> Following {
        Following { plan: records::PLAN, follows: self.follows.subscribe() }
    }

    fn change(&self, change: impl FnOnce(&mut SealingKeys)) -> anyhow::Result<()> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = self.ring.keys();
        change(&mut keys);
        self.files.keep_sealing_keys(&keys)?;
        Ok(self.ring.replace(keys)?)
    }
}

/// Runs as long as the process.
pub async fn run(shared: Arc<Shared>) {
    let mut task = Task { shared, ask: None, told: String::new() };
    loop {
        let range = KeyRange::prefix(records::PREFIX);
        let Ok(mut watcher) = task.shared.store.watch(WatchRequest { range, ..Default::default() }).await else {
            // Only a store that has stopped refuses a watch of what comes.
            return;
        };
        let mut leadership = task.shared.store.leadership();
        let mut members = Vec::new();
        loop {
            members.clone_from(&task.members());
            task.settle(&members).await;
            let changed = async {
                loop {
                    tokio::time::sleep(PERIOD).await;
                    if task.members() != members || !task.told.is_empty() {
                        return;
                    }
                }
            };
            tokio::select! {
                batch = watcher.next() => if batch.is_err() { break },
                moved = leadership.changed() => if moved.is_err() { return },
                () = changed => {}
            }
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    /// The private half of our question for a key.
    ask: Option<Ask>,
    /// The trouble that was logged last; not again until it is over.
    told: String,
}

impl Task {
    fn members(&self) -> Vec<MemberId> {
        self.shared.store.members().into_iter().map(|m| m.id).collect()
    }

    /// Acts until there is nothing to do, or something does not work now.
    async fn settle(&mut self, members: &[MemberId]) {
        loop {
            match self.step(members).await {
                Ok(true) => self.told.clear(),
                Ok(false) => {
                    self.told.clear();
                    return;
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if text != self.told {
                        tracing::warn!("the keys that seal Secrets: {text}; trying again");
                        self.told = text;
                    }
                    return;
                }
            }
        }
    }

    async fn step(&mut self, members: &[MemberId]) -> anyhow::Result<bool> {
        let shared = self.shared.clone();
        let store = &shared.store;
        let records = records::read(store).await?;
        let leading = store.leadership().borrow().clone();
        let keys = shared.sealing.ring.keys();
        let seen = Seen {
            me: store.id(),
            leads: leading.is_leader(),
            members,
            records: &records,
            keys: &keys,
            asks: self.ask.as_ref().map(Ask::public),
            prefixes: shared.objects.sealing().prefixes(),
        };
        let follows = decide::follows(records.plan.as_ref(), &keys).then_some(records.plan_revision);
        shared.sealing.follows.send_if_modified(|now| std::mem::replace(now, follows) != follows);
        let Some(act) = decide::next(&seen) else { return Ok(false) };
        self.act(act, &records, leading.term).await?;
        Ok(true)
    }

    async fn act(&mut self, act: Act, records: &Records, term: Term) -> anyhow::Result<()> {
        let shared = self.shared.clone();
        let (store, keeper) = (&shared.store, &shared.sealing);
        let me = store.id();
        match act {
            Act::Take(id) => {
                let given = records.given.get(&(me, id)).context("the answer is gone")?;
                // A question is good for one answer, whether it opens or not.
                let key = self.ask.take().context("there was no question")?.take(given);
                self.write(Txn::of(Op::delete(records::given_key(me, id)))).await?;
                let key = key?;
                keeper.change(|keys| keys.add(key))?;
                tracing::info!(%id, "this server has another key that seals Secrets");
            }
            Act::Drop(id) => self.write(Txn::of(Op::delete(records::given_key(me, id)))).await?,
            Act::Ask => self.ask = Some(Ask::new()?),
            Act::Use(id) => {
                keeper.change(|keys| keys.current = Some(id))?;
                tracing::info!(%id, "this server seals with the key from now on");
            }
            Act::Forget(id) => {
                keeper.change(|keys| keys.forget(id))?;
                tracing::info!(%id, "this server has forgotten the key");
            }
            Act::Report(held) => {
                let asks = held.asks.is_some();
                self.write(Txn::of(Op::put(records::server_key(me), serde_json::to_vec(&held)?))).await?;
                if !asks {
                    self.ask = None;
                }
            }
            Act::Give { id, member, to } => {
                let keys = keeper.ring.keys();
                let given = handover::give(keys.get(id).context("the key is gone")?, &to)?;
                let put = Op::put(records::given_key(member, id), serde_json::to_vec(&given)?);
                self.write(Txn::of(put)).await?;
                tracing::info!(%id, member = format_args!("{member:x}"), "the key was given to another server");
            }
            Act::Make => {
                let key = SealingKey::generate()?;
                keeper.change(|keys| keys.add(key))?;
            }
            Act::Plan(plan) => self.write(plan_txn(&plan, records, Some(term))?).await?,
            Act::Replace(plan) => self.replace(plan, records, term).await?,
            Act::Rewrite(plan) => self.rewrite(plan, records, term).await?,
            Act::Clear(member) => {
                let given = records.given.keys().filter(|(m, _)| *m == member);
                let mut ops: Vec<_> = given.map(|(m, id)| Op::delete(records::given_key(*m, *id))).collect();
                ops.push(Op::delete(records::server_key(member)));
                self.write(Txn { success: ops, fence: Some(term), ..Default::default() }).await?;
            }
        }
        Ok(())
    }

    async fn replace(&self, plan: Plan, records: &Records, term: Term) -> anyhow::Result<()> {
        let lost = plan.key;
        let sealed = rewrite::count(&self.shared.store, &[]).await?.sealed;
        if let Some(count) = sealed.get(&lost) {
            anyhow::bail!(
                "no server has the key {lost}, with which {count} objects are sealed; put it into server/sealing.keys of a server, from a backup, and \
                 start that server again; or give them up (skiff sealing drop {lost})"
            );
        }
        let key = SealingKey::generate()?;
        let next = Plan { key: key.id, in_use: false, rewritten: Vec::new(), ..plan };
        self.shared.sealing.change(|keys| keys.add(key))?;
        tracing::warn!(
            "no server has the key {lost}, and nothing is sealed with it; the key {} takes its place",
            next.key
        );
        let mut txn = plan_txn(&next, records, Some(term))?;
        txn.success.push(held(&self.shared, records)?);
        self.write(txn).await
    }

    async fn rewrite(&self, plan: Plan, records: &Records, term: Term) -> anyhow::Result<()> {
        let prefixes = records.prefixes(self.shared.objects.sealing().prefixes());
        rewrite::rewrite(&self.shared, records, &plan, &prefixes, term).await?;
        self.write(plan_txn(&Plan { rewritten: prefixes, ..plan }, records, Some(term))?).await
    }

    /// Writes, and waits until this server sees what was written.
    async fn write(&self, txn: Txn) -> anyhow::Result<()> {
        let done = self.shared.store.txn(txn).await?;
        self.shared.store.wait_for(done.revision).await?;
        Ok(())
    }
}

/// Writes a plan if the one that was read still stands.
fn plan_txn(plan: &Plan, records: &Records, fence: Option<Term>) -> anyhow::Result<Txn> {
    Ok(Txn {
        compare: vec![Compare::mod_revision(records::PLAN, records.plan_revision)],
        success: vec![Op::put(records::PLAN, serde_json::to_vec(plan)?)],
        failure: Vec::new(),
        fence,
    })
}

/// Writes what this server has. It goes with a plan that names a key that was just made: a key that no server says it has would count as lost.
fn held(shared: &Shared, records: &Records) -> anyhow::Result<Op> {
    let (me, keys) = (shared.store.id(), shared.sealing.ring.keys());
    let asks = records.servers.get(&me).and_then(|held| held.asks.clone());
    let held = Held::of(&keys, shared.objects.sealing().prefixes(), asks);
    Ok(Op::put(records::server_key(me), serde_json::to_vec(&held)?))
}
