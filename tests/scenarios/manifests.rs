//! Every file under `manifests/` is applied, and what it describes becomes Ready. Images that only a registry has are stood in for by one of the same name.

use crate::local::{Local, wait_until};
use crate::{archives, images};
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

pub fn all(local: &Local) -> anyhow::Result<()> {
    images::import(local, "docker.io/library/busybox:stable", &["/bin/sh"], archives::docker_save)?;
    let nginx = "docker.io/library/nginx:stable-alpine";
    images::import(local, nginx, &["/skiff", "web", "--listen", "0.0.0.0:80"], archives::oci)?;
    let mut manifests = Vec::new();
    files(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/manifests")), &mut manifests)?;
    manifests.sort();
    ensure!(manifests.len() >= 7, "manifests are missing: {manifests:?}");
    for path in &manifests {
        let path = path.to_str().context("a plain path")?;
        local.run(&["apply", "-f", path])?;
    }
    for (deployment, ready) in [("web", "3/3"), ("hello", "2/2"), ("nginx", "2/2")] {
        local.until(&["get", "deployment", deployment], |d| d.contains(ready))?;
    }
    for client in ["client-1", "client-2"] {
        local.until(&["get", "pod", client], |pod| pod.contains("1/1"))?;
        wait_until("the client gets answers", || Ok(local.run(&["logs", client, "--tail", "5"])?.contains("\"ok\":")))?;
    }
    // The demo's keeper wants a node that this cluster has not: it says so, and waits.
    let told = local.until(&["describe", "pod", "keeper"], |told| told.contains("FailedScheduling"))?;
    ensure!(told.contains("0/2 nodes are available"), "{told}");
    for path in manifests.iter().rev() {
        local.run(&["delete", "-f", path.to_str().context("a plain path")?])?;
    }
    local.until(&["get", "pods"], |pods| !["web-", "hello-", "nginx-"].iter().any(|name| pods.contains(name)))?;
    for image in ["docker.io/library/busybox:stable", nginx] {
        local.run(&["image", "rm", image])?;
    }
    Ok(())
}
