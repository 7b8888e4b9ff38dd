//! Another user of a machine on which servers and agents run.

use crate::local::{Local, block_on};
use crate::pods;
use anyhow::ensure;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `nobody`.
const NOBODY: u32 = 65534;

/// Files below a folder that this user can read: whatever lists them runs as that user.
fn readable(dir: &Path) -> anyhow::Result<String> {
    let mut find = Command::new("find");
    find.arg(dir).args(["-type", "f", "-readable"]).uid(NOBODY).gid(NOBODY).current_dir("/");
    let output = find.output()?;
    ensure!(output.status.code().is_some(), "find was killed");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn reads_nothing(local: &Local) -> anyhow::Result<()> {
    // That user can read something, so that an empty answer means what it says.
    let open = local.dir.join("open");
    std::fs::create_dir_all(&open)?;
    std::fs::write(open.join("for-all"), "x")?;
    std::fs::set_permissions(open.join("for-all"), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    ensure!(readable(&open)?.contains("for-all"), "another user can read what is open");
    // Something to be found: a pod, with its record, its volumes and its image.
    let cluster = local.cluster()?;
    block_on(async {
        pods::start(&cluster.api, &pods::web("looked-for", "a1")).await?;
        anyhow::Ok(())
    })?;
    let folders: Vec<PathBuf> =
        ["s1/server", "a1/agent", "a2/agent"].iter().map(|folder| local.dir.join(folder)).collect();
    for folder in &folders {
        ensure!(std::fs::read_dir(folder)?.next().is_some(), "{} holds something", folder.display());
        let found = readable(folder)?;
        ensure!(found.is_empty(), "another user reads below {}:\n{found}", folder.display());
    }
    let secrets = ["kubeconfig", "s1/server/admin.kubeconfig", "s1/server/ca.key", "a1/agent/node.key"];
    let found = readable(&local.dir)?;
    for secret in secrets {
        ensure!(local.dir.join(secret).exists(), "{secret} is there");
        ensure!(!found.lines().any(|line| line.ends_with(&format!("/{secret}"))), "another user reads {secret}");
    }
    block_on(async { pods::remove(&cluster.api, "looked-for", &[&format!("{}/looked-for", pods::PODS)]).await })
}

pub fn sees_no_token(local: &Local) -> anyhow::Result<()> {
    // A token on a command line, as somebody types it who does not know better; it leads to no server.
    let token = local.run(&["token", "create"])?.trim().to_owned();
    let data = local.dir.join("typed");
    let mut typed = Command::new(crate::local::SKIFF);
    typed
        .args(["agent", "--server", "127.0.0.1:1", "--token", &token, "--node-name", "typed", "--data-dir"])
        .arg(&data);
    let mut typed = typed.stderr(std::process::Stdio::null()).spawn()?;
    let secret = token.rsplit('.').next().unwrap_or_default().to_owned();
    let seen = crate::local::wait_until("no process shows the token", || {
        let arguments =
            std::fs::read_dir("/proc")?.flatten().filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
        let shown = arguments.filter(|a| String::from_utf8_lossy(a).contains(&secret)).count();
        let own = std::fs::read(format!("/proc/{}/cmdline", typed.id())).unwrap_or_default();
        Ok(shown == 0 && !own.is_empty())
    });
    let alive = typed.try_wait()?.is_none();
    let _ = typed.kill();
    let _ = typed.wait();
    ensure!(alive, "the agent that was typed went on");
    seen
}
