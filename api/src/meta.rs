//! Reading and writing the parts that every object has: `metadata`, times, owner references.
//!
//! Accessors never panic: what is absent or of another type reads as empty. Name rules are in [`names`].

pub mod names;

use jiff::Timestamp;
use serde_json::{Map, Value};

/// The string at `obj.a.b`, empty when absent.
pub fn str_at<'a>(obj: &'a Value, path: &[&str]) -> &'a str {
    at(obj, path).and_then(Value::as_str).unwrap_or("")
}

/// The value at `obj.a.b`.
pub fn at<'a>(obj: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(obj, |v, key| v.get(*key))
}

/// The integer at `obj.a.b`.
pub fn i64_at(obj: &Value, path: &[&str]) -> Option<i64> {
    at(obj, path).and_then(Value::as_i64)
}

/// The boolean at `obj.a.b`, false when absent.
pub fn bool_at(obj: &Value, path: &[&str]) -> bool {
    at(obj, path).and_then(Value::as_bool).unwrap_or(false)
}

/// The list at `obj.a.b`, empty when absent.
pub fn list_at<'a>(obj: &'a Value, path: &[&str]) -> &'a [Value] {
    at(obj, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The object at `obj.a.b`.
pub fn map_at<'a>(obj: &'a Value, path: &[&str]) -> Option<&'a Map<String, Value>> {
    at(obj, path).and_then(Value::as_object)
}

pub fn api_version(obj: &Value) -> &str {
    str_at(obj, &["apiVersion"])
}
pub fn kind(obj: &Value) -> &str {
    str_at(obj, &["kind"])
}
pub fn name(obj: &Value) -> &str {
    str_at(obj, &["metadata", "name"])
}
pub fn generate_name(obj: &Value) -> &str {
    str_at(obj, &["metadata", "generateName"])
}
pub fn namespace(obj: &Value) -> &str {
    str_at(obj, &["metadata", "namespace"])
}
pub fn uid(obj: &Value) -> &str {
    str_at(obj, &["metadata", "uid"])
}
pub fn resource_version(obj: &Value) -> &str {
    str_at(obj, &["metadata", "resourceVersion"])
}
pub fn generation(obj: &Value) -> i64 {
    i64_at(obj, &["metadata", "generation"]).unwrap_or(0)
}
pub fn labels(obj: &Value) -> Option<&Map<String, Value>> {
    map_at(obj, &["metadata", "labels"])
}
pub fn label<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    labels(obj)?.get(key)?.as_str()
}
pub fn annotations(obj: &Value) -> Option<&Map<String, Value>> {
    map_at(obj, &["metadata", "annotations"])
}
pub fn annotation<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    annotations(obj)?.get(key)?.as_str()
}
pub fn finalizers(obj: &Value) -> Vec<&str> {
    list_at(obj, &["metadata", "finalizers"]).iter().filter_map(Value::as_str).collect()
}
pub fn owner_references(obj: &Value) -> &[Value] {
    list_at(obj, &["metadata", "ownerReferences"])
}
/// The one owner reference with `controller: true`.
pub fn controller_of(obj: &Value) -> Option<&Value> {
    owner_references(obj).iter().find(|r| bool_at(r, &["controller"]))
}
pub fn creation_timestamp(obj: &Value) -> Option<Timestamp> {
    time_at(obj, &["metadata", "creationTimestamp"])
}
pub fn deletion_timestamp(obj: &Value) -> Option<Timestamp> {
    time_at(obj, &["metadata", "deletionTimestamp"])
}
pub fn is_being_deleted(obj: &Value) -> bool {
    at(obj, &["metadata", "deletionTimestamp"]).is_some_and(|v| !v.is_null())
}

/// The RFC 3339 time at `obj.a.b`.
pub fn time_at(obj: &Value, path: &[&str]) -> Option<Timestamp> {
    str_at(obj, path).parse().ok()
}

/// Sets `metadata.key`, making `metadata` when it is not there.
pub fn set(obj: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(meta) = metadata_mut(obj) {
        meta.insert(key.to_string(), value.into());
    }
}

/// Removes `metadata.key`.
pub fn unset(obj: &mut Value, key: &str) {
    if let Some(meta) = obj.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.shift_remove(key);
    }
}

/// `metadata` as a map; None when `obj` is not an object.
pub fn metadata_mut(obj: &mut Value) -> Option<&mut Map<String, Value>> {
    let meta = obj.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !meta.is_object() {
        *meta = Value::Object(Map::new());
    }
    meta.as_object_mut()
}

/// Sets the label `key`.
pub fn set_label(obj: &mut Value, key: &str, value: &str) {
    set_in(obj, "labels", key, value);
}

/// Sets the annotation `key`.
pub fn set_annotation(obj: &mut Value, key: &str, value: &str) {
    set_in(obj, "annotations", key, value);
}

fn set_in(obj: &mut Value, field: &str, key: &str, value: &str) {
    let Some(meta) = metadata_mut(obj) else { return };
    let map = meta.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !map.is_object() {
        *map = Value::Object(Map::new());
    }
    if let Some(map) = map.as_object_mut() {
        map.insert(key.to_string(), value.into());
    }
}

/// `2026-01-02T03:04:05Z`, the form of `metav1.Time`.
pub fn format_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time of the API (RFC 3339, up to the year 9999). The last hours of that year are beyond what can be counted here: they are read as the last time that can,
/// so that whoever reads the object later can read it, too.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    if let Ok(at) = text.parse() {
        return Some(at);
    }
    // Whether it is a time at all is the same two years earlier.
    let earlier = format!("9997{}", text.strip_prefix("9999")?);
    earlier.parse::<Timestamp>().ok().map(|_| Timestamp::MAX)
}

/// `at` and so many seconds (before it, where negative); the end of time where it would be later than that.
pub fn seconds_after(at: Timestamp, seconds: i64) -> Timestamp {
    let end = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(end)
}

/// `2026-01-02T03:04:05.000006Z`, the form of `metav1.MicroTime`.
pub fn format_micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times() {
        let at: Timestamp = "2026-01-02T03:04:05.000006789Z".parse().expect("a time");
        assert_eq!(format_time(at), "2026-01-02T03:04:05Z");
        assert_eq!(format_micro_time(at), "2026-01-02T03:04:05.000006Z");
    }

    #[test]
    fn times_end_with_the_year_9999() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(parse_time(text).map(format_time).as_deref(), expect, "{text}");
        };
        check("2026-01-02T03:04:05.6+02:00", Some("2026-01-02T01:04:05Z"));
        check("9999-12-30T21:00:00Z", Some("9999-12-30T21:00:00Z"));
        check("9999-12-31T23:59:59Z", Some("9999-12-30T22:00:00Z"));
        check("9999-12-31T23:59:59.999999-05:00", Some("9999-12-30T22:00:00Z"));
        check("9999-12-31T23:59:60", None);
        check("9999-12-32T23:59:59Z", None);
        check("9999-12-31T23:59:59ZZ", None);
        check("9999-02-29T00:00:00Z", None);
        check("10000-01-01T00:00:00Z", None);
        check("", None);
    }

    #[test]
    fn accessors_survive_odd_objects() {
        for odd in [json!(null), json!([1]), json!({"metadata": 3}), json!({"metadata": {"labels": "x", "name": 7}})] {
            assert_eq!(name(&odd), "");
            assert!(labels(&odd).is_none());
            assert!(owner_references(&odd).is_empty());
        }
        let mut odd = json!({"metadata": []});
        set_label(&mut odd, "a", "b");
        assert_eq!(odd, json!({"metadata": {"labels": {"a": "b"}}}));
    }
}
