//! A Job's selector: made of its uid, so that two jobs never take each other's pods.

use crate::meta;
use serde_json::{Map, Value, json};

pub(super) fn create_job(obj: &mut Value) {
    if meta::bool_at(obj, &["spec", "manualSelector"]) {
        return;
    }
    let (uid, name) = (meta::uid(obj).to_string(), meta::name(obj).to_string());
    let labels = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ];
    let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(template) = spec.get_mut("template") {
        for (key, value) in labels {
            // A label that is there with another value stays: validation then tells that the selector does not fit.
            if meta::label(template, key).is_none() {
                meta::set_label(template, key, value);
            }
        }
    }
    let selector = spec.entry("selector").or_insert_with(|| Value::Object(Map::new()));
    if !selector.is_object() {
        *selector = json!({});
    }
    if let Some(selector) = selector.as_object_mut() {
        let wanted = selector.entry("matchLabels").or_insert_with(|| json!({}));
        if let Some(wanted) = wanted.as_object_mut()
            && !wanted.contains_key("batch.kubernetes.io/controller-uid")
        {
            wanted.insert("batch.kubernetes.io/controller-uid".into(), uid.clone().into());
        }
    }
    // A job without labels of its own is labelled as its pods are.
    if meta::labels(obj).is_none_or(Map::is_empty)
        && let Some(labels) = obj.pointer("/spec/template/metadata/labels").cloned()
    {
        meta::set(obj, "labels", labels);
    }
}
