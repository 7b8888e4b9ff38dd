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
            Question { pair: Some(&admin), method: "PATCH", path: &path, body, ..Default::default() }.ask(&cluster).await?;
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
