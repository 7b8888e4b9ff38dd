//! Defaults of namespaces, nodes, limits, bindings and autoscalers.

use super::{each, empty, or, text, with};
use serde_json::{Map, Value, json};

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// A namespace carries its own name as a label, so that selectors can name it.
pub(super) fn namespace(map: &mut Map<String, Value>) {
    with(map, "metadata", |meta| {
        let name = text(meta, "name").to_string();
        if !name.is_empty() {
            or(meta, "labels", empty());
            with(meta, "labels", |labels| {
                labels.insert("kubernetes.io/metadata.name".into(), name.into());
            });
        }
    });
    with(map, "status", |status| or(status, "phase", "Active"));
}

/// What a node has can all be used, until it says otherwise.
pub(super) fn node(map: &mut Map<String, Value>) {
    // The old field is the first of the new one; a writer may give either.
    with(map, "spec", |spec| {
        let single = text(spec, "podCIDR").to_string();
        let first = spec.get("podCIDRs").and_then(|l| l.get(0)).and_then(Value::as_str).unwrap_or("").to_string();
        if !single.is_empty() && single != first {
            spec.insert("podCIDRs".into(), json!([single]));
        } else if single.is_empty() && !first.is_empty() {
            spec.insert("podCIDR".into(), first.into());
        }
    });
    with(map, "status", |status| {
        if let Some(capacity) = status.get("capacity").cloned() {
            or(status, "allocatable", capacity);
        }
    });
}

/// For containers: the default limit follows from `max`, the default request from the default limit, then from `min`.
pub(super) fn limit_range(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        each(spec, "limits", |limit| {
            if text(limit, "type") == "Container" {
                fill(limit, "default", "max");
                fill(limit, "defaultRequest", "default");
                fill(limit, "defaultRequest", "min");
            }
        });
    });
}

fn fill(limit: &mut Map<String, Value>, target: &str, source: &str) {
    let Some(amounts) = limit.get(source).and_then(Value::as_object).cloned() else { return };
    or(limit, target, empty());
    with(limit, target, |target| amounts.into_iter().for_each(|(name, amount)| or(target, &name, amount)));
}

pub(super) fn role_binding(map: &mut Map<String, Value>) {
    with(map, "roleRef", |role| {
        if text(role, "apiGroup").is_empty() {
            role.insert("apiGroup".into(), RBAC_GROUP.into());
        }
    });
    each(map, "subjects", |subject| {
        if matches!(text(subject, "kind"), "User" | "Group") {
            or(subject, "apiGroup", RBAC_GROUP);
        }
    });
}

pub(super) fn signing_request(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| or(spec, "usages", json!(["digital signature", "key encipherment"])));
}

pub(super) fn autoscaler(map: &mut Map<String, Value>, version: &str) {
    with(map, "spec", |spec| {
        or(spec, "minReplicas", 1);
        if version != "v2" {
            return;
        }
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        or(spec, "metrics", cpu);
        with(spec, "behavior", |behavior| {
            or(behavior, "scaleUp", empty());
            with(behavior, "scaleUp", |rules| {
                or(rules, "stabilizationWindowSeconds", 0);
                scaling_rules(
                    rules,
                    json!([
                        {"type": "Pods", "value": 4, "periodSeconds": 15},
                        {"type": "Percent", "value": 100, "periodSeconds": 15},
                    ]),
                );
            });
            or(behavior, "scaleDown", empty());
            with(behavior, "scaleDown", |rules| {
                scaling_rules(rules, json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]))
            });
        });
    });
}

fn scaling_rules(rules: &mut Map<String, Value>, policies: Value) {
    or(rules, "selectPolicy", "Max");
    or(rules, "policies", policies);
}
