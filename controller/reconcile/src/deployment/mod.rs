//! Deployments: one ReplicaSet for each template that was ever asked for, and pods moved from the old ones to the newest.
//!
//! The rules (revisions, annotations, how far each step may go, the words of conditions) are those of Kubernetes' deployment controller, which
//! `kubectl rollout` reads.

mod conditions;
mod rolling;
mod sets;

use crate::Controller;
use crate::action::{Action, Context, EventNote, Plan, value};
use crate::owned::{self, Claim, claim, matches, owner_reference};
use crate::{pods, replicaset};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use skiff_api::view::{Change, Key, Resource, View};
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "deployment", keys, all, plan, refused: crate::untold };

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

pub fn resource() -> Resource {
    Resource::new("apps", "v1", "deployments")
}

fn all(view: &View) -> Vec<Key> {
    view.deployments.iter().map(|(k, _)| k.clone()).collect()
}

fn keys(view: &View, change: &Change) -> Vec<Key> {
    let namespace = &change.key.namespace;
    match (change.resource.group.as_str(), change.resource.plural.as_str()) {
        ("apps", "deployments") => vec![change.key.clone()],
        ("apps", "replicasets") => {
            let owners = [&change.before, &change.after].into_iter().flatten().flat_map(|i| &i.owners);
            let mut keys: Vec<_> =
                owners.filter(|o| o.kind == "Deployment").map(|o| Key::new(namespace, &o.name)).collect();
            if keys.is_empty() {
                keys.extend(view.deployments.namespace(namespace).map(|(k, _)| k.clone()));
            }
            keys
        }
        // Recreate waits for the old pods to be gone altogether.
        ("", "pods") if change.gone => {
            let recreate = |d: &Deployment| {
                d.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref()) == Some("Recreate")
            };
            view.deployments.namespace(namespace).filter(|(_, d)| recreate(d)).map(|(k, _)| k.clone()).collect()
        }
        _ => Vec::new(),
    }
}

/// A Deployment with its ReplicaSets, the one for its template apart from the others.
pub(crate) struct Family<'a> {
    pub deployment: &'a Deployment,
    pub spec: &'a DeploymentSpec,
    pub new: Option<Arc<ReplicaSet>>,
    /// Oldest first.
    pub old: Vec<Arc<ReplicaSet>>,
    /// The revision that the Deployment should show: that of its newest ReplicaSet.
    pub shown: Option<i64>,
}

impl Family<'_> {
    pub fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
    pub fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(self.new.iter())
    }
    pub fn is_recreate(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate")
    }
}

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(deployment) = c.view.deployments.get(key) else { return plan };
    let Some(spec) = &deployment.spec else { return plan };
    let mut family = gather(c.view, deployment, spec, &mut plan);
    if deployment.metadata.deletion_timestamp.is_none() {
        if spec.paused == Some(true) || sets::is_scaling(&family) {
            sets::revise(&mut family, false, &mut plan);
            rolling::scale(&mut family, &mut plan);
        } else if family.is_recreate() {
            recreate(c, &mut family, &mut plan);
        } else {
            sets::revise(&mut family, true, &mut plan);
            rolling::step(&mut family, &mut plan);
        }
        sets::clean_up(&family, &mut plan);
    }
    conditions::status(c, &family, &mut plan);
    plan
}

fn gather<'a>(view: &View, deployment: &'a Deployment, spec: &'a DeploymentSpec, plan: &mut Plan) -> Family<'a> {
    let meta = &deployment.metadata;
    let (uid, selector) = (meta.uid.as_deref().unwrap_or_default(), owned::selector(&spec.selector));
    let mut sets = Vec::new();
    for (_, set) in view.replica_sets.namespace(meta.namespace.as_deref().unwrap_or_default()) {
        let fits = matches(&selector, set.metadata.labels.as_ref());
        match claim(uid, meta.deletion_timestamp.is_some(), &set.metadata, fits) {
            Claim::Ours => sets.push(set.clone()),
            Claim::Adopt => {
                let owner = owner_reference("apps/v1", "Deployment", meta);
                plan.push(owned::adopt(replicaset::resource(), &set.metadata, owner));
                sets.push(set.clone());
            }
            Claim::Release => plan.push(owned::release(replicaset::resource(), &set.metadata, uid)),
            Claim::NotOurs => {}
        }
    }
    sets.sort_by_key(|s| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), s.metadata.name.clone()));
    // Of several that fit (two controllers once disagreed), the oldest: deterministic, and the one with pods.
    let new = sets.iter().find(|s| sets::same_template(spec, s)).cloned();
    let old = sets.into_iter().filter(|s| new.as_ref().is_none_or(|n| n.metadata.uid != s.metadata.uid)).collect();
    Family { deployment, spec, new, old, shown: None }
}

/// Recreate: all old pods go first, to the last, then the new ones come.
fn recreate(c: &Context<'_>, family: &mut Family<'_>, plan: &mut Plan) {
    sets::revise(family, false, plan);
    let mut scaled = false;
    for set in family.old.clone() {
        if replicas(&set) > 0 {
            scale_to(family, &set, 0, plan);
            scaled = true;
        }
    }
    let old_pods = family.old.iter().filter_map(|s| s.metadata.uid.as_deref()).flat_map(|uid| c.view.dependents(uid));
    let running = old_pods.filter_map(|i| c.view.pods.get(&i.key)).any(|p| !pods::is_finished(p));
    if scaled || running {
        return;
    }
    sets::revise(family, true, plan);
    if let Some(new) = family.new.clone()
        && replicas(&new) != family.wanted()
    {
        scale_to(family, &new, family.wanted(), plan);
    }
}

/// Sets a ReplicaSet's size, and on it the size that the Deployment had in mind (proportional scaling reads that later).
pub(crate) fn scale_to(family: &Family<'_>, set: &Arc<ReplicaSet>, to: i32, plan: &mut Plan) {
    let from = replicas(set);
    let mut changed = (**set).clone();
    let resized = from != to;
    let annotated = sets::annotate_size(&mut changed, family);
    if let Some(spec) = &mut changed.spec {
        spec.replicas = Some(to);
    }
    if !resized && !annotated {
        return;
    }
    plan.push(Action::Update { resource: replicaset::resource(), object: value(&changed), subresource: None });
    if resized {
        let direction = if to > from { "up" } else { "down" };
        let name = set.metadata.name.as_deref().unwrap_or_default();
        plan.push(event(
            family.deployment,
            "ScalingReplicaSet",
            format!("Scaled {direction} replica set {name} from {from} to {to}"),
        ));
    }
}

pub(crate) fn event(deployment: &Deployment, reason: &'static str, message: String) -> Action {
    let meta = &deployment.metadata;
    Action::Event(EventNote {
        resource: resource(),
        kind: "Deployment".into(),
        key: Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
        uid: meta.uid.clone().unwrap_or_default(),
        warning: false,
        reason,
        message,
    })
}
