//! Pods for scenarios, and finding their processes.

use crate::local::{text_of, until};
use serde_json::{Value, json};
use skiff::client::Api;
use skiff::commands::cluster::is_ready;

pub const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pod of the demo's web server on a node, labelled `app=NAME`. Its process has `TEST_POD=NAME` in its environment.
pub fn web(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 1,
            "containers": [web_container(name)],
        },
    })
}

fn web_container(name: &str) -> Value {
    json!({
        "name": "web", "image": skiff::workload::image::NAME, "args": ["web"],
        "env": [{"name": "TEST_POD", "value": name}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
    })
}

/// A Deployment of such pods, anywhere.
pub fn deployment(name: &str, replicas: usize) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [web_container(name)]},
            },
        },
    })
}

/// A Service in front of the pods labelled `app=NAME`.
pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

/// Creates a pod, and waits until it is Ready.
pub async fn start(api: &Api, pod: &Value) -> anyhow::Result<()> {
    let name = text_of(pod, "/metadata/name");
    api.post(PODS, pod).await?;
    until(&format!("{name} is Ready"), || async { Ok(is_ready(&api.get(&format!("{PODS}/{name}")).await?)) }).await
}

/// The pods labelled `app=NAME`.
pub async fn labelled(api: &Api, name: &str) -> anyhow::Result<Vec<Value>> {
    let list = api.get(&format!("{PODS}?labelSelector=app%3D{name}")).await?;
    Ok(skiff::commands::cluster::items(&list).cloned().collect())
}

/// Deletes objects, and waits until the pods labelled `app=NAME` are gone.
pub async fn remove(api: &Api, name: &str, paths: &[&str]) -> anyhow::Result<()> {
    for path in paths {
        api.delete(path, &json!({})).await?;
    }
    until(&format!("the pods of {name} are gone"), || async { Ok(labelled(api, name).await?.is_empty()) }).await
}

/// The processes of the web servers of a pod or Deployment, as this machine's root sees them.
pub fn processes(name: &str) -> Vec<i32> {
    let needle = format!("TEST_POD={name}\0");
    let ids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found: Vec<i32> = ids
        .filter(|pid| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&environ).contains(&needle) && command.ends_with(b"\0web\0")
        })
        .collect();
    found.sort_unstable();
    found
}
