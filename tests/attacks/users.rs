//! Somebody with an account and a few rights.

use crate::holder::{account, refused, secret, token, with_token};
use crate::local::{Local, block_on, text_of, until};
use anyhow::ensure;
use base64::Engine as _;
use http_body_util::BodyExt as _;
use serde_json::json;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

pub fn a_watch_of_one_name(local: &Local) -> anyhow::Result<()> {
    let admin = local.cluster()?.api;
    block_on(async {
        let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"], "verbs": ["get", "list", "watch"]}]);
        let api = with_token(local, "watcher", &account(&admin, "watcher", rules).await?)?;
        secret(&admin, "mine", "to be seen").await?;
        secret(&admin, "theirs", "not to be seen").await?;
        api.get(&format!("{SECRETS}/mine")).await?;
        refused("another's", api.get(&format!("{SECRETS}/theirs")).await, 403)?;
        refused("all", api.get(SECRETS).await, 403)?;
        refused("all, watched", api.get(&format!("{SECRETS}?watch=1&timeoutSeconds=1")).await, 403)?;
        let other =
            "/api/v1/watch/namespaces/default/secrets/mine?fieldSelector=metadata.name%3Dtheirs&timeoutSeconds=1";
        ensure!(api.get(other).await.is_err(), "two names at once");
        for path in [
            "/api/v1/watch/namespaces/default/secrets/mine?timeoutSeconds=2".to_owned(),
            format!("{SECRETS}?watch=1&fieldSelector=metadata.name%3Dmine&timeoutSeconds=2"),
        ] {
            let seen = api.stream(&path, "application/json").await?.collect().await?.to_bytes();
            let seen = String::from_utf8_lossy(&seen).into_owned();
            ensure!(seen.contains("\"mine\"") && !seen.contains("theirs"), "{path}: {seen}");
        }
        Ok(())
    })
}

pub fn audiences(local: &Local) -> anyhow::Result<()> {
    let admin = local.cluster()?.api;
    block_on(async {
        let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]);
        let own = account(&admin, "heard", rules).await?;
        let path = "/api/v1/namespaces/default/configmaps";
        with_token(local, "heard", &own)?.get(path).await?;
        let others = token(&admin, "heard", json!({"audiences": ["vault.example"]})).await?;
        refused("a token for another audience", with_token(local, "heard", &others)?.get(path).await, 401)
    })
}

pub fn creating(local: &Local) -> anyhow::Result<()> {
    let admin = local.cluster()?.api;
    block_on(async {
        let rules = json!([{"apiGroups": ["", "coordination.k8s.io"], "resources": ["configmaps", "leases"], "verbs": ["get", "update", "patch"]}]);
        let api = with_token(local, "editor", &account(&admin, "editor", rules).await?)?;
        let path = "/api/v1/namespaces/default/configmaps/fresh";
        let map =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fresh", "namespace": "default"}});
        let apply = format!("{path}?fieldManager=editor");
        let applied = |api: skiff::client::Api| {
            let (apply, map) = (apply.clone(), map.clone());
            async move { api.patch(&apply, "application/apply-patch+yaml", &map).await }
        };
        // A PUT creates no ConfigMap for anybody; of kinds that it does create, it must not for this one.
        refused("a PUT of what is not there", api.put(path, &map).await, 404)?;
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "fresh", "namespace": "default"}, "spec": {}});
        let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases/fresh";
        refused("a PUT that would create", api.put(leases, &lease).await, 403)?;
        refused("an apply of what is not there", applied(api.clone()).await, 403)?;
        admin.post("/api/v1/namespaces/default/configmaps", &map).await?;
        api.put(path, &map).await?;
        applied(api).await.map(drop)
    })
}

pub fn granting(local: &Local) -> anyhow::Result<()> {
    let admin = local.cluster()?.api;
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    block_on(async {
        let kind = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"});
        let role = |name: &str, more: serde_json::Value| {
            let mut role = kind.clone();
            role["metadata"] = json!({"name": name});
            more.as_object().into_iter().flatten().for_each(|(k, v)| role[k] = v.clone());
            role
        };
        // May write roles, and holds little else.
        let writer = role(
            "role-writer",
            json!({"rules": [
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["create", "get", "update", "patch"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]}),
        );
        admin.post(ROLES, &writer).await?;
        let own = account(&admin, "granter", json!([])).await?;
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "granter"},
            "subjects": [{"kind": "ServiceAccount", "name": "granter", "namespace": "default"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "role-writer"}});
        admin.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await?;
        let api = with_token(local, "granter", &own)?;
        let held = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]);
        let more = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
        api.post(ROLES, &role("granted", json!({"rules": held}))).await?;
        refused("rules beyond one's own", api.post(ROLES, &role("more", json!({"rules": more}))).await, 403)?;
        let everything = json!({"rules": [], "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}]}});
        refused("an aggregation of everything", api.post(ROLES, &role("all", everything)).await, 403)?;
        // A role that somebody else wrote, made part of `view` by a label.
        admin.post(ROLES, &role("powerful", json!({"rules": more}))).await?;
        let label = json!({"metadata": {"labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}});
        let labelled = api.patch(&format!("{ROLES}/powerful"), "application/merge-patch+json", &label).await;
        refused("a label that adds rights to others", labelled, 403)
    })
}

/// Neither an account with every right in a namespace nor a node sees which keys there are, or moves them; an administrator does.
pub fn sealing_keys(local: &Local) -> anyhow::Result<()> {
    let admin = local.cluster()?.api;
    block_on(async {
        let rules = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
        let token = account(&admin, "keys", rules).await?;
        let somebody = with_token(local, "keys", &token)?;
        let node = crate::holder::with_node(local, "a1")?;
        for (who, api) in [("an account", &somebody), ("a node", &node)] {
            let answer = api.get("/skiff/sealing").await;
            refused(&format!("{who}: the keys"), answer, 403)?;
            for path in ["/skiff/sealing/rotate", "/skiff/sealing/forget/0011223344556677"] {
                refused(&format!("{who}: {path}"), api.post(path, &json!({})).await, 403)?;
            }
        }
        let report = admin.get("/skiff/sealing").await?;
        ensure!(report["clear"] == 0 && report["key"].is_string(), "{report}");
        refused("a key that there is not", admin.post("/skiff/sealing/forget/0011223344556677", &json!({})).await, 404)
    })
}

/// A token that a Secret keeps: good while it is there, and refused from then on.
pub fn kept_tokens(local: &Local) -> anyhow::Result<()> {
    let admin = local.cluster()?.api;
    block_on(async {
        let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]);
        account(&admin, "keeper", rules).await?;
        let kept = |name: &str, account: &str| {
            json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}}})
        };
        let filled = async |name: &str| {
            let path = format!("{SECRETS}/{name}");
            until("the Secret is filled", || async {
                Ok(!text_of(&admin.get(&path).await?, "/data/token").is_empty())
            })
            .await?;
            let secret = admin.get(&path).await?;
            let text = |key: &str| {
                let bytes =
                    base64::engine::general_purpose::STANDARD.decode(text_of(&secret, &format!("/data/{key}")))?;
                anyhow::Ok(String::from_utf8(bytes)?)
            };
            ensure!(text("namespace")? == "default" && text("ca.crt")? == admin.ca, "{secret}");
            text("token")
        };
        admin.post(SECRETS, &kept("kept", "keeper")).await?;
        let api = with_token(local, "kept", &filled("kept").await?)?;
        let path = "/api/v1/namespaces/default/configmaps";
        api.get(path).await?;
        admin.delete(&format!("{SECRETS}/kept"), &json!({})).await?;
        refused("the token of a Secret that is gone", api.get(path).await, 401)?;
        // Made anew under the same name, it is another one.
        admin.post(SECRETS, &kept("kept", "keeper")).await?;
        let again = with_token(local, "kept-again", &filled("kept").await?)?;
        again.get(path).await?;
        refused("the old one", api.get(path).await, 401)?;
        admin.delete("/api/v1/namespaces/default/serviceaccounts/keeper", &json!({})).await?;
        refused("an account that is gone", again.get(path).await, 401)?;
        until("its Secret goes with it", || async { Ok(admin.get(&format!("{SECRETS}/kept")).await.is_err()) }).await?;
        admin.post(SECRETS, &kept("nobodys", "no-such-account")).await?;
        until("a Secret for nobody goes", || async { Ok(admin.get(&format!("{SECRETS}/nobodys")).await.is_err()) })
            .await
    })
}
