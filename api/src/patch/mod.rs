//! The three patches that are documents: JSON patch, JSON merge patch, strategic merge patch.
//!
//! Each takes the current document and yields the next; decoding, defaulting and validation of the outcome follow
//! elsewhere. Server-side apply, the fourth kind, is in [`crate::apply`].

mod json;
mod strategic;

use crate::schema::TypeDef;
use crate::status::{Details, Status};
use crate::validate::FieldError;
use serde_json::{Map, Value};

pub use json::json_patch;

/// RFC 7386. Null removes, objects merge, everything else replaces.
pub fn merge_patch(doc: &Value, patch: &Value) -> Result<Value, Status> {
    match patch {
        Value::Object(_) => {
            let mut out = doc.clone();
            merge(&mut out, patch);
            Ok(out)
        }
        Value::Null => Err(Status::bad_request("Invalid JSON Patch")),
        other => Err(not_a_map(other)),
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, value) in members {
        if value.is_null() {
            map.shift_remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Kubernetes' strategic merge patch: lists of objects merge by key, and directives (`$patch`, `$retainKeys`,
/// `$setElementOrder/x`, `$deleteFromPrimitiveList/x`) say what merging cannot.
pub fn strategic(schema: &TypeDef, doc: &Value, patch: &Value) -> Result<Value, Status> {
    let empty = Map::new();
    let members = match patch {
        Value::Object(members) => members,
        Value::Null => &empty,
        other => return Err(not_a_map(other)),
    };
    let mut out = doc.as_object().cloned().unwrap_or_default();
    strategic::merge_map(&mut out, members, Some(schema))?;
    Ok(Value::Object(out))
}

/// The body of a merge or strategic merge patch.
pub fn decode(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body).map_err(|e| undecodable_body(&e))
}

/// The patched document does not fit its types (`problem`, from the decoder).
pub fn does_not_decode(doc: &Value, problem: &str) -> Status {
    Status::invalid("", "", "", &[FieldError::invalid("patch", doc.to_string(), problem)])
}

/// The patch cannot be carried out on this document: no such path, a test that failed.
fn cannot_be_carried_out() -> Status {
    let message = "the server rejected our request due to an error in our request";
    Status::failure(422, "Invalid", message).with_details(Details::default())
}

fn undecodable_body(error: &serde_json::Error) -> Status {
    let text = if error.is_eof() { "unexpected end of JSON input".to_string() } else { format!("{error}") };
    Status::bad_request(format!("error decoding patch: {text}"))
}

fn not_a_map(found: &Value) -> Status {
    let text = format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", kind_of(found));
    Status::bad_request(format!("error decoding patch: {text}"))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merge_patches() {
        let check = |doc: Value, patch: Value, expect: Value| assert_eq!(merge_patch(&doc, &patch), Ok(expect));
        check(json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": null, "d": [1]}}), json!({"a": {"c": 2, "d": [1]}}));
        check(json!({"a": [1]}), json!({"a": {"b": null, "c": {"d": null}}}), json!({"a": {"c": {}}}));
        assert_eq!(merge_patch(&json!({}), &json!(null)).expect_err("null").message, "Invalid JSON Patch");
        assert_eq!(decode(b"{").expect_err("cut").message, "error decoding patch: unexpected end of JSON input");
    }
}
