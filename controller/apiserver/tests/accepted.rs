//! What real files and tools send: taken as upstream takes it, told where nothing acts on it, and harmless where it is odd.

mod support;

use serde_json::{Value, json};
use support::Cluster;
use support::ask::{Question, Reply};

/// Asks as an administrator.
async fn admin(cluster: &Cluster, method: &str, path: &str, accept: &str, body: &Value) -> anyhow::Result<Reply> {
    let pair = cluster.user("root", Some("system:masters"))?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    Question { pair: Some(&pair), method, path, accept, body, ..Default::default() }.ask(cluster).await
}

#[tokio::test]
async fn what_files_say_is_taken() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let secret = json!({"metadata": {"name": "wrapped"}, "data": {"a": "YWJj\nZGVm\r\n"}});
    let made = admin(&cluster, "POST", "/api/v1/namespaces/default/secrets", "", &secret).await?;
    assert_eq!((made.code, &made.json()["data"]["a"]), (201, &json!("YWJjZGVm")), "{}", made.text);
    let patch = json!({"data": {"a": "YW\nJj"}});
    let patched = admin(&cluster, "PATCH", "/api/v1/namespaces/default/secrets/wrapped", "", &patch).await?;
    assert_eq!((patched.code, &patched.json()["data"]["a"]), (200, &json!("YWJj")), "{}", patched.text);

    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let role = json!({"metadata": {"name": "placed", "namespace": "somewhere"}, "rules": []});
    let made = admin(&cluster, "POST", roles, "", &role).await?;
    assert_eq!((made.code, &made.json()["metadata"]["namespace"]), (201, &Value::Null), "{}", made.text);
    let updated = admin(&cluster, "PUT", &format!("{roles}/placed"), "", &role).await?;
    assert_eq!((updated.code, &updated.json()["metadata"]["namespace"]), (200, &Value::Null), "{}", updated.text);

    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({"metadata": {"name": "m", "resourceVersion": "7"}});
    assert_eq!(admin(&cluster, "POST", &format!("{maps}?dryRun=All"), "", &map).await?.code, 201);
    assert_eq!(admin(&cluster, "POST", maps, "", &map).await?.code, 500);

    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    assert_eq!(admin(&cluster, "POST", reviews, table, &review).await?.code, 406);
    assert_eq!(admin(&cluster, "POST", reviews, &format!("{table}, application/json"), &review).await?.code, 201);
    Ok(())
}

#[tokio::test]
async fn what_nothing_acts_on_is_told() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let policies = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
    let policy = json!({"metadata": {"name": "p"}, "spec": {"podSelector": {}}});
    let made = admin(&cluster, "POST", policies, "", &policy).await?;
    assert_eq!(made.code, 201);
    assert!(made.warnings.iter().any(|w| w.contains("no traffic is held back by it yet")), "{:?}", made.warnings);
    let updated = admin(&cluster, "PUT", &format!("{policies}/p"), "", &policy).await?;
    assert_eq!((updated.code, updated.warnings.len()), (200, 1), "{}", updated.text);
    let map = json!({"metadata": {"name": "m"}});
    let quiet = admin(&cluster, "POST", "/api/v1/namespaces/default/configmaps", "", &map).await?;
    assert!(quiet.warnings.is_empty(), "{:?}", quiet.warnings);
    Ok(())
}

/// Numbers at the ends of their range: an answer, and the server goes on.
#[tokio::test]
async fn no_number_is_too_odd() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.running_pod("n1", "p").await?;
    let pods = "/api/v1/namespaces/default/pods";
    let (most, least) = (i64::MAX, i64::MIN);
    let long = json!({"metadata": {"name": "long"}, "spec": {"terminationGracePeriodSeconds": most, "nodeName": "n1",
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": most}],
        "containers": [{"name": "c", "image": "x"}]}});
    let paths = [
        ("POST", pods.to_string(), long),
        ("DELETE", format!("{pods}/long"), Value::Null),
        (
            "DELETE",
            format!("{pods}/p"),
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": most}),
        ),
        ("DELETE", format!("{pods}/p?gracePeriodSeconds={least}"), Value::Null),
        ("GET", format!("{pods}?watch=1&timeoutSeconds={most}"), Value::Null),
        ("GET", format!("{pods}?watch=1&timeoutSeconds=99999999999999999999"), Value::Null),
        ("GET", format!("{pods}?watch=1&resourceVersion={}", u64::MAX), Value::Null),
        ("GET", format!("{pods}?resourceVersion=-1"), Value::Null),
        ("GET", format!("{pods}?limit={most}"), Value::Null),
        ("GET", format!("{pods}?limit={least}"), Value::Null),
        ("GET", format!("{pods}?limit=1&continue=x"), Value::Null),
    ];
    for (method, path, body) in paths {
        let reply = admin(&cluster, method, &path, "", &body).await?;
        assert!((200..500).contains(&reply.code), "{method} {path}: {} {}", reply.code, reply.text);
    }
    let account = json!({"metadata": {"name": "robot"}});
    cluster.create("", "serviceaccounts", "default", account).await?;
    for seconds in [most, least, 0, 599, (1 << 32) + 1] {
        let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"expirationSeconds": seconds}});
        let reply =
            admin(&cluster, "POST", "/api/v1/namespaces/default/serviceaccounts/robot/token", "", &request).await?;
        assert_eq!(reply.code, 422, "{seconds}: {}", reply.text);
    }
    let event = json!({
        "metadata": {"name": "e"}, "involvedObject": {"namespace": "default"}, "lastTimestamp": "9999-12-30T22:00:00Z",
        "firstTimestamp": "0001-01-01T00:00:00Z", "count": i32::MAX,
    });
    assert_eq!(admin(&cluster, "POST", "/api/v1/namespaces/default/events", "", &event).await?.code, 201);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    assert_eq!(admin(&cluster, "GET", "/api/v1/namespaces/default/events", table, &Value::Null).await?.code, 200);
    Ok(())
}

/// A list that is read for longer than five minutes goes on at what is there by then, if its reader wants to.
#[tokio::test]
async fn a_long_list_grows_old() -> anyhow::Result<()> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
    let cluster = Cluster::start().await?;
    for name in ["a", "b", "c", "d"] {
        cluster.create("", "secrets", "default", json!({"metadata": {"name": name}})).await?;
    }
    let page = async |token: &str| {
        let path = format!("/api/v1/namespaces/default/secrets?limit=1&continue={token}");
        admin(&cluster, "GET", &path, "", &Value::Null).await
    };
    let first = page("").await?.json();
    let token = first["metadata"]["continue"].as_str().unwrap_or_default();
    assert_eq!(page(token).await?.code, 200);
    let mut aged: Value = serde_json::from_slice(&B64.decode(token)?)?;
    aged["since"] = json!(aged["since"].as_i64().unwrap_or_default() - 301);
    let refused = page(&B64.encode(aged.to_string())).await?;
    assert_eq!((refused.code, &refused.json()["reason"]), (410, &json!("Expired")), "{}", refused.text);
    let mut token = refused.json()["metadata"]["continue"].as_str().unwrap_or_default().to_string();
    let mut found = Vec::new();
    while !token.is_empty() {
        let next = page(&token).await?;
        assert_eq!(next.code, 200, "{}", next.text);
        found.push(next.json()["items"][0]["metadata"]["name"].as_str().unwrap_or_default().to_string());
        token = next.json()["metadata"]["continue"].as_str().unwrap_or_default().to_string();
    }
    assert_eq!(found, ["b", "c", "d"]);
    Ok(())
}

/// What kubectl computes its patches by.
#[tokio::test]
async fn the_published_schema_says_how_to_patch() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let apps = admin(&cluster, "GET", "/openapi/v3/apis/apps/v1", "", &Value::Null).await?.json();
    let v2 = admin(&cluster, "GET", "/openapi/v2", "", &Value::Null).await?.json();
    for (of, field, expect) in [
        ("io.k8s.api.apps.v1.DeploymentSpec", "strategy", "retainKeys"),
        ("io.k8s.api.core.v1.PodSpec", "volumes", "merge,retainKeys"),
        ("io.k8s.api.core.v1.PodSpec", "resourceClaims", "merge,retainKeys"),
        ("io.k8s.api.core.v1.PodSpec", "containers", "merge"),
    ] {
        let places = [("v3", &apps["components"]["schemas"]), ("v2", &v2["definitions"])];
        for (name, types) in places {
            let found = &types[of]["properties"][field]["x-kubernetes-patch-strategy"];
            assert_eq!(found, expect, "{name} {of} {field}: {}", types[of]["properties"][field]);
        }
    }
    let policy = admin(&cluster, "GET", "/openapi/v3/apis/policy/v1", "", &Value::Null).await?.json();
    for types in [&policy["components"]["schemas"], &v2["definitions"]] {
        let selector = &types["io.k8s.api.policy.v1.PodDisruptionBudgetSpec"]["properties"]["selector"];
        assert_eq!(selector["x-kubernetes-patch-strategy"], "replace", "{selector}");
    }
    Ok(())
}
