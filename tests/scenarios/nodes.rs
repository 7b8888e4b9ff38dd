//! Nodes that die, fall silent and return: what runs on them goes on, what must be replaced is, and no more than that.

use crate::local::{Local, block_on, text_of, until, wait_until};
use crate::pods::{self, PODS};
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff::client::Api;
use skiff::commands::cluster::{is_ready, items};
use skiff_local::Direction;
use std::time::Duration;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SERVICES: &str = "/api/v1/namespaces/default/services";
/// Longer than a silent node keeps its pods (1.5 s after about 1 s), with room for a busy machine: what has not happened by then will not.
const WOULD_HAVE_ACTED: Duration = Duration::from_secs(5);

async fn node_is_ready(api: &Api, node: &str) -> anyhow::Result<bool> {
    Ok(is_ready(&api.get(&format!("/api/v1/nodes/{node}")).await?))
}

async fn restart_count(api: &Api, pod: &str) -> anyhow::Result<u64> {
    let pod = api.get(&format!("{PODS}/{pod}")).await?;
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().context("a pod without a restart count")
}

/// The nodes whose pods a Service offers.
async fn offered(api: &Api, service: &str) -> anyhow::Result<Vec<String>> {
    let path =
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D";
    let slices = api.get(&format!("{path}{service}")).await?;
    let endpoints = items(&slices).flat_map(|s| s["endpoints"].as_array().into_iter().flatten());
    let ready = endpoints.filter(|e| e["conditions"]["ready"] == true);
    Ok(ready.map(|e| text_of(e, "/nodeName").to_owned()).collect())
}

/// kill -9 of an agent, and its start again: the same processes, the same containers, and the node serves exec and logs as before.
pub fn restarted_agent(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    block_on(async {
        let names = ["kept-1", "kept-2"];
        for name in names {
            pods::start(&cluster.api, &pods::web(name, "a1")).await?;
        }
        let before: Vec<_> = names.map(pods::processes).into();
        ensure!(before.iter().all(|p| p.len() == 1), "a process for each pod: {before:?}");
        cluster.host.kill("a1", Signal::SIGKILL)?;
        cluster.host.restart("a1")?;
        // It takes exec requests again: so it has found the pod.
        until("exec works again", || async {
            Ok(local.skiff(&["exec", "kept-1", "--", "/skiff", "--version"])?.status.success())
        })
        .await?;
        until("the node is Ready", || node_is_ready(&cluster.api, "a1")).await?;
        local.run(&["logs", "kept-2"])?;
        let after: Vec<_> = names.map(pods::processes).into();
        ensure!(before == after, "processes before {before:?} and after {after:?}");
        for name in names {
            ensure!(restart_count(&cluster.api, name).await? == 0, "{name} was restarted");
            pods::remove(&cluster.api, name, &[&format!("{PODS}/{name}")]).await?;
        }
        Ok(())
    })
}

/// A node whose agent is killed and whose link is cut: its pods are replaced elsewhere; what nothing replaces is the same process when the node is back.
pub fn lost_and_adopted(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let api = &cluster.api;
    block_on(async {
        pods::start(api, &pods::web("keeper", "a3")).await?;
        api.post(DEPLOYMENTS, &pods::deployment("moved", 3)).await?;
        api.post(SERVICES, &pods::service("moved")).await?;
        let on_node = |pods: &[Value], node: &str| pods.iter().filter(|p| p["spec"]["nodeName"] == node).count();
        let spread = || async {
            let pods = pods::labelled(api, "moved").await?;
            Ok(pods.len() == 3 && pods.iter().all(is_ready) && on_node(&pods, "a3") == 1)
        };
        until("3 pods are spread over the nodes", spread).await?;
        until("all are offered", || async { Ok(offered(api, "moved").await?.len() == 3) }).await?;
        let keeper = pods::processes("keeper");
        cluster.host.kill("a3", Signal::SIGKILL)?;
        cluster.host.cut("a3", Direction::Both)?;
        let withdrawn = || async { Ok(!offered(api, "moved").await?.iter().any(|n| n == "a3")) };
        until("its endpoints are withdrawn", withdrawn).await?;
        let replaced = || async { Ok(offered(api, "moved").await?.len() == 3) };
        until("replacements are offered", replaced).await?;
        ensure!(pods::processes("keeper") == keeper, "the lost node's pods run on");
        cluster.host.heal("a3")?;
        cluster.host.restart("a3")?;
        until("the node is Ready", || node_is_ready(api, "a3")).await?;
        let gone =
            || async { Ok(pods::labelled(api, "moved").await?.len() == 3 && pods::processes("moved").len() == 3) };
        until("the replaced pod is stopped", gone).await?;
        let adopted = || async { Ok(is_ready(&api.get(&format!("{PODS}/keeper")).await?)) };
        until("the keeper is adopted", adopted).await?;
        ensure!(pods::processes("keeper") == keeper, "the keeper is another process");
        ensure!(restart_count(api, "keeper").await? == 0, "the keeper was restarted");
        pods::remove(api, "keeper", &[&format!("{PODS}/keeper")]).await?;
        pods::remove(api, "moved", &[&format!("{DEPLOYMENTS}/moved"), &format!("{SERVICES}/moved")]).await
    })
}

/// Two of three nodes fall silent: the fault is taken to be elsewhere, and every pod stays where it is.
pub fn most_are_silent(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let api = &cluster.api;
    block_on(async {
        api.post(DEPLOYMENTS, &pods::deployment("stays", 3)).await?;
        let ready = || async {
            let pods = pods::labelled(api, "stays").await?;
            Ok(pods.len() == 3 && pods.iter().all(is_ready))
        };
        until("3 pods are Ready", ready).await?;
        let uids = |pods: &[Value]| -> std::collections::BTreeSet<String> {
            let live = pods.iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null());
            live.map(|p| text_of(p, "/metadata/uid").to_owned()).collect()
        };
        let before = uids(&pods::labelled(api, "stays").await?);
        for node in ["a2", "a3"] {
            cluster.host.cut(node, Direction::Both)?;
        }
        // That something does not happen can only be seen by waiting.
        tokio::time::sleep(WOULD_HAVE_ACTED).await;
        let after = uids(&pods::labelled(api, "stays").await?);
        for node in ["a2", "a3"] {
            cluster.host.heal(node)?;
        }
        ensure!(before == after, "pods before {before:?} and after {after:?}");
        for node in ["a2", "a3"] {
            until("the node is Ready", || node_is_ready(api, node)).await?;
        }
        ensure!(uids(&pods::labelled(api, "stays").await?) == before, "pods were replaced when the nodes returned");
        pods::remove(api, "stays", &[&format!("{DEPLOYMENTS}/stays")]).await
    })
}

/// All endpoints of a Service are on one node, which falls silent: it may well be the network's fault, and an address that may work is better than none.
pub fn last_endpoints(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let api = &cluster.api;
    block_on(async {
        pods::start(api, &pods::web("last", "a3")).await?;
        api.post(SERVICES, &pods::service("last")).await?;
        until("the endpoint is offered", || async { Ok(offered(api, "last").await?.len() == 1) }).await?;
        cluster.host.cut("a3", Direction::Both)?;
        until("the node is lost", || async { Ok(!node_is_ready(api, "a3").await?) }).await?;
        tokio::time::sleep(WOULD_HAVE_ACTED).await;
        let there = offered(api, "last").await?;
        cluster.host.heal("a3")?;
        ensure!(there == ["a3"], "the last endpoint was withdrawn: {there:?}");
        until("the node is Ready", || node_is_ready(api, "a3")).await?;
        until("the pod is Ready", || async { Ok(is_ready(&api.get(&format!("{PODS}/last")).await?)) }).await?;
        pods::remove(api, "last", &[&format!("{PODS}/last"), &format!("{SERVICES}/last")]).await
    })
}

/// A pod that has ended and that a finalizer holds is nobody's work: its agent waits like everybody else (the idle check after each scenario looks), and it
/// goes when the finalizer does.
pub fn held_by_a_finalizer(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let mut pod = pods::web("held", "a1");
    pod["metadata"]["finalizers"] = json!(["a.example/b"]);
    let path = format!("{}/held", pods::PODS);
    block_on(async {
        pods::start(&cluster.api, &pod).await?;
        cluster.api.delete(&path, &json!({})).await?;
        wait_until("its process has ended", || Ok(pods::processes("held").is_empty()))?;
        until("it says so", || async {
            let held = cluster.api.get(&path).await?;
            Ok(held.pointer("/status/containerStatuses/0/state/terminated").is_some())
        })
        .await
    })?;
    crate::idle::settles(local, &crate::idle::fresh(local)?).context("while the finalizer holds it")?;
    block_on(async {
        let free = json!({"metadata": {"finalizers": null}});
        cluster.api.patch(&path, "application/merge-patch+json", &free).await?;
        until("it is gone", || async { Ok(pods::labelled(&cluster.api, "held").await?.is_empty()) }).await
    })
}
