//! One machine's own life: two clusters side by side, a restart that ends every process, a process that died.

use crate::local::{Local, block_on, text_of, until, wait_until};
use crate::pods;
use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use skiff::commands::cluster::is_ready;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// Two clusters do not see each other's objects. One loses all its processes, as when the machine restarts; `up` brings it back with what it knew, and the
/// other has not noticed.
pub fn side_by_side_and_restart() -> anyhow::Result<()> {
    let (one, two) = (Local::up("side-1", 1, 1)?, Local::up("side-2", 1, 1)?);
    for (local, name) in [(&one, "first"), (&two, "second")] {
        local.run(&["demo-image"])?;
        let yaml = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
        local.run(&["apply", "-f", &local.file("own.yaml", yaml)?])?;
        let cluster = local.cluster()?;
        block_on(async {
            cluster.api.post(DEPLOYMENTS, &pods::deployment(name, 2)).await?;
            let ready = || async {
                let pods = pods::labelled(&cluster.api, name).await?;
                Ok(pods.len() == 2 && pods.iter().all(is_ready))
            };
            until(&format!("the pods of {name} are Ready"), ready).await
        })?;
    }
    ensure!(!one.run(&["get", "configmaps"])?.contains("second"), "one cluster sees the other's objects");
    let (before, others) = (pods::processes("second"), pods::processes("first"));
    let claims = two.run(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.uid}"])?;

    let supervisor = two.cluster()?.host.status()?.pid;
    kill(Pid::from_raw(supervisor), Signal::SIGKILL)?;
    wait_until("every process of the cluster has ended", || Ok(pods::processes("second").is_empty()))?;
    let complaint = two.refused(&["status", "--dir", two.dir()])?;
    ensure!(complaint.contains("skiff up"), "status of a dead cluster should say what to do: {complaint}");
    two.run(&["up", "--servers", "1", "--agents", "1", "--dir", two.dir()])?;

    ensure!(two.run(&["get", "configmaps"])?.contains("second"), "the object from before is lost");
    let again = two.run(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.uid}"])?;
    ensure!(again == claims, "the node is another one: {claims} and now {again}");
    wait_until("the pods run again", || Ok(pods::processes("second").len() == 2))?;
    ensure!(pods::processes("second").iter().all(|pid| !before.contains(pid)), "a process survived its own end");
    let cluster = two.cluster()?;
    block_on(async {
        let serve = || async {
            let pods = pods::labelled(&cluster.api, "second").await?;
            let restarted = |p: &serde_json::Value| p["status"]["containerStatuses"][0]["state"]["running"].is_object();
            Ok(pods.len() == 2 && pods.iter().all(|p| is_ready(p) && restarted(p)))
        };
        until("the pods are Ready again", serve).await
    })?;
    two.run(&["exec", "deployment/second", "--", "/skiff", "--version"])?;
    ensure!(pods::processes("first") == others, "the other cluster's pods are other processes");
    Ok(())
}

/// `status` says what died, `status --restart` starts it, and `up` starts whatever does not run.
pub fn status_restarts(local: &Local) -> anyhow::Result<()> {
    let cluster = local.cluster()?;
    let line = |name: &str| -> anyhow::Result<String> {
        let status = local.run(&["status", "--dir", local.dir()])?;
        let line = status.lines().find(|l| l.starts_with(name)).map(str::to_owned);
        line.with_context(|| format!("{name} is not in:\n{status}"))
    };
    let died = |name: &str| {
        cluster.host.kill(name, Signal::SIGKILL)?;
        wait_until(&format!("{name} has ended"), || Ok(line(name)?.contains("killed by")))
    };
    ensure!(line("s1")?.contains("running") && line("a1")?.contains("a1.log"), "{}", line("s1")?);
    died("a1")?;
    let said = local.run(&["status", "--dir", local.dir(), "--restart", "a1"])?;
    ensure!(said.contains("a1 runs again") && line("a1")?.contains("running"), "{said}");
    died("s1")?;
    let said = local.run(&["up", "--servers", "1", "--agents", "2", "--dir", local.dir()])?;
    ensure!(said.contains("s1 was not running"), "{said}");
    local.until(&["get", "nodes"], |nodes| nodes.matches(" Ready").count() == 2)?;
    let complaint = local.refused(&["status", "--dir", local.dir(), "--restart", "a7"])?;
    ensure!(complaint.contains("a7"), "a name that is not there: {complaint}");
    block_on(async {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "after"}});
        let made = cluster.api.post("/api/v1/namespaces/default/configmaps", &object).await?;
        ensure!(text_of(&made, "/metadata/name") == "after", "a write after the restart");
        cluster.api.delete("/api/v1/namespaces/default/configmaps/after", &json!({})).await.map(drop)
    })
}
