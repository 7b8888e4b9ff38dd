//! A node may speak for itself only: its own Node, the status of its own pods, its own lease.
//!
//! Source of the rules and their words: Kubernetes documentation, "NodeRestriction", and what the reference server answers.

use super::{Admission, Operation};
use crate::auth::pod_graph::used_by;
use crate::auth::user::{NODE_USER_PREFIX, NODES, UserInfo};
use crate::state::Fresh;
use crate::storage::keys;
use serde_json::{Map, Value, json};
use skiff_api::meta;
use skiff_api::status::Status;
use std::collections::BTreeSet;

/// Labels that say what a node may be trusted with.
const RESTRICTED: &str = "node-restriction.kubernetes.io";

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

/// Labels beside its name spaces that a node may set on itself.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

fn is_below(namespace: &str, parent: &str) -> bool {
    namespace.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The annotation of a Node that holds the hash of the key which claimed its name. Whoever takes machines in writes it, never the node.
pub const NODE_KEY_HASH: &str = "skiff.dev/node-key-hash";

/// Whether only others may set this label on a node: it could draw work there that the node should not get.
fn is_restricted(label: &str) -> bool {
    let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
    let kubernetes = is_below(namespace, "kubernetes.io") || is_below(namespace, "k8s.io");
    let own = OWN_LABELS.contains(&label)
        || is_below(namespace, "kubelet.kubernetes.io")
        || is_below(namespace, "node.kubernetes.io");
    is_below(namespace, RESTRICTED) || kubernetes && !own
}

/// The restricted labels that differ, in order.
fn changed_labels(old: &Value, new: &Value) -> Vec<String> {
    let labels = |v: &Value| meta::labels(v).cloned().unwrap_or_default();
    let (old, new) = (labels(old), labels(new));
    let changed: BTreeSet<&String> = old.keys().chain(new.keys()).filter(|k| old.get(*k) != new.get(*k)).collect();
    changed.into_iter().filter(|label| is_restricted(label)).cloned().collect()
}

/// Refuses what a node may not write. `object` is null for deletions.
pub async fn restrict(admission: &Admission<'_>, object: &Value) -> Result<(), Status> {
    let Some(node) = admission.call.user.node() else { return Ok(()) };
    let call = &admission.call;
    let old = admission.old.unwrap_or(&Value::Null);
    let name = match call.name() {
        "" => meta::name(if object.is_null() { old } else { object }),
        name => name,
    };
    let sub = call.info.subresource.as_str();
    let why = match (call.kind.group.as_str(), call.kind.kind.as_str()) {
        ("", "Node") => node_write(node, admission.operation, name, object, old),
        ("", "Pod") => match (sub, admission.operation) {
            ("", Operation::Create) => {
                let key = keys::object_of("", "nodes", "", node);
                let own = admission.state.read_key(&key, Fresh::Linearizable).await?.map(|found| found.decode());
                mirror_pod(node, object, own.as_ref().map(meta::uid))
            }
            (_, Operation::Delete) => on_node(node, old, "delete pods"),
            ("status", Operation::Update) => pod_status(node, object, old),
            _ => Some(format!("unexpected operation on pods, node {node:?} can only create and delete mirror pods")),
        },
        ("coordination.k8s.io", "Lease") => lease(node, call.namespace(), name),
        ("storage.k8s.io", "CSINode") if name != node => {
            Some("can only access CSINode with the same name as the requesting node".to_string())
        }
        ("", "PersistentVolumeClaim") => claim_status(node, sub, object, old),
        ("certificates.k8s.io", "CertificateSigningRequest") => certificate(node, object),
        _ => None,
    };
    match why {
        None => Ok(()),
        Some(why) => Err(Status::forbidden(&call.kind.group, &call.kind.plural, name, &why)),
    }
}

fn on_node(node: &str, pod: &Value, what: &str) -> Option<String> {
    let there = meta::str_at(pod, &["spec", "nodeName"]) == node;
    (!there).then(|| format!("node {node:?} can only {what} with spec.nodeName set to itself"))
}

fn node_write(node: &str, operation: Operation, name: &str, new: &Value, old: &Value) -> Option<String> {
    if name != node {
        return Some(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let labels = changed_labels(old, new).join(", ");
    let differs =
        |path: &[&str]| meta::at(new, path).filter(|v| !v.is_null()) != meta::at(old, path).filter(|v| !v.is_null());
    match operation {
        Operation::Delete => Some(format!("node {node:?} is not allowed to delete itself")),
        // By it the cluster knows whose name this is: a stolen certificate must not hand the name on.
        _ if meta::annotation(new, NODE_KEY_HASH) != meta::annotation(old, NODE_KEY_HASH) => {
            Some(format!("node {node:?} is not allowed to modify the annotation {NODE_KEY_HASH}"))
        }
        _ if differs(&["spec", "configSource"]) => Some(format!("node {node:?} is not allowed to set configSource")),
        Operation::Create if !labels.is_empty() => {
            Some(format!("node {node:?} is not allowed to set the following labels: {labels}"))
        }
        Operation::Create => None,
        _ if differs(&["spec", "taints"]) => Some(format!("node {node:?} is not allowed to modify taints")),
        _ if !labels.is_empty() => Some(format!("is not allowed to modify labels: {labels}")),
        _ if meta::owner_references(new) != meta::owner_references(old) => {
            Some(format!("node {node:?} is not allowed to modify ownerReferences"))
        }
        Operation::Update => None,
    }
}

/// A node makes pods only as mirrors of what it runs by itself; they lead to nothing else in the cluster.
fn mirror_pod(node: &str, pod: &Value, own_uid: Option<&str>) -> Option<String> {
    if meta::annotation(pod, "kubernetes.io/config.mirror").is_none() {
        return Some(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
        ));
    }
    if let Some(why) = on_node(node, pod, "create pods") {
        return Some(why);
    }
    let only =
        |what: &str| Some(format!("node {node:?} can only create pods with {what} owner reference set to itself"));
    let owner = match meta::owner_references(pod) {
        [] => return only("an"),
        [owner] => owner,
        _ => return only("a single"),
    };
    let is = |key: &str, value: &str| meta::str_at(owner, &[key]) == value;
    if !is("apiVersion", "v1") || !is("kind", "Node") || !is("name", node) {
        return only("an");
    }
    if owner["controller"] != true {
        return only("a controller");
    }
    if owner["blockOwnerDeletion"] == true {
        return Some(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let Some(own_uid) = own_uid else { return Some(format!("node {node:?} is not there, so it owns no pods")) };
    if !is("uid", own_uid) {
        let got = meta::str_at(owner, &["uid"]);
        return Some(format!("node {node} UID mismatch: expected {own_uid} got {got}"));
    }
    // Without its annotation, all that the pod names is found.
    let mut bare = pod.clone();
    meta::unset(&mut bare, "annotations");
    let mut named: Vec<&str> = used_by("", &bare).into_iter().map(|(resource, ..)| resource).collect();
    let volumes = meta::list_at(pod, &["spec", "volumes"]);
    if !meta::list_at(pod, &["spec", "resourceClaims"]).is_empty() {
        named.push("resourceclaims");
    }
    let sources = || volumes.iter().flat_map(|v| meta::list_at(v, &["projected", "sources"]));
    if sources().any(|s| s.get("serviceAccountToken").is_some_and(|t| !t.is_null())) {
        named.push("serviceaccounts");
    }
    if sources().any(|s| s.get("clusterTrustBundle").is_some_and(|t| !t.is_null())) {
        named.push("clustertrustbundles");
    }
    let order =
        ["serviceaccounts", "secrets", "configmaps", "clustertrustbundles", "persistentvolumeclaims", "resourceclaims"];
    let first = order.iter().find(|resource| named.contains(resource))?;
    let what = if *first == "serviceaccounts" { "a service account" } else { first };
    Some(format!("node {node:?} can not create pods that reference {what}"))
}

fn pod_status(node: &str, new: &Value, old: &Value) -> Option<String> {
    if let Some(why) = on_node(node, old, "update pod status for pods") {
        return Some(why);
    }
    let map = |v: Option<&Map<String, Value>>| v.cloned().unwrap_or_default();
    if map(meta::labels(new)) != map(meta::labels(old)) {
        return Some(format!("node {node:?} cannot update labels through pod status"));
    }
    let claims = |v: &Value| meta::list_at(v, &["status", "resourceClaimStatuses"]).to_vec();
    if claims(new) != claims(old) {
        return Some(format!("node {node:?} cannot update resource claim statues"));
    }
    if meta::owner_references(new) != meta::owner_references(old) || meta::finalizers(new) != meta::finalizers(old) {
        return Some(format!("node {node:?} cannot update owners or finalizers through pod status"));
    }
    None
}

fn lease(node: &str, namespace: &str, name: &str) -> Option<String> {
    if namespace != "kube-node-lease" {
        return Some("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    (name != node).then(|| "can only access node lease with the same name as the requesting node".into())
}

fn claim_status(node: &str, sub: &str, new: &Value, old: &Value) -> Option<String> {
    if sub != "status" {
        return Some("may only update PVC status".into());
    }
    let rest = |v: &Value| {
        let mut rest = v.clone();
        meta::unset(&mut rest, "resourceVersion");
        meta::unset(&mut rest, "managedFields");
        if let Some(status) = rest.get_mut("status").and_then(Value::as_object_mut) {
            for key in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
                status.shift_remove(key);
            }
        }
        rest
    };
    (rest(new) != rest(old)).then(|| {
        format!("node {node:?} is not allowed to update fields other than status.capacity and status.conditions")
    })
}

/// A node asks for certificates of its own name only, from the two signers that make them.
fn certificate(node: &str, request: &Value) -> Option<String> {
    let signer = meta::str_at(request, &["spec", "signerName"]);
    if !matches!(signer, "kubernetes.io/kube-apiserver-client-kubelet" | "kubernetes.io/kubelet-serving") {
        return Some(format!("node {node:?} can not ask the signer {signer:?} for certificates"));
    }
    let mine = subject_of(request)
        .is_some_and(|(name, groups)| name.strip_prefix(NODE_USER_PREFIX) == Some(node) && groups == [NODES]);
    (!mine).then(|| format!("node {node:?} can only ask for certificates of {NODE_USER_PREFIX}{node} in {NODES}"))
}

/// Common name and organizations that a certificate is asked for.
pub fn subject_of(request: &Value) -> Option<(String, Vec<String>)> {
    use x509_parser::prelude::{FromDer, X509CertificationRequest};
    let pem = skiff_api::base64::decode(meta::str_at(request, &["spec", "request"]))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &request.certification_request_info.subject;
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_string();
    let groups = subject.iter_organization().map(|o| o.as_str().map(String::from)).collect::<Result<_, _>>().ok()?;
    Some((name, groups))
}

/// A pod that a node evicts runs on it.
pub fn eviction(user: &UserInfo, pod: &Value) -> Result<(), Status> {
    let Some(node) = user.node() else { return Ok(()) };
    if meta::str_at(pod, &["spec", "nodeName"]) == node {
        return Ok(());
    }
    let why = format!("node {node} can only evict pods with spec.nodeName set to itself");
    Err(Status::forbidden("", "pods", meta::name(pod), &why))
}

/// A node gets tokens for its pods only: `request` names one by uid that runs here and asks for this audience.
///
/// `pod` is the pod that the request is bound to, where there is one.
pub fn token(user: &UserInfo, account: &str, request: &Value, pod: Option<&Value>) -> Result<(), Status> {
    let Some(node) = user.node() else { return Ok(()) };
    let refuse = |why: &str| Err(Status::forbidden("", "serviceaccounts", account, why));
    let bound = |key: &str| meta::str_at(request, &["spec", "boundObjectRef", key]);
    if bound("kind") != "Pod" || bound("apiVersion") != "v1" || bound("name").is_empty() {
        return refuse("node requested token not bound to a pod");
    }
    if bound("uid").is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let Some(pod) = pod else { return Err(Status::not_found("", "pods", bound("name"))) };
    if meta::uid(pod) != bound("uid") {
        return refuse(&format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then \
             recreated",
            bound("uid")
        ));
    }
    if meta::str_at(pod, &["spec", "nodeName"]) != node {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    let wanted = match meta::list_at(request, &["spec", "audiences"]) {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return refuse("node may only request 0 or 1 audiences"),
    };
    let sources =
        meta::list_at(pod, &["spec", "volumes"]).iter().flat_map(|v| meta::list_at(v, &["projected", "sources"]));
    let mut tokens = sources.filter_map(|s| s.get("serviceAccountToken").filter(|t| t.is_object()));
    if tokens.any(|token| meta::str_at(token, &["audience"]) == wanted) {
        return Ok(());
    }
    refuse(&format!(
        "audience {wanted:?} not found in pod spec volume, {} is not authorized to request service account tokens for this audience",
        user.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_only_others_set() {
        for (label, expect) in [
            ("kubernetes.io/hostname", false),
            ("topology.kubernetes.io/zone", false),
            ("node.kubernetes.io/instance-type", false),
            ("x.node.kubernetes.io/y", false),
            ("kubelet.kubernetes.io/y", false),
            ("example.com/role", false),
            ("role", false),
            ("notkubernetes.io/role", false),
            ("node-restriction.kubernetes.io/role", true),
            ("a.node-restriction.kubernetes.io/role", true),
            ("node-role.kubernetes.io/control-plane", true),
            ("kubernetes.io/anything", true),
            ("x.k8s.io/anything", true),
        ] {
            assert_eq!(is_restricted(label), expect, "{label}");
        }
    }

    #[test]
    fn a_node_writes_its_own_node() {
        let check = |operation, name: &str, new: Value, old: Value, expect: &str| {
            let found = node_write("n1", operation, name, &new, &old).unwrap_or_default();
            assert_eq!(found, expect, "{new}");
        };
        let with = |labels: Value, spec: Value| json!({"metadata": {"name": "n1", "labels": labels}, "spec": spec});
        let plain = || with(json!({}), json!({}));
        let other = "node \"n1\" is not allowed to modify node \"n2\"";
        check(Operation::Create, "n2", plain(), Value::Null, other);
        check(
            Operation::Create,
            "n1",
            with(json!({"kubernetes.io/os": "linux"}), json!({"taints": [1]})),
            Value::Null,
            "",
        );
        let labels = "node \"n1\" is not allowed to set the following labels: k8s.io/x, node-role.kubernetes.io/worker";
        check(
            Operation::Create,
            "n1",
            with(json!({"node-role.kubernetes.io/worker": "", "k8s.io/x": ""}), json!({})),
            Value::Null,
            labels,
        );
        check(
            Operation::Update,
            "n1",
            with(json!({}), json!({"taints": []})),
            with(json!({}), json!({"taints": [1]})),
            "node \"n1\" is not allowed to modify taints",
        );
        let modify = "is not allowed to modify labels: node-restriction.kubernetes.io/a";
        check(
            Operation::Update,
            "n1",
            plain(),
            with(json!({"node-restriction.kubernetes.io/a": "b"}), json!({})),
            modify,
        );
        check(Operation::Update, "n1", plain(), plain(), "");
        let claimed = |hash: &str| json!({"metadata": {"name": "n1", "annotations": {NODE_KEY_HASH: hash}}});
        let kept = "node \"n1\" is not allowed to modify the annotation skiff.dev/node-key-hash";
        check(Operation::Update, "n1", claimed("a"), claimed("a"), "");
        check(Operation::Update, "n1", claimed("b"), claimed("a"), kept);
        check(Operation::Update, "n1", plain(), claimed("a"), kept);
        check(Operation::Update, "n1", claimed("a"), plain(), kept);
        check(Operation::Create, "n1", claimed("a"), Value::Null, kept);
        check(Operation::Delete, "n1", Value::Null, plain(), "node \"n1\" is not allowed to delete itself");
    }

    #[test]
    fn a_mirror_leads_to_nothing() {
        let pod = |spec: Value, owner: Value| {
            let mut spec = spec;
            spec["nodeName"] = json!("n1");
            json!({"metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"}, "ownerReferences": owner}, "spec": spec})
        };
        let own = || json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": true}]);
        let check = |pod: Value, expect: &str| {
            let found = mirror_pod("n1", &pod, Some("u")).unwrap_or_default();
            assert!(
                found.ends_with(expect) && found.is_empty() == expect.is_empty(),
                "{pod}: {found:?}, not {expect:?}"
            );
        };
        check(pod(json!({}), own()), "");
        check(json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}}), "can only create mirror pods");
        check(pod(json!({}), json!([])), "can only create pods with an owner reference set to itself");
        check(
            pod(json!({}), json!([own()[0], own()[0]])),
            "can only create pods with a single owner reference set to itself",
        );
        let mut odd = own();
        odd[0]["kind"] = json!("Deployment");
        check(pod(json!({}), odd), "can only create pods with an owner reference set to itself");
        let mut odd = own();
        odd[0]["uid"] = json!("v");
        check(pod(json!({}), odd), "node n1 UID mismatch: expected u got v");
        let mut odd = own();
        odd[0]["blockOwnerDeletion"] = json!(true);
        check(pod(json!({}), odd), "must not set blockOwnerDeletion on an owner reference");
        for (spec, what) in [
            (json!({"serviceAccountName": "app"}), "a service account"),
            (
                json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
                "a service account",
            ),
            (json!({"imagePullSecrets": [{"name": "s"}]}), "secrets"),
            (json!({"containers": [{"envFrom": [{"configMapRef": {"name": "c"}}]}]}), "configmaps"),
            (json!({"volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]}), "persistentvolumeclaims"),
            (
                json!({"volumes": [{"projected": {"sources": [{"clusterTrustBundle": {"path": "t"}}]}}]}),
                "clustertrustbundles",
            ),
            (json!({"resourceClaims": [{"name": "a"}]}), "resourceclaims"),
        ] {
            check(pod(spec, own()), &format!("can not create pods that reference {what}"));
        }
    }

    #[test]
    fn tokens_are_for_pods_here() {
        let user = UserInfo::new("system:node:n1", [NODES]);
        let pod = |node: &str| {
            json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": node, "volumes": [{"projected": {"sources": [
                {"serviceAccountToken": {"path": "a"}}, {"serviceAccountToken": {"path": "b", "audience": "vault"}}]}}]}})
        };
        let request = |kind: &str, uid: &str, audiences: Value| json!({"spec": {"audiences": audiences, "boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": "p", "uid": uid}}});
        let check = |request: Value, pod: Option<Value>, expect: &str| {
            let found = token(&user, "app", &request, pod.as_ref()).err().map(|s| s.message).unwrap_or_default();
            assert!(found.contains(expect) && found.is_empty() == expect.is_empty(), "{request}: {found}");
        };
        check(request("Pod", "u", json!([])), Some(pod("n1")), "");
        check(request("Pod", "u", json!(["vault"])), Some(pod("n1")), "");
        check(
            request("Pod", "u", json!(["other"])),
            Some(pod("n1")),
            "audience \"other\" not found in pod spec volume",
        );
        check(request("Pod", "u", json!(["vault", ""])), Some(pod("n1")), "node may only request 0 or 1 audiences");
        check(request("Pod", "u", json!([])), Some(pod("n2")), "scheduled on a different node");
        check(request("Pod", "v", json!([])), Some(pod("n1")), "does not match the UID in record");
        check(request("Pod", "", json!([])), Some(pod("n1")), "without a uid");
        check(request("Pod", "u", json!([])), None, "not found");
        check(request("Secret", "u", json!([])), None, "not bound to a pod");
        check(json!({"spec": {}}), None, "not bound to a pod");
        let anybody = UserInfo::new("alice", []);
        assert!(token(&anybody, "app", &json!({}), None).is_ok());
    }
}
