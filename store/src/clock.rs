//! Time as the store sees it: one number that grows while the machine sleeps, too.
//!
//! It is a parameter, so that a simulation can stop it or make it jump. Nothing that is replicated depends on it.

/// A clock that never goes back and counts the time that the machine was suspended.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since some moment in the past.
    fn now_ns(&self) -> u64;

    /// Milliseconds since the same moment.
    fn now_ms(&self) -> u64 {
        self.now_ns() / 1_000_000
    }
}

/// The kernel's CLOCK_BOOTTIME.
pub struct BootClock;

impl Clock for BootClock {
    fn now_ns(&self) -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a timespec that lives across the call; this clock exists since Linux 2.6.39, so it cannot fail.
        unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}
