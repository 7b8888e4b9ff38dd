//! Budgets, quotas, limits and autoscalers.

use super::check::{
    Errors, IMMUTABLE, NEGATIVE, Path, int, int_or_percent, invalid_all, list, non_negative, not_more_than_100_percent,
    required, shown, some, text,
};
use super::error::FieldError;
use super::selectors::label_selector;
use crate::meta::{self, names};
use crate::quantity::Quantity;
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::BTreeSet;

fn spec_of(obj: &Value) -> (&Value, Path) {
    (obj.get("spec").unwrap_or(&Value::Null), Path::new("spec"))
}

pub(super) fn disruption_budget(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    if some(spec, "minAvailable").is_some() && some(spec, "maxUnavailable").is_some() {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errs.push(FieldError::invalid(&path, spec.clone(), detail));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if let Some(value) = some(spec, key) {
            int_or_percent(errs, value, &path.child(key));
            not_more_than_100_percent(errs, value, &path.child(key));
        }
    }
    if let Some(selector) = some(spec, "selector") {
        label_selector(errs, selector, &path.child("selector"));
    }
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    super::check::one_of_if_set(errs, spec, "unhealthyPodEvictionPolicy", &path, &policies);
}

pub(super) fn disruption_budget_status(errs: &mut Errors, obj: &Value) {
    let status = obj.get("status").unwrap_or(&Value::Null);
    for key in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        non_negative(errs, status, key, &Path::new("status"));
    }
}

fn amounts<'a>(holder: &'a Value, key: &str) -> Vec<(&'a String, Quantity)> {
    let map = meta::map_at(holder, &[key]).into_iter().flat_map(Map::iter);
    let mut all: Vec<_> = map.filter_map(|(name, value)| Some((name, Quantity::from_value(value)?))).collect();
    all.sort_by_key(|(name, _)| *name);
    all
}

/// Names of resources without a domain that a quota can count.
const QUOTA_NAMES: [&str; 22] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
    "storage",
    "count",
    "serviceaccounts",
];

/// Resources that come in whole numbers.
const COUNTED: [&str; 10] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
    "serviceaccounts",
];

pub(super) fn quota(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    let mut names_seen: Vec<&str> = Vec::new();
    for (name, amount) in amounts(spec, "hard") {
        let at = path.child("hard").key(name);
        names_seen.push(name);
        invalid_all(errs, &at, name.clone(), names::qualified_name(name));
        let huge = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
        if !name.contains('/') && !QUOTA_NAMES.contains(&name.as_str()) && !huge {
            errs.push(FieldError::invalid(&at, name.clone(), "must be a standard resource for quota"));
        }
        if amount.sign() == Ordering::Less {
            errs.push(FieldError::invalid(&at, amount.to_string(), NEGATIVE));
        }
        if COUNTED.contains(&name.as_str()) && !amount.is_integer() {
            errs.push(FieldError::invalid(&at, amount.to_string(), "must be an integer"));
        }
    }
    scopes(errs, spec, &names_seen, &path);
}

fn scopes(errs: &mut Errors, spec: &Value, resources: &[&str], path: &Path) {
    let shown_scopes = || shown(spec, "scopes");
    let at = path.child("scopes");
    let all: Vec<&str> = list(spec, "scopes").iter().filter_map(Value::as_str).collect();
    let known =
        ["Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity"];
    for scope in &all {
        if !known.contains(scope) {
            errs.push(FieldError::invalid(&at, shown_scopes(), "unsupported scope"));
        }
        for resource in resources {
            if QUOTA_NAMES.contains(resource) && !scope_fits(scope, resource) {
                errs.push(FieldError::invalid(&at, shown_scopes(), "unsupported scope applied to resource"));
            }
        }
    }
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if all.contains(&one) && all.contains(&other) {
            errs.push(FieldError::invalid(&at, shown_scopes(), "conflicting scopes"));
        }
    }
    let at = path.child("scopeSelector").child("matchExpressions");
    let expressions = meta::list_at(spec, &["scopeSelector", "matchExpressions"]);
    for (i, expression) in expressions.iter().enumerate() {
        let at = at.index(i);
        let (scope, operator) = (text(expression, "scopeName"), text(expression, "operator"));
        if !known.contains(&scope) {
            errs.push(FieldError::invalid(at.child("scopeName"), scope, "unsupported scope"));
        }
        let values = list(expression, "values");
        if scope != "PriorityClass" && operator != "Exists" && known.contains(&scope) {
            let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                          ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errs.push(FieldError::invalid(at.child("operator"), operator, detail));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errs.push(FieldError::required(at.child("values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errs.push(FieldError::invalid(at.child("values"), shown(expression, "values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errs.push(FieldError::invalid(at.child("operator"), other, "not a valid selector operator")),
        }
    }
}

/// Pods of best effort ask for nothing, so nothing but their number can be limited.
fn scope_fits(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            matches!(
                resource,
                "pods"
                    | "cpu"
                    | "memory"
                    | "requests.cpu"
                    | "requests.memory"
                    | "limits.cpu"
                    | "limits.memory"
                    | "ephemeral-storage"
                    | "requests.ephemeral-storage"
                    | "limits.ephemeral-storage"
            )
        }
        _ => true,
    }
}

pub(super) fn quota_update(errs: &mut Errors, new: &Value, old: &Value) {
    let sorted = |obj: &Value| -> BTreeSet<String> {
        meta::list_at(obj, &["spec", "scopes"]).iter().filter_map(Value::as_str).map(String::from).collect()
    };
    if sorted(new) != sorted(old) {
        let value = meta::at(new, &["spec", "scopes"]).cloned().unwrap_or(Value::Null);
        errs.push(FieldError::invalid("spec.scopes", value, IMMUTABLE));
    }
}

pub(super) fn limit_range(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    let limits = list(spec, "limits");
    for (i, limit) in limits.iter().enumerate() {
        let at = path.child("limits").index(i);
        let kind = text(limit, "type");
        invalid_all(errs, &at.child("type"), kind, names::qualified_name(kind));
        if !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
            let detail = "must be a standard limit type or fully qualified";
            errs.push(FieldError::invalid(at.child("type"), kind, detail));
        }
        if limits[..i].iter().any(|other| text(other, "type") == kind) {
            errs.push(FieldError::duplicate(at.child("type"), kind));
        }
        if kind == "Pod" {
            for key in ["default", "defaultRequest"] {
                if meta::map_at(limit, &[key]).is_some_and(|m| !m.is_empty()) {
                    errs.push(FieldError::forbidden(at.child(key), "may not be specified when `type` is 'Pod'"));
                }
            }
        }
        let has = |key: &str| meta::at(limit, &[key, "storage"]).is_some();
        if kind == "PersistentVolumeClaim" && !has("min") && !has("max") {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errs.push(FieldError::required(&at, detail));
        }
        limit_amounts(errs, limit, &at);
    }
}

/// The amounts of one limit must be in order: min, default request, default, max.
fn limit_amounts(errs: &mut Errors, limit: &Value, path: &Path) {
    let keys: BTreeSet<&String> = ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"]
        .iter()
        .flat_map(|key| amounts(limit, key).into_iter().map(|(name, _)| name))
        .collect();
    for name in keys {
        let of = |key: &str| meta::at(limit, &[key, name.as_str()]).and_then(Quantity::from_value);
        let (min, max, default, request) = (of("min"), of("max"), of("default"), of("defaultRequest"));
        // Field, the value it shows, lesser, greater, and their names.
        let pairs = [
            ("min", &min, &min, &max, "min", "max"),
            ("defaultRequest", &request, &min, &request, "min", "default request"),
            ("defaultRequest", &request, &request, &max, "default request", "max"),
            ("defaultRequest", &request, &request, &default, "default request", "default limit"),
            ("default", &min, &min, &default, "min", "default"),
            ("default", &max, &default, &max, "default", "max"),
        ];
        for (field, value, lesser, greater, lesser_name, greater_name) in pairs {
            if let (Some(value), Some(lesser), Some(greater)) = (value, lesser, greater)
                && lesser > greater
            {
                let detail = format!("{lesser_name} value {lesser} is greater than {greater_name} value {greater}");
                errs.push(FieldError::invalid(path.child(field).key(name), value.to_string(), detail));
            }
        }
        let Some(ratio) = of("maxLimitRequestRatio") else { continue };
        let at = path.child("maxLimitRequestRatio").key(name);
        if ratio < Quantity::from_units(1, ratio.format()) {
            errs.push(FieldError::invalid(&at, ratio.to_string(), format!("ratio {ratio} is less than 1")));
        }
        if let (Some(min), Some(max)) = (&min, &max) {
            let most = max.ratio(min);
            if ratio.milli_value() as f64 / 1000.0 > most {
                let detail = format!("ratio {ratio} is greater than max/min = {most:.6}");
                errs.push(FieldError::invalid(&at, ratio.to_string(), detail));
            }
        }
    }
}

pub(super) fn autoscaler(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    let (min, max) = (int(spec, "minReplicas"), int(spec, "maxReplicas").unwrap_or(0));
    if let Some(min) = min.filter(|m| *m < 1) {
        errs.push(FieldError::invalid(path.child("minReplicas"), min, "must be greater than or equal to 1"));
    }
    if max < 1 {
        errs.push(FieldError::invalid(path.child("maxReplicas"), max, "must be greater than 0"));
    }
    if min.is_some_and(|min| max < min) {
        let detail = "must be greater than or equal to `minReplicas`";
        errs.push(FieldError::invalid(path.child("maxReplicas"), max, detail));
    }
    let target = spec.get("scaleTargetRef").unwrap_or(&Value::Null);
    let at = path.child("scaleTargetRef");
    for key in ["kind", "name"] {
        if required(errs, target, key, &at) {
            invalid_all(errs, &at.child(key), text(target, key), names::path_segment(text(target, key)));
        }
    }
}
