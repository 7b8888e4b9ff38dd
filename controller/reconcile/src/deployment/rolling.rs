//! A rolling update, one step: how many new pods may come now, and how many old ones may go.

use super::{Family, replicas, scale_to};
use crate::action::Plan;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;

/// A number or a share of `total`; a share is rounded up or down.
fn resolve(amount: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match amount {
        None => 0,
        Some(IntOrString::Int(n)) => (*n).max(0),
        Some(IntOrString::String(text)) => {
            let percent: f64 = text.trim_end_matches('%').parse().unwrap_or(0.0);
            let exact = f64::from(total) * percent / 100.0;
            (if up { exact.ceil() } else { exact.floor() }) as i32
        }
    }
}

/// Surge and unavailability as numbers; where both would be nothing, one may be unavailable, or nothing could ever move.
fn bounds(family: &Family<'_>) -> (i32, i32) {
    if family.is_recreate() {
        return (0, 0);
    }
    let rolling = family.spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let amount = |a: Option<&IntOrString>| a.cloned().unwrap_or_else(|| quarter.clone());
    let wanted = family.wanted();
    let surge = resolve(Some(&amount(rolling.and_then(|r| r.max_surge.as_ref()))), wanted, true);
    let unavailable = resolve(Some(&amount(rolling.and_then(|r| r.max_unavailable.as_ref()))), wanted, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(wanted)) }
}

pub fn max_surge(family: &Family<'_>) -> i32 {
    bounds(family).0
}

pub fn max_unavailable(family: &Family<'_>) -> i32 {
    bounds(family).1
}

fn total(family: &Family<'_>) -> i32 {
    family.all().map(|s| replicas(s)).fold(0, i32::saturating_add)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// How large the new ReplicaSet, now at `current`, may be.
pub fn new_size(family: &Family<'_>, current: i32) -> i32 {
    let wanted = family.wanted();
    if family.is_recreate() {
        return wanted;
    }
    let room = wanted.saturating_add(max_surge(family)).saturating_sub(total(family));
    if room <= 0 { current } else { current.saturating_add(room.min(wanted.saturating_sub(current)).max(0)) }
}

/// One step of the roll. What it leaves for later follows when the ReplicaSets' status shows that this step was done.
pub fn step(family: &mut Family<'_>, plan: &mut Plan) {
    let Some(new) = family.new.clone() else { return };
    let (wanted, current) = (family.wanted(), replicas(&new));
    if current > wanted {
        return scale_to(family, &new, wanted, plan);
    }
    let size = new_size(family, current);
    if size != current {
        return scale_to(family, &new, size, plan);
    }
    let before = plan.actions.len();
    scale_to(family, &new, size, plan);
    if plan.actions.len() == before {
        shrink_old(family, &new, plan);
    }
}

fn shrink_old(family: &Family<'_>, new: &ReplicaSet, plan: &mut Plan) {
    let old: Vec<_> = family.old.iter().filter(|s| replicas(s) > 0).cloned().collect();
    if old.is_empty() {
        return;
    }
    let minimum = family.wanted().saturating_sub(max_unavailable(family));
    let new_unavailable = replicas(new).saturating_sub(available(new));
    let mut may_go = total(family).saturating_sub(minimum).saturating_sub(new_unavailable);
    if may_go <= 0 {
        return;
    }
    let mut sizes: Vec<i32> = old.iter().map(|s| replicas(s)).collect();
    // Pods that serve nobody go first: they cost nothing.
    for (set, size) in old.iter().zip(&mut sizes) {
        let unhealthy = size.saturating_sub(available(set)).clamp(0, may_go);
        *size -= unhealthy;
        may_go -= unhealthy;
    }
    let mut spare = family.all().map(|s| available(s)).fold(0, i32::saturating_add).saturating_sub(minimum);
    for (set, size) in old.iter().zip(&mut sizes) {
        let go = spare.min(*size).min(available(set)).max(0);
        *size -= go;
        spare -= go;
    }
    for (set, size) in old.iter().zip(sizes) {
        if size != replicas(set) {
            scale_to(family, set, size, plan);
        }
    }
}

/// The Deployment's size changed (or it is paused): the one ReplicaSet with pods follows; several share the change in proportion to their sizes.
pub fn scale(family: &mut Family<'_>, plan: &mut Plan) {
    let active: Vec<_> = family.all().filter(|s| replicas(s) > 0).cloned().collect();
    let wanted = family.wanted();
    if active.len() <= 1 {
        if let Some(only) =
            active.first().cloned().or_else(|| family.new.clone()).or_else(|| family.old.last().cloned())
        {
            scale_to(family, &only, wanted, plan);
        }
        return;
    }
    let new_is_complete = family.new.as_ref().is_some_and(|n| replicas(n) == wanted && available(n) == wanted);
    if new_is_complete {
        for set in family.old.clone().iter().filter(|s| replicas(s) > 0) {
            scale_to(family, set, 0, plan);
        }
        return;
    }
    proportionally(family, active, plan);
}

fn proportionally(family: &Family<'_>, mut active: Vec<Arc<ReplicaSet>>, plan: &mut Plan) {
    let allowed = if family.wanted() > 0 { family.wanted().saturating_add(max_surge(family)) } else { 0 };
    let sum = active.iter().map(|s| replicas(s)).fold(0, i32::saturating_add);
    let mut left = allowed.saturating_sub(sum);
    // Growing: newest first among equals; shrinking: oldest first.
    active.sort_by_key(|s| {
        let made = s.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
        (std::cmp::Reverse(replicas(s)), if left > 0 { -made } else { made })
    });
    let change = left;
    for (i, set) in active.iter().enumerate() {
        let size = replicas(set);
        let share = if i + 1 == active.len() && change > 0 {
            left
        } else {
            let exact = f64::from(change) * f64::from(size) / f64::from(sum.max(1));
            let rounded = exact.round() as i32;
            if change > 0 { rounded.min(left) } else { rounded.max(left) }
        };
        left = left.saturating_sub(share);
        scale_to(family, set, size.saturating_add(share).max(0), plan);
    }
}
