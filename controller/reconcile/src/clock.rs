//! Times that cannot overflow: what users write into objects (`tolerationSeconds`, an event's `lastTimestamp`, a condition's times) reaches up to the
//! end of time, and a plan must not end with it.

use jiff::{SignedDuration, Timestamp};

/// `at` and a while later, at most the last instant there is.
pub fn after(at: Timestamp, wait: SignedDuration) -> Timestamp {
    at.checked_add(wait).unwrap_or(if wait.is_negative() { Timestamp::MIN } else { Timestamp::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_later_than_the_end_of_time() {
        let check = |at: Timestamp, seconds: i64, expect: Timestamp| {
            assert_eq!(after(at, SignedDuration::from_secs(seconds)), expect, "{at} and {seconds} s");
        };
        let day = Timestamp::from_second(86_400).unwrap();
        check(Timestamp::UNIX_EPOCH, 86_400, day);
        check(day, -86_400, Timestamp::UNIX_EPOCH);
        check(day, i64::MAX, Timestamp::MAX);
        check(day, i64::MIN, Timestamp::MIN);
        check(Timestamp::MAX, 1, Timestamp::MAX);
    }
}
