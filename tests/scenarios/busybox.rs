//! An image with real programs: a shell, cat, tar, nc, stty and hundreds more, which are all one static binary of this machine.
//!
//! Faults of streams and of the file system show when somebody types into a shell or pipes a file; an image that holds only
//! our own binary never did that.

use crate::local::{Local, wait_until};
use anyhow::{Context as _, ensure};
use skiff_runtime::{ImageBuilder, ImageConfig, ImageStore};
use std::path::Path;
use std::process::Command;

/// The image of this name is there after [`image`].
pub const IMAGE: &str = "scenarios.local/busybox:1";
const HOST: &str = "/bin/busybox";

/// Whether this machine has the binary. A run that must be complete fails without it.
pub fn is_here() -> bool {
    let here = Path::new(HOST).exists();
    if !here {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "the scenarios need {HOST}; install busybox-static");
        eprintln!("ignored: scenarios with real programs need {HOST}; install busybox-static");
    }
    here
}

/// Sees to it that the cluster has the image.
pub fn image(local: &Local) -> anyhow::Result<()> {
    if local.run(&["image", "ls"])?.contains("scenarios.local/busybox") {
        return Ok(());
    }
    let listed = Command::new(HOST).arg("--list").output().context("asking busybox for its programs")?;
    let programs = String::from_utf8(listed.stdout)?;
    let folder = local.dir.join("busybox");
    let store = ImageStore::open(&folder, &[])?;
    let mut builder = ImageBuilder::new().host_file(Path::new(HOST), "/bin/busybox").dir("/tmp", 0o1777);
    for program in programs.lines().filter(|program| *program != "busybox") {
        builder = builder.link(&format!("/bin/{program}"), "busybox");
    }
    builder
        .dir("/etc", 0o755)
        .file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/:/bin/sh\n", 0o644)
        .file("/etc/group", "root:x:0:\nweb:x:33:\n", 0o644)
        .config(ImageConfig { cmd: vec!["/bin/sh".into()], ..Default::default() })
        .build(&store, IMAGE)?;
    let mut archive = Vec::new();
    store.export(IMAGE, &mut archive)?;
    let file = local.file("busybox.tar", archive)?;
    let said = local.run(&["image", "import", &file])?;
    std::fs::remove_file(&file)?;
    std::fs::remove_dir_all(&folder)?;
    ensure!(said.contains(IMAGE), "{said}");
    Ok(())
}

/// A running pod of the image whose one container `c` runs a script. `more`: further fields of the container, as YAML in one line.
pub fn pod(local: &Local, name: &str, script: &str, more: &str) -> anyhow::Result<()> {
    image(local)?;
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers: [{{name: c, image: \"{IMAGE}\", command: [sh, -c, {script:?}]{more}}}]\n"
    );
    local.run(&["apply", "-f", &local.file(&format!("{name}.yaml"), yaml)?])?;
    wait_until(&format!("the pod {name} runs"), || {
        Ok(local.run(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])? == "Running")
    })
}
