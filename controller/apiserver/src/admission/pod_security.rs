//! Pod Security levels of a namespace: enforced on its pods, told of templates, and judged when the level is raised.

use super::{Admission, Operation};
use crate::state::Fresh;
use crate::storage::keys;
use serde_json::Value;
use skiff_api::admission::pod_security::{Policy, Violation};
use skiff_api::meta;
use skiff_api::status::Status;

/// How many pods are looked at when a namespace's level is raised, as upstream.
const PODS_MAX: usize = 3000;

/// Refuses a pod that its namespace does not allow; warns of what it asks to be warned of.
pub async fn check(admission: &mut Admission<'_>, object: &Value) -> Result<(), Status> {
    if admission.operation == Operation::Delete {
        return Ok(());
    }
    let sub = admission.call.info.subresource.as_str();
    let kind = admission.call.kind.clone();
    if kind.is("", "Namespace") && sub.is_empty() {
        if let Some(old) = admission.old {
            raised(admission, old, object).await?;
        }
        return Ok(());
    }
    let is_pod = kind.is("", "Pod") && (admission.operation == Operation::Create || sub == "ephemeralcontainers");
    let template = match (kind.group.as_str(), kind.kind.as_str()) {
        _ if is_pod => Some(object),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("", "ReplicationController")
        | ("batch", "Job") => meta::at(object, &["spec", "template"]),
        ("batch", "CronJob") => meta::at(object, &["spec", "jobTemplate", "spec", "template"]),
        ("", "PodTemplate") => object.get("template"),
        _ => None,
    };
    let Some(template) = template.filter(|_| is_pod || sub.is_empty()) else { return Ok(()) };
    let key = keys::object_of("", "namespaces", "", admission.call.namespace());
    let Some(namespace) = admission.state.read_key(&key, Fresh::Local).await? else { return Ok(()) };
    let namespace = namespace.decode();
    let enforced = Policy::of(&namespace, "enforce");
    let violations = enforced.violations(template);
    if is_pod && !violations.is_empty() {
        let why = format!("violates {}", enforced.told(&violations));
        return Err(admission.forbidden(meta::name(object), &why));
    }
    let warned = Policy::of(&namespace, "warn");
    let violations = warned.violations(template);
    if !violations.is_empty() {
        admission.call.warn(format!("would violate {}", warned.told(&violations)));
    }
    Ok(())
}

/// Warns of pods that are there already and would not be let in any more.
async fn raised(admission: &mut Admission<'_>, old: &Value, new: &Value) -> Result<(), Status> {
    let policy = Policy::of(new, "enforce");
    if !policy.is_stricter_than(&Policy::of(old, "enforce")) {
        return Ok(());
    }
    let name = meta::name(new).to_string();
    let pods = admission.state.scan(&format!("{}{name}/", keys::prefix_of("", "pods"))).await?;
    // Pods with the same faults are told together, under the first one's name.
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for kv in pods.kvs.iter().take(PODS_MAX) {
        let Ok(pod) = serde_json::from_slice::<Value>(&kv.value) else { continue };
        let violations = policy.violations(&pod);
        if violations.is_empty() {
            continue;
        }
        let faults = reasons(&violations);
        match groups.iter_mut().find(|(known, _)| *known == faults) {
            Some((_, names)) => names.push(meta::name(&pod).to_string()),
            None => groups.push((faults, vec![meta::name(&pod).to_string()])),
        }
    }
    if groups.is_empty() {
        return Ok(());
    }
    admission
        .call
        .warn(format!("existing pods in namespace {name:?} violate the new PodSecurity enforce level \"{policy}\""));
    for (faults, names) in groups {
        let first = names.first().map(String::as_str).unwrap_or_default();
        let others = match names.len() - 1 {
            0 => String::new(),
            1 => " (and 1 other pod)".into(),
            more => format!(" (and {more} other pods)"),
        };
        admission.call.warn(format!("{first}{others}: {faults}"));
    }
    Ok(())
}

fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ")
}
