//! May this user do this? Masters may do anything, nodes what their pods need, everybody what roles grant.

use super::rbac::{Attributes, Decision};
use super::user::{MASTERS, UserInfo};
use crate::http::request::RequestInfo;
use crate::state::State;
use crate::storage::keys;
use crate::storage::peek::peek_text;
use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;

impl From<&RequestInfo> for Attributes {
    fn from(info: &RequestInfo) -> Self {
        if !info.is_resource {
            return Attributes { verb: info.verb.clone(), path: Some(info.path.clone()), ..Default::default() };
        }
        Attributes {
            verb: info.verb.clone(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            path: None,
        }
    }
}

/// The decision, on what is committed.
pub async fn decide(state: &State, user: &UserInfo, wanted: &Attributes) -> Result<Decision, Status> {
    if user.is_in(MASTERS) {
        return Ok(Decision::Allow(String::new()));
    }
    if let Some(node) = user.node()
        && node_may(state, node, wanted).await?
    {
        return Ok(Decision::Allow(String::new()));
    }
    let decision = state.policy.decide(user, wanted);
    if matches!(decision, Decision::Allow(_)) {
        return Ok(decision);
    }
    state.policy.refresh(state).await?;
    Ok(state.policy.decide(user, wanted))
}

/// Lets a request pass, or says no as the reference server does.
pub async fn require(state: &State, user: &UserInfo, wanted: &Attributes) -> Result<(), Status> {
    match decide(state, user, wanted).await? {
        Decision::Allow(_) => Ok(()),
        Decision::NoOpinion(reason) => {
            let mut why = wanted.denial(&user.name);
            if !reason.is_empty() {
                why.push_str(": ");
                why.push_str(&reason);
            }
            let mut status = Status::forbidden(&wanted.group, &wanted.resource, &wanted.name, &why);
            if wanted.path.is_some() {
                status.details = Some(Default::default());
            }
            Err(status)
        }
    }
}

/// The node's own rights: what runs on it, and no more. Source: Kubernetes documentation, "Using Node Authorization".
async fn node_may(state: &State, node: &str, wanted: &Attributes) -> Result<bool, Status> {
    if wanted.path.is_some() {
        return Ok(false);
    }
    let read = matches!(wanted.verb.as_str(), "get" | "list" | "watch");
    let write = matches!(wanted.verb.as_str(), "update" | "patch");
    let (resource, sub) = (wanted.resource.as_str(), wanted.subresource.as_str());
    Ok(match (wanted.group.as_str(), resource, sub) {
        ("", "services", "") | ("discovery.k8s.io", "endpointslices", "") | ("", "pods", "") if read => true,
        ("node.k8s.io", "runtimeclasses", "") | ("storage.k8s.io", "csidrivers", "") if read => true,
        ("", "nodes", "") => read || wanted.verb == "create" || write,
        ("", "nodes", "status") => write,
        ("", "pods", "") => matches!(wanted.verb.as_str(), "create" | "delete"),
        ("", "pods", "status") => write,
        ("", "pods", "eviction") => wanted.verb == "create",
        ("" | "events.k8s.io", "events", "") => wanted.verb == "create" || write,
        ("coordination.k8s.io", "leases", "") => {
            wanted.verb == "create" || wanted.name == node && wanted.namespace == "kube-node-lease"
        }
        ("authentication.k8s.io", "tokenreviews", "") => wanted.verb == "create",
        ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => wanted.verb == "create",
        ("certificates.k8s.io", "certificatesigningrequests", "") => read || wanted.verb == "create",
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", "") if read && !wanted.name.is_empty() => {
            runs_pod_with(state, node, wanted).await?
        }
        ("", "serviceaccounts", "token") => wanted.verb == "create" && runs_pod_with(state, node, wanted).await?,
        ("", "serviceaccounts", "") => wanted.verb == "get" && runs_pod_with(state, node, wanted).await?,
        _ => false,
    })
}

/// Whether a pod on the node uses the object.
async fn runs_pod_with(state: &State, node: &str, wanted: &Attributes) -> Result<bool, Status> {
    let prefix = format!("{}{}/", keys::prefix_of("", "pods"), wanted.namespace);
    let pods = state.scan(&prefix).await?;
    let here = pods.kvs.iter().filter(|kv| peek_text(&kv.value, &["spec", "nodeName"]).as_deref() == Some(node));
    let mut pods = here.filter_map(|kv| serde_json::from_slice::<Value>(&kv.value).ok());
    Ok(pods.any(|pod| uses(&pod, &wanted.resource, &wanted.name)))
}

fn uses(pod: &Value, resource: &str, name: &str) -> bool {
    if resource == "serviceaccounts" {
        return meta::str_at(pod, &["spec", "serviceAccountName"]) == name;
    }
    let named = |v: &Value, path: &[&str]| meta::str_at(v, path) == name;
    let in_volume = |v: &Value| match resource {
        "secrets" => {
            named(v, &["secret", "secretName"])
                || meta::list_at(v, &["projected", "sources"]).iter().any(|s| named(s, &["secret", "name"]))
        }
        "configmaps" => {
            named(v, &["configMap", "name"])
                || meta::list_at(v, &["projected", "sources"]).iter().any(|s| named(s, &["configMap", "name"]))
        }
        _ => named(v, &["persistentVolumeClaim", "claimName"]),
    };
    let (from, key) = match resource {
        "secrets" => ("secretRef", "secretKeyRef"),
        "configmaps" => ("configMapRef", "configMapKeyRef"),
        _ => ("", ""),
    };
    let in_container = |c: &Value| {
        meta::list_at(c, &["envFrom"]).iter().any(|e| named(e, &[from, "name"]))
            || meta::list_at(c, &["env"]).iter().any(|e| named(e, &["valueFrom", key, "name"]))
    };
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    meta::list_at(pod, &["spec", "volumes"]).iter().any(in_volume)
        || containers.iter().any(|list| meta::list_at(pod, &["spec", list]).iter().any(in_container))
        || resource == "secrets"
            && meta::list_at(pod, &["spec", "imagePullSecrets"]).iter().any(|s| named(s, &["name"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_uses_what_it_names() {
        let pod = json!({"spec": {
            "serviceAccountName": "app",
            "volumes": [{"secret": {"secretName": "s1"}}, {"projected": {"sources": [{"configMap": {"name": "c1"}}]}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s2"}}}], "envFrom": [{"configMapRef": {"name": "c2"}}]}],
        }});
        for (resource, name, expect) in [
            ("secrets", "s1", true),
            ("secrets", "s2", true),
            ("secrets", "c1", false),
            ("configmaps", "c1", true),
            ("configmaps", "c2", true),
            ("serviceaccounts", "app", true),
            ("serviceaccounts", "other", false),
        ] {
            assert_eq!(uses(&pod, resource, name), expect, "{resource} {name}");
        }
    }
}
