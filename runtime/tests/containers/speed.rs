//! How long a container takes: printed, and held against a generous bound.

use std::time::Instant;

use libtest_mimic::Failed;

use super::fixture::{Test, holds, with};

pub const TESTS: &[Test] = &[("speed::start_exit_delete", start_exit_delete)];

fn start_exit_delete() -> Result<(), Failed> {
    with(async |fixture| {
        const ROUNDS: usize = 30;
        let mut times: [Vec<u128>; 5] = Default::default();
        let mut memory_kb = (0, 0);
        for round in 0..ROUNDS {
            let begin = Instant::now();
            let mut spec = fixture.container("c", "");
            spec.args = vec!["/bin/touch".into(), "/x".into()];
            let pod = fixture.pod(&format!("p-{round}")).await?;
            let created = begin.elapsed();
            pod.start_container(spec).await?;
            let started = begin.elapsed();
            pod.wait_exit("c").await?;
            let ended = begin.elapsed();
            memory_kb = (memory(pod.helper_pid()?, "Pss:"), memory(pod.helper_pid()?, "Anonymous:"));
            let before = Instant::now();
            pod.delete().await?;
            let marks = [created, started - created, ended - started, before.elapsed(), begin.elapsed()];
            times.iter_mut().zip(marks).for_each(|(all, mark)| all.push(mark.as_micros()));
        }
        let mut medians = times.iter_mut().map(|all| {
            all.sort_unstable();
            all[all.len() / 2]
        });
        let names = ["create pod", "start", "exit", "delete", "all"];
        let text: Vec<String> = names
            .iter()
            .zip(medians.by_ref())
            .map(|(name, us)| format!("{name} {:.1} ms", us as f64 / 1000.0))
            .collect();
        eprintln!(
            "p50 of {ROUNDS}: {}; helper {} kB PSS alone, {} of them its own",
            text.join(", "),
            memory_kb.0,
            memory_kb.1
        );
        holds("a pod lives and dies within half a second", times[4][ROUNDS / 2] < 500_000)
    })
}

/// Kilobytes of one kind in a process.
fn memory(pid: i32, kind: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0)
}
