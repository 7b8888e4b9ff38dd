//! A panic in one step of one pod is that step's failure: it is logged with the pod, and the step is tried again like any other that failed. The pods beside it
//! never notice.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

/// What `work` gives, or what it said when it panicked. `step` and `pod` (its uid) are for the log.
pub async fn caught<T>(step: &'static str, pod: &str, work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let said = words(&*panic);
        tracing::error!(pod, step, "this is a bug of Skiff, please report it: {said}");
        format!("a bug of Skiff in the step {step:?}: {said}")
    })
}

/// What a panic said.
pub fn words(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}
