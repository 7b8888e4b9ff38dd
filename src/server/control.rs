//! What only the leader does: controllers, the scheduler, and judging heartbeats. It starts with a term and ends with it; every write carries the
//! term, so that what a former leader still has under way is refused by the store.

use super::controllers;
use super::scheduling;
use super::view::Changes;
use crate::supervise;
use jiff::Timestamp;
use serde_json::json;
use skiff_api::kinds;
use skiff_api::view::{Change, Key, Resource};
use skiff_apiserver::{ApiServer, Client, PatchType, UserInfo};
use skiff_fleet::{Beats, SharedView};
use skiff_reconcile::{CONTROLLERS, Liveness, Settings};
use skiff_store::Leadership;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

/// How often heartbeats are judged.
const JUDGE_EVERY: Duration = Duration::from_millis(100);

/// What the leader's tasks share.
#[derive(Clone)]
pub struct Leading {
    pub api: ApiServer,
    pub term: u64,
    pub view: SharedView,
    pub changes: broadcast::Sender<Changes>,
    pub liveness: watch::Receiver<Arc<Liveness>>,
    pub settings: Arc<Settings>,
}

/// Runs as long as the process; acts while this server leads.
pub async fn run(
    name: String,
    api: ApiServer,
    view: SharedView,
    changes: broadcast::Sender<Changes>,
    beats: Arc<Beats>,
    settings: Settings,
    mut bundles: watch::Receiver<String>,
) {
    let mut leadership = api.store().leadership();
    // The roles by which controllers may write are among the first objects of a cluster.
    api.ready().await;
    loop {
        let Ok(leading) = leadership.wait_for(Leadership::is_leader).await.map(|l| l.clone()) else { return };
        tracing::info!(term = leading.term, "this server leads");
        beats.listen_anew(Instant::now());
        let (judged, liveness) = watch::channel(Arc::new(Liveness::default()));
        let settings = Arc::new(Settings { ca: bundles.borrow_and_update().clone(), ..settings.clone() });
        let shared = Leading {
            api: api.clone(),
            term: leading.term,
            view: view.clone(),
            changes: changes.clone(),
            liveness,
            settings,
        };
        let mut tasks = JoinSet::new();
        let (beats, view, changes) = (beats.clone(), view.clone(), changes.clone());
        let judged = Arc::new(judged);
        let judging = move || judge(beats.clone(), view.clone(), changes.clone(), judged.clone());
        tasks.spawn(supervise::forever("judge", judging));
        tasks.spawn(say_who_leads(name.clone(), shared.clone()));
        decide(&mut tasks, &shared);
        let term = leading.term;
        let trusted_anew = tokio::select! {
            ended = leadership.wait_for(|l| !l.is_leader() || l.term != term) => {
                if ended.is_err() {
                    return;
                }
                false
            }
            // What everybody is to trust is in every namespace: all of it is looked at anew.
            changed = bundles.changed() => changed.is_ok(),
        };
        if !trusted_anew {
            tracing::info!(term, "this server no longer leads");
        }
        tasks.shutdown().await;
    }
}

/// Controllers and scheduler over an API server that has no agents: every node counts as live. For tests of what they decide.
/// Runs until it is dropped.
pub async fn run_without_agents(api: ApiServer, settings: Settings) {
    let (view, changes) = super::view::follow(api.objects().clone());
    let mut leadership = api.store().leadership();
    let Ok(term) = leadership.wait_for(Leadership::is_leader).await.map(|l| l.term) else { return };
    api.ready().await;
    let (_judged, liveness) = watch::channel(Arc::new(Liveness::default()));
    let shared = Leading { api, term, view, changes, liveness, settings: Arc::new(settings) };
    let mut tasks = JoinSet::new();
    decide(&mut tasks, &shared);
    tasks.join_all().await;
}

/// The scheduler and every controller, each in a task of its own.
fn decide(tasks: &mut JoinSet<()>, shared: &Leading) {
    let leading = shared.clone();
    tasks.spawn(supervise::forever("scheduler", move || scheduling::run(leading.clone())));
    for controller in CONTROLLERS {
        let leading = shared.clone();
        tasks.spawn(supervise::forever(controller.name, move || controllers::run(*controller, leading.clone())));
    }
}

/// The API as a controller's service account has it, for writes that end with this term.
pub fn client(leading: &Leading, account: &str) -> Client {
    let user = match account {
        skiff_reconcile::MANAGER => UserInfo::new(account, []),
        account => UserInfo::service_account("kube-system", account, ""),
    };
    leading.api.client(user).with_manager("kube-controller-manager").fenced(leading.term)
}

/// Writes the leader's name where people and programs look for it. Only for reading: who leads is the store's to say.
async fn say_who_leads(name: String, leading: Leading) {
    // The server's own word, no controller's.
    let client = leading.api.client(UserInfo::apiserver()).with_manager("skiff-server").fenced(leading.term);
    let Some(leases) = kinds::by_resource("coordination.k8s.io", "v1", "leases") else { return };
    let now = skiff_api::meta::format_micro_time(Timestamp::now());
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": 1, "acquireTime": now, "renewTime": now,
        "leaseTransitions": leading.term});
    let object = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "skiff-leader", "namespace": "kube-system"}, "spec": spec});
    loop {
        let patch = json!({"spec": spec});
        let mut written = client.patch(&leases, "kube-system", "skiff-leader", "", PatchType::Merge, &patch).await;
        if written.as_ref().is_err_and(|s| s.code() == 404) {
            written = client.create(&leases, "kube-system", object.clone()).await;
        }
        if written.is_ok() {
            return std::future::pending().await;
        }
        tokio::time::sleep(JUDGE_EVERY).await;
    }
}

/// Turns heartbeats into who is live and who is lost, and tells those that decide by it.
async fn judge(
    beats: Arc<Beats>,
    view: SharedView,
    changes: broadcast::Sender<Changes>,
    judged: Arc<watch::Sender<Arc<Liveness>>>,
) {
    let mut last = Instant::now();
    let mut period = tokio::time::interval(JUDGE_EVERY);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let now = Instant::now();
        // This process was stopped for a while: the silence it sees is its own.
        if now.duration_since(last) > JUDGE_EVERY * 5 {
            beats.listen_anew(now);
        }
        last = now;
        let names: Vec<String> = view.read().nodes.iter().map(|(k, _)| k.name.clone()).collect();
        let old = judged.borrow().clone();
        let lost = beats.judge(names.iter().map(String::as_str), now).into_iter();
        let new = old.next(lost.map(|(name, silence)| (name, silence.is_some())), Timestamp::now());
        if new == *old {
            continue;
        }
        let changed: Vec<Change> = new
            .0
            .iter()
            .filter(|(name, state)| old.0.get(*name) != Some(*state))
            .map(|(name, _)| node_change(name))
            .collect();
        for (name, state) in &new.0 {
            if old.0.get(name).is_some_and(|o| o != state) {
                tracing::info!(node = name, ?state, "a node's heartbeats changed");
            }
        }
        judged.send_replace(Arc::new(new));
        let _ = changes.send(Arc::new(changed));
    }
}

/// News about a node that the store knows nothing of.
fn node_change(name: &str) -> Change {
    Change {
        resource: Resource::new("", "v1", "nodes"),
        key: Key::new("", name),
        gone: false,
        before: None,
        after: None,
        nodes: [None, None],
        labels_before: None,
    }
}
