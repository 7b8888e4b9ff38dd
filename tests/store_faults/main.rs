//! The store under real faults: `skiff store serve` processes in network namespaces and on disks of their own that are killed,
//! frozen, cut off, slowed down and filled up, while clients record what they are told and a checker judges it. See
//! `docs/faults.md`.
//!
//! `SKIFF_FAULT_SEED` replays a seed, `SKIFF_FAULT_SECONDS` says how long new ones are tried, `SKIFF_CALM_SECONDS` how long
//! nothing may happen on a busy machine.

mod audit;
mod calm;
mod client;
mod cluster;
mod disks;
mod history;
mod joining;
mod leader;
mod leasing;
mod linear;
mod members;
mod nemesis;
mod network;
mod round;
mod space;
mod watching;
mod workload;

use anyhow::Context as _;
use libtest_mimic::{Arguments, Failed, Trial};
use nemesis::{EVERYTHING, MEMBERSHIP, Plan};
use std::path::Path;
use std::time::{Duration, Instant};

const COMMAND: &str = "cargo test --test store_faults";

fn main() {
    skiff_identity::install_crypto();
    // This program is also the first process of each local instance, and what freezes a disk: both before any thread exists.
    let words: Vec<_> = std::env::args().skip(1).collect();
    let other = match &words[..] {
        [word, spec] if word == "local-supervisor" => Some(skiff_local::supervisor_main(Path::new(spec))),
        [word, path, millis] if word == disks::FREEZE => {
            Some(millis.parse().context("milliseconds").and_then(|millis| disks::freeze_main(Path::new(path), millis)))
        }
        _ => None,
    };
    if let Some(result) = other {
        if let Err(error) = result {
            eprintln!("{error:#}");
            std::process::exit(1);
        }
        return;
    }
    let mut arguments = Arguments::from_args();
    let missing = match arguments.list {
        true => None,
        false => what_is_missing(),
    };
    if let Some(missing) = &missing {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "the faults of real processes need {missing}");
        eprintln!("ignored: the faults of real processes need {missing}");
    }
    let trial = |name: &str, run: fn() -> anyhow::Result<()>| Trial::test(name, move || run().map_err(failed));
    let real = |name: &str, run: fn() -> anyhow::Result<()>| trial(name, run).with_ignored_flag(missing.is_some());
    let trials = vec![
        trial("the_checker_tells_histories_apart", linear::tells_them_apart),
        trial("the_audit_tells_what_does_not_fit", audit::tells_what_does_not_fit),
        real("three_members_under_everything", || random(Plan { members: 3, faults: EVERYTHING, seconds: 12 }, 1)),
        real("five_members_under_everything", || random(Plan { members: 5, faults: EVERYTHING, seconds: 8 }, 2)),
        real("one_member_becomes_many_and_few_again", || {
            random(Plan { members: 1, faults: MEMBERSHIP, seconds: 8 }, 3)
        }),
        real("a_new_member_over_a_link_that_breaks", joining::over_a_link_that_breaks),
        real("disks_that_are_full", space::full_disks),
        real("a_frozen_leader_is_succeeded_and_says_nothing_old", leader::frozen),
        real("a_killed_leader_is_succeeded", leader::killed),
        real("a_leader_cut_off_acknowledges_nothing", leader::cut_off),
        real("no_election_without_need", calm::no_spurious_election),
    ];
    // The scenarios measure times, and each has a machine's worth of processes.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, trials).exit();
}

/// What this machine lacks; and the mounts of this process, while it has one thread.
fn what_is_missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root, because they make namespaces and mounts".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).exists());
    if let Some(tool) = ["mkfs.ext4", "mount", "tc"].into_iter().find(|tool| !there(tool)) {
        return Some(format!("the program {tool}"));
    }
    disks::own_mounts().err().map(|e| format!("mounts of their own: {e:#}"))
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Rounds of a plan: one, with the plan's own seed or the one that is to be replayed; or as many as fit in the time that was
/// given.
fn random(plan: Plan, default: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    let time = Duration::from_secs(number("SKIFF_FAULT_SECONDS").unwrap_or(0));
    let mut seed = number("SKIFF_FAULT_SEED").unwrap_or(default);
    loop {
        round::at_random(plan, seed)
            .with_context(|| format!("seed {seed}; replay: SKIFF_FAULT_SEED={seed} {COMMAND}"))?;
        seed += 1;
        if begun.elapsed() >= time {
            return Ok(());
        }
    }
}
