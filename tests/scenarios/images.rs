//! Images from archives, by the command line, until a pod runs them; and images that are not to be had.

use crate::archives;
use crate::local::{Local, wait_until};
use anyhow::ensure;

/// The image of this name is imported by [`shell`].
pub const SHELL: &str = "scenarios.local/shell:1";

/// Sees to it that the cluster has the image with a shell.
pub fn shell(local: &Local) -> anyhow::Result<()> {
    if !local.run(&["image", "ls"])?.contains("scenarios.local/shell") {
        import(local, SHELL, &["/bin/sh", "-c"], archives::oci)?;
    }
    Ok(())
}

type Pack = fn(&archives::Parts, &str) -> anyhow::Result<Vec<u8>>;

/// Makes an image, packs it, and imports it under a name.
pub fn import(local: &Local, name: &str, entrypoint: &[&str], pack: Pack) -> anyhow::Result<()> {
    let parts = archives::make(&local.dir.join("making"), entrypoint)?;
    let file = local.file("archive.tar", pack(&parts, name)?)?;
    let said = local.run(&["image", "import", &file])?;
    std::fs::remove_file(&file)?;
    ensure!(said.contains(name) && said.contains("sha256:"), "{said}");
    Ok(())
}

pub fn both_kinds_of_archive(local: &Local) -> anyhow::Result<()> {
    let kinds: [(&str, Pack); 2] =
        [("scenarios.local/saved:1", archives::docker_save), ("scenarios.local/layout:1", archives::oci)];
    for (n, (name, pack)) in kinds.into_iter().enumerate() {
        import(local, name, &["/bin/sh", "-c"], pack)?;
        ensure!(local.run(&["image", "ls"])?.contains(name.trim_end_matches(":1")), "{name} is not listed");
        // On the node that did not take it in, too.
        for node in ["a1", "a2"] {
            let pod = format!("archive-{n}-{node}");
            let yaml = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}}}\nspec:\n  restartPolicy: Never\n  \
                 nodeSelector: {{kubernetes.io/hostname: {node}}}\n  \
                 containers: [{{name: c, image: \"{name}\", args: [\"echo from {name}\"]}}]\n"
            );
            local.run(&["apply", "-f", &local.file("archive.yaml", yaml)?])?;
            local.until(&["get", "pod", &pod, "-o", "jsonpath={.status.phase}"], |phase| phase == "Succeeded")?;
            let said = local.run(&["logs", &pod])?;
            ensure!(said == format!("from {name}\n"), "{said}");
            local.run(&["delete", "pod", &pod])?;
        }
        local.run(&["image", "rm", name])?;
        ensure!(!local.run(&["image", "ls"])?.contains(name.trim_end_matches(":1")), "{name} is still listed");
    }
    let text = local.file("no-archive.tar", "this is no archive\n")?;
    let complaint = local.refused(&["image", "import", &text])?;
    ensure!(complaint.contains("archive"), "{complaint}");
    let complaint = local.refused(&["image", "import", "/nowhere/image.tar"])?;
    ensure!(complaint.contains("/nowhere/image.tar"), "{complaint}");
    let complaint = local.refused(&["image", "rm", "scenarios.local/never:1"])?;
    ensure!(complaint.contains("scenarios.local/never:1"), "{complaint}");
    Ok(())
}

/// A pod whose image nobody has waits, and says which image and why; nothing else suffers.
pub fn missing(local: &Local) -> anyhow::Result<()> {
    // A registry that refuses connections, wherever the test runs.
    let yaml = "apiVersion: v1\nkind: Pod\nmetadata: {name: imageless}\nspec:\n  \
                containers: [{name: c, image: \"127.0.0.1:1/team/nothing:3\"}]\n";
    local.run(&["apply", "-f", &local.file("imageless.yaml", yaml)?])?;
    let reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    wait_until("the pod says that its image cannot be had", || {
        let reason = local.run(&["get", "pod", "imageless", "-o", reason])?;
        Ok(reason == "ErrImagePull" || reason == "ImagePullBackOff")
    })?;
    let told = local.until(&["describe", "pod", "imageless"], |told| told.contains("Failed"))?;
    ensure!(told.contains("127.0.0.1:1/team/nothing:3"), "no event names the image:\n{told}");
    local.run(&["delete", "pod", "imageless"]).map(drop)
}
