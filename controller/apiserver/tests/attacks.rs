//! Requests that mean one thing to whoever authorizes them and another to whoever answers: none may see or do more than was granted.

mod support;

use serde_json::{Value, json};
use support::Cluster;
use support::ask::Question;

const RBAC: &str = "rbac.authorization.k8s.io";

/// A role in `a` and its binding to the user `mallory`.
async fn grant(cluster: &Cluster, name: &str, rules: Value) -> anyhow::Result<()> {
    let role = json!({"metadata": {"name": name, "namespace": "a"}, "rules": rules});
    cluster.create(RBAC, "roles", "a", role).await?;
    let binding = json!({
        "metadata": {"name": name, "namespace": "a"},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
        "subjects": [{"kind": "User", "apiGroup": RBAC, "name": "mallory"}],
    });
    cluster.create(RBAC, "rolebindings", "a", binding).await?;
    Ok(())
}

async fn cluster_of_two_secrets() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start().await?;
    cluster.create("", "namespaces", "", json!({"metadata": {"name": "a"}})).await?;
    for name in ["mine", "other"] {
        let data = json!({"word": format!("the-word-of-{name}")});
        cluster.create("", "secrets", "a", json!({"metadata": {"name": name}, "stringData": data})).await?;
    }
    Ok(cluster)
}

#[tokio::test]
async fn one_name_means_one_name() -> anyhow::Result<()> {
    let cluster = cluster_of_two_secrets().await?;
    let all = json!(["get", "list", "watch", "delete", "deletecollection", "patch", "update"]);
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"], "verbs": all}]);
    grant(&cluster, "one", rules).await?;
    let mallory = cluster.user("mallory", None)?;
    let ns = "/api/v1/namespaces/a/secrets";
    let old = "/api/v1/watch/namespaces/a/secrets";
    let named = "fieldSelector=metadata.name%3Dmine";
    // Method, path, code, and whether its own secret is seen. The other is never seen.
    let table: Vec<(&str, String, u16, bool)> = vec![
        ("GET", format!("{ns}/mine"), 200, true),
        ("GET", format!("{ns}/other"), 403, false),
        ("GET", format!("{ns}?{named}"), 200, true),
        ("GET", format!("{ns}?fieldSelector=metadata.name%3D%3Dmine,type%3DOpaque"), 200, true),
        ("GET", format!("{ns}?watch=1&{named}"), 200, true),
        ("GET", format!("{old}/mine"), 200, true),
        ("GET", format!("{old}/mine?{named}"), 200, true),
        ("GET", format!("{old}/mine?fieldSelector=metadata.name%3Dother"), 400, false),
        ("GET", format!("{old}/mine?fieldSelector=metadata.name!%3Dmine"), 400, false),
        ("GET", format!("{old}/mine?fieldSelector=type%3DOpaque"), 400, false),
        ("GET", format!("{old}/mine?sendInitialEvents=true&resourceVersionMatch=NotOlderThan"), 200, true),
        ("GET", old.to_string(), 403, false),
        ("GET", format!("{old}/other"), 403, false),
        ("GET", format!("{ns}?fieldSelector=metadata.name%3Dmine,metadata.name%3Dother"), 200, false),
        ("GET", format!("{ns}?fieldSelector=metadata.name%3Dother&{named}"), 403, false),
        ("GET", format!("{ns}?{named}&fieldSelector=metadata.name%3Dother"), 200, true),
        ("GET", format!("{ns}?fieldSelector=metadata.name!%3Dmine"), 403, false),
        ("GET", format!("{ns}?fieldSelector=metadata.name"), 403, false),
        ("GET", "/api/v1/namespaces/a%2Fsecrets%2Fother".into(), 403, false),
        ("GET", "/api/v1/namespaces/a/secrets%2Fmine/../other".into(), 400, false),
        ("GET", format!("{ns}/mine%2F..%2Fother"), 400, false),
        ("GET", "//api//v1//namespaces//a//secrets//other".into(), 403, false),
        ("GET", "//api/v1/namespaces/a/secrets/mine/".into(), 200, true),
        ("GET", format!("{ns}/mine/other"), 403, false),
        ("GET", format!("{ns}/mine//other/more"), 404, false),
        ("HEAD", format!("{ns}/other"), 403, false),
        ("LIST", format!("{ns}/mine"), 405, false),
        ("WATCH", format!("{ns}/mine"), 405, false),
        ("DELETECOLLECTION", format!("{ns}/mine"), 405, false),
        ("POST", format!("{old}/mine"), 405, false),
        ("POST", format!("{ns}?watch=1"), 403, false),
        ("POST", format!("{ns}/mine?watch=1"), 403, false),
        ("PATCH", format!("{ns}?{named}"), 403, false),
        // What is deleted together has no name to be authorized by.
        ("DELETE", format!("{ns}?{named}"), 403, false),
        ("DELETE", ns.to_string(), 403, false),
    ];
    for (method, path, code, sees) in table {
        let question = Question { pair: Some(&mallory), method, path: &path, ..Default::default() };
        let reply = question.ask(&cluster).await?;
        assert_eq!(reply.code, code, "{method} {path}: {}", reply.text);
        let word = |of: &str| {
            use base64::Engine as _;
            reply.text.contains(&base64::engine::general_purpose::STANDARD.encode(format!("the-word-of-{of}")))
        };
        assert!(!word("other"), "{method} {path} shows another secret: {}", reply.text);
        assert_eq!(word("mine"), sees, "{method} {path}: {}", reply.text);
    }
    Ok(())
}

/// A watch that goes on tells nothing of other names either.
#[tokio::test]
async fn a_watch_of_one_name_stays_with_it() -> anyhow::Result<()> {
    let cluster = cluster_of_two_secrets().await?;
    let admin = cluster.user("root", Some("system:masters"))?;
    let question = Question {
        pair: Some(&admin),
        method: "GET",
        path: "/api/v1/watch/namespaces/a/secrets/mine?timeoutSeconds=2",
        ..Default::default()
    };
    let later = async {
        for name in ["other", "mine"] {
            let path = format!("/api/v1/namespaces/a/secrets/{name}");
            let body = r#"{"metadata":{"labels":{"later":"yes"}}}"#.to_string();
            Question { pair: Some(&admin), method: "PATCH", path: &path, body, ..Default::default() }
                .ask(&cluster)
                .await?;
        }
        anyhow::Ok(())
    };
    let (reply, done) = tokio::join!(question.ask(&cluster), later);
    done?;
    let reply = reply?;
    assert!(!reply.text.contains("\"name\":\"other\""), "{}", reply.text);
    assert!(reply.text.contains("\"name\":\"mine\""), "{}", reply.text);
    Ok(())
}

/// Nobody hands on what they do not hold: not by rules, not by a label that another role gathers by, not by gathering.
#[tokio::test]
async fn nobody_gives_what_they_do_not_hold() -> anyhow::Result<()> {
    let cluster = cluster_of_two_secrets().await?;
    let own = json!({"metadata": {"name": "writer"}, "rules": [
        {"apiGroups": [RBAC], "resources": ["clusterroles"], "verbs": ["create", "get", "update", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    ]});
    cluster.create(RBAC, "clusterroles", "", own).await?;
    let binding = json!({
        "metadata": {"name": "writer"}, "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "writer"},
        "subjects": [{"kind": "User", "apiGroup": RBAC, "name": "mallory"}],
    });
    cluster.create(RBAC, "clusterrolebindings", "", binding).await?;
    let mallory = cluster.user("mallory", None)?;
    let label = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    let role = |name: &str, labels: &Value, resource: &str| {
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": {"name": name, "labels": labels},
            "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}],
        })
    };
    let mut gathering = role("g", &json!({}), "pods");
    gathering["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"any": "thing"}}]});
    let path = format!("/apis/{RBAC}/v1/clusterroles");
    let one = |name: &str| format!("{path}/{name}");
    let table = [
        ("POST", path.clone(), role("own", &label, "pods"), 201, ""),
        ("POST", path.clone(), role("more", &label, "secrets"), 403, "not currently held"),
        ("POST", path.clone(), gathering.clone(), 403, "must have cluster-admin privileges to use the aggregationRule"),
        ("PATCH", one("own"), json!({"metadata": {"labels": {"a": "b"}}}), 200, ""),
        (
            "PATCH",
            one("own"),
            json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}),
            403,
            "not currently held",
        ),
        (
            "PATCH",
            one("own"),
            json!({"aggregationRule": gathering["aggregationRule"]}),
            403,
            "cluster-admin privileges",
        ),
        // The label alone would make all readers secret readers.
        ("PATCH", one("system:node"), json!({"metadata": {"labels": label}}), 403, "not currently held"),
        ("PATCH", one("view"), json!({"metadata": {"labels": {"a": "b"}}}), 403, "cluster-admin privileges"),
        (
            "PATCH",
            one("view"),
            json!({"aggregationRule": {"clusterRoleSelectors": [{}]}}),
            403,
            "cluster-admin privileges",
        ),
        ("PATCH", one("system:node"), json!({"metadata": {"finalizers": ["a.example/b"]}}), 200, ""),
    ];
    for (method, path, body, code, words) in table {
        let question =
            Question { pair: Some(&mallory), method, path: &path, body: body.to_string(), ..Default::default() };
        let reply = question.ask(&cluster).await?;
        assert_eq!(reply.code, code, "{method} {path} {body}: {}", reply.text);
        assert!(reply.message().contains(words), "{method} {path}: {}", reply.text);
    }
    Ok(())
}

/// A change that makes its object is a creation, whatever its method.
#[tokio::test]
async fn creating_needs_the_right_to_create() -> anyhow::Result<()> {
    let cluster = cluster_of_two_secrets().await?;
    let rule = |resource: &str, verbs: Value| json!([{"apiGroups": [""], "resources": [resource], "verbs": verbs}]);
    grant(&cluster, "maps", rule("configmaps", json!(["get", "patch", "update"]))).await?;
    grant(&cluster, "services", rule("services", json!(["get", "patch", "update"]))).await?;
    let mallory = cluster.user("mallory", None)?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}});
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let maps = "/api/v1/namespaces/a/configmaps/m?fieldManager=me";
    let services = "/api/v1/namespaces/a/services/s";
    let apply = "application/apply-patch+yaml";
    let check = async |method: &str, path: &str, media: &str, body: &Value, code: u16| {
        let body = body.to_string();
        let reply =
            Question { pair: Some(&mallory), method, path, media, body, ..Default::default() }.ask(&cluster).await?;
        assert_eq!(reply.code, code, "{method} {path}: {}", reply.text);
        assert!(code != 403 || reply.message().contains("cannot create resource"), "{}", reply.text);
        anyhow::Ok(())
    };
    check("PATCH", maps, apply, &map, 403).await?;
    check("PUT", services, "", &service, 403).await?;
    grant(&cluster, "makes", rule("configmaps", json!(["create"]))).await?;
    grant(&cluster, "makes-services", rule("services", json!(["create"]))).await?;
    check("PATCH", maps, apply, &map, 201).await?;
    check("PUT", services, "", &service, 201).await?;
    check("PATCH", maps, apply, &map, 200).await
}
