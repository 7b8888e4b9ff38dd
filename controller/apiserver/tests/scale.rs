//! `scale` by server-side apply: who owns the replicas is asked, and told, as on the object itself.

mod support;

use serde_json::{Value, json};
use support::Cluster;
use support::ask::Question;

#[tokio::test]
async fn replicas_have_one_applier() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let admin = cluster.user("root", Some("system:masters"))?;
    let path = "/apis/apps/v1/namespaces/default/deployments/d";
    let ask = async |path: String, body: &Value| {
        let (media, body) = ("application/apply-patch+yaml", body.to_string());
        let reply = Question { pair: Some(&admin), method: "PATCH", path: &path, media, body, ..Default::default() };
        reply.ask(&cluster).await
    };
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    assert_eq!(ask(format!("{path}?fieldManager=writer"), &deployment).await?.code, 201);
    let scale = |replicas: i64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": replicas}});
    let refused = ask(format!("{path}/scale?fieldManager=scaler"), &scale(5)).await?;
    assert_eq!(refused.code, 409, "{}", refused.text);
    let expect = r#"Apply failed with 1 conflict: conflict with "writer": .spec.replicas"#;
    assert_eq!(refused.message(), expect);
    let forced = ask(format!("{path}/scale?fieldManager=scaler&force=true"), &scale(5)).await?;
    assert_eq!((forced.code, &forced.json()["spec"]["replicas"]), (200, &json!(5)), "{}", forced.text);
    let read = Question { pair: Some(&admin), method: "GET", path, ..Default::default() }.ask(&cluster).await?.json();
    let entries = read["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let of = |manager: &str| entries.iter().find(|e| e["manager"] == manager).cloned().unwrap_or_default();
    let scaler = json!({"manager": "scaler", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:replicas": {}}}, "subresource": "scale"});
    assert_eq!(of("scaler"), scaler);
    assert!(of("writer").pointer("/fieldsV1/f:spec/f:replicas").is_none(), "{entries:?}");
    assert!(of("writer").pointer("/fieldsV1/f:spec/f:template").is_some(), "{entries:?}");
    // Now the first one is in the way of the second.
    let refused = ask(format!("{path}?fieldManager=writer"), &deployment).await?;
    assert_eq!(refused.code, 409, "{}", refused.text);
    assert!(refused.message().contains(r#"conflict with "scaler" with subresource "scale""#), "{}", refused.message());
    // Again, with nothing new.
    assert_eq!(ask(format!("{path}/scale?fieldManager=scaler"), &scale(5)).await?.code, 200);
    for (what, body, code) in [
        ("another kind", json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}), 400),
        ("another name", json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "e"}}), 400),
        ("too few", scale(-1), 422),
    ] {
        let reply = ask(format!("{path}/scale?fieldManager=scaler"), &body).await?;
        assert_eq!(reply.code, code, "{what}: {}", reply.text);
    }
    Ok(())
}
