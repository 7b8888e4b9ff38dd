//! A panic is a bug in one decision or one task, and ends no more than that.
//!
//! Work on one key is run by [`caught`] or [`caught_async`]: the caller sets the key aside and goes on with the others. A task that lives as long as the
//! process is run by [`forever`]: it begins anew, a little later each time. Every panic is logged with what it worked on, and counted.

use futures_util::FutureExt as _;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A task that ended by a panic begins again after this, and after twice as long each time that it did not live for [`STEADY`].
const AGAIN_MIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_secs(60);

/// Panics so far, by task. The names are ours: constants, never what a user wrote.
static PANICS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// What a panic said.
#[derive(Debug)]
pub struct Panicked(pub String);

fn note(task: &'static str, about: &str, panic: Box<dyn Any + Send>) -> Panicked {
    let said =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    let said = said.unwrap_or_else(|| "a panic without words".into());
    *PANICS.lock().unwrap_or_else(|e| e.into_inner()).entry(task).or_default() += 1;
    tracing::error!(task, about, "this is a bug of Skiff, please report it: {said}");
    Panicked(said)
}

/// The result of `work`, or what it said when it panicked. `about` names what it works on, for the log.
///
/// What `work` changes must be as good after half of it as before: the callers read, and give back values.
pub fn caught<T>(
    task: &'static str,
    about: &(dyn std::fmt::Display + Sync),
    work: impl FnOnce() -> T,
) -> Result<T, Panicked> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| note(task, &about.to_string(), panic))
}

/// The same for work that waits.
pub async fn caught_async<T>(
    task: &'static str,
    about: &(dyn std::fmt::Display + Sync),
    work: impl Future<Output = T>,
) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| note(task, &about.to_string(), panic))
}

/// Runs `make`'s task until it ends by itself; one that panics is made anew.
pub async fn forever<F: Future<Output = ()>>(task: &'static str, mut make: impl FnMut() -> F) {
    let mut wait = AGAIN_MIN;
    loop {
        let begun = Instant::now();
        if caught_async(task, &"the whole task; it begins anew", make()).await.is_ok() {
            return;
        }
        if begun.elapsed() > STEADY {
            wait = AGAIN_MIN;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN_MAX);
    }
}

/// The counts, in the Prometheus text format.
pub fn metrics() -> String {
    let mut text = String::from(
        "# HELP skiff_panics_total Panics that were caught, by task.\n# TYPE skiff_panics_total counter\n",
    );
    for (task, count) in PANICS.lock().unwrap_or_else(|e| e.into_inner()).iter() {
        let _ = writeln!(text, "skiff_panics_total{{task=\"{task}\"}} {count}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_work_and_is_counted() {
        let mut runs = 0;
        forever("test-task", || {
            runs += 1;
            let run = runs;
            async move { assert!(run > 2, "not yet") }
        })
        .await;
        assert_eq!(runs, 3);
        assert!(caught("test-task", &"a key", || { panic!("five") }).is_err_and(|p: Panicked| p.0 == "five"));
        assert_eq!(caught("test-task", &"a key", || 5).unwrap(), 5);
        assert!(metrics().contains("skiff_panics_total{task=\"test-task\"} 3\n"), "{}", metrics());
    }
}
