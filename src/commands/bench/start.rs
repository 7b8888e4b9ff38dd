//! How long a pod takes from the request that creates it until a watcher sees it Running, and where that time goes: one pod after the other, on nodes that
//! have the image.

use super::cluster;
use super::samples::{Samples, Table};
use crate::client::Api;
use crate::commands::cluster::is_ready;
use crate::workload::image;
use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PODS: &str = "/api/v1/namespaces/default/pods";
const PATIENCE: Duration = Duration::from_secs(30);
const NODES: [&str; 2] = ["a1", "a2"];

/// What a moment is called, and whether it has come for a pod.
type Moment = (&'static str, fn(&Value) -> bool);

/// The moments of a pod's start, in their order, as the watch tells them.
const MOMENTS: [Moment; 4] = [
    ("bound to a node", |pod| pod["spec"]["nodeName"].is_string()),
    ("its address is known", |pod| pod["status"]["podIP"].is_string()),
    ("Running", |pod| pod["status"]["phase"] == "Running"),
    ("Ready", is_ready),
];

pub async fn measure(runs: usize, table: &mut Table) -> anyhow::Result<()> {
    let cluster = cluster("start", 1, NODES.len()).await?;
    let api = &cluster.api;
    image::hand_in(api).await?;
    // Every node fetches the image once.
    for node in NODES {
        start(api, &format!("first-{node}"), Some(node)).await?;
    }
    let mut acknowledged = Samples::default();
    let mut moments: [Samples; MOMENTS.len()] = Default::default();
    for n in 0..runs {
        let started = start(api, &format!("pod-{n}"), None).await?;
        acknowledged.add(started.acknowledged);
        for (samples, took) in moments.iter_mut().zip(started.moments) {
            samples.add(took);
        }
    }
    table.times("pod: POST answered", &acknowledged);
    for ((name, _), samples) in MOMENTS.iter().zip(&moments) {
        table.times(&format!("pod: POST sent to {name}"), samples);
    }
    cluster.host.shutdown()
}

/// When things happened, counted from the sending of the request.
struct Started {
    acknowledged: Duration,
    moments: [Duration; MOMENTS.len()],
}

/// Creates a pod, watches it until it is Ready, and removes it again.
async fn start(api: &Api, name: &str, node: Option<&str>) -> anyhow::Result<Started> {
    let list = api.get(&format!("{PODS}?limit=1")).await?;
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list without a revision")?;
    let path = format!("{PODS}?watch=true&resourceVersion={revision}&fieldSelector=metadata.name%3D{name}");
    let watch = api.stream(&path, "application/json").await?;
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "web", "image": image::NAME, "args": ["web"]}],
        },
    });
    if let Some(node) = node {
        pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    }
    let begun = Instant::now();
    let seen = tokio::time::timeout(PATIENCE, until_ready(watch, begun));
    let post = async {
        api.post(PODS, &pod).await?;
        anyhow::Ok(begun.elapsed())
    };
    let (acknowledged, seen) = tokio::join!(post, seen);
    let acknowledged = acknowledged?;
    let moments = seen.with_context(|| format!("the pod {name} is not Ready after {} s", PATIENCE.as_secs()))??;
    api.delete(&format!("{PODS}/{name}"), &json!({})).await?;
    Ok(Started { acknowledged, moments })
}

/// Reads the watch until every moment has come.
async fn until_ready(mut watch: hyper::body::Incoming, begun: Instant) -> anyhow::Result<[Duration; MOMENTS.len()]> {
    let mut came = [None; MOMENTS.len()];
    let mut pending = Vec::new();
    while let Some(frame) = watch.frame().await {
        let Ok(data) = frame.context("reading the watch")?.into_data() else { continue };
        let now = begun.elapsed();
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).context("an event of the watch is not JSON")?;
            for (moment, (_, has_come)) in came.iter_mut().zip(MOMENTS) {
                if moment.is_none() && has_come(&event["object"]) {
                    *moment = Some(now);
                }
            }
        }
        if came.iter().all(Option::is_some) {
            return Ok(came.map(Option::unwrap_or_default));
        }
    }
    bail!("the watch ended before the pod was Ready")
}
