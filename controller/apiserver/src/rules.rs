//! Rules of object metadata that hold for every kind: who is the system's own, names that are generated, owners once.

use crate::call::Call;
use jiff::Timestamp;
use serde_json::{Map, Value};
use skiff_api::Kind;
use skiff_api::apply;
use skiff_api::meta;
use skiff_api::schema::TypeDef;

/// The characters of generated suffixes: no vowels, so that no words come out.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LEN: usize = 5;
/// A generated name is cut so that the suffix fits in a DNS label.
const GENERATED_BASE_MAX: usize = 63 - SUFFIX_LEN;

pub fn random_suffix() -> String {
    (0..SUFFIX_LEN).map(|_| SUFFIX_ALPHABET[rand::random_range(0..SUFFIX_ALPHABET.len())] as char).collect()
}

/// A version 4 UUID (RFC 9562).
pub fn new_uid() -> String {
    let mut b: [u8; 16] = rand::random();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|x| format!("{x:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Fills `metadata.name` from `metadata.generateName`.
pub fn generate_name(object: &mut Value) {
    let mut base = meta::generate_name(object).to_string();
    while base.len() > GENERATED_BASE_MAX {
        base.pop();
    }
    meta::set(object, "name", format!("{base}{}", random_suffix()));
}

/// What the server says of a new object, whatever the client said.
pub fn stamp_new(object: &mut Value, now: Timestamp) {
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        meta::unset(object, key);
    }
    meta::set(object, "uid", new_uid());
    meta::set(object, "creationTimestamp", meta::format_time(now));
    order_metadata(object);
}

/// What the server keeps of an old object, whatever the client sends.
pub fn keep_system_fields(new: &mut Value, old: &Value) {
    for key in ["creationTimestamp", "generation"] {
        match meta::at(old, &["metadata", key]) {
            Some(value) => meta::set(new, key, value.clone()),
            None => meta::unset(new, key),
        }
    }
    // What a client sends in these counts only where the old object has nothing to keep: then it is told that it may not.
    for (key, always) in [("deletionTimestamp", true), ("uid", false), ("deletionGracePeriodSeconds", false)] {
        let sent = meta::at(new, &["metadata", key]).is_some_and(|v| !v.is_null() && v != "");
        if let Some(value) = meta::at(old, &["metadata", key]).filter(|_| always || !sent) {
            meta::set(new, key, value.clone());
        }
    }
    meta::set(new, "name", meta::name(old));
    match meta::namespace(old) {
        "" => meta::unset(new, "namespace"),
        ns => meta::set(new, "namespace", ns),
    }
    meta::unset(new, "selfLink");
    order_metadata(new);
}

/// Metadata in the order in which people are used to read it.
fn order_metadata(object: &mut Value) {
    const ORDER: [&str; 13] = [
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
        "ownerReferences",
        "finalizers",
    ];
    let Some(metadata) = meta::metadata_mut(object) else { return };
    let mut old = std::mem::take(metadata);
    let mut ordered = Map::new();
    for key in ORDER {
        if let Some(value) = old.shift_remove(key) {
            ordered.insert(key.to_string(), value);
        }
    }
    ordered.extend(old);
    *metadata = ordered;
}

/// Records who wrote which field. The status of an ordinary write is not the writer's: it is dropped later.
#[allow(clippy::too_many_arguments, reason = "each is a part of the write")]
pub fn track(
    kind: &Kind,
    schema: &TypeDef,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    operation: apply::Operation,
    subresource: &str,
    now: Timestamp,
) {
    let dropped = match (subresource, old) {
        ("", None) if kind.has_status() => new.as_object_mut().and_then(|m| m.shift_remove("status")),
        _ => None,
    };
    apply::track_update(schema, old, new, manager, operation, subresource, now);
    if subresource == "scale" {
        untime_scale(new, manager);
    }
    if let (Some(status), Some(map)) = (dropped, new.as_object_mut()) {
        map.insert("status".into(), status);
    }
}

/// The reference server keeps no time with what was written through a scale, and a scale to zero owns nothing: there the
/// field is absent.
fn untime_scale(object: &mut Value, manager: &str) {
    let is_zero = meta::i64_at(object, &["spec", "replicas"]) == Some(0);
    let fields = object.get_mut("metadata").and_then(|m| m.get_mut("managedFields")).and_then(Value::as_array_mut);
    let Some(fields) = fields else { return };
    if is_zero {
        fields.retain(|e| meta::str_at(e, &["subresource"]) != "scale" || meta::str_at(e, &["manager"]) != manager);
    }
    for entry in fields.iter_mut() {
        if meta::str_at(entry, &["subresource"]) == "scale"
            && meta::str_at(entry, &["manager"]) == manager
            && let Some(entry) = entry.as_object_mut()
        {
            entry.shift_remove("time");
        }
    }
    // Appliers first, then by time: the order in which they are kept.
    let place = |e: &Value| (meta::str_at(e, &["operation"]) != "Apply", meta::str_at(e, &["time"]).to_string());
    fields.sort_by_key(place);
}

/// The same owner twice is one owner; the client is told.
pub fn dedupe_owners(call: &mut Call, object: &mut Value) {
    let owners = meta::owner_references(object).to_vec();
    let mut kept: Vec<Value> = Vec::with_capacity(owners.len());
    for owner in owners.iter() {
        if !kept.contains(owner) {
            kept.push(owner.clone());
        }
    }
    if kept.len() < owners.len() {
        call.warn(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may \
             reject such requests as early as 1.24; please fix your requests",
        );
        meta::set(object, "ownerReferences", kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn generated_names_fit() {
        let mut object = json!({"metadata": {"generateName": "a".repeat(70)}});
        generate_name(&mut object);
        assert_eq!(meta::name(&object).len(), 63);
        let uid = new_uid();
        assert_eq!((uid.len(), &uid[14..15]), (36, "4"));
    }
}
