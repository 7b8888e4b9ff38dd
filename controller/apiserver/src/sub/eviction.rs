//! `eviction`: a deletion that asks first whether a disruption budget allows it.

use crate::call::{Answer, Call};
use crate::decode;
use crate::state::{Fresh, State};
use crate::verbs::delete::{DeleteOptions, delete_one};
use crate::verbs::options;
use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_api::meta;
use skiff_api::selector::LabelSelector;
use skiff_api::status::Status;

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
    let phase = meta::str_at(&pod, &["status", "phase"]);
    let over = matches!(phase, "Succeeded" | "Failed") || meta::is_being_deleted(&pod);
    let pending = phase == "Pending";
    if !over && !pending {
        check_budgets(state, call, &pod).await?;
    }
    delete_one(state, call, &name, &wanted).await?;
    Ok(Answer::success(Status::success(201)))
}

/// Every budget that selects the pod must have a disruption to spare.
async fn check_budgets(state: &State, call: &Call, pod: &Value) -> Result<(), Status> {
    let prefix = format!("{}{}/", crate::storage::keys::prefix_of("policy", "poddisruptionbudgets"), call.namespace());
    for kv in state.scan(&prefix).await?.kvs {
        let budget: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
        let selector =
            LabelSelector::from_json(budget.get("spec").and_then(|s| s.get("selector")).unwrap_or(&Value::Null))
                .map_err(|e| Status::bad_request(e.to_string()))?;
        let labels = meta::labels(pod).cloned().unwrap_or_default();
        if !selector.matches(Some(&labels)) {
            continue;
        }
        if meta::i64_at(&budget, &["status", "disruptionsAllowed"]).unwrap_or(0) <= 0 {
            let mut status =
                Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0);
            if let Some(details) = &mut status.details {
                let healthy = meta::i64_at(&budget, &["status", "currentHealthy"]).unwrap_or(0);
                let desired = meta::i64_at(&budget, &["status", "desiredHealthy"]).unwrap_or(0);
                details.causes.push(json!({
                    "reason": "DisruptionBudget",
                    "message": format!(
                        "The disruption budget {} needs {desired} healthy pods and has {healthy} currently",
                        meta::name(&budget)
                    ),
                }));
            }
            return Err(status);
        }
    }
    Ok(())
}
