//! The demo's acts: each does one thing to the cluster, measures, and checks.

use super::report::{Report, step};
use super::traffic::{CLIENTS, between};
use super::world::{World, now_ms};
use super::writer::Writer;
use crate::commands::cluster::{is_ready, items};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff_local::Direction;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
/// The node that is lost: no client runs on it.
const LOST_NODE: &str = "a3";
/// A request that was under way may take this long to fail.
const REQUEST_TIMEOUT_MS: u64 = 1000;
fn distinct<'a>(nodes: impl Iterator<Item = &'a Value>) -> u64 {
    nodes.map(|n| n.as_str().unwrap_or_default()).collect::<std::collections::BTreeSet<_>>().len() as u64
}

pub async fn deploy(world: &World<'_>, report: &mut Report) -> anyhow::Result<()> {
    step("an image made of this very binary; a Deployment of 3 and a Service, applied through the API");
    let begun = Instant::now();
    crate::workload::image::hand_in(world.api).await?;
    report.time("image made and handed to the cluster", begun.elapsed(), None);
    world.apply(include_str!("../../../manifests/demo/web.yaml")).await?;
    world.apply(include_str!("../../../manifests/demo/keeper.yaml")).await?;
    let took =
        world.until("3 pods of web are Ready", PATIENCE, || async { Ok(world.ready_web().await?.len() == 3) }).await?;
    report.time("Deployment of 3 Ready (image fetched by every node)", took, None);
    let pods = world.ready_web().await?;
    report.exactly("nodes that the 3 pods are spread over", distinct(pods.iter().map(|p| &p["spec"]["nodeName"])), 3);
    Ok(())
}

pub async fn resolve_and_answer(world: &World<'_>, report: &mut Report) -> anyhow::Result<()> {
    step("two client pods send 200 requests a second to web.default.svc.cluster.local");
    world.apply(include_str!("../../../manifests/demo/clients.yaml")).await?;
    for client in CLIENTS {
        world.until("the client runs", PATIENCE, || async { Ok(is_ready(&world.pod(client).await?)) }).await?;
    }
    let from = now_ms();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let traffic = between(world, from, now_ms()).await?;
    report.check(
        "requests by name through the virtual IP are answered",
        traffic.ok > 200,
        format!("{} answers", traffic.ok),
    );
    report.exactly("nodes that answer", traffic.nodes().len() as u64, 3);
    failed(report, "requests failed in the calm", &traffic);
    Ok(())
}

fn failed(report: &mut Report, what: &str, traffic: &super::traffic::Traffic) {
    report.exactly(what, traffic.failed, 0);
    if traffic.failed > 0 {
        tell!("         {}", traffic.describe_errors());
    }
}

pub async fn scale(world: &World<'_>, report: &mut Report) -> anyhow::Result<()> {
    step("scaling from 3 to 6 under traffic");
    let from = now_ms();
    world.patch_deployment(json!({"spec": {"replicas": 6}})).await?;
    let took = world.until("6 pods are Ready", PATIENCE, || async { Ok(world.ready_web().await?.len() == 6) }).await?;
    report.time("scaled to 6, all Ready", took, None);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    failed(report, "requests failed while scaling", &between(world, from, now_ms()).await?);
    Ok(())
}

pub async fn roll_out(world: &World<'_>, report: &mut Report) -> anyhow::Result<()> {
    step("a rolling update to version 2 under traffic");
    let from = now_ms();
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "env": [{"name": "VERSION", "value": "2"}]}]}}}});
    world.patch_deployment(patch).await?;
    let done = || async {
        let d = world.deployment().await?;
        let status = &d["status"];
        let all = |field: &str| status[field] == 6;
        let observed = status["observedGeneration"] == d["metadata"]["generation"];
        Ok(observed && all("updatedReplicas") && all("availableReplicas") && all("replicas"))
    };
    let took = world.until("all 6 pods run version 2", PATIENCE, done).await?;
    report.time("rolled out to 6 new pods", took, None);
    world.until("the old pods are gone", PATIENCE, || async { Ok(world.pods("app%3Dweb").await?.len() == 6) }).await?;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let traffic = between(world, from, now_ms()).await?;
    failed(report, "requests failed during the rollout", &traffic);
    report.check("version 2 answers", traffic.by.keys().any(|k| k.ends_with("/2")), "yes");
    Ok(())
}

pub async fn kill_leader(world: &World<'_>, report: &mut Report) -> anyhow::Result<()> {
    step("kill -9 of the Raft leader while a writer writes");
    let leader = world.cluster.leader().await?;
    let from = now_ms();
    let writer = Writer::start(world.cluster, "write");
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let killed = Instant::now();
    world.cluster.host.kill(&leader, Signal::SIGKILL)?;
    let next = writer.next_after(killed, PATIENCE).await?;
    report.time(
        &format!("leader {leader} killed, next acknowledged write"),
        next - killed,
        Some(Duration::from_secs(3)),
    );
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let acknowledged = writer.finish().await?;
    let list = world.api.get("/api/v1/namespaces/default/configmaps").await?;
    let there: std::collections::BTreeSet<_> = items(&list).filter_map(|o| o["metadata"]["name"].as_str()).collect();
    let lost = acknowledged.iter().filter(|w| !there.contains(w.name.as_str())).count();
    report.count("writes acknowledged around the kill", acknowledged.len() as u64);
    report.exactly("acknowledged writes lost", lost as u64, 0);
    failed(report, "requests failed around the kill", &between(world, from, now_ms()).await?);
    world.cluster.host.restart(&leader)?;
    world.until("another server leads", PATIENCE, || async { Ok(world.cluster.leader().await? != leader) }).await?;
    Ok(())
}

fn on_lost_node(pod: &Value) -> bool {
    pod["spec"]["nodeName"] == LOST_NODE
}

fn container_id(pod: &Value) -> String {
    pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default().to_owned()
}

pub async fn lose_node(world: &World<'_>, report: &mut Report) -> anyhow::Result<()> {
    step("kill -9 of a node's agent and a cut of its link");
    let host = &world.cluster.host;
    world.until("the keeper runs", PATIENCE, || async { Ok(is_ready(&world.pod("keeper").await?)) }).await?;
    let keeper = container_id(&world.pod("keeper").await?);
    let replaced: Vec<String> = world
        .ready_web()
        .await?
        .iter()
        .filter(|p| on_lost_node(p))
        .filter_map(|p| p["metadata"]["uid"].as_str().map(String::from))
        .collect();
    report.check("pods of web ran on the node", !replaced.is_empty(), replaced.len().to_string());
    let (from, lost) = (now_ms(), Instant::now());
    host.kill(LOST_NODE, Signal::SIGKILL)?;
    host.cut(LOST_NODE, Direction::Both)?;
    let withdrawn = AtomicU64::new(0);
    let gone = || async {
        let (nodes, revision) = world.offered_nodes().await?;
        withdrawn.store(revision, Ordering::Relaxed);
        Ok(!nodes.iter().any(|n| n == LOST_NODE))
    };
    world.until("its endpoints are withdrawn", PATIENCE, gone).await?;
    report.time("node lost, its endpoints withdrawn", lost.elapsed(), Some(Duration::from_secs(2)));
    let withdrawn = withdrawn.into_inner();
    let taken_in = || async { world.all_have_taken_in(withdrawn, LOST_NODE).await };
    world.until("the other nodes have taken that in", PATIENCE, taken_in).await?;
    let taken_in_ms = now_ms();
    report.time("the other nodes' rules follow", lost.elapsed(), Some(Duration::from_secs(2)));
    let replaced_elsewhere = || async { Ok(world.ready_web().await?.iter().filter(|p| !on_lost_node(p)).count() == 6) };
    world.until("replacements are Ready", PATIENCE, replaced_elsewhere).await?;
    report.time("node lost, replacements Ready", lost.elapsed(), Some(Duration::from_secs(5)));
    tokio::time::sleep(Duration::from_millis(REQUEST_TIMEOUT_MS + 1500)).await;
    let before = between(world, from, taken_in_ms).await?;
    report.count("requests failed until the endpoints were withdrawn", before.failed);
    let after = between(world, taken_in_ms + 1, now_ms()).await?;
    failed(report, "requests failed once they were withdrawn", &after);
    step("the node comes back");
    let back = Instant::now();
    host.heal(LOST_NODE)?;
    host.restart(LOST_NODE)?;
    let adopted = || async {
        let pods = world.pods("app%3Dweb").await?;
        let stopped = !pods.iter().any(|p| replaced.iter().any(|uid| p["metadata"]["uid"] == uid.as_str()));
        Ok(stopped && is_ready(&world.pod("keeper").await?))
    };
    world.until("the node is adopted", PATIENCE, adopted).await?;
    report.time("node back, replaced pods stopped, the rest adopted", back.elapsed(), None);
    let pod = world.pod("keeper").await?;
    let same = container_id(&pod) == keeper && pod["status"]["containerStatuses"][0]["restartCount"] == 0;
    report.check("the pod that nothing replaced kept its process", same, if same { "yes" } else { "no" });
    Ok(())
}

/// The process in a pod's container, as this machine's root sees it.
fn process_of(pod: &str) -> Option<i32> {
    let needle = format!("POD_NAME={pod}\0");
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&environ).contains(&needle);
        if ours && String::from_utf8_lossy(&command).contains("\0web\0") {
            return Some(pid);
        }
    }
    None
}

pub async fn kill_container(world: &World<'_>, report: &mut Report) -> anyhow::Result<()> {
    step("kill -9 of a container's process");
    let pods = world.ready_web().await?;
    let name = pods.first().and_then(|p| p["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
    let pid = process_of(&name).ok_or_else(|| anyhow::anyhow!("no process of the pod {name} is visible"))?;
    let killed = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?;
    let again = || async {
        let pod = world.pod(&name).await?;
        Ok(is_ready(&pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1)
    };
    world.until("the container runs again", PATIENCE, again).await?;
    report.time("container killed, restarted in place and Ready", killed.elapsed(), None);
    let pod = world.pod(&name).await?;
    report.exactly("its restart count", pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0), 1);
    Ok(())
}
