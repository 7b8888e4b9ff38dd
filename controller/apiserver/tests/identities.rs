//! Who is asking, over real TLS: client certificates, bootstrap tokens, service account tokens, strangers.

mod support;

use http::Method;
use serde_json::{Value, json};
use skiff_identity::{Ca, Pair, Subject};
use support::Cluster;
use support::ask::ask;

async fn whoami(cluster: &Cluster, pair: Option<&Pair>, token: &str) -> anyhow::Result<(u16, Value)> {
    let review = json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (code, answer) = ask(cluster, pair, token, Method::POST, path, review).await?;
    Ok((code, answer["status"]["userInfo"].clone()))
}

#[tokio::test]
async fn certificates_and_tokens_become_users() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let pair = cluster.user("carol", Some("devs"))?;
    let carol = json!({"username": "carol", "groups": ["devs", "system:authenticated"]});
    assert_eq!(whoami(&cluster, Some(&pair), "").await?, (201, carol));

    // Another authority's certificate does not even finish the handshake.
    let stranger =
        Ca::generate()?.issue(&Subject::User { name: "carol".into(), group: Some("system:masters".into()) })?;
    assert!(whoami(&cluster, Some(&stranger), "").await.is_err());

    let day = |year: &str| format!("{year}-01-01T00:00:00Z");
    for (id, secret, expiration, usable) in [
        ("abcdef", "0123456789abcdef", day("2100"), "true"),
        ("ghijkl", "0123456789abcdef", day("2020"), "true"),
        ("mnopqr", "0123456789abcdef", day("2100"), "false"),
        ("stuvwx", "0123456789abcdef", "some day".to_string(), "true"),
    ] {
        let data = json!({
            "token-id": id, "token-secret": secret, "expiration": expiration,
            "usage-bootstrap-authentication": usable, "auth-extra-groups": "system:bootstrappers:workers",
        });
        let object = json!({
            "metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token", "stringData": data,
        });
        cluster.create("", "secrets", "kube-system", object).await?;
    }
    let groups = json!(["system:bootstrappers", "system:bootstrappers:workers", "system:authenticated"]);
    let bootstrap = json!({"username": "system:bootstrap:abcdef", "groups": groups});
    assert_eq!(whoami(&cluster, None, "abcdef.0123456789abcdef").await?, (201, bootstrap));
    let refused = [
        "stuvwx.0123456789abcdef",
        "abcdef.0123456789abcdee",
        "ghijkl.0123456789abcdef",
        "mnopqr.0123456789abcdef",
        "nonsense",
    ];
    for token in refused {
        assert_eq!(whoami(&cluster, None, token).await?.0, 401, "{token}");
    }

    cluster.create("", "serviceaccounts", "default", json!({"metadata": {"name": "robot"}})).await?;
    let made = cluster.admin().token("default", "robot", json!({"spec": {"expirationSeconds": 600}})).await;
    let made = made.map_err(|s| anyhow::anyhow!(s.message))?;
    let token = made["status"]["token"].as_str().unwrap_or_default();
    let (code, user) = whoami(&cluster, None, token).await?;
    assert_eq!((code, &user["username"]), (201, &json!("system:serviceaccount:default:robot")));

    // A token that was made for somebody else opens nothing here, and is known as theirs when they ask.
    let spec = json!({"spec": {"expirationSeconds": 600, "audiences": ["vault"]}});
    let made = cluster.admin().token("default", "robot", spec).await.map_err(|s| anyhow::anyhow!(s.message))?;
    let foreign = made["status"]["token"].as_str().unwrap_or_default();
    assert_eq!(whoami(&cluster, None, foreign).await?.0, 401);
    let admin = cluster.user("root", Some("system:masters"))?;
    for (audiences, expect) in
        [(json!(["vault", "other"]), json!(["vault"])), (json!(["other"]), Value::Null), (json!([]), Value::Null)]
    {
        let review = json!({
            "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": foreign, "audiences": audiences},
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let (code, answer) = ask(&cluster, Some(&admin), "", Method::POST, path, review).await?;
        assert_eq!((code, &answer["status"]["audiences"]), (201, &expect), "{audiences}: {answer}");
        assert_eq!(answer["status"]["authenticated"] == true, !expect.is_null(), "{audiences}");
    }

    // Strangers see health and the version, and nothing else.
    for (path, code) in [("/healthz", 200), ("/version", 200), ("/api/v1/pods", 403), ("/metrics", 403)] {
        assert_eq!(ask(&cluster, None, "", Method::GET, path, Value::Null).await?.0, code, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn the_kubernetes_service_leads_to_the_server() -> anyhow::Result<()> {
    use skiff_apiserver::{Event, Select, next_event};
    let cluster = Cluster::start().await?;
    let admin = cluster.admin();
    let slices = skiff_api::kinds::by_resource("discovery.k8s.io", "v1", "endpointslices")
        .ok_or_else(|| anyhow::anyhow!("no slices"))?;
    let watch = admin.watch(&slices, &Select::namespace("default"), 0).await;
    let mut watch = watch.map_err(|s| anyhow::anyhow!(s.message))?;
    let slice = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        loop {
            if let Event::Added(slice) =
                next_event(&mut watch).await.ok_or_else(|| anyhow::anyhow!("the watch ended"))?
            {
                return anyhow::Ok(slice);
            }
        }
    });
    let slice = slice.await??;
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "kubernetes");
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.1"]));
    assert_eq!(slice["ports"][0]["port"], cluster.address.port());
    Ok(())
}
