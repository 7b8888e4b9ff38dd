//! What may change in a pod: images, deadlines, added tolerations, and a little more while it is gated.

use super::whole;
use crate::meta::{self, names};
use crate::validate::check::{Errors, Path, int, invalid_all, list, required, text};
use crate::validate::error::FieldError;
use crate::validate::metadata;
use serde_json::{Map, Value};

const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(in crate::validate) fn update(errs: &mut Errors, new: &Value, old: &Value) {
    metadata::update(errs, new, old);
    whole(errs, new);
    let null = Value::Null;
    let (new_spec, old_spec) = (new.get("spec").unwrap_or(&null), old.get("spec").unwrap_or(&null));
    let path = Path::new("spec");
    for name in ["containers", "initContainers"] {
        if list(new_spec, name).len() != list(old_spec, name).len() {
            errs.push(FieldError::forbidden(path.child(name), "pod updates may not add or remove containers"));
            return;
        }
        for (i, container) in list(new_spec, name).iter().enumerate() {
            required(errs, container, "image", &path.child(name).index(i));
        }
    }
    deadline(errs, new_spec, old_spec, &path);
    let gated = !list(old_spec, "schedulingGates").is_empty();
    gates(errs, new_spec, old_spec, &path);
    let before = errs.len();
    additions_only(errs, new_spec, old_spec, &path);
    if errs.len() > before {
        return;
    }
    let mut munged = new_spec.as_object().cloned().unwrap_or_default();
    for name in ["containers", "initContainers"] {
        keep_images(&mut munged, name, old_spec);
    }
    let mut keep = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    let was_negative = int(old_spec, "terminationGracePeriodSeconds").is_some_and(|s| s < 0);
    if was_negative && int(new_spec, "terminationGracePeriodSeconds") == Some(1) {
        keep.push("terminationGracePeriodSeconds");
    }
    if gated {
        selector_while_gated(errs, new_spec, old_spec, &path);
        keep.extend(["nodeSelector", "affinity"]);
    }
    for key in keep {
        match old_spec.get(key) {
            Some(value) => munged.insert(key.to_string(), value.clone()),
            None => munged.shift_remove(key),
        };
    }
    if Value::Object(munged) != *old_spec {
        errs.push(FieldError::forbidden(&path, ONLY));
    }
}

fn keep_images(spec: &mut Map<String, Value>, name: &str, old: &Value) {
    let Some(containers) = spec.get_mut(name).and_then(Value::as_array_mut) else { return };
    for (container, old) in containers.iter_mut().zip(list(old, name)) {
        if let (Some(map), Some(image)) = (container.as_object_mut(), old.get("image")) {
            map.insert("image".into(), image.clone());
        }
    }
}

fn deadline(errs: &mut Errors, new: &Value, old: &Value, path: &Path) {
    let at = path.child("activeDeadlineSeconds");
    match (int(new, "activeDeadlineSeconds"), int(old, "activeDeadlineSeconds")) {
        (Some(now), was) => {
            if !(0..=i64::from(i32::MAX)).contains(&now) {
                errs.push(FieldError::invalid(&at, now, "must be between 0 and 2147483647, inclusive"));
            } else if was.is_some_and(|was| was < now) {
                errs.push(FieldError::invalid(&at, now, "must be less than or equal to previous value"));
            }
        }
        (None, Some(_)) => {
            errs.push(FieldError::invalid(&at, Value::Null, "must not update from a positive integer to nil value"));
        }
        (None, None) => {}
    }
}

fn gates(errs: &mut Errors, new: &Value, old: &Value, path: &Path) {
    let had: Vec<&str> = list(old, "schedulingGates").iter().map(|g| text(g, "name")).collect();
    for (i, gate) in list(new, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !had.contains(&name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errs.push(FieldError::forbidden(path.child("schedulingGates").index(i).child("name"), detail));
        }
    }
}

/// Every old toleration is still there; only how long it holds may change.
fn additions_only(errs: &mut Errors, new: &Value, old: &Value, path: &Path) {
    let same = |a: &Value, b: &Value| ["key", "operator", "value", "effect"].iter().all(|k| text(a, k) == text(b, k));
    let kept = |t: &Value| list(new, "tolerations").iter().any(|n| same(n, t));
    if !list(old, "tolerations").iter().all(kept) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errs.push(FieldError::forbidden(path.child("tolerations"), detail));
    }
}

/// A gated pod may be pinned down further, never loosened.
fn selector_while_gated(errs: &mut Errors, new: &Value, old: &Value, path: &Path) {
    let (now, was) = (meta::map_at(new, &["nodeSelector"]), meta::map_at(old, &["nodeSelector"]));
    for (key, value) in was.into_iter().flatten() {
        if now.and_then(|n| n.get(key)) != Some(value) {
            let detail = "only additions are allowed to spec.nodeSelector (no mutations or deletions)";
            errs.push(FieldError::invalid(
                path.child("nodeSelector"),
                Value::Object(now.cloned().unwrap_or_default()),
                detail,
            ));
            break;
        }
    }
    let required = ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    let (now, was) = (meta::list_at(new, &required), meta::list_at(old, &required));
    if was.is_empty() {
        return;
    }
    let at = path.child(&required.join("."));
    if now.len() != was.len() {
        errs.push(FieldError::invalid(
            at,
            Value::Array(now.to_vec()),
            "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        ));
        return;
    }
    for (i, (now, was)) in now.iter().zip(was).enumerate() {
        for list_name in ["matchExpressions", "matchFields"] {
            let lost =
                list(was, list_name).iter().enumerate().any(|(j, term)| list(now, list_name).get(j) != Some(term));
            if lost {
                let detail = "only additions are allowed (no mutations or deletions)";
                errs.push(FieldError::invalid(at.index(i), now.clone(), detail));
                break;
            }
        }
    }
}

pub(in crate::validate) fn status_update(errs: &mut Errors, new: &Value, old: &Value) {
    metadata::update(errs, new, old);
    let null = Value::Null;
    let status = new.get("status").unwrap_or(&null);
    let path = Path::new("status");
    let had = meta::str_at(old, &["spec", "nodeName"]);
    if had != meta::str_at(new, &["spec", "nodeName"]) {
        errs.push(FieldError::forbidden(path.child("nodeName"), "may not be changed directly"));
    }
    let nominated = text(status, "nominatedNodeName");
    if !nominated.is_empty() {
        invalid_all(errs, &path.child("nominatedNodeName"), nominated, names::dns1123_subdomain(nominated));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, ip) in list(status, "podIPs").iter().enumerate() {
        let ip = text(ip, "ip");
        invalid_all(errs, &path.child("podIPs").index(i), ip, names::ip(ip));
        if seen.contains(&ip) {
            errs.push(FieldError::duplicate(path.child("podIPs").index(i), serde_json::json!({"IP": ip})));
        }
        seen.push(ip);
    }
    transitions(errs, new, old, &path);
    for (i, condition) in list(status, "conditions").iter().enumerate() {
        let at = path.child("conditions").index(i);
        let generation = int(condition, "observedGeneration").unwrap_or(0);
        if generation < 0 {
            errs.push(FieldError::invalid(
                at.child("observedGeneration"),
                generation,
                crate::validate::check::NEGATIVE,
            ));
        }
    }
}

/// A container that must not run again does not come back from the dead.
fn transitions(errs: &mut Errors, new: &Value, old: &Value, path: &Path) {
    let policy = meta::str_at(old, &["spec", "restartPolicy"]);
    for (specs, statuses) in [("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")] {
        for (i, was) in meta::list_at(old, &["status", statuses]).iter().enumerate() {
            let name = text(was, "name");
            let Some(ended) = was.pointer("/state/terminated").filter(|t| !t.is_null()) else { continue };
            let own = meta::list_at(old, &["spec", specs]).iter().find(|c| text(c, "name") == name);
            let own_policy = own.map(|c| text(c, "restartPolicy")).filter(|p| !p.is_empty());
            let policy = own_policy.unwrap_or(policy);
            let failed = int(ended, "exitCode").unwrap_or(0) != 0;
            let may_restart = policy == "Always" || (failed && policy == "OnFailure");
            if may_restart {
                continue;
            }
            let now = meta::list_at(new, &["status", statuses]).iter().find(|s| text(s, "name") == name);
            if now.is_some_and(|n| n.pointer("/state/terminated").is_none_or(Value::is_null)) {
                let at = path.child(statuses).index(i).child("state");
                errs.push(FieldError::forbidden(at, "may not be transitioned to non-terminated state"));
            }
        }
    }
}
