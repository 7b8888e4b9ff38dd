//! The Python client, which speaks to streams in its own way: the script beside this file, run by the interpreter that `SKIFF_PYTHON` names.

use crate::busybox;
use crate::local::{Local, text};
use anyhow::{Context as _, ensure};
use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios/python_client.py");

fn interpreter() -> String {
    std::env::var("SKIFF_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Whether there is an interpreter with the client. A run that must be complete fails without it.
pub fn is_here() -> bool {
    let here = Command::new(interpreter()).args(["-c", "import kubernetes"]).output().is_ok_and(|o| o.status.success());
    if !here {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "the scenarios need Python with the package kubernetes; name its interpreter by SKIFF_PYTHON"
        );
        eprintln!(
            "ignored: the scenario of the Python client needs an interpreter with the package kubernetes: SKIFF_PYTHON"
        );
    }
    here
}

pub fn every_call(local: &Local) -> anyhow::Result<()> {
    busybox::image(local)?;
    let mut command = Command::new(interpreter());
    command.arg(SCRIPT).env("KUBECONFIG", local.dir.join("kubeconfig"));
    let output = command.output().context("running Python")?;
    ensure!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    println!("the Python client: {}", text(&output.stdout).trim().replace('\n', ", "));
    Ok(())
}
