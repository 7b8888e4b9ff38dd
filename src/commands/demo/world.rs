//! The cluster as the demo sees it: through the API, as anybody would.

use crate::client::Api;
use crate::commands::cluster::{Cluster, is_ready, items};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::Value;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const NAMESPACE: &str = "/api/v1/namespaces/default";

pub struct World<'a> {
    pub cluster: &'a Cluster,
    pub api: &'a Api,
}

/// Milliseconds since 1970, on the clock that the pods share.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl<'a> World<'a> {
    pub fn new(cluster: &'a Cluster) -> Self {
        World { cluster, api: &cluster.api }
    }

    /// Applies YAML documents, as `skiff apply` does.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        for document in yaml.split("\n---\n") {
            let object: Value = serde_yaml::from_str(document)?;
            let api_version = object["apiVersion"].as_str().unwrap_or_default();
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let kind = object["kind"].as_str().unwrap_or_default();
            let kind = skiff_api::kinds::by_kind(group, version, kind).with_context(|| format!("no kind {kind}"))?;
            let base = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{api_version}") };
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let path = format!("{base}/namespaces/default/{}/{name}?fieldManager=skiff&force=true", kind.plural);
            self.api.patch(&path, "application/apply-patch+yaml", &object).await?;
        }
        Ok(())
    }

    pub async fn pods(&self, selector: &str) -> anyhow::Result<Vec<Value>> {
        let list = self.api.get(&format!("{NAMESPACE}/pods?labelSelector={selector}")).await?;
        Ok(items(&list).cloned().collect())
    }

    pub async fn pod(&self, name: &str) -> anyhow::Result<Value> {
        self.api.get(&format!("{NAMESPACE}/pods/{name}")).await
    }

    pub async fn deployment(&self) -> anyhow::Result<Value> {
        self.api.get("/apis/apps/v1/namespaces/default/deployments/web").await
    }

    pub async fn patch_deployment(&self, patch: Value) -> anyhow::Result<()> {
        let path = "/apis/apps/v1/namespaces/default/deployments/web";
        self.api.patch(path, "application/strategic-merge-patch+json", &patch).await.map(drop)
    }

    /// Pods of `web` that are Ready and not on their way out.
    pub async fn ready_web(&self) -> anyhow::Result<Vec<Value>> {
        let pods = self.pods("app%3Dweb").await?;
        Ok(pods.into_iter().filter(|p| is_ready(p) && p["metadata"]["deletionTimestamp"].is_null()).collect())
    }

    /// Nodes on which the Service's slices offer endpoints, and the revision at which they do.
    pub async fn offered_nodes(&self) -> anyhow::Result<(Vec<String>, u64)> {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dweb";
        let slices = self.api.get(path).await?;
        let endpoints = items(&slices).flat_map(|s| s["endpoints"].as_array().into_iter().flatten());
        let ready = endpoints.filter(|e| e["conditions"]["ready"] == true);
        let nodes = ready.filter_map(|e| e["nodeName"].as_str().map(str::to_owned)).collect();
        let revision = slices["metadata"]["resourceVersion"].as_str().and_then(|r| r.parse().ok());
        Ok((nodes, revision.context("a list without a revision")?))
    }

    /// Whether the rules of every node but `except` reflect everything up to `revision`: what nodes acknowledge in their heartbeats, as a
    /// server's metrics show it.
    pub async fn all_have_taken_in(&self, revision: u64, except: &str) -> anyhow::Result<bool> {
        let metrics = self.api.get("/metrics").await?;
        let prefix = "skiff_node_applied_revision{node=\"";
        let lines = metrics.as_str().unwrap_or_default().lines().filter_map(|line| line.strip_prefix(prefix));
        let nodes: Vec<(&str, u64)> = lines
            .filter_map(|line| line.split_once("\"} "))
            .filter_map(|(node, applied)| Some((node, applied.parse().ok()?)))
            .filter(|(node, _)| *node != except)
            .collect();
        Ok(!nodes.is_empty() && nodes.iter().all(|(_, applied)| *applied >= revision))
    }

    /// A pod's log so far.
    pub async fn log(&self, pod: &str) -> anyhow::Result<String> {
        let begun = Instant::now();
        loop {
            let response = self.api.send("GET", &format!("{NAMESPACE}/pods/{pod}/log"), "", Bytes::new()).await;
            let problem = match response {
                Ok(response) if response.status().is_success() => {
                    let bytes = response.into_body().collect().await?.to_bytes();
                    return Ok(String::from_utf8_lossy(&bytes).into_owned());
                }
                Ok(response) => {
                    let bytes = response.into_body().collect().await?.to_bytes();
                    String::from_utf8_lossy(&bytes).into_owned()
                }
                Err(e) => format!("{e:#}"),
            };
            // A server that just started has not been called by the agents yet.
            if begun.elapsed() > Duration::from_secs(5) {
                bail!("reading the log of {pod}: {problem}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Looks until `done` says so; an error that comes while the API moves to another server is looked over. Says how long it took.
    pub async fn until<F: Future<Output = anyhow::Result<bool>>>(
        &self,
        what: &str,
        most: Duration,
        done: impl Fn() -> F,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            let state = tokio::time::timeout(Duration::from_secs(2), done()).await;
            if matches!(state, Ok(Ok(true))) {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > most {
                let why = match state {
                    Ok(Err(e)) => format!(": {e:#}"),
                    Err(_) => ": the API did not answer".into(),
                    Ok(Ok(_)) => String::new(),
                };
                bail!("after {} s still not: {what}{why}", most.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
