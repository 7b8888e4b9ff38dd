//! `eviction`: a deletion that asks first whether a disruption budget allows it.

use crate::admission;
use crate::call::{Answer, Call};
use crate::decode;
use crate::state::{Fresh, State};
use crate::storage::encode::Stored;
use crate::storage::keys;
use crate::verbs::commit::{Committed, Write, commit};
use crate::verbs::delete::{DeleteOptions, delete_one};
use crate::verbs::options;
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_api::meta;
use skiff_api::selector::LabelSelector;
use skiff_api::status::Status;

const ATTEMPTS_MAX: usize = 8;

pub async fn handle(state: &State, call: &mut Call) -> Result<Answer, Status> {
    options::check(call, "CreateOptions")?;
    let eviction_kind =
        kinds::Kind { group: "policy".into(), version: "v1".into(), kind: "Eviction".into(), ..Default::default() };
    let eviction = decode::object_of(call, &eviction_kind)?;
    let name = call.info.name.clone();
    if meta::name(&eviction) != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let body = eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
    let text = |path: &[&str]| meta::at(&body, path).and_then(Value::as_str).map(String::from);
    let wanted = DeleteOptions {
        grace_seconds: meta::i64_at(&body, &["gracePeriodSeconds"]),
        uid: text(&["preconditions", "uid"]),
        resource_version: text(&["preconditions", "resourceVersion"]),
        propagation: text(&["propagationPolicy"]),
        orphan_dependents: None,
        dry_run: call.dry_run() || !meta::list_at(&body, &["dryRun"]).is_empty(),
    };
    let pod = state.must_read(&call.kind, call.namespace(), &name, Fresh::Linearizable).await?.decode();
    admission::node::eviction(&call.user, &pod)?;
    let phase = meta::str_at(&pod, &["status", "phase"]);
    let over = matches!(phase, "Succeeded" | "Failed") || meta::is_being_deleted(&pod);
    let pending = phase == "Pending";
    if !over && !pending {
        check_budgets(state, call, &pod, wanted.dry_run).await?;
    }
    if !wanted.dry_run {
        mark(state, call, &name).await?;
    }
    delete_one(state, call, &name, &wanted).await?;
    Ok(Answer::success(Status::success(201)))
}

/// The budget that selects the pod must have a disruption to spare, and gives it.
async fn check_budgets(state: &State, call: &Call, pod: &Value, dry_run: bool) -> Result<(), Status> {
    for _ in 0..ATTEMPTS_MAX {
        let Some((key, revision, budget)) = budget_of(state, call, pod).await? else { return Ok(()) };
        let Some(granted) = grant(&budget, pod, Timestamp::now())? else { return Ok(()) };
        if dry_run {
            return Ok(());
        }
        let value = Some(Stored::encode(&granted, "PodDisruptionBudget", "policy/v1"));
        let write = Write { key, expected: revision, value, fence: call.fence, ..Default::default() };
        if let Committed::Done(_) = commit(state, write).await? {
            return Ok(());
        }
    }
    Err(Status::too_many_requests("the disruption budget is being changed by others: try again", 1))
}

/// The one budget that selects the pod: its key, revision and value.
async fn budget_of(state: &State, call: &Call, pod: &Value) -> Result<Option<(String, u64, Value)>, Status> {
    let prefix = format!("{}{}/", keys::prefix_of("policy", "poddisruptionbudgets"), call.namespace());
    let mut found = None;
    for kv in state.scan(&prefix).await?.kvs {
        let budget: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
        let Some(selector) = meta::at(&budget, &["spec", "selector"]).filter(|s| !s.is_null()) else { continue };
        let selector = LabelSelector::from_json(selector).map_err(|e| Status::bad_request(e.to_string()))?;
        if !selector.matches(meta::labels(pod)) {
            continue;
        }
        if found.is_some() {
            return Err(Status::internal_error(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        found = Some((String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision, budget));
    }
    Ok(found)
}

/// The budget after this eviction; None where it does not take from the budget.
fn grant(budget: &Value, pod: &Value, now: Timestamp) -> Result<Option<Value>, Status> {
    let number = |key: &str| meta::i64_at(budget, &["status", key]).unwrap_or(0);
    let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
    let name = meta::name(budget);
    let refuse = |why: String| {
        let text = "Cannot evict pod as it would violate the pod's disruption budget.";
        let mut status = Status::too_many_requests(text, 0);
        if let Some(details) = &mut status.details {
            details.causes.push(json!({"reason": "DisruptionBudget", "message": why}));
        }
        status
    };
    let ready = |c: &Value| meta::str_at(c, &["type"]) == "Ready" && meta::str_at(c, &["status"]) == "True";
    let is_ready = meta::list_at(pod, &["status", "conditions"]).iter().any(ready);
    // A pod that is not ready serves nobody: it may go where enough others do, or always, as the budget says.
    let always = meta::str_at(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow";
    if !is_ready && (always || healthy >= desired && desired > 0) {
        return Ok(None);
    }
    if number("observedGeneration") < meta::generation(budget) {
        return Err(refuse(format!("The disruption budget {name} is still being processed by the server.")));
    }
    if number("disruptionsAllowed") <= 0 {
        let why = format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently");
        return Err(refuse(why));
    }
    let mut granted = budget.clone();
    granted["status"]["disruptionsAllowed"] = json!(number("disruptionsAllowed") - 1);
    granted["status"]["disruptedPods"][meta::name(pod)] = json!(meta::format_time(now));
    Ok(Some(granted))
}

/// Says on the pod why it ends.
async fn mark(state: &State, call: &Call, name: &str) -> Result<(), Status> {
    const REASON: &str = "DisruptionTarget";
    for _ in 0..ATTEMPTS_MAX {
        let current = state.must_read(&call.kind, call.namespace(), name, Fresh::Linearizable).await?;
        let mut pod = current.decode();
        let mut conditions = meta::list_at(&pod, &["status", "conditions"]).to_vec();
        if conditions.iter().any(|c| c["type"] == REASON && c["status"] == "True") {
            return Ok(());
        }
        conditions.retain(|c| c["type"] != REASON);
        conditions.push(json!({
            "type": REASON, "status": "True", "lastProbeTime": null,
            "lastTransitionTime": meta::format_time(Timestamp::now()),
            "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        }));
        pod["status"]["conditions"] = Value::Array(conditions);
        let write = Write {
            key: keys::object(&call.kind, call.namespace(), name),
            expected: current.revision,
            value: Some(Stored::encode(&pod, "Pod", "v1")),
            fence: call.fence,
            ..Default::default()
        };
        if let Committed::Done(_) = commit(state, write).await? {
            return Ok(());
        }
    }
    Err(Status::conflict("", "pods", name, Status::MODIFIED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eviction_takes_from_the_budget() {
        let budget = |allowed: i64| {
            json!({"metadata": {"name": "b", "generation": 1}, "spec": {}, "status": {"observedGeneration": 1,
                "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1}})
        };
        let pod = |ready: &str| json!({"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let granted = grant(&budget(1), &pod("True"), Timestamp::UNIX_EPOCH).unwrap().unwrap();
        assert_eq!(granted["status"]["disruptionsAllowed"], 0);
        assert_eq!(granted["status"]["disruptedPods"]["p"], "1970-01-01T00:00:00Z");
        assert_eq!(grant(&budget(0), &pod("True"), Timestamp::UNIX_EPOCH).unwrap_err().code(), 429);
        assert_eq!(grant(&budget(0), &pod("False"), Timestamp::UNIX_EPOCH).unwrap(), None, "it serves nobody");
    }
}
