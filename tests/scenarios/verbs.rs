//! Skiff's own verbs, for those who have no kubectl: the same words, and answers that people and scripts can use.

use crate::local::{Local, text};
use anyhow::ensure;
use std::io::Write as _;
use std::process::{Command, Stdio};

pub fn own_verbs(local: &Local) -> anyhow::Result<()> {
    let said = |words: &[&str], expect: &[&str]| -> anyhow::Result<()> {
        let output = local.run(words)?;
        for part in expect {
            ensure!(output.contains(part), "skiff {words:?} does not say {part:?}:\n{output}");
        }
        Ok(())
    };
    crate::images::shell(local)?;
    let file = local.file("verbs.yaml", include_str!("verbs.yaml"))?;
    said(
        &["apply", "-f", &file, "--dry-run", "server"],
        &["deployment.apps/verbs serverside-applied (server dry run)"],
    )?;
    ensure!(!local.run(&["get", "deployments"])?.contains("verbs"), "a dry run kept something");
    said(&["apply", "-f", &file], &["deployment.apps/verbs created", "service/verbs created"])?;
    said(&["apply", "-f", &file], &["deployment.apps/verbs unchanged", "service/verbs unchanged"])?;
    local.until(&["get", "deployment", "verbs"], |d| d.contains("2/2"))?;

    said(&["get", "pods", "-l", "app=verbs", "-o", "wide"], &["NAME", "READY", "NODE", "verbs-", "1/1", "Running"])?;
    said(&["get", "deploy,svc"], &["deployment.apps/verbs", "service/verbs"])?;
    said(&["get", "deployment/verbs", "-o", "yaml"], &["kind: Deployment", "replicas: 2"])?;
    said(&["get", "deployment", "verbs", "-o", "json"], &["\"kind\": \"Deployment\""])?;
    said(&["get", "service", "verbs", "-o", "name"], &["service/verbs\n"])?;
    said(&["get", "deployment", "verbs", "-o", "jsonpath={.spec.replicas}"], &["2"])?;
    said(&["get", "nodes", "--no-headers"], &["a1", "a2"])?;
    said(&["get", "pods", "none", "--ignore-not-found"], &[])?;
    said(&["describe", "deployment", "verbs"], &["Name:", "verbs", "Replicas:", "ScalingReplicaSet"])?;
    let pod = local.run(&["get", "pods", "-l", "app=verbs", "-o", "jsonpath={.items[0].metadata.name}"])?;
    said(&["describe", "pod", &pod], &["Scheduled", "Started", "skiff.local/demo:latest"])?;

    said(&["exec", &pod, "--", "/skiff", "--version"], &["skiff "])?;
    let failed = local.skiff(&["exec", &pod, "--", "/skiff", "no-such-command"])?;
    ensure!(failed.status.code() == Some(2), "the command's exit code is ours: {failed:?}");
    let missing = local.refused(&["exec", &pod, "--", "/no-such-program"])?;
    ensure!(missing.contains("no-such-program"), "{missing}");
    local.until(&["get", "pod", "talker", "-o", "jsonpath={.status.phase}"], |phase| phase == "Succeeded")?;
    said(&["logs", "talker"], &["one", "two"])?;
    said(&["logs", "talker", "--tail", "1"], &["two"])?;
    ensure!(!local.run(&["logs", "talker", "--tail", "1"])?.contains("one"), "more than the last line");

    said(&["scale", "deployment", "verbs", "--replicas", "3"], &["deployment.apps/verbs scaled"])?;
    local.until(&["get", "deployment", "verbs"], |d| d.contains("3/3"))?;
    let complaint = local.refused(&["scale", "deployment/verbs", "--replicas", "1", "--current-replicas", "7"])?;
    ensure!(complaint.contains("has 3 replicas, not 7"), "{complaint}");

    // From stdin, as everybody pipes it.
    let mut child = Command::new(crate::local::SKIFF)
        .args(["apply", "-f", "-"])
        .env("KUBECONFIG", local.dir.join("kubeconfig"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: piped}\n")?;
    }
    let output = text(&child.wait_with_output()?.stdout);
    ensure!(output.contains("configmap/piped created"), "{output}");
    said(&["delete", "configmap", "piped"], &["piped"])?;
    said(&["delete", "-f", &file], &["verbs"])?;
    ensure!(!local.run(&["get", "pods"])?.contains("talker"), "delete returned before the pod was gone");
    local.until(&["get", "pods"], |pods| !pods.contains("verbs-"))?;
    let complaint = local.refused(&["delete", "deployment", "verbs"])?;
    ensure!(complaint.contains("verbs") && complaint.contains("not found"), "{complaint}");
    Ok(())
}
