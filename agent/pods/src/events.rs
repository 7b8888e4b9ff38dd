//! Events as people can read them: what happens again is counted, what differs only in words is put together, and what
//! floods is dropped.
//!
//! The rules and numbers are those of Kubernetes' client-go (`tools/record/events_cache.go`): the same object, reason and
//! message are one event whose count rises; more than ten messages of one object and reason within ten minutes become
//! one event; and an object has 25 events at once, then one every five minutes.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::PodEvent;
use crate::traits::PodIdentity;

/// Series, groups and objects that are remembered; the one that was quiet for longest is forgotten first.
const REMEMBERED_MAX: usize = 4096;
/// Messages of one object and reason within [`GROUP_MS`] after which further ones are put together.
const MESSAGES_MAX: usize = 10;
const GROUP_MS: u64 = 600_000;
/// Events that one pod has at once.
const BURST: u64 = 25;
/// After which it has one more.
const REFILL_MS: u64 = 300_000;
/// A message of an event has at most so many bytes (the API's own limit, events.k8s.io/v1 `note`).
const MESSAGE_BYTES_MAX: usize = 1024;

/// Something that happened, as it is told by whoever saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// To whom.
    pub pod: PodIdentity,
    /// `spec.containers{web}`, or empty.
    pub field_path: String,
    /// `Warning` rather than `Normal`.
    pub warning: bool,
    /// `Pulled`, ...
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// UID, field, kind and reason.
type GroupKey = (String, String, bool, String);

#[derive(Default)]
struct Group {
    messages: BTreeSet<String>,
    last_ms: u64,
}

struct Series {
    name: String,
    count: u32,
    first_ms: u64,
    last_ms: u64,
}

/// A bucket of tokens that fills up by itself.
struct Bucket {
    /// Milliseconds' worth of events: [`REFILL_MS`] each.
    level_ms: u64,
    last_ms: u64,
}

/// What was told lately.
#[derive(Default)]
pub struct Events {
    groups: BTreeMap<GroupKey, Group>,
    series: BTreeMap<(GroupKey, String), Series>,
    buckets: BTreeMap<String, Bucket>,
    /// Makes names unique that were made within one millisecond.
    made: u64,
}

impl Events {
    /// What to report; nothing when the pod floods.
    pub fn take(&mut self, told: Told, now_ms: u64) -> Option<PodEvent> {
        let Told { pod, field_path, warning, reason, message } = told;
        let mut message = message;
        cut(&mut message, MESSAGE_BYTES_MAX);
        let group_key: GroupKey = (pod.uid.clone(), field_path.clone(), warning, reason.clone());
        let group = self.groups.entry(group_key.clone()).or_default();
        if now_ms.saturating_sub(group.last_ms) > GROUP_MS {
            group.messages.clear();
        }
        group.last_ms = now_ms;
        let together = group.messages.len() >= MESSAGES_MAX && !group.messages.contains(&message);
        let distinct = if together { String::new() } else { message.clone() };
        if !together {
            group.messages.insert(message.clone());
        }
        let made = &mut self.made;
        let series = self.series.entry((group_key, distinct)).or_insert_with(|| {
            *made = made.wrapping_add(1);
            let name = format!("{}.{now_ms:x}{:04x}", pod.name, *made & 0xffff);
            Series { name, count: 0, first_ms: now_ms, last_ms: now_ms }
        });
        series.count = series.count.saturating_add(1);
        series.last_ms = now_ms;
        if together {
            message.insert_str(0, "(combined from similar events): ");
            cut(&mut message, MESSAGE_BYTES_MAX);
        }
        let event = PodEvent {
            namespace: pod.namespace,
            name: pod.name,
            uid: pod.uid,
            field_path,
            warning,
            reason,
            message,
            series: series.name.clone(),
            count: series.count,
            first_ms: series.first_ms,
            last_ms: now_ms,
        };
        let passes = self.passes(&event.uid, now_ms);
        self.forget();
        passes.then_some(event)
    }

    fn passes(&mut self, uid: &str, now_ms: u64) -> bool {
        let full_ms = BURST * REFILL_MS;
        let bucket = self.buckets.entry(uid.to_owned()).or_insert(Bucket { level_ms: full_ms, last_ms: now_ms });
        let gained_ms = now_ms.saturating_sub(bucket.last_ms);
        bucket.level_ms = bucket.level_ms.saturating_add(gained_ms).min(full_ms);
        bucket.last_ms = now_ms;
        let passes = bucket.level_ms >= REFILL_MS;
        if passes {
            bucket.level_ms -= REFILL_MS;
        }
        passes
    }

    fn forget(&mut self) {
        trim(&mut self.groups, |group| group.last_ms);
        trim(&mut self.series, |series| series.last_ms);
        trim(&mut self.buckets, |bucket| bucket.last_ms);
    }
}

/// Forgets what was quiet for longest, an eighth at a time, so that a full table is not searched at every event.
fn trim<K: Ord + Clone, V>(table: &mut BTreeMap<K, V>, last_ms: impl Fn(&V) -> u64) {
    if table.len() <= REMEMBERED_MAX {
        return;
    }
    let mut ages: Vec<u64> = table.values().map(&last_ms).collect();
    ages.sort_unstable();
    let bound = ages.get(REMEMBERED_MAX / 8).copied().unwrap_or_default();
    table.retain(|_, value| last_ms(value) > bound);
}

/// Shortens a text to a number of bytes, at a character's end.
fn cut(text: &mut String, bytes_max: usize) {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(uid: &str, reason: &str, message: &str) -> Told {
        let pod = PodIdentity { namespace: "n".into(), name: "p".into(), uid: uid.into() };
        Told { pod, field_path: String::new(), warning: true, reason: reason.into(), message: message.into() }
    }

    #[test]
    fn the_same_is_one_event_that_is_counted() {
        let mut events = Events::default();
        let first = events.take(told("u", "FailedMount", "no map"), 1_000).unwrap();
        let other = events.take(told("u", "Pulled", "image"), 1_500).unwrap();
        let again = events.take(told("u", "FailedMount", "no map"), 2_000).unwrap();
        assert_eq!((first.count, again.count), (1, 2));
        assert_eq!(first.series, again.series);
        assert_eq!((again.first_ms, again.last_ms), (1_000, 2_000));
        assert_ne!(first.series, other.series);
        assert_ne!(events.take(told("v", "FailedMount", "no map"), 2_000).unwrap().series, first.series);
    }

    #[test]
    fn what_differs_in_words_only_is_put_together() {
        let mut events = Events::default();
        let said: Vec<PodEvent> =
            (0..14).map(|n| events.take(told("u", "Failed", &format!("try {n}")), n * 1_000).unwrap()).collect();
        let series: BTreeSet<&str> = said.iter().map(|event| event.series.as_str()).collect();
        assert_eq!(series.len(), MESSAGES_MAX + 1);
        let last = said.last().unwrap();
        assert_eq!((last.count, last.message.as_str()), (4, "(combined from similar events): try 13"));
        let later = events.take(told("u", "Failed", "try 99"), 14_000 + GROUP_MS).unwrap();
        assert_eq!((later.count, later.message.as_str()), (1, "try 99"));
    }

    #[test]
    fn a_flood_of_one_pod_ends_and_is_no_other_pods() {
        let mut events = Events::default();
        let passed = (0..1_000).filter(|n| events.take(told("u", "BackOff", "again"), *n).is_some()).count();
        assert_eq!(passed as u64, BURST);
        assert!(events.take(told("v", "BackOff", "again"), 1_000).is_some());
        let later = events.take(told("u", "BackOff", "again"), 1_000 + REFILL_MS).unwrap();
        assert_eq!(later.count, 1_001, "what was not told is counted all the same");
    }

    #[test]
    fn memory_is_bounded() {
        let mut events = Events::default();
        for n in 0..3 * REMEMBERED_MAX as u64 {
            events.take(told(&n.to_string(), "Pulled", &"x".repeat(5_000)), n);
        }
        assert!(events.series.len() <= REMEMBERED_MAX && events.buckets.len() <= REMEMBERED_MAX);
        assert!(events.series.keys().all(|(_, message)| message.len() <= MESSAGE_BYTES_MAX));
        let mut text = "ä".repeat(3);
        cut(&mut text, 3);
        assert_eq!(text, "ä");
    }
}
