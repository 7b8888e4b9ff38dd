//! The kinds that make pods from a template: Deployment, ReplicaSet, ReplicationController, StatefulSet, DaemonSet.

use super::check::{
    Errors, IMMUTABLE, NEGATIVE, Path, int, int_or_percent, int_or_percent_value, invalid_all, list, non_negative,
    not_more_than_100_percent, one_of, shown, some, sorted, text,
};
use super::error::FieldError;
use super::selectors::label_selector;
use super::{pod, storage};
use crate::meta::{self, names};
use crate::selector::LabelSelector;
use serde_json::{Map, Value, json};

const MISMATCH: &str = "`selector` does not match template `labels`";

/// How a template is checked against the selector that must find its pods.
struct TemplateRules {
    /// Kind named in the message about deadlines.
    kind: &'static str,
    restart: &'static [&'static str],
}

fn selector_of(errs: &mut Errors, spec: &Value, path: &Path, empty: &str) -> Option<LabelSelector> {
    let at = path.child("selector");
    let Some(selector) = some(spec, "selector") else {
        errs.push(FieldError::required(at, ""));
        return Some(LabelSelector::nothing());
    };
    label_selector(errs, selector, &at);
    let blank = |key: &str| {
        selector
            .get(key)
            .is_none_or(|v| v.as_object().is_none_or(Map::is_empty) && v.as_array().is_none_or(Vec::is_empty))
    };
    if blank("matchLabels") && blank("matchExpressions") {
        errs.push(FieldError::invalid(&at, selector.clone(), empty));
    }
    match LabelSelector::from_json(selector) {
        Ok(parsed) => Some(parsed),
        Err(_) => {
            errs.push(FieldError::invalid(&at, selector.clone(), "invalid label selector"));
            None
        }
    }
}

fn template(errs: &mut Errors, spec: &Value, selector: &LabelSelector, rules: &TemplateRules, path: &Path) {
    let at = path.child("template");
    let null = Value::Null;
    let template = some(spec, "template").unwrap_or(&null);
    if !selector.is_everything() && !selector.matches(meta::labels(template)) {
        let labels = meta::at(template, &["metadata", "labels"]).map(sorted).unwrap_or(Value::Null);
        errs.push(FieldError::invalid(at.child("metadata").child("labels"), labels, MISMATCH));
    }
    pod::template(errs, template, &at);
    let pod_spec = template.get("spec").unwrap_or(&null);
    let policy = text(pod_spec, "restartPolicy");
    let known = matches!(policy, "Always" | "Never" | "OnFailure");
    if known && !rules.restart.contains(&policy) {
        errs.push(FieldError::not_supported(at.child("spec").child("restartPolicy"), policy, rules.restart));
    }
    if some(pod_spec, "activeDeadlineSeconds").is_some() {
        let detail = format!("activeDeadlineSeconds in {} is not Supported", rules.kind);
        errs.push(FieldError::forbidden(at.child("spec").child("activeDeadlineSeconds"), detail));
    }
}

fn spec_of(obj: &Value) -> (&Value, Path) {
    (obj.get("spec").unwrap_or(&Value::Null), Path::new("spec"))
}

pub(super) fn deployment(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    non_negative(errs, spec, "replicas", &path);
    if let Some(selector) = selector_of(errs, spec, &path, "empty selector is invalid for deployment") {
        template(errs, spec, &selector, &TemplateRules { kind: "ReplicaSet", restart: &["Always"] }, &path);
    }
    strategy(errs, spec.get("strategy").unwrap_or(&Value::Null), &path.child("strategy"));
    non_negative(errs, spec, "minReadySeconds", &path);
    non_negative(errs, spec, "revisionHistoryLimit", &path);
    non_negative(errs, spec, "progressDeadlineSeconds", &path);
    if let Some(deadline) = int(spec, "progressDeadlineSeconds")
        && deadline <= int(spec, "minReadySeconds").unwrap_or(0)
    {
        errs.push(FieldError::invalid(
            path.child("progressDeadlineSeconds"),
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
}

fn strategy(errs: &mut Errors, strategy: &Value, path: &Path) {
    let rolling = some(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "Recreate" => {
            if rolling.is_some() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errs.push(FieldError::forbidden(path.child("rollingUpdate"), detail));
            }
        }
        "RollingUpdate" => match rolling {
            None => errs
                .push(FieldError::required(path.child("rollingUpdate"), "this should be defaulted and never be nil")),
            Some(update) => {
                let at = path.child("rollingUpdate");
                let (unavailable, surge) = (shown(update, "maxUnavailable"), shown(update, "maxSurge"));
                int_or_percent(errs, &unavailable, &at.child("maxUnavailable"));
                int_or_percent(errs, &surge, &at.child("maxSurge"));
                if int_or_percent_value(&unavailable) == 0 && int_or_percent_value(&surge) == 0 {
                    let detail = "may not be 0 when `maxSurge` is 0";
                    errs.push(FieldError::invalid(at.child("maxUnavailable"), unavailable.clone(), detail));
                }
                not_more_than_100_percent(errs, &unavailable, &at.child("maxUnavailable"));
            }
        },
        _ => one_of(errs, strategy, "type", path, &["Recreate", "RollingUpdate"]),
    }
}

pub(super) fn replica_set(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    non_negative(errs, spec, "replicas", &path);
    non_negative(errs, spec, "minReadySeconds", &path);
    if let Some(selector) = selector_of(errs, spec, &path, "empty selector is invalid for deployment") {
        template(errs, spec, &selector, &TemplateRules { kind: "ReplicaSet", restart: &["Always"] }, &path);
    }
}

pub(super) fn replication_controller(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    non_negative(errs, spec, "minReadySeconds", &path);
    let selector = meta::map_at(spec, &["selector"]).filter(|s| !s.is_empty());
    if selector.is_none() {
        errs.push(FieldError::required(path.child("selector"), ""));
    }
    if some(spec, "replicas").is_none() {
        errs.push(FieldError::required(path.child("replicas"), ""));
    }
    non_negative(errs, spec, "replicas", &path);
    if some(spec, "template").is_none() {
        errs.push(FieldError::required(path.child("template"), ""));
        return;
    }
    let selector = selector.map(LabelSelector::from_map).unwrap_or_default();
    template(errs, spec, &selector, &TemplateRules { kind: "ReplicationController", restart: &["Always"] }, &path);
}

pub(super) fn daemon_set(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    let at = path.child("selector");
    let selector = some(spec, "selector");
    if let Some(selector) = selector {
        label_selector(errs, selector, &at);
    }
    let parsed = selector.map(LabelSelector::from_json);
    let labels = meta::map_at(spec, &["template", "metadata", "labels"]);
    match &parsed {
        Some(Ok(s)) if !s.is_everything() && !s.matches(labels) => {
            let found = meta::at(spec, &["template", "metadata", "labels"]).map(sorted).unwrap_or(Value::Null);
            errs.push(FieldError::invalid(path.child("template").child("metadata").child("labels"), found, MISMATCH));
        }
        Some(Ok(s)) if s.is_everything() => {
            errs.push(FieldError::invalid(
                &at,
                selector.cloned().unwrap_or(Value::Null),
                "empty selector is invalid for daemonset",
            ));
        }
        None => errs.push(FieldError::invalid(&at, Value::Null, "empty selector is invalid for daemonset")),
        _ => {}
    }
    // The selector was looked at above.
    template(
        errs,
        spec,
        &LabelSelector::everything(),
        &TemplateRules { kind: "DaemonSet", restart: &["Always"] },
        &path,
    );
    non_negative(errs, spec, "minReadySeconds", &path);
    daemon_strategy(errs, spec, &path.child("updateStrategy"));
    non_negative(errs, spec, "revisionHistoryLimit", &path);
}

fn daemon_strategy(errs: &mut Errors, spec: &Value, path: &Path) {
    let strategy = shown(spec, "updateStrategy");
    match text(&strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let at = path.child("rollingUpdate");
            let Some(update) = some(&strategy, "rollingUpdate") else {
                errs.push(FieldError::required(at, ""));
                return;
            };
            let (unavailable, surge) = (shown(update, "maxUnavailable"), shown(update, "maxSurge"));
            int_or_percent(errs, &unavailable, &at.child("maxUnavailable"));
            int_or_percent(errs, &surge, &at.child("maxSurge"));
            not_more_than_100_percent(errs, &unavailable, &at.child("maxUnavailable"));
            not_more_than_100_percent(errs, &surge, &at.child("maxSurge"));
            match (int_or_percent_value(&unavailable) > 0, int_or_percent_value(&surge) > 0) {
                (true, true) => {
                    let detail = "may not be set when maxUnavailable is non-zero";
                    errs.push(FieldError::invalid(at.child("maxSurge"), surge.clone(), detail));
                }
                (false, false) => {
                    errs.push(FieldError::required(at.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"));
                }
                _ => {}
            }
        }
        _ => {
            let value = json!({"Type": text(&strategy, "type"), "RollingUpdate": shown(&strategy, "rollingUpdate")});
            errs.push(FieldError::not_supported(path, value, &["RollingUpdate", "OnDelete"]));
        }
    }
}

pub(super) fn stateful_set(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    match text(spec, "podManagementPolicy") {
        "" => errs.push(FieldError::required(path.child("podManagementPolicy"), "")),
        "OrderedReady" | "Parallel" => {}
        other => {
            let detail = "must be 'OrderedReady' or 'Parallel'";
            errs.push(FieldError::invalid(path.child("podManagementPolicy"), other, detail));
        }
    }
    stateful_strategy(errs, spec, &path.child("updateStrategy"));
    if let Some(policy) = some(spec, "persistentVolumeClaimRetentionPolicy") {
        let at = path.child("persistentVolumeClaimRetentionPolicy");
        one_of(errs, policy, "whenDeleted", &at, &["Retain", "Delete"]);
        one_of(errs, policy, "whenScaled", &at, &["Retain", "Delete"]);
    }
    non_negative(errs, spec, "replicas", &path);
    non_negative(errs, spec, "minReadySeconds", &path);
    if let Some(ordinals) = some(spec, "ordinals") {
        non_negative(errs, ordinals, "start", &path.child("ordinals"));
    }
    let service = text(spec, "serviceName");
    if !service.is_empty() {
        invalid_all(errs, &path.child("serviceName"), service, names::dns1123_label(service));
    }
    let selector = selector_of(errs, spec, &path, "empty selector is invalid for statefulset");
    for (i, claim) in list(spec, "volumeClaimTemplates").iter().enumerate() {
        let at = path.child("volumeClaimTemplates").index(i);
        storage::claim_spec(errs, claim.get("spec").unwrap_or(&Value::Null), &at.child("spec"));
    }
    if let Some(selector) = selector {
        let rules = TemplateRules { kind: "StatefulSet", restart: &["Always"] };
        template_with_claims(errs, spec, &selector, &rules, &path);
    }
    non_negative(errs, spec, "revisionHistoryLimit", &path);
}

/// A stateful set's pods also have the volumes its claim templates make.
fn template_with_claims(errs: &mut Errors, spec: &Value, selector: &LabelSelector, rules: &TemplateRules, path: &Path) {
    let mut spec = spec.clone();
    let claims: Vec<Value> = list(&spec, "volumeClaimTemplates")
        .iter()
        .map(|c| json!({"name": meta::name(c), "persistentVolumeClaim": {"claimName": meta::name(c)}}))
        .collect();
    if !claims.is_empty()
        && let Some(pod) = spec.pointer_mut("/template/spec").and_then(Value::as_object_mut)
    {
        let volumes = pod.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            // A claim takes the place of a volume of the same name.
            volumes.retain(|v| !claims.iter().any(|c| c["name"] == v["name"]));
            volumes.extend(claims);
        }
    }
    template(errs, &spec, selector, rules, path);
}

fn stateful_strategy(errs: &mut Errors, spec: &Value, path: &Path) {
    let strategy = shown(spec, "updateStrategy");
    let rolling = some(&strategy, "rollingUpdate");
    match text(&strategy, "type") {
        "" => errs.push(FieldError::required(path, "")),
        "OnDelete" => {
            if rolling.is_some() {
                let detail = "only allowed for updateStrategy 'RollingUpdate'";
                errs.push(FieldError::invalid(
                    path.child("rollingUpdate"),
                    rolling.cloned().unwrap_or(Value::Null),
                    detail,
                ));
            }
        }
        "RollingUpdate" => {
            if let Some(update) = rolling {
                let at = path.child("rollingUpdate");
                non_negative(errs, update, "partition", &at);
                if let Some(unavailable) = some(update, "maxUnavailable") {
                    int_or_percent(errs, unavailable, &at.child("maxUnavailable"));
                    if int_or_percent_value(unavailable) == 0 {
                        errs.push(FieldError::invalid(at.child("maxUnavailable"), unavailable.clone(), "cannot be 0"));
                    }
                    not_more_than_100_percent(errs, unavailable, &at.child("maxUnavailable"));
                }
            }
        }
        other => {
            let value = json!({"Type": other, "RollingUpdate": shown(&strategy, "rollingUpdate")});
            errs.push(FieldError::invalid(path, value, "must be 'RollingUpdate' or 'OnDelete'"));
        }
    }
}

/// The selector of a workload never changes.
pub(super) fn same_selector(errs: &mut Errors, new: &Value, old: &Value) {
    let of = |obj: &Value| meta::at(obj, &["spec", "selector"]).cloned().unwrap_or(Value::Null);
    if of(new) != of(old) {
        errs.push(FieldError::invalid("spec.selector", of(new), IMMUTABLE));
    }
}

pub(super) fn stateful_set_update(errs: &mut Errors, new: &Value, old: &Value) {
    const MAY_CHANGE: [&str; 8] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
        "maxUnavailable",
    ];
    let rest = |obj: &Value| {
        let mut spec = meta::map_at(obj, &["spec"]).cloned().unwrap_or_default();
        spec.retain(|key, _| !MAY_CHANGE.contains(&key.as_str()));
        // What a claim template's status says is nobody's intent.
        for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(map) = claim.as_object_mut() {
                map.shift_remove("status");
            }
        }
        spec
    };
    if rest(new) != rest(old) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errs.push(FieldError::forbidden("spec", detail));
    }
}

/// Counts in the status of a workload are not negative.
pub(super) fn status_counts(errs: &mut Errors, obj: &Value) {
    let path = Path::new("status");
    let Some(status) = meta::map_at(obj, &["status"]) else { return };
    for (key, value) in status {
        if let Some(n) = value.as_i64().filter(|n| *n < 0) {
            errs.push(FieldError::invalid(path.child(key), n, NEGATIVE));
        }
    }
    let count = |key: &str| meta::i64_at(obj, &["status", key]).unwrap_or(0);
    let total = count("replicas");
    for (key, what) in [
        ("readyReplicas", "status.replicas"),
        ("availableReplicas", "status.replicas"),
        ("updatedReplicas", "status.replicas"),
        ("fullyLabeledReplicas", "status.replicas"),
    ] {
        if status.contains_key("replicas") && count(key) > total {
            let detail = format!("cannot be greater than {what}");
            errs.push(FieldError::invalid(path.child(key), count(key), detail));
        }
    }
    if count("availableReplicas") > count("readyReplicas") && status.contains_key("readyReplicas") {
        errs.push(FieldError::invalid(
            path.child("availableReplicas"),
            count("availableReplicas"),
            "cannot be greater than readyReplicas",
        ));
    }
}

/// A revision is written once; only its number may change.
pub(super) fn revision(errs: &mut Errors, obj: &Value) {
    non_negative(errs, obj, "revision", &Path::new(""));
    if some(obj, "data").is_none() {
        errs.push(FieldError::required("data", "data is mandatory"));
    }
}

pub(super) fn scale(errs: &mut Errors, obj: &Value) {
    let (spec, path) = spec_of(obj);
    non_negative(errs, spec, "replicas", &path);
}
