//! A node may speak for itself only: its own Node, the status of its own pods, its own lease.

use super::{Admission, Operation};
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::status::Status;

/// Label prefixes that say what a node may be trusted with; only others may set them.
const RESTRICTED_PREFIX: &str = "node-restriction.kubernetes.io/";

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// Nothing is placed on a new node before it has said that it is ready.
pub fn taint_until_ready(node: &mut Value) {
    let ready = |c: &Value| meta::str_at(c, &["type"]) == "Ready" && meta::str_at(c, &["status"]) == "True";
    let is_ready = meta::list_at(node, &["status", "conditions"]).iter().any(ready);
    let mut taints = meta::list_at(node, &["spec", "taints"]).to_vec();
    let has = taints.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule");
    if is_ready || has || !node.is_object() {
        return;
    }
    taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    node["spec"]["taints"] = Value::Array(taints);
}

pub fn restrict(admission: &Admission<'_>, object: &Value) -> Result<(), Status> {
    let Some(node) = admission.call.user.node() else { return Ok(()) };
    let call = &admission.call;
    let subject = admission.old.unwrap_or(object);
    let refuse = |why: String| Err(Status::forbidden(&call.kind.group, &call.kind.plural, call.name(), &why));
    if call.kind.is("", "Node") {
        let name = match call.name() {
            "" => meta::name(object),
            name => name,
        };
        if name != node {
            return refuse(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
        if admission.operation == Operation::Delete {
            return refuse(format!("node {node:?} is not allowed to delete itself"));
        }
        let labels = |v: &Value| meta::labels(v).cloned().unwrap_or_default();
        let old = admission.old.map(labels).unwrap_or_default();
        let new = labels(object);
        let mut changed = new
            .iter()
            .filter(|(k, v)| old.get(*k) != Some(v))
            .map(|(k, _)| k)
            .chain(old.keys().filter(|k| !new.contains_key(*k)));
        if let Some(key) = changed.find(|k| k.starts_with(RESTRICTED_PREFIX)) {
            return refuse(format!("is not allowed to modify labels: {key}"));
        }
    }
    if call.kind.is("", "Pod") {
        if admission.operation == Operation::Create
            && call.info.subresource.is_empty()
            && meta::annotation(object, "kubernetes.io/config.mirror").is_none()
        {
            return refuse(format!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
            ));
        }
        let on = meta::str_at(subject, &["spec", "nodeName"]);
        if on != node {
            return refuse(format!("node {node:?} can only touch pods with spec.nodeName set to itself"));
        }
    }
    if call.kind.is("coordination.k8s.io", "Lease") && call.namespace() == "kube-node-lease" {
        let name = match call.name() {
            "" => meta::name(object),
            name => name,
        };
        if name != node {
            return refuse(format!("can only access node lease with the same name as the requesting node ({node})"));
        }
    }
    Ok(())
}
