//! What a new cluster begins with: the default namespaces, and upstream's default roles and bindings.
//!
//! The roles are data (`data/bootstrap-rbac.json`), as Kubernetes documents them under "Default roles and role bindings".
//! A role that is there and carries the auto-update annotation is brought up to the data; what people added stays.

use super::user::UserInfo;
use crate::client::Client;
use serde_json::{Map, Value, json};
use skiff_api::kinds;
use skiff_api::meta;
use skiff_api::status::Status;

const DATA: &str = include_str!("../../data/bootstrap-rbac.json");
const GROUP: &str = "rbac.authorization.k8s.io";
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
pub const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing; safe to run on every server at every start.
pub async fn run(client: &Client) -> Result<(), Status> {
    for name in NAMESPACES {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(client, "", "namespaces", "", namespace).await?;
    }
    let data: Value = serde_json::from_str(DATA).map_err(Status::internal_error)?;
    let section = |name: &str| data.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, role) in section("clusterRoles") {
        ensure(client, GROUP, "clusterroles", "", cluster_role(&name, &role)).await?;
    }
    for (name, binding) in section("clusterRoleBindings") {
        let object = binding_of("ClusterRoleBinding", "", &name, "ClusterRole", &name, &binding);
        ensure(client, GROUP, "clusterrolebindings", "", object).await?;
    }
    for (id, role) in section("roles") {
        let (namespace, name) = id.split_once('/').unwrap_or(("kube-system", &id));
        let mut object = base("Role", namespace, name);
        object["rules"] = role["rules"].clone();
        ensure(client, GROUP, "roles", namespace, object).await?;
    }
    for (id, binding) in section("roleBindings") {
        let (namespace, name) = id.split_once('/').unwrap_or(("kube-system", &id));
        let role = meta::str_at(&binding, &["role"]).to_string();
        let object = binding_of("RoleBinding", namespace, name, "Role", &role, &binding);
        ensure(client, GROUP, "rolebindings", namespace, object).await?;
    }
    Ok(())
}

fn base(kind: &str, namespace: &str, name: &str) -> Value {
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {AUTO_UPDATE: "true"},
        },
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn cluster_role(name: &str, role: &Value) -> Value {
    let mut object = base("ClusterRole", "", name);
    for (key, value) in role.get("labels").and_then(Value::as_object).unwrap_or(&Map::new()) {
        object["metadata"]["labels"][key] = value.clone();
    }
    if let Some(label) = role.get("aggregate").and_then(Value::as_str) {
        let mut labels = Map::new();
        labels.insert(label.into(), json!("true"));
        object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
        object["rules"] = Value::Null;
    } else {
        object["rules"] = role.get("rules").cloned().unwrap_or_default();
    }
    object
}

fn binding_of(kind: &str, namespace: &str, name: &str, role_kind: &str, role: &str, binding: &Value) -> Value {
    let mut object = base(kind, namespace, name);
    let subjects: Vec<Value> =
        meta::list_at(binding, &["subjects"]).iter().filter_map(|s| subject(s.as_str()?)).collect();
    if !subjects.is_empty() {
        object["subjects"] = json!(subjects);
    }
    object["roleRef"] = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
    object
}

/// `User:name`, `Group:name` or `ServiceAccount:namespace/name`.
fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once(':')?;
    Some(match name.split_once('/') {
        Some((namespace, name)) if kind == "ServiceAccount" => {
            json!({"kind": kind, "name": name, "namespace": namespace})
        }
        _ => json!({"kind": kind, "apiGroup": GROUP, "name": name}),
    })
}

/// Creates what is missing; brings rules that are the server's own up to date.
async fn ensure(client: &Client, group: &str, resource: &str, namespace: &str, object: Value) -> Result<(), Status> {
    let Some(kind) = kinds::by_resource(group, "v1", resource) else { return Ok(()) };
    let name = meta::name(&object).to_string();
    match client.get(&kind, namespace, &name).await {
        Err(status) if status.code() == 404 => match client.create(&kind, namespace, object).await {
            Err(status) if status.reason == "AlreadyExists" => Ok(()),
            other => other.map(|_| ()),
        },
        Err(status) => Err(status),
        Ok(found) => {
            let ours = meta::annotation(&found, AUTO_UPDATE) == Some("true");
            let aggregated = object.get("aggregationRule").is_some();
            if !ours || aggregated || found.get("rules") == object.get("rules") {
                return Ok(());
            }
            let mut new = found.clone();
            new["rules"] = object["rules"].clone();
            match client.update(&kind, namespace, new).await {
                Err(status) if status.reason == "Conflict" => Ok(()),
                other => other.map(|_| ()),
            }
        }
    }
}

/// The user that makes these things.
pub fn user() -> UserInfo {
    UserInfo::apiserver()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_is_well_formed() {
        let data: Value = serde_json::from_str(DATA).unwrap();
        let roles = data["clusterRoles"].as_object().unwrap();
        for (name, role) in roles {
            assert!(role.get("rules").is_some() || role.get("aggregate").is_some(), "{name}");
            assert_eq!(
                role["rules"].as_array().map_or(0, Vec::len),
                crate::auth::rbac::rules_of(role).len(),
                "{name}: every rule can be read"
            );
        }
        for name in data["clusterRoleBindings"].as_object().unwrap().keys() {
            assert!(roles.contains_key(name), "the binding {name} leads to a role");
        }
    }
}
