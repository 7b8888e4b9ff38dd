//! Carries out the scheduler's decisions: binds pods, and says of those that fit nowhere why.

use super::control::Leading;
use super::controllers::record;
use rand::RngExt as _;
use serde_json::json;
use skiff_api::kinds;
use skiff_api::status::Status;
use skiff_api::view::{Key, Resource};
use skiff_apiserver::{Client, PatchType, UserInfo};
use skiff_reconcile::EventNote;
use skiff_scheduler::{Decision, Scheduler, is_waiting};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Pods that fit nowhere are tried again this often even without news.
const RETRY: Duration = Duration::from_secs(10);
const BINDS_AT_ONCE: usize = 64;

/// Runs while this server leads.
pub async fn run(leading: Leading) {
    let user = UserInfo::system("system:kube-scheduler");
    let client = leading.api.client(user).with_manager("kube-scheduler").fenced(leading.term);
    let mut news = leading.changes.subscribe();
    let mut revision = leading.view.revision.clone();
    if revision.wait_for(|r| *r > 0).await.is_err() {
        return;
    }
    let mut scheduler = Scheduler::default();
    // What was last said of a pod that fits nowhere: said once, not every round.
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    loop {
        while news.try_recv().is_ok() {}
        let decisions = {
            let view = leading.view.read();
            let mut rng = rand::rng();
            scheduler.place(&view, &mut || rng.random())
        };
        if !decisions.is_empty() {
            for part in decisions.chunks(BINDS_AT_ONCE) {
                let writes = part.iter().map(|d| carry_out(&leading, &client, d, &said));
                for result in futures_util::future::join_all(writes).await {
                    if let Err(status) = result {
                        tracing::debug!("a binding failed, deciding again: {}", status.message);
                    }
                }
            }
            said = decisions
                .into_iter()
                .filter_map(|d| match d {
                    Decision::Unschedulable { uid, message, .. } | Decision::Failed { uid, message, .. } => {
                        Some((uid, message))
                    }
                    Decision::Bind { .. } => None,
                })
                .collect();
            let written = client.revision();
            let _ = tokio::time::timeout(Duration::from_secs(5), revision.wait_for(|r| *r >= written)).await;
            let view = leading.view.read();
            let more = view
                .pods
                .values()
                .any(|p| is_waiting(p) && !said.contains_key(p.metadata.uid.as_deref().unwrap_or_default()));
            drop(view);
            if more {
                continue;
            }
        }
        tokio::select! {
            news = news.recv() => if matches!(news, Err(RecvError::Closed)) { return },
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn carry_out(
    leading: &Leading,
    client: &Client,
    decision: &Decision,
    said: &BTreeMap<String, String>,
) -> Result<(), Status> {
    let note = |pod: &Key, uid: &str, warning, reason, message| EventNote {
        resource: Resource::new("", "v1", "pods"),
        kind: "Pod".into(),
        key: pod.clone(),
        uid: uid.to_owned(),
        warning,
        reason,
        message,
    };
    match decision {
        Decision::Bind { pod, uid, node } => {
            client.bind(&pod.namespace, &pod.name, uid, node).await?;
            let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
            let (client, note) = (client.clone(), note(pod, uid, false, "Scheduled", message));
            tokio::spawn(async move { record(&client, &note, "default-scheduler").await });
        }
        Decision::Failed { pod, uid, message } => {
            if said.get(uid) != Some(message) {
                record(client, &note(pod, uid, true, "FailedScheduling", message.clone()), "default-scheduler").await;
            }
        }
        Decision::Unschedulable { pod, uid, message } => {
            if said.get(uid) == Some(message) {
                return Ok(());
            }
            let pods = kinds::by_resource("", "v1", "pods").ok_or_else(|| Status::internal_error("no pods"))?;
            let generation = leading.view.read().pods.get(pod).and_then(|p| p.metadata.generation);
            let condition = json!({"type": "PodScheduled", "observedGeneration": generation, "status": "False", "reason": "Unschedulable", "message": message,
                "lastProbeTime": null, "lastTransitionTime": skiff_api::meta::format_time(jiff::Timestamp::now())});
            let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
            client.patch(&pods, &pod.namespace, &pod.name, "status", PatchType::Strategic, &patch).await?;
            record(client, &note(pod, uid, true, "FailedScheduling", message.clone()), "default-scheduler").await;
        }
    }
    Ok(())
}
