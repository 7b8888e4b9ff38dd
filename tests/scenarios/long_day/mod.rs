//! What an administrator and a developer type in one long day, with the kubectls of this machine, and what a reference cluster answers.
//!
//! Each part of the day is a script of its own, which reads like a session: see [`step`] for its lines. What a session cannot show, because a command
//! goes on while something else is done, is in [`live`].

mod live;
mod step;

use crate::busybox;
use crate::kubectl::{self, Kubectl};
use crate::local::Local;
use anyhow::Context as _;
use std::time::Instant;

const SCRIPTS: &[(&str, &str)] = &[
    ("making", include_str!("making.txt")),
    ("rollouts", include_str!("rollouts.txt")),
    ("changing", include_str!("changing.txt")),
    ("applying", include_str!("applying.txt")),
    ("reading", include_str!("reading.txt")),
    ("describing", include_str!("describing.txt")),
    ("inside", include_str!("inside.txt")),
    ("rights", include_str!("rights.txt")),
    ("nodes", include_str!("nodes.txt")),
    ("deleting", include_str!("deleting.txt")),
];

pub fn day(local: &Local) -> anyhow::Result<()> {
    busybox::image(local)?;
    for program in kubectl::all() {
        let k = Kubectl::of(local, &program, "day");
        one_day(&k).with_context(|| program.clone())?;
    }
    Ok(())
}

fn one_day(k: &Kubectl) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut parts = Vec::new();
    for (name, script) in SCRIPTS {
        let begun = Instant::now();
        step::play(k, script).with_context(|| format!("the part {name}"))?;
        if *name == "inside" {
            live::all(k)?;
        }
        parts.push(format!("{name} {} ms", begun.elapsed().as_millis()));
    }
    println!("a long day took {} s: {}", begun.elapsed().as_secs(), parts.join(", "));
    Ok(())
}
