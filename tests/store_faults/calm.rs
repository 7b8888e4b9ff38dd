//! Nothing happens that should: the processors are busy and the disks stall, and yet nobody loses its office.

use crate::cluster::Cluster;
use crate::members;
use crate::number;
use crate::round;
use anyhow::{Context as _, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Without `SKIFF_CALM_SECONDS`.
const SECONDS: u64 = 30;

/// Processes that do nothing but use a processor each; they end with this value, and with this process.
struct Busy(Vec<Child>);

impl Busy {
    fn start(count: usize) -> anyhow::Result<Busy> {
        let mut all = Busy(Vec::new());
        for _ in 0..count {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            // SAFETY: prctl is a plain system call.
            unsafe {
                command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                });
            }
            all.0.push(command.spawn().context("starting a busy loop")?);
        }
        Ok(all)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The leader and its term stay while all processors are busy and every disk stalls for up to a second, again and again.
pub fn no_spurious_election() -> anyhow::Result<()> {
    let seconds = number("SKIFF_CALM_SECONDS").unwrap_or(SECONDS);
    let mut figures = String::new();
    let told = round::run(3, 4, |cluster, _| {
        let leader = members::wait_for_leader(cluster)?;
        let term = members::look(cluster)?.get(&leader).context("the leader answers")?.raft_term;
        let busy = Busy::start(std::thread::available_parallelism().map_or(2, usize::from))?;
        let (stalls, stalled) = watch(cluster, &leader, term, Duration::from_secs(seconds))?;
        drop(busy);
        figures =
            format!("{seconds} s, {stalls} stalls of {stalled} ms in all, {leader} led in term {term} throughout");
        Ok(())
    })?;
    println!("  {figures}; {told}");
    Ok(())
}

/// Stalls a disk at a time, and looks who leads; (stalls, milliseconds of them).
fn watch(cluster: &Cluster, leader: &str, term: u64, time: Duration) -> anyhow::Result<(usize, u64)> {
    let mut rng = StdRng::seed_from_u64(4);
    let (mut stalls, mut stalled) = (0, 0);
    let mut freezers: Vec<Child> = Vec::new();
    let begun = Instant::now();
    let mut failure = None;
    while begun.elapsed() < time && failure.is_none() {
        freezers.retain_mut(|f| matches!(f.try_wait(), Ok(None)));
        if freezers.is_empty() {
            let name = cluster.running.iter().nth(rng.random_range(0..cluster.running.len())).context("a member")?;
            let millis = rng.random_range(100..1000);
            freezers.push(cluster.disk(name)?.freeze(Duration::from_millis(millis))?);
            (stalls, stalled) = (stalls + 1, stalled + millis);
        }
        for (name, status) in members::look(cluster)? {
            if status.raft_term != term {
                failure = Some(format!(
                    "{name} is in term {} after {:?}; {leader} led in term {term}",
                    status.raft_term,
                    begun.elapsed()
                ));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for mut freezer in freezers {
        freezer.wait()?;
    }
    ensure!(failure.is_none(), "there was an election without need: {}", failure.unwrap_or_default());
    Ok((stalls, stalled))
}
