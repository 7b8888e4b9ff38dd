//! ResourceQuota: what an object uses of its namespace's share, and whether there is room.
//!
//! Source: Kubernetes documentation, "Resource Quotas".

use super::limits::pod_total;
use crate::kinds::Kind;
use crate::meta;
use crate::quantity::{Format, Quantity};
use crate::strategy::qos_class;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub type Usage = BTreeMap<String, Quantity>;

/// Kinds of the core group that are counted under their own name, too.
const COUNTED: [&str; 7] =
    ["pods", "services", "replicationcontrollers", "secrets", "configmaps", "resourcequotas", "persistentvolumeclaims"];
/// What every container must say once a quota limits it.
const COMPUTE: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

fn one() -> Quantity {
    Quantity::from_units(1, Format::Decimal)
}

/// What an object uses.
pub fn usage(kind: &Kind, object: &Value) -> Usage {
    let mut used = Usage::new();
    if kind.is("", "Pod") && matches!(meta::str_at(object, &["status", "phase"]), "Succeeded" | "Failed") {
        // A pod that has ended uses nothing but its place in the store.
        used.insert("count/pods".into(), one());
        return used;
    }
    used.insert(format!("count/{}", kind.qualified_resource()), one());
    if kind.group.is_empty() && COUNTED.contains(&kind.plural.as_str()) {
        used.insert(kind.plural.clone(), one());
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod_usage(object, &mut used),
        ("", "Service") => service_usage(object, &mut used),
        ("", "PersistentVolumeClaim") => claim_usage(object, &mut used),
        _ => {}
    }
    used
}

fn pod_usage(pod: &Value, used: &mut Usage) {
    for (name, amount) in pod_total(pod, "requests") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(name.clone(), amount);
        }
        used.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in pod_total(pod, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), amount);
        }
    }
}

fn service_usage(service: &Value, used: &mut Usage) {
    let kind = meta::str_at(service, &["spec", "type"]);
    let ports = meta::list_at(service, &["spec", "ports"]).len() as i64;
    let allocated = meta::at(service, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&json!(false));
    if kind == "NodePort" || kind == "LoadBalancer" && allocated {
        used.insert("services.nodeports".into(), Quantity::from_units(ports, Format::Decimal));
    }
    if kind == "LoadBalancer" {
        used.insert("services.loadbalancers".into(), one());
    }
}

fn claim_usage(claim: &Value, used: &mut Usage) {
    let storage = meta::at(claim, &["spec", "resources", "requests", "storage"]).and_then(Quantity::from_value);
    if let Some(storage) = &storage {
        used.insert("requests.storage".into(), *storage);
    }
    let class = meta::str_at(claim, &["spec", "storageClassName"]);
    if !class.is_empty() {
        let of_class = |what: &str| format!("{class}.storageclass.storage.k8s.io/{what}");
        used.insert(of_class("persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            used.insert(of_class("requests.storage"), storage);
        }
    }
}

/// Whether a quota's scopes take this object in. Only pods have scopes.
pub fn in_scope(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let scopes = meta::list_at(quota, &["spec", "scopes"]).iter().filter_map(Value::as_str);
    let plain = scopes.map(|scope| (scope, "Exists", &[][..]));
    let selected = meta::list_at(quota, &["spec", "scopeSelector", "matchExpressions"])
        .iter()
        .map(|e| (meta::str_at(e, &["scopeName"]), meta::str_at(e, &["operator"]), meta::list_at(e, &["values"])));
    let is_pod = kind.is("", "Pod");
    plain.chain(selected).all(|(scope, operator, values)| is_pod && pod_in_scope(object, scope, operator, values))
}

fn pod_in_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let is_set = |path: &[&str]| meta::at(pod, path).is_some_and(|v| !v.is_null());
    match scope {
        "Terminating" => is_set(&["spec", "activeDeadlineSeconds"]),
        "NotTerminating" => !is_set(&["spec", "activeDeadlineSeconds"]),
        "BestEffort" => qos_class(pod) == "BestEffort",
        "NotBestEffort" => qos_class(pod) != "BestEffort",
        "PriorityClass" => {
            let class = meta::str_at(pod, &["spec", "priorityClassName"]);
            let listed = values.iter().any(|v| v == class);
            match operator {
                "In" => listed,
                "NotIn" => !class.is_empty() && !listed,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(meta::at(pod, &["spec", "affinity"])),
        _ => false,
    }
}

/// Whether a pod's affinity looks at pods of other namespaces.
fn crosses_namespaces(affinity: Option<&Value>) -> bool {
    match affinity {
        Some(Value::Object(map)) => map.iter().any(|(key, value)| {
            key == "namespaceSelector" && !value.is_null()
                || key == "namespaces" && value.as_array().is_some_and(|l| !l.is_empty())
                || crosses_namespaces(Some(value))
        }),
        Some(Value::Array(list)) => list.iter().any(|value| crosses_namespaces(Some(value))),
        _ => false,
    }
}

fn amounts(quota: &Value, path: &[&str]) -> Usage {
    let map = meta::map_at(quota, path).into_iter().flat_map(Map::iter);
    map.filter_map(|(name, value)| Some((name.clone(), Quantity::from_value(value)?))).collect()
}

fn shown(amounts: &Usage, names: &[&String]) -> String {
    let parts =
        names.iter().map(|name| format!("{name}={}", amounts.get(*name).map(Quantity::to_string).unwrap_or_default()));
    parts.collect::<Vec<_>>().join(",")
}

/// Judges a write that turns `old` (None for a create) into `new` by one quota. Gives what is used after it where that
/// changes; an error says why there is no room. A quota whose use nobody has counted yet limits nothing.
pub fn charge(quota: &Value, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<Option<Value>, String> {
    let hard = amounts(quota, &["status", "hard"]);
    let mut delta = usage(kind, new);
    let concerned: Vec<String> = delta.keys().filter(|name| hard.contains_key(*name)).cloned().collect();
    let compute = kind.is("", "Pod") && COMPUTE.iter().any(|name| hard.contains_key(*name));
    if concerned.is_empty() && !compute || !in_scope(quota, kind, new) {
        return Ok(None);
    }
    let name = meta::name(quota);
    if kind.is("", "Pod") && old.is_none() {
        let missing = unsaid(&hard, new);
        if !missing.is_empty() {
            return Err(format!("failed quota: {name}: must specify {}", missing.join("; ")));
        }
    }
    let used = amounts(quota, &["status", "used"]);
    let unknown: Vec<&str> = concerned.iter().filter(|n| !used.contains_key(*n)).map(String::as_str).collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
    }
    for (resource, before) in old.map(|old| usage(kind, old)).unwrap_or_default() {
        if let Some(now) = delta.remove(&resource) {
            delta.insert(resource, now - before);
        }
    }
    delta.retain(|name, amount| hard.contains_key(name) && amount.sign() == std::cmp::Ordering::Greater);
    let mut after = used.clone();
    for (name, amount) in &delta {
        if let Some(old) = used.get(name) {
            after.insert(name.clone(), *old + *amount);
        }
    }
    let exceeded: Vec<&String> =
        delta.keys().filter(|n| after.get(*n).zip(hard.get(*n)).is_some_and(|(a, h)| a > h)).collect();
    if !exceeded.is_empty() {
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            shown(&delta, &exceeded),
            shown(&used, &exceeded),
            shown(&hard, &exceeded)
        ));
    }
    if delta.is_empty() {
        return Ok(None);
    }
    let mut charged = quota.clone();
    charged["status"]["used"] = as_value(&after);
    Ok(Some(charged))
}

pub fn as_value(amounts: &Usage) -> Value {
    Value::Object(amounts.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect())
}

/// Which containers leave open what the quota limits: `requests.cpu for: a,b`.
fn unsaid(hard: &Usage, pod: &Value) -> Vec<String> {
    let mut missing: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for list in ["containers", "initContainers"] {
        for container in meta::list_at(pod, &["spec", list]) {
            for name in COMPUTE.iter().filter(|name| hard.contains_key(**name)) {
                let path = match name.split_once('.') {
                    Some((holder, resource)) => ["resources", holder, resource],
                    None => ["resources", "requests", name],
                };
                if meta::at(container, &path).is_none() {
                    missing.entry(name).or_default().insert(meta::str_at(container, &["name"]).to_string());
                }
            }
        }
    }
    missing
        .iter()
        .map(|(name, of)| format!("{name} for: {}", of.iter().cloned().collect::<Vec<_>>().join(",")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    fn check(quota: &Value, resource: &str, object: Value, expect: Result<Option<Value>, &str>) {
        let kind = kinds::by_resource("", "v1", resource).expect(resource);
        let after = charge(quota, &kind, &object, None).map(|q| q.map(|q| q["status"]["used"].clone()));
        assert_eq!(after, expect.map_err(String::from));
    }

    #[test]
    fn room_is_counted() {
        let one = quota(json!({"secrets": "1"}), json!({"secrets": "0"}));
        check(&one, "secrets", json!({}), Ok(Some(json!({"secrets": "1"}))));
        check(&one, "configmaps", json!({}), Ok(None));
        let full = quota(json!({"secrets": "1"}), json!({"secrets": "1"}));
        check(
            &full,
            "secrets",
            json!({}),
            Err("exceeded quota: q, requested: secrets=1, used: secrets=1, limited: secrets=1"),
        );
        let cpu = quota(json!({"requests.cpu": "1"}), json!({"requests.cpu": "0"}));
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        check(&cpu, "pods", pod(json!({})), Err("failed quota: q: must specify requests.cpu for: c"));
        check(&cpu, "pods", pod(json!({"requests": {"cpu": "250m"}})), Ok(Some(json!({"requests.cpu": "250m"}))));
        let uncounted = json!({"metadata": {"name": "q"}, "spec": {"hard": {"secrets": "0"}}, "status": {}});
        check(&uncounted, "secrets", json!({}), Ok(None));
    }
}
