//! `patch`: the four ways to say what should change, each a function of the current object.

use crate::call::{Answer, Body, Call};
use crate::decode::{self, FieldValidation};
use crate::state::{Fresh, State};
use crate::verbs::update::{Changed, change, check_name};
use crate::verbs::{create, options};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use skiff_api::schema::{Schema, TypeDef};
use skiff_api::status::Status;
use skiff_api::validate::FieldError;
use skiff_api::{Kind, apply, defaults, meta, patch};

/// Media types of patches.
pub const JSON: &str = "application/json-patch+json";
pub const MERGE: &str = "application/merge-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const APPLY: &str = "application/apply-patch+yaml";

const ACCEPTED: &[&str] = &[JSON, MERGE, STRATEGIC, APPLY];

/// A patch that has been read.
pub enum Document {
    Json(Bytes),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

impl Document {
    /// Reads the body of a patch.
    pub fn read(call: &Call) -> Result<Self, Status> {
        let Body::Raw { bytes, media } = &call.body else {
            return Err(Status::unsupported_media_type(ACCEPTED));
        };
        let decoded = |problem: String| Status::bad_request(format!("error decoding patch: {problem}"));
        let map = |bytes: &Bytes| -> Result<Value, Status> {
            let value = decode::json(bytes).map_err(decoded)?.value;
            match value {
                Value::Null => Err(Status::bad_request("Invalid JSON Patch")),
                Value::Object(_) => Ok(value),
                other => Err(decoded(format!(
                    "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                    json_type(&other)
                ))),
            }
        };
        match media.as_str() {
            JSON => {
                let value = decode::json(bytes).map_err(decoded)?.value;
                if !value.is_array() {
                    let found = json_type(&value);
                    return Err(decoded(format!(
                        "json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
                    )));
                }
                Ok(Document::Json(bytes.clone()))
            }
            MERGE => Ok(Document::Merge(map(bytes)?)),
            STRATEGIC => Ok(Document::Strategic(map(bytes)?)),
            APPLY => {
                let document = decode::yaml(bytes).map_err(|problem| {
                    Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {problem}"))
                })?;
                Ok(Document::Apply(document.value))
            }
            "application/apply-patch+cbor" => {
                let status = Status::failure(415, "UnsupportedMediaType", "415: Unsupported Media Type");
                Err(status.with_details(Default::default()))
            }
            _ => Err(Status::unsupported_media_type(ACCEPTED)),
        }
    }

    /// The patched document; not for apply, which has its own rules.
    pub fn patched(&self, kind: &Kind, doc: &Value) -> Result<Value, Status> {
        match self {
            Document::Json(bytes) => patch::json_patch(doc, bytes),
            Document::Merge(value) => patch::merge_patch(doc, value),
            Document::Strategic(value) => match Schema::for_kind(kind) {
                Some(schema) => patch::strategic(schema, doc, value),
                None => Err(Status::unsupported_media_type(&[JSON, MERGE, APPLY])),
            },
            Document::Apply(_) => Ok(doc.clone()),
        }
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

pub async fn patch(state: &State, call: &mut Call) -> Result<Answer, Status> {
    let document = Document::read(call)?;
    options::check(call, "PatchOptions")?;
    if let Document::Apply(applied) = document {
        return apply_configuration(state, call, applied).await;
    }
    change(state, call, |call, old| {
        let kind = call.kind.clone();
        let patched = document.patched(&kind, old)?;
        let object = take_patched(call, &kind, patched, &document)?;
        Ok(Changed { object, tracked: false })
    })
    .await
}

/// Checks and completes what a patch made, as if it had been sent whole.
fn take_patched(call: &mut Call, kind: &Kind, mut patched: Value, document: &Document) -> Result<Value, Status> {
    let text = |patched: &Value| match document {
        Document::Strategic(value) => go_map(value),
        _ => patched.to_string(),
    };
    let refuse = |patched: &Value, why: String| {
        let error = FieldError::invalid("patch", text(patched), why);
        Status::invalid("", "", "", &[error])
    };
    if patched.get("kind").is_some() && meta::kind(&patched) != kind.kind {
        let why = format!(
            "no kind {:?} is registered for version {:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            meta::kind(&patched),
            meta::api_version(&patched)
        );
        return Err(refuse(&patched, why));
    }
    let before = patched.clone();
    let mut problems = Vec::new();
    decode::clean(&mut patched, kind, &mut problems).map_err(|why| refuse(&before, why))?;
    decode::tell(call, &problems, |all| refuse(&before, format!("strict decoding error: {all}")))?;
    check_name(call, &patched)?;
    create::check_namespace(call, &mut patched)?;
    defaults::apply_defaults(kind, &mut patched);
    Ok(patched)
}

/// How Go prints a map of anything: `map[spec:map[bar:1]]`.
fn go_map(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(k, _)| k.as_str());
            let parts: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}:{}", go_map(v))).collect();
            format!("map[{}]", parts.join(" "))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(go_map).collect::<Vec<_>>().join(" ")),
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}

/// Server-side apply: creates the object when it is not there.
async fn apply_configuration(state: &State, call: &mut Call, mut applied: Value) -> Result<Answer, Status> {
    let kind = call.kind.clone();
    check_applied(call, &kind, &applied)?;
    let Some(schema) = Schema::for_kind(&kind) else {
        return Err(Status::internal_error(format!("{} has no schema to apply by", kind.kind)));
    };
    if FieldValidation::of(call) != FieldValidation::Ignore
        && let Body::Raw { bytes, .. } = &call.body
    {
        let duplicates = decode::yaml(bytes).map(|d| d.duplicates).unwrap_or_default();
        decode::tell(call, &duplicates, |_| {
            let all = decode::yaml_problem(&duplicates);
            Status::bad_request(format!("error strict decoding YAML: error converting YAML to JSON: {all}"))
        })?;
    }
    let manager = call.manager();
    let force = call.query.flag("force");
    let subresource = call.info.subresource.clone();
    let existing = state.read(&kind, call.key_namespace(), call.name(), Fresh::Linearizable).await?;
    if existing.is_none() {
        if !subresource.is_empty() {
            return Err(call.not_found());
        }
        if !meta::uid(&applied).is_empty() {
            let detail = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                meta::uid(&applied)
            );
            return Err(call.conflict(call.name(), &detail));
        }
        create::require_right(state, call).await?;
        check_name(call, &applied)?;
        meta::unset(&mut applied, "resourceVersion");
        let mut object = apply::apply(&kind, schema, None, &applied, &manager, force, &subresource, Timestamp::now())?;
        check_values(schema, &object)?;
        create::check_namespace(call, &mut object)?;
        defaults::apply_defaults(&kind, &mut object);
        return create::insert(state, call, object, false).await;
    }
    change(state, call, |call, old| {
        let kind = call.kind.clone();
        if !meta::resource_version(&applied).is_empty()
            && meta::resource_version(&applied) != meta::resource_version(old)
        {
            return Err(call.conflict(call.name(), Status::MODIFIED));
        }
        let now = Timestamp::now();
        let mut object = apply::apply(&kind, schema, Some(old), &applied, &manager, force, &subresource, now)?;
        check_values(schema, &object)?;
        meta::unset(&mut object, "resourceVersion");
        defaults::apply_defaults(&kind, &mut object);
        Ok(Changed { object, tracked: true })
    })
    .await
}

/// Merging looks at the shape of values only: a quantity, say, is any string to it.
fn check_values(schema: &TypeDef, object: &Value) -> Result<(), Status> {
    let refuse = |(path, why): (String, String)| Status::bad_request(format!("error decoding {path}: {why}"));
    schema.type_error_at(object).map_or(Ok(()), |found| Err(refuse(found)))
}

/// What an applied configuration must say of itself.
pub fn check_applied(call: &Call, kind: &Kind, applied: &Value) -> Result<(), Status> {
    if !applied.is_object() {
        return Err(Status::bad_request("error decoding YAML: the document is not an object"));
    }
    if meta::kind(applied) != kind.kind || meta::api_version(applied) != kind.api_version() {
        let (group, version) = skiff_api::kinds::split_api_version(meta::api_version(applied));
        let kind = meta::kind(applied);
        return Err(Status::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")));
    }
    if !meta::list_at(applied, &["metadata", "managedFields"]).is_empty() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    if !meta::name(applied).is_empty() {
        check_name(call, applied)?;
    }
    // The namespace is checked, but not added: what is applied is what the client sent.
    create::check_namespace(call, &mut applied.clone())
}
