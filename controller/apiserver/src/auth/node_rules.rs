//! The node's own rights: what runs on it, and no more.
//!
//! Source: Kubernetes documentation, "Using Node Authorization", with its selectors (`AuthorizeNodeWithSelectors`). What a node may
//! write into an object that it may touch is the matter of admission (`crate::admission::node`).

use super::rbac::Attributes;
use crate::state::{Fresh, State};
use crate::storage::keys;
use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;

/// What the rules say to a node's request.
#[derive(Debug, PartialEq)]
enum Rule {
    Yes,
    /// With why, for whoever is refused in the end.
    No(String),
    /// If a pod on the node uses this object.
    IfUsed(&'static str),
}

/// Whether the node may; otherwise the reason, empty where there is nothing to say.
pub async fn decide(state: &State, node: &str, wanted: &Attributes) -> Result<Result<(), String>, Status> {
    let unrelated = || Err(format!("no relationship found between node '{node}' and this object"));
    Ok(match rule(node, wanted) {
        Rule::Yes => Ok(()),
        Rule::No(why) => Err(why),
        Rule::IfUsed(_) if wanted.name.is_empty() => Err("No Object name found".into()),
        Rule::IfUsed("persistentvolumes") => {
            if uses_volume(state, node, &wanted.name).await? {
                Ok(())
            } else {
                unrelated()
            }
        }
        Rule::IfUsed(resource) => {
            let used = state.pods.uses(&state.store, node, resource, &wanted.namespace, &wanted.name).await?;
            if used { Ok(()) } else { unrelated() }
        }
    })
}

/// A volume is used by the claim that is bound to it, and both say so.
async fn uses_volume(state: &State, node: &str, name: &str) -> Result<bool, Status> {
    let read = async |resource: &str, namespace: &str, name: &str| {
        let found = state.read_key(&keys::object_of("", resource, namespace, name), Fresh::Linearizable).await?;
        Ok::<Value, Status>(found.map(|f| f.decode()).unwrap_or_default())
    };
    let volume = read("persistentvolumes", "", name).await?;
    let of = |key: &str| meta::str_at(&volume, &["spec", "claimRef", key]).to_string();
    let (namespace, claim) = (of("namespace"), of("name"));
    if claim.is_empty() || !state.pods.uses(&state.store, node, "persistentvolumeclaims", &namespace, &claim).await? {
        return Ok(false);
    }
    let bound = read("persistentvolumeclaims", &namespace, &claim).await?;
    Ok(meta::str_at(&bound, &["spec", "volumeName"]) == name)
}

fn rule(node: &str, wanted: &Attributes) -> Rule {
    if wanted.path.is_some() {
        return Rule::No(String::new());
    }
    let no = |why: &str| Rule::No(why.to_string());
    let (verb, sub) = (wanted.verb.as_str(), wanted.subresource.as_str());
    let read = matches!(verb, "get" | "list" | "watch");
    let write = matches!(verb, "update" | "patch");
    let one_of_mine = matches!(verb, "get" | "create" | "update" | "patch" | "delete");
    let only = |allowed: bool| if allowed { Rule::Yes } else { Rule::No(String::new()) };
    match (wanted.group.as_str(), wanted.resource.as_str(), sub) {
        ("", "secrets", _) | ("", "configmaps", _) => {
            let resource = if wanted.resource == "secrets" { "secrets" } else { "configmaps" };
            match (read, sub, wanted.namespace.as_str()) {
                (false, ..) => no("can only read resources of this type"),
                (true, "", "") => no("can only read namespaced object of this type"),
                (true, "", _) => Rule::IfUsed(resource),
                _ => no("cannot read subresource"),
            }
        }
        ("", "persistentvolumeclaims", "status") if write => Rule::IfUsed("persistentvolumeclaims"),
        ("", "persistentvolumeclaims", _) => get_only(verb, sub, "persistentvolumeclaims"),
        ("", "persistentvolumes", _) => get_only(verb, sub, "persistentvolumes"),
        ("resource.k8s.io", "resourceclaims", _) => get_only(verb, sub, "resourceclaims"),
        ("", "serviceaccounts", "") => get_only(verb, sub, "serviceaccounts"),
        ("", "serviceaccounts", "token") => match verb == "create" && !wanted.name.is_empty() {
            true => Rule::IfUsed("serviceaccounts"),
            false => no("can only create tokens for individual service accounts"),
        },
        ("coordination.k8s.io", "leases", _) => {
            if !one_of_mine || !sub.is_empty() {
                no("can only get, create, update, patch, or delete a node lease")
            } else if wanted.namespace != "kube-node-lease" {
                no("can only access leases in the \"kube-node-lease\" system namespace")
            } else if verb != "create" && wanted.name != node {
                no("can only access node lease with the same name as the requesting node")
            } else {
                Rule::Yes
            }
        }
        ("storage.k8s.io", "csinodes", "") => {
            if !one_of_mine {
                no("can only get, create, update, patch, or delete a CSINode")
            } else if verb != "create" && wanted.name != node {
                no("can only access CSINode with the same name as the requesting node")
            } else {
                Rule::Yes
            }
        }
        ("", "nodes", "") if read => match wanted.name.as_str() {
            name if name == node => Rule::Yes,
            "" => Rule::No(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name => Rule::No(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        ("", "nodes", "") => only(verb == "create" || write),
        ("", "nodes" | "pods", "status") => only(write),
        ("", "pods", "") => match verb {
            "get" => Rule::IfUsed("pods"),
            "list" | "watch" => match wanted.fields.required("spec.nodeName") == Some(node) {
                true => Rule::Yes,
                false => no("can only list/watch pods with spec.nodeName field selector"),
            },
            _ => only(matches!(verb, "create" | "delete")),
        },
        ("", "pods", "eviction") => only(verb == "create"),
        ("", "services", "") | ("discovery.k8s.io", "endpointslices", "") => only(read),
        ("", "endpoints", "") => only(verb == "get"),
        ("node.k8s.io", "runtimeclasses", "") | ("storage.k8s.io", "csidrivers", "") => only(read),
        ("" | "events.k8s.io", "events", "") => only(verb == "create" || write),
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => only(verb == "create"),
        ("certificates.k8s.io", "certificatesigningrequests", "") => only(read || verb == "create"),
        _ => Rule::No(String::new()),
    }
}

fn get_only(verb: &str, sub: &str, resource: &'static str) -> Rule {
    match (verb, sub) {
        ("get", "") => Rule::IfUsed(resource),
        ("get", _) => Rule::No("cannot get subresource".into()),
        _ => Rule::No("can only get individual resources of this type".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_api::selector::FieldSelector;

    #[test]
    fn a_node_may_what_its_pods_need() {
        // `verb group/resource/sub namespace name selector`, with `-` for nothing.
        let check = |request: &str, expect: &str| {
            let words: Vec<&str> = request.split(' ').map(|w| if w == "-" { "" } else { w }).collect();
            let path: Vec<&str> = words[1].split('/').collect();
            let text = |list: &[&str], at: usize| list.get(at).copied().unwrap_or_default().to_string();
            let wanted = Attributes {
                verb: text(&words, 0),
                group: text(&path, 0),
                resource: text(&path, 1),
                subresource: text(&path, 2),
                namespace: text(&words, 2),
                name: text(&words, 3),
                fields: FieldSelector::read(&text(&words, 4)).unwrap(),
                ..Default::default()
            };
            let found = match rule("n1", &wanted) {
                Rule::Yes => "yes".to_string(),
                Rule::IfUsed(resource) => format!("if {resource}"),
                Rule::No(why) => format!("no {why}"),
            };
            assert_eq!(found.trim(), expect, "{request}");
        };
        check("get /secrets a s", "if secrets");
        check("list /secrets a s", "if secrets");
        check("list /secrets - s", "no can only read namespaced object of this type");
        check("update /secrets a s", "no can only read resources of this type");
        check("get /persistentvolumes - v", "if persistentvolumes");
        check("list /persistentvolumes", "no can only get individual resources of this type");
        check("patch /persistentvolumeclaims/status a c", "if persistentvolumeclaims");
        check("patch /persistentvolumeclaims a c", "no can only get individual resources of this type");
        check("get resource.k8s.io/resourceclaims a c", "if resourceclaims");
        check("create /serviceaccounts/token a app", "if serviceaccounts");
        check("create /serviceaccounts/token a", "no can only create tokens for individual service accounts");
        check("list /serviceaccounts a", "no can only get individual resources of this type");
        check("get /nodes - n1", "yes");
        check("get /nodes - n2", "no node 'n1' cannot read 'n2', only its own Node object");
        check("watch /nodes", "no node 'n1' cannot read all nodes, only its own Node object");
        check("patch /nodes/status - n1", "yes");
        check("delete /nodes - n1", "no");
        check("get /nodes/proxy - n1", "no");
        check("get /pods a p", "if pods");
        check("list /pods - - spec.nodeName=n1", "yes");
        check("watch /pods a - spec.nodeName=n2", "no can only list/watch pods with spec.nodeName field selector");
        check("list /pods - - spec.nodeName!=n1", "no can only list/watch pods with spec.nodeName field selector");
        check("deletecollection /pods a - spec.nodeName=n1", "no");
        check("create /pods/exec a p", "no");
        check("update /pods a p", "no");
        check("create /pods/eviction a p", "yes");
        check("update coordination.k8s.io/leases kube-node-lease n1", "yes");
        check(
            "update coordination.k8s.io/leases kube-node-lease n2",
            "no can only access node lease with the same name as the requesting node",
        );
        check(
            "create coordination.k8s.io/leases kube-system x",
            "no can only access leases in the \"kube-node-lease\" system namespace",
        );
        check(
            "list coordination.k8s.io/leases kube-node-lease",
            "no can only get, create, update, patch, or delete a node lease",
        );
        check("create certificates.k8s.io/certificatesigningrequests", "yes");
        check("update certificates.k8s.io/certificatesigningrequests/approval - x", "no");
        check("list apps/deployments", "no");
    }
}
