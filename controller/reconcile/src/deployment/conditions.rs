//! A Deployment's status: the counts, whether it is available, and how its rollout goes.

use super::rolling::max_unavailable;
use super::{Family, REVISION, replicas};
use crate::action::{Action, Context, Plan, time, value};
use crate::clock::after;
use crate::replicaset::FAILURE;
use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

/// Sets a condition; its times move only with its status (or its reason).
fn set(conditions: &mut Vec<DeploymentCondition>, c: &Context<'_>, new: (&str, &str, &str, String)) {
    let (type_, status, reason, message) = new;
    let old = conditions.iter().find(|o| o.type_ == type_).cloned();
    if let Some(old) = &old
        && old.status == status
        && old.reason.as_deref() == Some(reason)
        && (old.message.as_deref() == Some(message.as_str()) || type_ == "Progressing" && reason != "ReplicaSetUpdated")
    {
        return;
    }
    let since = old.filter(|o| o.status == status).and_then(|o| o.last_transition_time);
    conditions.retain(|o| o.type_ != type_);
    conditions.push(DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(since.unwrap_or_else(|| time(c.now))),
        last_update_time: Some(time(c.now)),
    });
}

/// Why a set of the family gets no pods: reason and message.
fn failure(set: &ReplicaSet) -> Option<(String, String)> {
    let conditions = set.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|o| o.type_ == FAILURE && o.status == "True")?;
    Some((found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

fn sum(family: &Family<'_>, of: impl Fn(&ReplicaSet) -> Option<i32>) -> i32 {
    family.all().filter_map(|s| of(s)).fold(0, i32::saturating_add)
}

fn some(n: i32) -> Option<i32> {
    Some(n).filter(|n| *n != 0)
}

pub fn status(c: &Context<'_>, family: &Family<'_>, plan: &mut Plan) {
    let old = family.deployment.status.clone().unwrap_or_default();
    let st = |f: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>| {
        move |s: &ReplicaSet| s.status.as_ref().and_then(f)
    };
    let available = sum(family, st(|s| s.available_replicas));
    let total_spec = family.all().map(|s| replicas(s)).fold(0, i32::saturating_add);
    let updated = family.new.as_ref().and_then(|n| n.status.as_ref()).map_or(0, |s| s.replicas);
    let mut new = DeploymentStatus {
        observed_generation: family.deployment.metadata.generation,
        replicas: some(sum(family, st(|s| Some(s.replicas)))),
        updated_replicas: some(updated),
        ready_replicas: some(sum(family, st(|s| s.ready_replicas))),
        available_replicas: some(available),
        unavailable_replicas: some(total_spec.saturating_sub(available).max(0)),
        terminating_replicas: Some(sum(family, st(|s| s.terminating_replicas))),
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
    };
    let conditions = new.conditions.get_or_insert_default();
    progress(c, family, &old, (updated, available), conditions, plan);
    let wanted = family.wanted();
    if available >= wanted.saturating_sub(max_unavailable(family)) {
        set(
            conditions,
            c,
            ("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into()),
        );
    } else {
        let message = "Deployment does not have minimum availability.".into();
        set(conditions, c, ("Available", "False", "MinimumReplicasUnavailable", message));
    }
    match family.all().filter_map(|s| failure(s)).next() {
        Some((reason, message)) => set(conditions, c, (FAILURE, "True", &reason, message)),
        None => conditions.retain(|o| o.type_ != FAILURE),
    }
    // The revision is written with the status: nobody asked for it, so it is no new generation.
    let mut metadata = family.deployment.metadata.clone();
    if let Some(shown) = family.shown {
        metadata.annotations.get_or_insert_default().insert(REVISION.into(), shown.to_string());
    }
    if new != old || metadata != family.deployment.metadata {
        let object = Deployment { status: Some(new), metadata, ..family.deployment.clone() };
        plan.push(Action::Update { resource: super::resource(), object: value(&object), subresource: Some("status") });
    }
}

fn progress(
    c: &Context<'_>,
    family: &Family<'_>,
    old: &DeploymentStatus,
    (updated, available): (i32, i32),
    conditions: &mut Vec<DeploymentCondition>,
    plan: &mut Plan,
) {
    let deadline = match family.spec.progress_deadline_seconds {
        // The largest number means: no deadline, no condition.
        Some(i32::MAX) | None => {
            conditions.retain(|o| o.type_ != "Progressing");
            return;
        }
        Some(seconds) => SignedDuration::from_secs(i64::from(seconds)),
    };
    let last = conditions.iter().find(|o| o.type_ == "Progressing").cloned();
    let last_reason = last.as_ref().and_then(|l| l.reason.as_deref()).unwrap_or_default();
    if family.spec.paused == Some(true) {
        return set(conditions, c, ("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused".into()));
    }
    if last_reason == "DeploymentPaused" {
        set(conditions, c, ("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed".into()));
    }
    let Some(new) = &family.new else { return };
    let name = new.metadata.name.as_deref().unwrap_or_default();
    let wanted = family.wanted();
    let counts = |s: &DeploymentStatus| {
        (s.updated_replicas.unwrap_or(0), s.ready_replicas.unwrap_or(0), s.available_replicas.unwrap_or(0))
    };
    let total = sum(family, |s| s.status.as_ref().map(|st| st.replicas));
    let ready = sum(family, |s| s.status.as_ref().and_then(|st| st.ready_replicas));
    let complete = updated == wanted && total == wanted && available == wanted && replicas(new) == wanted;
    if complete {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        return set(conditions, c, ("Progressing", "True", "NewReplicaSetAvailable", message));
    }
    let was = counts(old);
    let old_total = old.replicas.unwrap_or(0);
    let progressing = updated > was.0
        || ready > was.1
        || available > was.2
        || old_total.saturating_sub(was.0) > total.saturating_sub(updated);
    if progressing || last_reason == "NewReplicaSetAvailable" || last.is_none() {
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        conditions.retain(|o| o.type_ != "Progressing" || !progressing);
        return set(conditions, c, ("Progressing", "True", "ReplicaSetUpdated", message));
    }
    let since = last.as_ref().and_then(|l| l.last_update_time.as_ref()).map_or(c.now, |t| t.0);
    if c.now >= after(since, deadline) {
        if last_reason != "ProgressDeadlineExceeded" {
            let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
            set(conditions, c, ("Progressing", "False", "ProgressDeadlineExceeded", message));
        }
    } else {
        plan.again(after(since, deadline));
    }
}
