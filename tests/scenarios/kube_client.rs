//! kube-rs, a client that was written against other API servers: lists, watches, creates, patches, execs, reads logs, deletes.

use crate::local::{Local, block_on};
use crate::pods;
use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{
    AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher;
use kube::{Api, Client, Config};
use serde_json::json;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

const WITHIN: Duration = Duration::from_secs(60);

pub fn kube_rs(local: &Local) -> anyhow::Result<()> {
    block_on(async {
        let file = Kubeconfig::read_from(local.dir.join("kubeconfig"))?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let version = client.apiserver_version().await?;
        ensure!(version.major == "1", "{version:?}");
        let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
        ensure!(nodes.items.len() == 2, "two nodes");
        tokio::time::timeout(WITHIN, objects(&client)).await.context("objects")??;
        tokio::time::timeout(WITHIN, workload(&client)).await.context("a workload")?
    })
}

/// Writes of every kind, and a watch that tells each of them.
async fn objects(client: &Client) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let labelled = ListParams::default().labels("of=kube-rs");
    let list = maps.list(&labelled).await?;
    let revision = list.metadata.resource_version.context("a list has a version")?;
    let mut watch = maps.watch(&WatchParams::default().labels("of=kube-rs"), &revision).await?.boxed();
    let map: ConfigMap = serde_json::from_value(
        json!({"metadata": {"name": "kube-rs", "labels": {"of": "kube-rs"}}, "data": {"a": "1"}}),
    )?;
    let created = maps.create(&PostParams::default(), &map).await?;
    let twice = maps.create(&PostParams::default(), &map).await;
    ensure!(matches!(&twice, Err(kube::Error::Api(s)) if s.code == 409), "{twice:?}");
    maps.patch("kube-rs", &PatchParams::default(), &Patch::Merge(json!({"data": {"b": "2"}}))).await?;
    let apply = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-rs"}, "data": {"c": "3"}});
    let applied = maps.patch("kube-rs", &PatchParams::apply("scenario"), &Patch::Apply(apply)).await?;
    let data = applied.data.unwrap_or_default();
    ensure!(data.len() == 3, "each write kept the others' fields: {data:?}");
    let stale = maps.replace("kube-rs", &PostParams::default(), &created).await;
    ensure!(matches!(&stale, Err(kube::Error::Api(s)) if s.code == 409), "{stale:?}");
    maps.delete("kube-rs", &DeleteParams::default()).await?;
    let mut told = Vec::new();
    while told.last() != Some(&"deleted") {
        told.push(match watch.try_next().await?.context("the watch ended")? {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            WatchEvent::Bookmark(_) => "bookmark",
            WatchEvent::Error(e) => anyhow::bail!("the watch failed: {e:?}"),
        });
    }
    told.retain(|event| *event != "bookmark");
    ensure!(told == ["added", "modified", "modified", "deleted"], "{told:?}");
    Ok(())
}

/// A Deployment until it is available, through kube-rs's own waiting and watching; a pod's exec and log.
async fn workload(client: &Client) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let deployment: Deployment = serde_json::from_value(pods::deployment("kube-rs", 2))?;
    deployments.create(&PostParams::default(), &deployment).await?;
    let complete = conditions::is_deployment_completed();
    await_condition(deployments.clone(), "kube-rs", complete).await.context("waiting for the Deployment")?;
    // A watcher lists first, in pages or as a stream of events, then follows.
    let mut seen = 0;
    let mut events = watcher(pods.clone(), watcher::Config::default().labels("app=kube-rs").streaming_lists()).boxed();
    while let Some(event) = events.try_next().await? {
        match event {
            watcher::Event::InitApply(_) => seen += 1,
            watcher::Event::InitDone => break,
            _ => {}
        }
    }
    ensure!(seen == 2, "the watcher began with {seen} pods");
    let list = pods.list(&ListParams::default().labels("app=kube-rs")).await?;
    let name = list.items.first().and_then(|p| p.metadata.name.clone()).context("a pod")?;
    let mut process = pods.exec(&name, ["/skiff", "--version"], &AttachParams::default().stderr(false)).await?;
    let mut said = String::new();
    process.stdout().context("an output")?.read_to_string(&mut said).await?;
    ensure!(said.starts_with("skiff "), "exec said {said:?}");
    let ended = process.take_status().context("a status")?.await;
    ensure!(ended.and_then(|s| s.status).as_deref() == Some("Success"), "exec did not end well");
    pods.logs(&name, &LogParams::default()).await?;
    deployments.delete("kube-rs", &DeleteParams::default()).await?;
    await_condition(pods, &name, conditions::is_deleted(list.items[0].metadata.uid.as_deref().unwrap_or_default()))
        .await
        .context("waiting for the pod's end")?;
    Ok(())
}
