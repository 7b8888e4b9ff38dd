//! A Deployment's ReplicaSets: which one is for its template, how a new one is made and named, revisions, and which old ones are dropped.

use super::rolling::max_surge;
use super::{DESIRED, Family, MAX, REVISION, event, replicas};
use crate::action::{Action, Plan, value};
use crate::owned::owner_reference;
use crate::replicaset;
use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest as _, Sha256};
use skiff_api::view::Key;
use std::collections::BTreeMap;
use std::sync::Arc;

const HASH_LABEL: &str = "pod-template-hash";

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref().and_then(|a| a.get(name)).map(String::as_str)
}

pub fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// Whether a ReplicaSet's pods are made from this template: equal but for the label that we put on.
pub fn same_template(spec: &DeploymentSpec, set: &ReplicaSet) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
            labels.remove(HASH_LABEL);
        }
        template
    };
    let of_set = set.spec.as_ref().and_then(|s| s.template.as_ref());
    of_set.is_some_and(|t| bare(t) == bare(&spec.template))
}

/// Whether somebody changed the Deployment's size since its ReplicaSets were last sized.
pub fn is_scaling(family: &Family<'_>) -> bool {
    family.all().filter(|s| replicas(s) > 0).any(|set| {
        annotation(&set.metadata, DESIRED).and_then(|d| d.parse::<i32>().ok()).is_some_and(|d| d != family.wanted())
    })
}

/// Notes on a ReplicaSet how large the Deployment is and may become; true if that is news.
pub fn annotate_size(set: &mut ReplicaSet, family: &Family<'_>) -> bool {
    let wanted = family.wanted();
    let notes = [(DESIRED, wanted.to_string()), (MAX, wanted.saturating_add(max_surge(family)).to_string())];
    let annotations = set.metadata.annotations.get_or_insert_default();
    let news = notes.iter().any(|(k, v)| annotations.get(*k) != Some(v));
    annotations.extend(notes.into_iter().map(|(k, v)| (k.to_owned(), v)));
    news
}

/// What of a Deployment's annotations its ReplicaSets carry too.
fn copied(meta: &ObjectMeta) -> BTreeMap<String, String> {
    const OWN: [&str; 5] = [
        REVISION,
        DESIRED,
        MAX,
        "kubectl.kubernetes.io/last-applied-configuration",
        "deprecated.deployment.rollback.to",
    ];
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|k, _| !OWN.contains(&k.as_str()));
    annotations
}

/// Gives the template's ReplicaSet the newest revision, and makes it if it is not there (and `may_create`).
pub fn revise(family: &mut Family<'_>, may_create: bool, plan: &mut Plan) {
    let newest_old = family.old.iter().map(|s| revision(&s.metadata)).max().unwrap_or(0);
    let next = newest_old.saturating_add(1);
    if let Some(set) = &family.new {
        let mut changed = (**set).clone();
        let annotations = changed.metadata.annotations.get_or_insert_default();
        let before = annotations.clone();
        annotations.extend(copied(&family.deployment.metadata));
        let old_revision = revision(&set.metadata);
        if old_revision < next {
            if old_revision > 0 {
                // Rolled back to: the revisions that it had are kept for `rollout history`.
                let history = annotations.entry("deployment.kubernetes.io/revision-history".into()).or_default();
                if !history.is_empty() {
                    history.push(',');
                }
                history.push_str(&old_revision.to_string());
            }
            annotations.insert(REVISION.into(), next.to_string());
        }
        let differs = *annotations != before;
        let shown = revision(&changed.metadata);
        if differs {
            plan.push(Action::Update { resource: replicaset::resource(), object: value(&changed), subresource: None });
            family.new = Some(Arc::new(changed));
        }
        family.shown = Some(shown);
        return;
    }
    if may_create {
        create(family, next, plan);
    }
}

fn create(family: &mut Family<'_>, next: i64, plan: &mut Plan) {
    let (deployment, spec) = (family.deployment, family.spec);
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let mut annotations = copied(&deployment.metadata);
    annotations.insert(REVISION.into(), next.to_string());
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference("apps/v1", "Deployment", &deployment.metadata)]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    annotate_size(&mut set, family);
    // As many at once as the surge allows.
    let made = super::rolling::new_size(family, 0);
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(made);
    }
    let mut object = value(&set);
    object.as_object_mut().map(|o| o.remove("status"));
    plan.push(Action::Create { resource: replicaset::resource(), object, announce: None });
    if made > 0 {
        let message = format!("Scaled up replica set {name}-{hash} from 0 to {made}");
        plan.push(event(deployment, "ScalingReplicaSet", message));
    }
    family.shown = Some(next);
}

/// Ten characters that name a template. `collisions` gives another name where one is taken.
fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    // Letters and digits that form no words.
    const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hasher = Sha256::new();
    hasher.update(value(template).to_string());
    hasher.update(collisions.to_be_bytes());
    hasher.finalize().iter().take(10).map(|b| SAFE[*b as usize % SAFE.len()] as char).collect()
}

/// Old, empty ReplicaSets beyond the history that is asked for go, oldest revision first.
pub fn clean_up(family: &Family<'_>, plan: &mut Plan) {
    let keep = family.spec.revision_history_limit.unwrap_or(10).max(0) as usize;
    let complete = family.new.as_ref().is_some_and(|new| {
        let status = new.status.clone().unwrap_or_default();
        status.available_replicas.unwrap_or(0) >= family.wanted() && replicas(new) == family.wanted()
    });
    if !complete {
        return;
    }
    let is_empty = |s: &&Arc<ReplicaSet>| {
        replicas(s) == 0
            && s.status.as_ref().is_none_or(|st| st.replicas == 0)
            && s.metadata.deletion_timestamp.is_none()
    };
    let mut empty: Vec<_> = family.old.iter().filter(is_empty).collect();
    empty.sort_by_key(|s| revision(&s.metadata));
    let excess = family.old.len().saturating_sub(keep);
    for set in empty.into_iter().take(excess) {
        let meta = &set.metadata;
        plan.push(Action::Delete {
            resource: replicaset::resource(),
            key: Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: None,
            propagation: Some("Background"),
            grace_seconds: None,
        });
    }
}
