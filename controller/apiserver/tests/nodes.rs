//! What nodes may do, as real requests of a node's certificate, and the same from inside.

mod support;

use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_apiserver::{PatchType, Select, UserInfo};
use skiff_identity::Subject;
use support::Cluster;
use support::ask::Question;

/// Two nodes, a pod on each; the first one's pod `reader` uses a secret and its account's token.
async fn two_nodes() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start().await?;
    cluster.running_pod("n1", "mine").await?;
    cluster.running_pod("n2", "other").await?;
    for name in ["free", "used"] {
        cluster.create("", "secrets", "default", json!({"metadata": {"name": name}})).await?;
    }
    let spec = json!({"containers": [{"name": "c", "image": "x", "envFrom": [{"secretRef": {"name": "used"}}]}]});
    cluster.create("", "pods", "default", json!({"metadata": {"name": "reader"}, "spec": spec})).await?;
    cluster.admin().bind("default", "reader", "", "n1").await.map_err(|s| anyhow::anyhow!(s.message))?;
    Ok(cluster)
}

async fn uid(cluster: &Cluster, resource: &str, namespace: &str, name: &str) -> anyhow::Result<String> {
    let kind = kinds::by_resource("", "v1", resource).ok_or_else(|| anyhow::anyhow!("no {resource}"))?;
    let found = cluster.admin().get(&kind, namespace, name).await.map_err(|s| anyhow::anyhow!(s.message))?;
    Ok(skiff_api::meta::uid(&found).to_string())
}

#[tokio::test]
async fn a_node_speaks_for_itself() -> anyhow::Result<()> {
    let cluster = two_nodes().await?;
    let node = cluster.ca.issue(&Subject::Node { name: "n1".into() })?;
    let (own, mine, other) = (
        uid(&cluster, "nodes", "", "n1").await?,
        uid(&cluster, "pods", "default", "mine").await?,
        uid(&cluster, "pods", "default", "other").await?,
    );
    let pods = "/api/v1/namespaces/default/pods";
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let token = |pod: &str, uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}});
    let mirror = |spec: Value| {
        let mut pod = json!({
            "metadata": {
                "name": "mirror", "annotations": {"kubernetes.io/config.mirror": "x"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": own, "controller": true}],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]},
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        pod
    };
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    let eviction = |name: &str| json!({"metadata": {"name": name}});
    let none = Value::Null;
    let get = |path: &str, code: u16, words: &'static str| ("GET", path.to_string(), Value::Null, code, words);
    let table: Vec<(&str, String, Value, u16, &str)> = vec![
        get("/api/v1/nodes/n1", 200, ""),
        get("/api/v1/nodes/n2", 403, "node 'n1' cannot read 'n2', only its own Node object"),
        get("/api/v1/nodes", 403, "node 'n1' cannot read all nodes, only its own Node object"),
        get("/api/v1/nodes?fieldSelector=metadata.name%3Dn1", 200, ""),
        get("/api/v1/pods", 403, "can only list/watch pods with spec.nodeName field selector"),
        get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", 200, ""),
        get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2", 403, "can only list/watch pods with spec.nodeName"),
        get(&format!("{pods}/mine"), 200, ""),
        get(&format!("{pods}/other"), 403, "no relationship found between node 'n1' and this object"),
        get("/api/v1/services", 200, ""),
        get("/api/v1/namespaces/default/secrets/used", 200, ""),
        get("/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Dused", 200, ""),
        get("/api/v1/namespaces/default/secrets/free", 403, "no relationship found"),
        get("/api/v1/namespaces/default/secrets", 403, "No Object name found"),
        get("/apis/apps/v1/deployments", 403, "cannot list resource"),
        ("PATCH", format!("{pods}/mine/status"), json!({"status": {"message": "hello"}}), 200, ""),
        (
            "PATCH",
            format!("{pods}/other/status"),
            json!({"status": {"message": "hello"}}),
            403,
            "can only update pod status for pods with",
        ),
        (
            "PATCH",
            format!("{pods}/mine/status"),
            json!({"metadata": {"labels": {"app": "x"}}}),
            403,
            "cannot update labels through pod status",
        ),
        ("PATCH", format!("{pods}/mine"), json!({"metadata": {"labels": {"app": "x"}}}), 403, "cannot patch resource"),
        ("PATCH", "/api/v1/nodes/n2/status".into(), json!({"status": {}}), 403, "is not allowed to modify node \"n2\""),
        (
            "PATCH",
            "/api/v1/nodes/n1".into(),
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
            403,
            "is not allowed to modify taints",
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1".into(),
            json!({"metadata": {"labels": {"node-restriction.kubernetes.io/a": "b"}}}),
            403,
            "is not allowed to modify labels: node-restriction.kubernetes.io/a",
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1/status".into(),
            json!({"metadata": {"labels": {"node-role.kubernetes.io/a": "b"}}}),
            403,
            "is not allowed to modify labels",
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1".into(),
            json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "b", "own": "label"}}}),
            200,
            "",
        ),
        (
            "POST",
            "/api/v1/nodes".into(),
            json!({"metadata": {"name": "n3"}}),
            403,
            "is not allowed to modify node \"n3\"",
        ),
        ("DELETE", "/api/v1/nodes/n1".into(), none.clone(), 403, "cannot delete resource"),
        ("POST", leases.into(), lease("n1"), 201, ""),
        (
            "POST",
            leases.into(),
            lease("n2"),
            403,
            "can only access node lease with the same name as the requesting node",
        ),
        ("PUT", format!("{leases}/n2"), lease("n2"), 403, "can only access node lease with the same name"),
        (
            "POST",
            "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases".into(),
            lease("n1"),
            403,
            "can only access leases in the \"kube-node-lease\"",
        ),
        ("POST", "/api/v1/namespaces/default/serviceaccounts/default/token".into(), token("mine", &mine), 201, ""),
        (
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/default/token".into(),
            token("other", &other),
            403,
            "scheduled on a different node",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/default/token".into(),
            json!({"spec": {}}),
            403,
            "not bound to a pod",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/robot/token".into(),
            token("mine", &mine),
            403,
            "no relationship found",
        ),
        (
            "POST",
            pods.into(),
            json!({"metadata": {"name": "x"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}}),
            403,
            "can only create mirror pods",
        ),
        (
            "POST",
            pods.into(),
            mirror(json!({"serviceAccountName": "default"})),
            403,
            "can not create pods that reference a service account",
        ),
        (
            "POST",
            pods.into(),
            mirror(json!({"volumes": [{"name": "s", "secret": {"secretName": "free"}}]})),
            403,
            "can not create pods that reference secrets",
        ),
        (
            "POST",
            pods.into(),
            mirror(json!({"nodeName": "n2"})),
            403,
            "can only create pods with spec.nodeName set to itself",
        ),
        ("POST", pods.into(), mirror(json!({})), 201, ""),
        (
            "POST",
            format!("{pods}/other/eviction"),
            eviction("other"),
            403,
            "can only evict pods with spec.nodeName set to itself",
        ),
        ("DELETE", format!("{pods}/other"), none.clone(), 403, "can only delete pods with spec.nodeName set to itself"),
        ("DELETE", format!("{pods}/mine"), none.clone(), 200, ""),
        ("POST", format!("{pods}/reader/eviction"), eviction("reader"), 201, ""),
    ];
    for (method, path, mut body, code, words) in table {
        if path.ends_with("/token") {
            body["kind"] = json!("TokenRequest");
            body["apiVersion"] = json!("authentication.k8s.io/v1");
        }
        if path.ends_with("/eviction") {
            body["kind"] = json!("Eviction");
            body["apiVersion"] = json!("policy/v1");
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply =
            Question { pair: Some(&node), method, path: &path, body, ..Default::default() }.ask(&cluster).await?;
        assert_eq!(reply.code, code, "{method} {path}: {}", reply.text);
        assert!(reply.message().contains(words), "{method} {path}: {}", reply.text);
    }
    Ok(())
}

/// What comes over a node's stream runs as that node, and is asked the same questions.
#[tokio::test]
async fn the_same_holds_from_inside() -> anyhow::Result<()> {
    let cluster = two_nodes().await?;
    let node = cluster.server.client(UserInfo::new("system:node:n1", ["system:nodes", "system:authenticated"]));
    let kind = |resource: &str| kinds::by_resource("", "v1", resource).ok_or_else(|| anyhow::anyhow!("no {resource}"));
    let (pods, nodes, secrets) = (kind("pods")?, kind("nodes")?, kind("secrets")?);
    let code = |result: Result<(), skiff_api::status::Status>| result.err().map_or(200, |s| s.code());
    let status = json!({"status": {"message": "hello"}});
    let patch = async |kind, namespace: &str, name: &str, body: &Value| {
        code(node.patch(kind, namespace, name, "status", PatchType::Merge, body).await.map(|_| ()))
    };
    assert_eq!(patch(&pods, "default", "mine", &status).await, 200);
    assert_eq!(patch(&pods, "default", "other", &status).await, 403);
    assert_eq!(patch(&nodes, "", "n2", &status).await, 403);
    assert_eq!(
        patch(&nodes, "", "n1", &json!({"metadata": {"labels": {"node-restriction.kubernetes.io/a": "b"}}})).await,
        403
    );
    assert_eq!(code(node.get(&secrets, "default", "used").await.map(|_| ())), 200);
    assert_eq!(code(node.get(&secrets, "default", "free").await.map(|_| ())), 403);
    assert_eq!(code(node.list(&pods, &Select::all()).await.map(|_| ())), 403);
    assert_eq!(code(node.list(&pods, &Select::fields("spec.nodeName=n1")).await.map(|_| ())), 200);
    assert_eq!(code(node.list(&nodes, &Select::fields("metadata.name=n1")).await.map(|_| ())), 200);
    let options = skiff_apiserver::DeleteOptions::default();
    assert_eq!(code(node.delete(&pods, "default", "other", &options).await.map(|_| ())), 403);
    assert_eq!(code(node.evict("default", "other", &options).await), 403);
    assert_eq!(code(node.token("default", "default", json!({"spec": {}})).await.map(|_| ())), 403);
    Ok(())
}
