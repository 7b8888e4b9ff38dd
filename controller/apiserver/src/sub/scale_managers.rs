//! Who wrote the replicas, as a Scale and as its object say it: the same managers, of one field that has a path in each.
//!
//! Source: KEP-555 "Server-side Apply", managed fields of the scale subresource: an entry that owns the replicas is shown as the Scale's own; what an applier takes
//! through the Scale is taken from the others on the object.

use serde_json::{Value, json};
use skiff_api::kinds::split_api_version;
use skiff_api::{Kind, meta};

const SCALE: &str = "autoscaling/v1";

fn entries(object: &Value) -> &[Value] {
    meta::list_at(object, &["metadata", "managedFields"])
}

fn owns(entry: &Value) -> bool {
    entry.pointer("/fieldsV1/f:spec/f:replicas").is_some()
}

fn replicas() -> Value {
    json!({"f:spec": {"f:replicas": {}}})
}

/// An entry belongs to a manager, an operation and a path.
fn is_same(a: &Value, b: &Value) -> bool {
    ["manager", "operation", "subresource"].iter().all(|key| meta::str_at(a, &[key]) == meta::str_at(b, &[key]))
}

/// The entries of a Scale of this object.
pub fn of_scale(kind: &Kind, object: &Value) -> Vec<Value> {
    let of_kind = |entry: &&Value| split_api_version(meta::str_at(entry, &["apiVersion"])).0 == kind.group;
    let shown = |entry: &Value| {
        let mut entry = entry.clone();
        entry["apiVersion"] = json!(SCALE);
        entry["fieldsV1"] = replicas();
        entry
    };
    entries(object).iter().filter(of_kind).filter(|entry| owns(entry)).map(shown).collect()
}

/// The entries of the object, after those of its Scale have become `scale`.
pub fn of_object(kind: &Kind, object: &Value, scale: &Value) -> Vec<Value> {
    let mut taken: Vec<&Value> = entries(scale).iter().filter(|entry| owns(entry)).collect();
    let mut out = Vec::new();
    for entry in entries(object) {
        if let Some(at) = taken.iter().position(|t| owns(entry) && is_same(t, entry)) {
            taken.remove(at);
            out.push(entry.clone());
        } else {
            out.extend(without_replicas(entry));
        }
    }
    out.extend(taken.into_iter().map(|entry| {
        let mut entry = entry.clone();
        entry["apiVersion"] = json!(kind.api_version());
        entry["fieldsV1"] = replicas();
        // No time is kept with what came through a Scale.
        entry.as_object_mut().map(|map| map.shift_remove("time"));
        entry
    }));
    // Appliers first, then by time: the order in which they are kept.
    out.sort_by_key(|e| (meta::str_at(e, &["operation"]) != "Apply", meta::str_at(e, &["time"]).to_string()));
    out
}

/// None when nothing is left.
fn without_replicas(entry: &Value) -> Option<Value> {
    let mut entry = entry.clone();
    if owns(&entry) {
        let fields = entry.get_mut("fieldsV1")?.as_object_mut()?;
        let spec = fields.get_mut("f:spec")?.as_object_mut()?;
        spec.shift_remove("f:replicas");
        // What is left of it may be the sign that the map itself is owned.
        if spec.is_empty() {
            fields.shift_remove("f:spec");
        }
        if fields.is_empty() {
            return None;
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_api::kinds;

    fn entry(manager: &str, operation: &str, version: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": version, "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn entries_go_there_and_back() {
        let kind = kinds::by_kind("apps", "v1", "Deployment").unwrap();
        let whole = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let owner = entry("a", "Update", "apps/v1", whole);
        let only = entry("b", "Apply", "apps/v1", replicas());
        let other = entry("c", "Update", "apps/v1", json!({"f:metadata": {}}));
        let object = json!({"metadata": {"managedFields": [owner, only, other]}});
        let shown = of_scale(&kind, &object);
        assert_eq!(shown, [entry("a", "Update", SCALE, replicas()), entry("b", "Apply", SCALE, replicas())]);
        // Nothing has changed.
        let back = of_object(&kind, &object, &json!({"metadata": {"managedFields": shown}}));
        assert_eq!(back, [only, owner, other.clone()]);
        // Somebody has taken it from both.
        let mut taker = entry("d", "Apply", SCALE, replicas());
        taker["subresource"] = json!("scale");
        let taken = of_object(&kind, &object, &json!({"metadata": {"managedFields": [taker]}}));
        let mut expect = json!({"manager": "d", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": replicas()});
        expect["subresource"] = json!("scale");
        assert_eq!(taken, [expect, entry("a", "Update", "apps/v1", json!({"f:spec": {"f:paused": {}}})), other]);
    }
}
