//! One object in two forms: an Event of `v1` is an Event of `events.k8s.io/v1` under other names, and a HorizontalPodAutoscaler has two versions. It is stored in
//! the form in which it was written, and read in the form that is asked for.

use super::encode::Stored;
use super::peek::peek_text;
use serde_json::{Map, Value};
use skiff_api::Kind;

/// Names in `v1` and in `events.k8s.io/v1`; what is not listed has one name.
const EVENT: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The object in the form of `kind`; as it is where it has only one.
pub fn as_kind(stored: Stored, kind: &Kind) -> Stored {
    if !matches!(kind.kind.as_str(), "Event" | "HorizontalPodAutoscaler")
        || peek_text(&stored.bytes, &["apiVersion"]).is_none_or(|v| v == kind.api_version())
    {
        return stored;
    }
    let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(&stored.bytes) else { return stored };
    let mut converted = match kind.kind.as_str() {
        "Event" => event(object, !kind.group.is_empty()),
        _ => Value::Object(object),
    };
    match (kind.kind.as_str(), kind.version.as_str()) {
        ("HorizontalPodAutoscaler", "v1") => skiff_api::autoscaling::to_v1(&mut converted),
        ("HorizontalPodAutoscaler", _) => skiff_api::autoscaling::to_v2(&mut converted),
        _ => {}
    }
    if let Some(schema) = skiff_api::schema::Schema::for_kind(kind) {
        schema.normalize(&mut converted);
    }
    Stored { bytes: Stored::encode(&converted, &kind.kind, &kind.api_version()), revision: stored.revision }
}

fn event(object: Map<String, Value>, to_new: bool) -> Value {
    let renamed = |key: String| {
        let pair = EVENT.iter().find(|(core, new)| if to_new { *core == key } else { *new == key });
        match pair {
            Some((core, new)) => (if to_new { new } else { core }).to_string(),
            None => key,
        }
    };
    object.into_iter().map(|(key, value)| (renamed(key), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use skiff_api::kinds;

    #[test]
    fn events_have_two_forms() {
        let core = json!({"metadata": {"name": "e"}, "involvedObject": {"name": "x"}, "message": "m", "count": 2});
        let bytes = Stored::encode(&core, "Event", "v1");
        let new = kinds::by_kind("events.k8s.io", "v1", "Event").expect("a kind");
        let read = as_kind(Stored { bytes: bytes.clone(), revision: 7 }, &new).decode();
        assert_eq!(
            (&read["regarding"]["name"], &read["note"], &read["deprecatedCount"]),
            (&json!("x"), &json!("m"), &json!(2))
        );
        assert_eq!(read["apiVersion"], "events.k8s.io/v1");
        let same =
            as_kind(Stored { bytes: bytes.clone(), revision: 7 }, &kinds::by_kind("", "v1", "Event").expect("a kind"));
        assert_eq!(same.bytes, bytes);
    }
}
