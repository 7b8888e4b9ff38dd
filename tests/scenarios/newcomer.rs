//! What a newcomer does, from the command line: up, an image, a Deployment and its Service, down, and nothing left behind.

use crate::local::Local;
use anyhow::ensure;

pub fn brings_up_deploys_takes_down() -> anyhow::Result<()> {
    let local = Local::new("newcomer");
    let said = local.run(&["up", "--servers", "1", "--agents", "2", "--dir", local.dir()])?;
    ensure!(said.contains("export KUBECONFIG="), "{said}");
    let nodes = local.run(&["get", "nodes"])?;
    ensure!(nodes.matches(" Ready").count() == 2, "up returned before every node was Ready:\n{nodes}");
    local.run(&["demo-image"])?;
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/demo/web.yaml");
    local.run(&["apply", "-f", manifest])?;
    local.until(&["get", "deployment", "web"], |d| d.contains("3/3"))?;
    let pods = local.run(&["get", "pods", "-o", "wide"])?;
    ensure!(pods.contains("a1") && pods.contains("a2"), "not spread over both nodes:\n{pods}");
    local.run(&["delete", "-f", manifest])?;
    local.until(&["get", "pods"], |pods| !pods.contains("web-"))?;
    let instance = local.cluster()?.host.instance().to_owned();
    local.run(&["down", "--dir", local.dir()])?;
    ensure!(!local.dir.exists(), "the folder is still there");
    let traces = traces(&instance)?;
    ensure!(traces.is_empty(), "left behind: {traces:?}");
    Ok(())
}

/// What on this machine carries an instance's name: control groups, devices, mounts, records.
fn traces(instance: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut look = |path: String| {
        if std::path::Path::new(&path).exists() {
            found.push(path);
        }
    };
    look(format!("/sys/class/net/skl-{instance}"));
    look(format!("/run/skiff/local/{instance}.json"));
    for group in skiff_local::groups::own()? {
        look(group.join("skiff").join(instance).display().to_string());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    found.extend(mounts.lines().filter(|line| line.contains(instance)).map(str::to_owned));
    Ok(found)
}
