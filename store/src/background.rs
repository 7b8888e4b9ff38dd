//! Work beside the store's threads: a thread of its own for each piece, or, in a simulation, a turn that the simulator gives.

use std::sync::mpsc::Receiver;

/// Runs `work` on a thread of its own.
pub fn run(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    #[cfg(feature = "simulation")]
    let work = match crate::simulation::postpone(work) {
        Ok(()) => return Ok(()),
        Err(work) => work,
    };
    std::thread::Builder::new().name(name.into()).spawn(work).map(|_| ())
}

/// What such work has sent; None if it came to nothing.
pub fn wait<T>(answer: &Receiver<T>) -> Option<T> {
    // One thread cannot wait for itself: work that had no turn yet counts as not done.
    #[cfg(feature = "simulation")]
    if crate::simulation::is_running() {
        return answer.try_recv().ok();
    }
    answer.recv().ok()
}
