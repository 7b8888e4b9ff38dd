//! Whole groups under one seed: the store's own code, with a network, disks, clocks and processes that fail. See `docs/simulation.md`.
//!
//! `SKIFF_SIM_SEED` replays a seed, `SKIFF_SIM_SECONDS` says how long new seeds are tried (default 60), `SKIFF_SIM_BUG` plants a bug.

mod checks;
mod clients;
mod disk;
mod model;
mod nemesis;
mod node;
mod planted;
mod rng;
mod tally;
mod transfers;
mod world;

use checks::{NO_PANIC, Violation};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// A seed takes a fiftieth of a second; one that takes so long goes round in circles.
const SEED_MAX: Duration = Duration::from_secs(120);

/// What each thread tries, and since when.
static TRIED: LazyLock<Mutex<HashMap<ThreadId, Try>>> = LazyLock::new(Mutex::default);

type Try = (u64, Option<&'static str>, Instant);

/// Ends the process when a seed does not end.
fn watch_for_circles() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let tried = TRIED.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((seed, bug, _)) = tried.values().find(|(.., since)| since.elapsed() > SEED_MAX) {
            eprintln!("seed {seed} with the planted bug {bug:?} does not end within {} s", SEED_MAX.as_secs());
            std::process::exit(1);
        }
    }
}

/// Runs one seed with or without a planted bug.
fn try_seed(seed: u64, bug: Option<&'static str>) -> Result<u64, Violation> {
    skiff_store::simulation::plant(bug);
    let this = std::thread::current().id();
    TRIED.lock().unwrap_or_else(|e| e.into_inner()).insert(this, (seed, bug, Instant::now()));
    let outcome = run_seed(seed);
    TRIED.lock().unwrap_or_else(|e| e.into_inner()).remove(&this);
    outcome
}

fn run_seed(seed: u64) -> Result<u64, Violation> {
    let run = std::panic::catch_unwind(|| world::run(seed));
    run.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
        Err(Violation { invariant: NO_PANIC, detail: said.unwrap_or_default() })
    })
}

/// Tries seeds from `first` on until one fails, all threads together: (seeds tried, events, the failure).
fn hunt(first: u64, seeds: u64, time: Duration, bug: Option<&'static str>) -> (u64, u64, Option<(u64, Violation)>) {
    let (next, events, tried, stop) =
        (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    let search = || {
        // `Watcher::next` makes a timer, which must know a runtime; none ever fires.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime for timers");
        let _guard = runtime.enter();
        let mut failure: Option<(u64, Violation)> = None;
        while failure.is_none() && began.elapsed() < time && !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds {
                break;
            }
            tried.fetch_add(1, Ordering::Relaxed);
            match try_seed(seed, bug) {
                Ok(count) => {
                    events.fetch_add(count, Ordering::Relaxed);
                }
                Err(violation) => {
                    stop.store(true, Ordering::Relaxed);
                    failure = Some((seed, violation));
                }
            }
        }
        failure
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let failures: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(search)).collect();
        all.into_iter().filter_map(|t| t.join().ok().flatten()).collect()
    });
    let first = failures.into_iter().min_by_key(|(seed, _)| *seed);
    (tried.into_inner(), events.into_inner(), first)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn main() {
    // Planted bugs break assertions by the hundred; what matters is printed below.
    std::panic::set_hook(Box::new(|info| {
        if std::env::var_os("SKIFF_SIM_SEED").is_some() {
            eprintln!("{info}\n{}", std::backtrace::Backtrace::capture());
        }
    }));
    std::thread::spawn(watch_for_circles);
    let wanted = std::env::var("SKIFF_SIM_BUG").ok();
    let bug = planted::BUGS.iter().find(|b| Some(**b) == wanted.as_deref()).copied();
    let command = "cargo test -p skiff-store --features simulation --test sim";
    let failed = |seed: u64, violation: &Violation| {
        let bug = bug.map(|b| format!("SKIFF_SIM_BUG={b} ")).unwrap_or_default();
        eprintln!(
            "seed {seed} violates \"{}\":\n  {}\nreplay: {bug}SKIFF_SIM_SEED={seed} {command}",
            violation.invariant, violation.detail
        );
        std::process::exit(1);
    };
    if let Some(seed) = number("SKIFF_SIM_SEED") {
        match hunt(seed, 1, Duration::MAX, bug) {
            (_, events, None) => println!("seed {seed}: every invariant held ({events} events)"),
            (.., Some((seed, violation))) => failed(seed, &violation),
        }
        return;
    }
    let seconds = number("SKIFF_SIM_SECONDS").unwrap_or(45);
    let began = Instant::now();
    let first = number("SKIFF_SIM_FIRST").unwrap_or(1);
    let seeds = number("SKIFF_SIM_SEEDS").unwrap_or(u64::MAX - first);
    let (tried, events, failure) = hunt(first, seeds, Duration::from_secs(seconds), bug);
    println!("{tried} seeds, {events} events in {:.1} s", began.elapsed().as_secs_f64());
    if let Some((seed, violation)) = failure {
        failed(seed, &violation);
    }
    tally::print();
    if bug.is_none() && !planted::find_all(&hunt) {
        std::process::exit(1);
    }
}
