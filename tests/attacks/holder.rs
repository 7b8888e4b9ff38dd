//! Somebody with a credential of their own, and what they hear.

use crate::local::{Local, text_of};
use anyhow::{Context as _, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use skiff::client::{Api, ApiError};
use skiff_identity::Pair;

/// The API by a bearer token alone.
pub fn with_token(local: &Local, name: &str, token: &str) -> anyhow::Result<Api> {
    let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(local.dir.join("kubeconfig"))?)?;
    config["users"][0]["user"] = json!({"token": token});
    Api::from_kubeconfig(local.file(&format!("{name}.kubeconfig"), config.to_string())?.as_ref())
}

/// The API by a bearer token, acting as somebody else: fields of a kubeconfig's user (`as`, `as-groups`, ...).
pub fn acting(local: &Local, token: &str, acting: Value) -> anyhow::Result<Api> {
    let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(local.dir.join("kubeconfig"))?)?;
    config["users"][0]["user"] = json!({"token": token});
    for (field, value) in acting.as_object().into_iter().flatten() {
        config["users"][0]["user"][field] = value.clone();
    }
    Api::from_kubeconfig(local.file("acting.kubeconfig", config.to_string())?.as_ref())
}

/// The API by a node's certificate, as somebody has it who took the node's files.
pub fn with_node(local: &Local, node: &str) -> anyhow::Result<Api> {
    let own = stolen(local, node)?;
    let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(local.dir.join("kubeconfig"))?)?;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    config["users"][0]["user"] =
        json!({"client-certificate-data": encode(&own.certificate), "client-key-data": encode(&own.key)});
    Api::from_kubeconfig(local.file(&format!("{node}.kubeconfig"), config.to_string())?.as_ref())
}

/// A node's certificate and key, from its disk.
pub fn stolen(local: &Local, node: &str) -> anyhow::Result<Pair> {
    let read = |name: &str| {
        let path = local.dir.join(node).join("agent").join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    Ok(Pair { certificate: read("node.crt")?, key: read("node.key")? })
}

/// The answer must be a refusal with this code.
pub fn refused(what: &str, answer: anyhow::Result<Value>, code: u16) -> anyhow::Result<()> {
    match answer {
        Ok(answer) => anyhow::bail!("{what}: it was not refused, and answered {answer}"),
        Err(error) => {
            let said = error.downcast_ref::<ApiError>().with_context(|| format!("{what}: {error:#}"))?;
            ensure!(said.code == code, "{what}: {code} was expected: {said}");
            Ok(())
        }
    }
}

/// A service account that may do what `rules` say in `default`, and a token of it.
pub async fn account(admin: &Api, name: &str, rules: Value) -> anyhow::Result<String> {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let meta = json!({"name": name, "namespace": "default"});
    admin
        .post(
            "/api/v1/namespaces/default/serviceaccounts",
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        )
        .await?;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules});
    admin.post(&format!("{RBAC}/roles"), &role).await?;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta,
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}});
    admin.post(&format!("{RBAC}/rolebindings"), &binding).await?;
    token(admin, name, json!({})).await
}

/// A service account that may do what `rules` say in the whole cluster, and a token of it.
pub async fn cluster_account(admin: &Api, name: &str, rules: Value) -> anyhow::Result<String> {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    let token = account(admin, name, json!([])).await?;
    let kind =
        |kind: &str| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}});
    let mut role = kind("ClusterRole");
    role["rules"] = rules;
    admin.post(&format!("{RBAC}/clusterroles"), &role).await?;
    let mut binding = kind("ClusterRoleBinding");
    binding["subjects"] = json!([{"kind": "ServiceAccount", "name": name, "namespace": "default"}]);
    binding["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
    admin.post(&format!("{RBAC}/clusterrolebindings"), &binding).await?;
    Ok(token)
}

/// A token of a service account, with this `spec` of the TokenRequest.
pub async fn token(api: &Api, account: &str, spec: Value) -> anyhow::Result<String> {
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let answer = api.post(&format!("/api/v1/namespaces/default/serviceaccounts/{account}/token"), &request).await?;
    Ok(text_of(&answer, "/status/token").to_owned())
}

/// A Secret with one value.
pub async fn secret(admin: &Api, name: &str, value: &str) -> anyhow::Result<()> {
    let object =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"value": value}});
    admin.post("/api/v1/namespaces/default/secrets", &object).await.map(drop)
}
