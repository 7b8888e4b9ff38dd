//! What a write may change, and what the server sets itself.
//!
//! A strategy runs after decoding and defaulting and before validation. It makes an object that a client sent into the
//! object the client may have: the status stays out of ordinary writes and the spec out of status writes, identity
//! stays, `generation` counts changes of intent. Allocation (addresses, ports, names, uids) is the server's.

mod batch;
mod certificates;
mod pod;
mod service;

use crate::defaults::TEMPLATE_GENERATION;
use crate::kinds::Kind;
use crate::meta;
use crate::schema::Schema;
use serde_json::{Map, Value, json};

pub use pod::qos_class;

/// Makes a new object ready for validation. `metadata.uid` and a generated name must be there already (a Job's selector
/// is made of them).
pub fn prepare_for_create(kind: &Kind, obj: &mut Value) {
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        meta::unset(obj, field);
    }
    if counted(kind).is_some() {
        meta::set(obj, "generation", 1);
    }
    // A node registers together with its status.
    if kind.has_status() && !kind.is("", "Node") {
        set_or_remove(obj, "status", None);
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::create(obj),
        ("", "Service") => service::create(obj),
        ("batch", "Job") => batch::create_job(obj),
        ("apps", "DaemonSet") => meta::set_annotation(obj, TEMPLATE_GENERATION, "1"),
        ("", "Namespace") => {
            add_to_list(obj, &["spec", "finalizers"], "kubernetes");
            set_or_remove(obj, "status", Some(json!({"phase": "Active"})));
        }
        ("", "PersistentVolume") => {
            add_to_list(obj, &["metadata", "finalizers"], "kubernetes.io/pv-protection");
            set_or_remove(obj, "status", Some(json!({"phase": "Pending"})));
        }
        ("", "PersistentVolumeClaim") => {
            add_to_list(obj, &["metadata", "finalizers"], "kubernetes.io/pvc-protection");
            set_or_remove(obj, "status", Some(json!({"phase": "Pending"})));
        }
        _ => {}
    }
    normalize(kind, obj);
}

/// Keeps what an ordinary write may not change.
pub fn prepare_for_update(kind: &Kind, new: &mut Value, old: &Value) {
    keep_identity(new, old);
    if kind.has_status() {
        set_or_remove(new, "status", old.get("status").cloned());
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Namespace") => {
            let finalizers = meta::at(old, &["spec", "finalizers"]).cloned();
            set_member(new, "spec", "finalizers", finalizers);
        }
        ("", "Service") => service::update(new, old),
        ("certificates.k8s.io", "CertificateSigningRequest") => set_or_remove(new, "spec", old.get("spec").cloned()),
        ("apps", "DaemonSet") => {
            let was: i64 = meta::annotation(old, TEMPLATE_GENERATION).and_then(|g| g.parse().ok()).unwrap_or(0);
            let changed = meta::at(new, &["spec", "template"]) != meta::at(old, &["spec", "template"]);
            meta::set_annotation(new, TEMPLATE_GENERATION, &(was + i64::from(changed)).to_string());
        }
        ("", "Secret") if meta::str_at(new, &["type"]).is_empty() => {
            set_or_remove(new, "type", old.get("type").cloned());
        }
        _ => {}
    }
    normalize(kind, new);
    if let Some(parts) = counted(kind) {
        let changed = parts.iter().any(|path| part(new, path) != part(old, path));
        if changed {
            meta::set(new, "generation", meta::generation(old) + 1);
        }
    }
}

/// Keeps all but the status, and what of the metadata a status writer may not change.
pub fn prepare_for_status_update(kind: &Kind, new: &mut Value, old: &Value) {
    keep_identity(new, old);
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("apps", "Deployment") => keep_metadata(new, old, &["labels"]),
        ("", "Pod") => {
            keep_metadata(new, old, &["ownerReferences"]);
            let class = meta::at(old, &["status", "qosClass"]).cloned();
            set_member(new, "status", "qosClass", class);
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => certificates::status(new, old),
        _ => {}
    }
    let keys: Vec<String> = old.as_object().map(|m| m.keys().cloned().collect()).unwrap_or_default();
    let have: Vec<String> = new.as_object().map(|m| m.keys().cloned().collect()).unwrap_or_default();
    for key in keys.iter().chain(&have) {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status") {
            set_or_remove(new, key, old.get(key).cloned());
        }
    }
    normalize(kind, new);
}

/// Keeps all of a CertificateSigningRequest but the verdict on it.
pub fn prepare_for_approval(kind: &Kind, new: &mut Value, old: &Value) {
    keep_identity(new, old);
    certificates::approval(new, old);
    normalize(kind, new);
}

/// Keeps all of a pod but the resources of its containers (`resize`).
pub fn prepare_for_resize(kind: &Kind, new: &mut Value, old: &Value) {
    let sent = std::mem::replace(new, old.clone());
    for list in ["containers", "initContainers"] {
        let wanted = meta::list_at(&sent, &["spec", list]);
        let kept = new.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in kept.into_iter().flatten() {
            let name = meta::str_at(container, &["name"]).to_string();
            let Some(wanted) = wanted.iter().find(|c| meta::str_at(c, &["name"]) == name) else { continue };
            for key in ["resources", "resizePolicy"] {
                set_or_remove(container, key, wanted.get(key).cloned());
            }
        }
    }
    finish_pod_part(kind, new, &sent, old);
}

/// Keeps all of a pod but its ephemeral containers.
pub fn prepare_for_ephemeral_containers(kind: &Kind, new: &mut Value, old: &Value) {
    let sent = std::mem::replace(new, old.clone());
    set_member(new, "spec", "ephemeralContainers", meta::at(&sent, &["spec", "ephemeralContainers"]).cloned());
    finish_pod_part(kind, new, &sent, old);
}

/// A write of a part of a pod: what the writer said of versions and managers counts, and a change counts in `generation`.
fn finish_pod_part(kind: &Kind, new: &mut Value, sent: &Value, old: &Value) {
    for key in ["resourceVersion", "managedFields"] {
        match meta::at(sent, &["metadata", key]).cloned() {
            Some(value) => meta::set(new, key, value),
            None => meta::unset(new, key),
        }
    }
    normalize(kind, new);
    if new.get("spec") != old.get("spec") {
        meta::set(new, "generation", meta::generation(old) + 1);
    }
}

/// Seconds an object is given to end; 0 means it is removed at once. `asked` is the request's wish.
pub fn grace_period(kind: &Kind, obj: &Value, asked: Option<i64>) -> i64 {
    if !kind.is("", "Pod") {
        return 0;
    }
    let unscheduled = meta::str_at(obj, &["spec", "nodeName"]).is_empty();
    let ended = matches!(meta::str_at(obj, &["status", "phase"]), "Failed" | "Succeeded");
    if unscheduled || ended {
        return 0;
    }
    let own = || meta::i64_at(obj, &["spec", "terminationGracePeriodSeconds"]);
    let period = asked.or_else(own).unwrap_or(30);
    // A negative period means "at once, but let it say goodbye".
    if period < 0 { 1 } else { period }
}

/// The parts of an object whose change counts in `generation`; None for kinds that do not count.
fn counted(kind: &Kind) -> Option<&'static [&'static str]> {
    Some(match (kind.group.as_str(), kind.kind.as_str()) {
        ("apps", "Deployment") => &["spec", "metadata.annotations"],
        ("apps", "ReplicaSet" | "StatefulSet" | "DaemonSet") => &["spec"],
        ("batch", "Job" | "CronJob") => &["spec"],
        ("", "Pod" | "ReplicationController") => &["spec"],
        ("", "PodTemplate") => &["template"],
        ("discovery.k8s.io", "EndpointSlice") => &["metadata.labels", "endpoints", "ports"],
        ("networking.k8s.io", "Ingress" | "IngressClass" | "NetworkPolicy") => &["spec"],
        ("policy", "PodDisruptionBudget") => &["spec"],
        ("storage.k8s.io", "CSIDriver") => &["spec"],
        ("scheduling.k8s.io", "PriorityClass") => &[],
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration") => {
            &["webhooks"]
        }
        ("admissionregistration.k8s.io" | "flowcontrol.apiserver.k8s.io", _) => &["spec"],
        _ => return None,
    })
}

fn part<'a>(obj: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(obj, |v, key| v.get(key))
}

/// Who an object is does not change: uid, times, generation.
fn keep_identity(new: &mut Value, old: &Value) {
    if meta::uid(new).is_empty() {
        keep_metadata(new, old, &["uid"]);
    }
    keep_metadata(new, old, &["creationTimestamp", "generation"]);
    if meta::is_being_deleted(old) {
        keep_metadata(new, old, &["deletionTimestamp"]);
    }
    if meta::at(new, &["metadata", "deletionGracePeriodSeconds"]).is_none_or(Value::is_null) {
        keep_metadata(new, old, &["deletionGracePeriodSeconds"]);
    }
    meta::unset(new, "selfLink");
}

fn keep_metadata(new: &mut Value, old: &Value, fields: &[&str]) {
    for field in fields {
        match meta::at(old, &["metadata", field]).cloned() {
            Some(value) => meta::set(new, field, value),
            None => meta::unset(new, field),
        }
    }
}

fn set_or_remove(obj: &mut Value, key: &str, value: Option<Value>) {
    let Some(map) = obj.as_object_mut() else { return };
    match value {
        Some(value) => {
            map.insert(key.to_string(), value);
        }
        None => {
            map.shift_remove(key);
        }
    }
}

/// Sets or removes `obj.outer.key`.
fn set_member(obj: &mut Value, outer: &str, key: &str, value: Option<Value>) {
    let Some(map) = obj.as_object_mut() else { return };
    let inner = map.entry(outer).or_insert_with(|| Value::Object(Map::new()));
    set_or_remove(inner, key, value);
}

fn add_to_list(obj: &mut Value, path: &[&str; 2], item: &str) {
    let mut list = meta::list_at(obj, path).to_vec();
    if !list.iter().any(|have| have == item) {
        list.push(item.into());
        set_member(obj, path[0], path[1], Some(Value::Array(list)));
    }
}

fn normalize(kind: &Kind, obj: &mut Value) {
    if let Some(def) = Schema::for_kind(kind) {
        def.normalize(obj);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn generation_counts_intent() {
        let kind = kinds::by_resource("apps", "v1", "deployments").expect("deployments");
        let mut old =
            json!({"metadata": {"name": "d", "uid": "u"}, "spec": {"replicas": 1}, "status": {"replicas": 9}});
        prepare_for_create(&kind, &mut old);
        assert_eq!((meta::generation(&old), old.get("status")), (1, Some(&json!({}))));
        let check = |new: Value, generation: i64| {
            let mut new = new;
            prepare_for_update(&kind, &mut new, &old);
            assert_eq!(meta::generation(&new), generation, "{new}");
            assert_eq!(meta::uid(&new), "u");
        };
        let spec = old["spec"].clone();
        check(json!({"metadata": {"name": "d", "labels": {"a": "b"}}, "spec": spec}), 1);
        check(json!({"metadata": {"name": "d", "annotations": {"a": "b"}}, "spec": spec}), 2);
        check(json!({"metadata": {"name": "d"}, "spec": {"replicas": 2}}), 2);
    }

    #[test]
    fn grace_periods() {
        let kind = kinds::by_resource("", "v1", "pods").expect("pods");
        let check = |pod: Value, asked: Option<i64>, expect: i64| assert_eq!(grace_period(&kind, &pod, asked), expect);
        check(json!({"spec": {}}), None, 0);
        let running =
            || json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}, "status": {"phase": "Running"}});
        check(running(), None, 5);
        check(running(), Some(0), 0);
        check(running(), Some(-1), 1);
        check(json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), None, 0);
    }
}
