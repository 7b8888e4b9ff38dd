//! `scale`: how many replicas, for every kind that has them, in one shape (`autoscaling/v1` Scale).

use crate::call::{Answer, Call};
use crate::decode;
use crate::state::{Fresh, State};
use crate::sub::scale_managers;
use crate::verbs::patch::{self, Document};
use crate::verbs::update::{Changed, change};
use crate::verbs::{options, update};
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::schema::Schema;
use skiff_api::status::Status;
use skiff_api::validate::FieldError;
use skiff_api::{Kind, apply, kinds, meta};

/// The Scale of an object.
fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({"name": meta::name(object), "namespace": meta::namespace(object)});
    for key in ["uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta::at(object, &["metadata", key]) {
            metadata[key] = value.clone();
        }
    }
    let mut spec = json!({});
    if let Some(replicas) = meta::i64_at(object, &["spec", "replicas"]).filter(|r| *r != 0) {
        spec["replicas"] = json!(replicas);
    }
    let mut status = json!({"replicas": meta::i64_at(object, &["status", "replicas"]).unwrap_or(0)});
    let selector = selector_text(object.get("spec").and_then(|s| s.get("selector")).unwrap_or(&Value::Null));
    if !selector.is_empty() {
        status["selector"] = json!(selector);
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A selector in the form of a query: `app=d,t notin (a,b)`.
fn selector_text(selector: &Value) -> String {
    let Some(map) = selector.as_object() else { return String::new() };
    let mut parts: Vec<(String, String)> = Vec::new();
    let plain = !map.contains_key("matchLabels") && !map.contains_key("matchExpressions");
    let labels = if plain { Some(map) } else { meta::map_at(selector, &["matchLabels"]) };
    for (key, value) in labels.into_iter().flatten() {
        parts.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for expression in meta::list_at(selector, &["matchExpressions"]) {
        let key = meta::str_at(expression, &["key"]);
        let mut values: Vec<&str> = meta::list_at(expression, &["values"]).iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let text = match meta::str_at(expression, &["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_string(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_string(), text));
    }
    parts.sort();
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

pub async fn handle(state: &State, call: &mut Call) -> Result<Answer, Status> {
    if call.info.verb == "get" {
        let found = state.must_read(&call.kind, call.namespace(), call.name(), Fresh::Linearizable).await?;
        return Ok(Answer::Value { code: 200, value: scale_of(&found.decode()) });
    }
    let scale_kind =
        kinds::Kind { group: "autoscaling".into(), version: "v1".into(), kind: "Scale".into(), ..Default::default() };
    let patch = match call.info.verb.as_str() {
        "patch" => Some(Document::read(call)?),
        _ => None,
    };
    options::check(call, if patch.is_some() { "PatchOptions" } else { "UpdateOptions" })?;
    let sent = match patch {
        Some(_) => None,
        None => {
            let sent = decode::object_of(call, &scale_kind)?;
            update::check_name(call, &sent)?;
            Some(sent)
        }
    };
    if let Some(Document::Apply(applied)) = &patch {
        patch::check_applied(call, &scale_kind, applied)?;
    }
    let answer = change(state, call, |call, old| {
        if let Some(Document::Apply(applied)) = &patch {
            return applied_to(call, &scale_kind, old, applied);
        }
        let scale = match (&patch, &sent) {
            (Some(document), _) => patched(document, &scale_of(old))?,
            (None, Some(sent)) => sent.clone(),
            (None, None) => scale_of(old),
        };
        let replicas = replicas_of(call, &scale)?;
        let mut object = old.clone();
        match meta::resource_version(&scale) {
            "" => meta::unset(&mut object, "resourceVersion"),
            version => meta::set(&mut object, "resourceVersion", version),
        }
        object["spec"]["replicas"] = json!(replicas);
        Ok(Changed { object, tracked: false })
    })
    .await?;
    match answer {
        Answer::Object { object, .. } => Ok(Answer::Value { code: 200, value: scale_of(&object.decode()) }),
        other => Ok(other),
    }
}

fn replicas_of(call: &Call, scale: &Value) -> Result<i64, Status> {
    let replicas = meta::i64_at(scale, &["spec", "replicas"]).unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", call.name(), &[error]));
    }
    Ok(replicas)
}

/// What an applied Scale makes of the object: the replicas, and who owns them.
fn applied_to(call: &Call, kind: &Kind, old: &Value, applied: &Value) -> Result<Changed, Status> {
    let Some(schema) = Schema::for_kind(kind) else { return Err(Status::internal_error("a Scale has no schema")) };
    let version = meta::resource_version(applied);
    if !version.is_empty() && version != meta::resource_version(old) {
        return Err(call.conflict(call.name(), Status::MODIFIED));
    }
    let mut scale = scale_of(old);
    meta::set(&mut scale, "managedFields", scale_managers::of_scale(&call.kind, old));
    let (manager, force) = (call.manager(), call.query.flag("force"));
    let scale = apply::apply(kind, schema, Some(&scale), applied, &manager, force, "scale", Timestamp::now())?;
    let mut object = old.clone();
    object["spec"]["replicas"] = json!(replicas_of(call, &scale)?);
    meta::set(&mut object, "managedFields", scale_managers::of_object(&call.kind, old, &scale));
    meta::unset(&mut object, "resourceVersion");
    Ok(Changed { object, tracked: true })
}

fn patched(document: &Document, scale: &Value) -> Result<Value, Status> {
    match document {
        // A Scale has no lists: the strategic patch is the merge patch.
        Document::Strategic(value) => skiff_api::patch::merge_patch(scale, value),
        other => other.patched(&kinds::Kind::default(), scale),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_become_queries() {
        let selector = json!({"matchLabels": {"app": "d"}, "matchExpressions": [
            {"key": "t", "operator": "NotIn", "values": ["b", "a"]}, {"key": "e", "operator": "Exists"}]});
        assert_eq!(selector_text(&selector), "app=d,e,t notin (a,b)");
        assert_eq!(selector_text(&json!({"a": "b"})), "a=b");
    }
}
