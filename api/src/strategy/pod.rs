//! What the server sets on pods: phase, quality of service, the mark of scheduling gates.

use super::set_or_remove;
use crate::meta;
use crate::quantity::Quantity;
use serde_json::{Map, Value, json};

pub(super) fn create(obj: &mut Value) {
    let mut status = Map::new();
    status.insert("phase".into(), "Pending".into());
    status.insert("qosClass".into(), qos_class(obj).into());
    if !meta::list_at(obj, &["spec", "schedulingGates"]).is_empty() {
        status.insert(
            "conditions".into(),
            json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastTransitionTime": meta::at(obj, &["metadata", "creationTimestamp"]),
            }]),
        );
    }
    set_or_remove(obj, "status", Some(Value::Object(status)));
    merge_label_keys(obj);
}

/// `matchLabelKeys` of pod affinity terms become requirements of their selectors, with the pod's own labels.
fn merge_label_keys(obj: &mut Value) {
    let labels = meta::labels(obj).cloned().unwrap_or_default();
    let Some(affinity) = obj.pointer_mut("/spec/affinity").and_then(Value::as_object_mut) else { return };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(rules) = affinity.get_mut(kind).and_then(Value::as_object_mut) else { continue };
        for list in
            ["requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"]
        {
            for term in rules.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                let weighted = term.get("podAffinityTerm").is_some();
                let term = if weighted { term.get_mut("podAffinityTerm") } else { Some(term) };
                if let Some(term) = term {
                    merge_term(term, &labels);
                }
            }
        }
    }
}

fn merge_term(term: &mut Value, labels: &Map<String, Value>) {
    let keys = |name: &str| {
        meta::list_at(term, &[name]).iter().filter_map(Value::as_str).map(str::to_string).collect::<Vec<_>>()
    };
    let (same, differ) = (keys("matchLabelKeys"), keys("mismatchLabelKeys"));
    let Some(selector) = term.get_mut("labelSelector").and_then(Value::as_object_mut) else { return };
    for (keys, operator) in [(same, "In"), (differ, "NotIn")] {
        for key in keys {
            let Some(value) = labels.get(&key) else { continue };
            let list = selector.entry("matchExpressions").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
}

/// `Guaranteed` when every container has limits of cpu and memory and requests as much; `BestEffort` when none asks for
/// anything; `Burstable` otherwise. Resources of the pod as a whole, where given, decide alone.
pub fn qos_class(pod: &Value) -> &'static str {
    let amounts = |holder: &Value, list: &str| -> Vec<(String, Quantity)> {
        let found = meta::map_at(holder, &["resources", list]).into_iter().flatten();
        let counted = found.filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"));
        let parsed = counted.filter_map(|(name, v)| Some((name.clone(), Quantity::from_value(v)?)));
        parsed.filter(|(_, q)| !q.is_zero()).collect()
    };
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let pod_level = spec.get("resources").is_some_and(|r| r.get("requests").is_some() || r.get("limits").is_some());
    let holders: Vec<&Value> = if pod_level {
        vec![spec]
    } else {
        meta::list_at(spec, &["containers"]).iter().chain(meta::list_at(spec, &["initContainers"])).collect()
    };
    let (mut any, mut guaranteed) = (false, !holders.is_empty());
    for holder in holders {
        let (requests, limits) = (amounts(holder, "requests"), amounts(holder, "limits"));
        any |= !requests.is_empty() || !limits.is_empty();
        let same = limits.len() == 2
            && limits.iter().all(|(name, limit)| requests.iter().any(|(n, request)| n == name && request == limit));
        guaranteed &= same;
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        for (resources, expect) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"requests": {"cpu": "1", "memory": "1"}, "limits": {"cpu": "1000m", "memory": "1"}}), "Guaranteed"),
            (json!({"requests": {"cpu": "1", "memory": "1"}, "limits": {"cpu": "2", "memory": "1"}}), "Burstable"),
            (json!({"limits": {"example.com/gpu": "2"}}), "BestEffort"),
        ] {
            assert_eq!(qos_class(&pod(resources.clone())), expect, "{resources}");
        }
    }
}
