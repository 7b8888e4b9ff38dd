//! The versions of one key, and the changes of all keys, in as little memory as they need: most keys have one version.

use crate::types::*;
use std::ops::Deref;
use std::sync::Arc;

/// All versions of one key since the last compaction, oldest first. A version with `version == 0` is a deletion.
pub enum History {
    One(Arc<KeyValue>),
    Many(Vec<Arc<KeyValue>>),
}

impl Default for History {
    fn default() -> Self {
        History::Many(Vec::new())
    }
}

impl Deref for History {
    type Target = [Arc<KeyValue>];
    fn deref(&self) -> &[Arc<KeyValue>] {
        match self {
            History::One(kv) => std::slice::from_ref(kv),
            History::Many(all) => all,
        }
    }
}

impl History {
    /// Adds the newest version.
    pub fn push(&mut self, kv: Arc<KeyValue>) {
        *self = match std::mem::take(self) {
            History::Many(all) if all.is_empty() => History::One(kv),
            History::One(first) => History::Many(vec![first, kv]),
            History::Many(mut all) => {
                all.push(kv);
                History::Many(all)
            }
        };
    }

    /// Drops the oldest versions.
    pub fn drop_oldest(&mut self, count: usize) {
        *self = match std::mem::take(self) {
            History::One(kv) if count == 0 => History::One(kv),
            History::One(_) => History::default(),
            History::Many(mut all) => {
                all.drain(..count.min(all.len()));
                match all.len() {
                    1 => all.pop().map_or_else(History::default, History::One),
                    0 => History::default(),
                    len => {
                        if all.capacity() > 2 * len + 4 {
                            all.shrink_to_fit();
                        }
                        History::Many(all)
                    }
                }
            }
        };
    }
}

/// One change of one key, as history keeps it.
pub struct Change {
    pub kv: Arc<KeyValue>,
    pub prev: Option<Arc<KeyValue>>,
}

impl Change {
    pub fn of(event: &Event) -> Change {
        Change { kv: event.kv.clone(), prev: event.prev.clone() }
    }

    pub fn revision(&self) -> Revision {
        self.kv.mod_revision
    }

    /// What watchers are told of it.
    pub fn event(&self) -> Arc<Event> {
        let kind = if self.kv.version == 0 { EventKind::Delete } else { EventKind::Put };
        Arc::new(Event { kind, kv: self.kv.clone(), prev: self.prev.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_and_go_in_order() {
        let version = |version| {
            let (key, value) = ("k".into(), "v".into());
            Arc::new(KeyValue { key, value, create_revision: 1, mod_revision: version, version, lease: 0 })
        };
        let mut history = History::default();
        let check = |history: &History, expect: &[u64]| {
            assert_eq!(history.iter().map(|kv| kv.version).collect::<Vec<_>>(), expect);
        };
        check(&history, &[]);
        for n in 1..=4 {
            history.push(version(n));
            check(&history, &(1..=n).collect::<Vec<_>>());
        }
        history.drop_oldest(0);
        check(&history, &[1, 2, 3, 4]);
        history.drop_oldest(1);
        check(&history, &[2, 3, 4]);
        history.drop_oldest(2);
        assert!(matches!(history, History::One(_)));
        history.push(version(5));
        check(&history, &[4, 5]);
        history.drop_oldest(2);
        check(&history, &[]);
    }
}
