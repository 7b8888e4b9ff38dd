//! Bad input to the API: each complaint names the file, line or field, says what to do, and nothing is half done.

use crate::local::{Local, block_on, text};
use anyhow::ensure;
use serde_json::json;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Files that `skiff apply` refuses, and what it must say of each.
pub fn files(local: &Local) -> anyhow::Result<()> {
    let good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\n---\n";
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: bad}}\nspec: {spec}\n");
    let container = |more: &str| pod(&format!("{{containers: [{{name: c, image: i{more}}}]}}"));
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        ("malformed YAML", "a: [1, 2\n".into(), vec!["bad.yaml"]),
        ("malformed YAML further down", format!("{good}apiVersion: v1\nkind: [Pod\n"), vec!["bad.yaml"]),
        (
            "an unknown kind",
            "apiVersion: v1\nkind: Nothing\nmetadata: {name: x}\n".into(),
            vec!["bad.yaml:2", "Nothing"],
        ),
        (
            "an unknown group",
            "apiVersion: no.such/v1\nkind: Pod\nmetadata: {name: x}\n".into(),
            vec!["bad.yaml", "no.such/v1"],
        ),
        ("no name", "apiVersion: v1\nkind: ConfigMap\n".into(), vec!["bad.yaml", "metadata.name"]),
        ("an unknown field", container(", imagePullPolice: Always"), vec!["bad.yaml", "imagePullPolice"]),
        ("a wrong type", container(", ports: [{containerPort: eighty}]"), vec!["bad.yaml", "containerPort"]),
        (
            "an invalid name",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n".into(),
            vec!["bad.yaml", "metadata.name"],
        ),
        (
            "an invalid value",
            container(", imagePullPolicy: Sometimes"),
            vec!["bad.yaml", "imagePullPolicy", "Sometimes"],
        ),
        ("a negative quantity", container(", resources: {limits: {memory: -5}}"), vec!["bad.yaml", "memory"]),
        (
            "no quantity at all",
            container(", resources: {limits: {memory: much}}"),
            vec!["bad.yaml", "resources.limits", "quantities"],
        ),
        ("no containers", pod("{containers: []}"), vec!["bad.yaml", "spec.containers"]),
        (
            "a namespace that is not there",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: nowhere}\n".into(),
            vec!["bad.yaml", "nowhere"],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, yaml, expect) in cases {
        // With a good object before it, which must not be written either.
        let yaml = if yaml.starts_with(good) { yaml } else { format!("{good}{yaml}") };
        let expect: Vec<String> = expect.iter().map(|e| (*e).replace("bad.yaml:2", "bad.yaml:6")).collect();
        let output = local.skiff(&["apply", "-f", &local.file("bad.yaml", &yaml)?])?;
        let complaint = text(&output.stderr);
        if output.status.success() {
            wrong.push(format!("{what}: it was accepted:\n{}", text(&output.stdout)));
            local.run(&["delete", "--now", "-f", &local.file("bad.yaml", &yaml)?])?;
            continue;
        }
        if let Some(part) = expect.iter().find(|part| !complaint.contains(part.as_str())) {
            wrong.push(format!("{what}: no {part:?} in: {complaint}"));
        }
        if local.run(&["get", "configmaps"])?.contains("good") {
            wrong.push(format!("{what}: half of the file was applied"));
            local.run(&["delete", "configmap", "good"])?;
        }
    }
    let complaint = local.refused(&["apply", "-f", "/nowhere/at-all.yaml"])?;
    if !complaint.contains("/nowhere/at-all.yaml") {
        wrong.push(complaint);
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Writes that come too late.
pub fn writes(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let api = &cluster.api;
    block_on(async {
        let object = |data: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "twice"}, "data": {"of": data}});
        let first = api.post(CONFIG_MAPS, &object("first")).await?;
        let exists = format!("{:#}", api.post(CONFIG_MAPS, &object("second")).await.err().unwrap_or_else(unrefused));
        ensure!(exists.contains("AlreadyExists") && exists.contains("\"twice\""), "{exists}");
        let path = format!("{CONFIG_MAPS}/twice");
        let mut update = first.clone();
        update["data"]["of"] = "an update".into();
        api.put(&path, &update).await?;
        update["data"]["of"] = "a stale one".into();
        let stale = format!("{:#}", api.put(&path, &update).await.err().unwrap_or_else(unrefused));
        ensure!(stale.contains("Conflict") && stale.contains("twice") && stale.contains("modified"), "{stale}");
        let there = api.get(&path).await?;
        ensure!(there["data"]["of"] == "an update", "a refused write changed the object: {there}");
        let precondition = json!({"preconditions": {"resourceVersion": first["metadata"]["resourceVersion"]}});
        let stale = format!("{:#}", api.delete(&path, &precondition).await.err().unwrap_or_else(unrefused));
        ensure!(stale.contains("Conflict"), "{stale}");
        api.delete(&path, &json!({})).await?;
        let gone = format!("{:#}", api.get(&path).await.err().unwrap_or_else(unrefused));
        ensure!(gone.contains("NotFound") && gone.contains("twice"), "{gone}");
        Ok(())
    })
}

fn unrefused() -> anyhow::Error {
    anyhow::anyhow!("it was not refused")
}
