//! Memory that is not used goes back to the system.
//!
//! The C library keeps what was freed for later, an arena for each thread: after an import, a large list or a fetched schema, a long-running process would
//! look as big as its busiest moment for ever.

use std::time::Duration;

/// Often enough that nobody wonders, seldom enough that it costs nothing.
const EVERY: Duration = Duration::from_secs(20);
/// Threads share this many arenas; ours allocate little at once.
const ARENAS: libc::c_int = 2;

/// Call it before there are other threads.
pub fn few_arenas() {
    // SAFETY: mallopt(3) only sets a number, and no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives back what is free. It holds an arena's lock for a moment, some milliseconds at most.
pub fn give_back_now() {
    // SAFETY: malloc_trim(3) may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back what is free, now and then, as long as the process runs.
pub async fn give_back() {
    loop {
        tokio::time::sleep(EVERY).await;
        // Not on a thread that others wait for.
        let _ = tokio::task::spawn_blocking(give_back_now).await;
    }
}
