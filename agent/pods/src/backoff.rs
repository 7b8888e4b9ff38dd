//! How long to wait before trying again: at once, then 10 seconds, doubling to 5 minutes; forgotten after 10 quiet minutes.

use serde::{Deserialize, Serialize};

/// First wait.
pub const FIRST_MS: u64 = 10_000;
/// Longest wait.
pub const LONGEST_MS: u64 = 300_000;
/// A quiet time after which the next failure counts as a first one.
pub const FORGET_MS: u64 = 600_000;

/// The state of one series of attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The wait that the next attempt must keep.
    pub wait_ms: u64,
    /// When the last attempt was made.
    pub attempt_ms: u64,
}

impl Backoff {
    /// Earliest time of an attempt after a failure at that time.
    pub fn earliest_ms(&self, failed_ms: u64) -> u64 {
        if failed_ms.saturating_sub(self.attempt_ms) >= FORGET_MS { failed_ms } else { failed_ms + self.wait_ms }
    }

    /// Notes an attempt.
    pub fn attempt(&mut self, now_ms: u64) {
        self.attempt_within(now_ms, FIRST_MS, LONGEST_MS);
    }

    /// The same with waits of another length.
    pub fn attempt_within(&mut self, now_ms: u64, first_ms: u64, longest_ms: u64) {
        let quiet = self.attempt_ms == 0 || now_ms.saturating_sub(self.attempt_ms) >= FORGET_MS;
        let doubled = self.wait_ms.saturating_mul(2).min(longest_ms);
        self.wait_ms = if quiet || self.wait_ms == 0 { first_ms } else { doubled };
        self.attempt_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_are_forgotten() {
        let mut backoff = Backoff::default();
        let mut now = 1_000_000;
        for expect in [0, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000] {
            assert_eq!(backoff.earliest_ms(now) - now, expect);
            now = backoff.earliest_ms(now);
            backoff.attempt(now);
        }
        now += FORGET_MS;
        assert_eq!(backoff.earliest_ms(now), now, "ran well for ten minutes");
        backoff.attempt(now);
        assert_eq!(backoff.wait_ms, FIRST_MS);
    }
}
