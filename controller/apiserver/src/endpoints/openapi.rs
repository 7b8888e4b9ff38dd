//! OpenAPI: version 3, one document a group and version, each under its hash; version 2 with what old clients need.

use super::Asked;
use super::discovery::hex;
use crate::http::respond;
use axum::response::Response;
use http::header::{CACHE_CONTROL, HeaderValue, LOCATION};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};
use skiff_api::schema::openapi_v3;
use skiff_api::{Kind, kinds};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// A document, ready to send.
struct Document {
    text: Vec<u8>,
    hash: String,
}

/// By path below `/openapi/v3/`, such as `api/v1` or `apis/apps/v1`.
static DOCUMENTS: LazyLock<BTreeMap<String, Document>> = LazyLock::new(|| {
    let mut kinds_of: BTreeMap<String, Vec<Arc<Kind>>> = BTreeMap::new();
    for kind in kinds::builtin() {
        let path = match kind.group.as_str() {
            "" => format!("api/{}", kind.version),
            group => format!("apis/{group}/{}", kind.version),
        };
        kinds_of.entry(path).or_default().push(kind.clone());
    }
    let made = kinds_of.into_iter().map(|(path, kinds)| {
        let version = kinds.first().map(|k| k.api_version()).unwrap_or_default();
        let mut document = openapi_v3(&version, &kinds);
        document["paths"] = super::paths::of(&kinds);
        let text = document.to_string().into_bytes();
        let hash = hex(&Sha512::digest(&text)).to_ascii_uppercase();
        (path, Document { text, hash })
    });
    made.collect()
});

pub fn v3(asked: &Asked<'_>, path: &str) -> Result<Response, skiff_api::Status> {
    if path.is_empty() {
        let mut paths = Map::new();
        for (path, document) in DOCUMENTS.iter() {
            let url = format!("/openapi/v3/{path}?hash={}", document.hash);
            paths.insert(path.clone(), json!({"serverRelativeURL": url}));
        }
        return asked.json(&json!({"paths": paths}));
    }
    let Some(document) = DOCUMENTS.get(path) else {
        let mut empty = Response::default();
        *empty.status_mut() = http::StatusCode::NOT_FOUND;
        return Ok(empty);
    };
    match asked.query.text("hash") {
        "" => Ok(respond::response(200, "application/json", document.text.clone())),
        hash if hash == document.hash => {
            let mut response = respond::response(200, "application/json", document.text.clone());
            // Whoever asks by the hash may keep the answer for good.
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
            Ok(response)
        }
        _ => {
            let mut response = respond::response(301, "application/json", Vec::new());
            let location = format!("/openapi/v3/{path}?hash={}", document.hash);
            if let Ok(location) = HeaderValue::from_str(&location) {
                response.headers_mut().insert(LOCATION, location);
            }
            Ok(response)
        }
    }
}

/// Version 2 from the same schemas: references and names as version 2 has them, no paths.
pub fn v2() -> Value {
    let mut definitions = Map::new();
    for document in DOCUMENTS.values() {
        let parsed: Value = serde_json::from_slice(&document.text).unwrap_or_default();
        if let Some(schemas) = parsed.pointer("/components/schemas").and_then(Value::as_object) {
            for (name, schema) in schemas {
                let mut schema = schema.clone();
                to_v2(&mut schema);
                definitions.insert(name.clone(), schema);
            }
        }
    }
    let version = super::version();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version["gitVersion"]},
        "paths": {},
        "definitions": definitions,
    })
}

fn to_v2(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref") {
                *reference = reference.replace("#/components/schemas/", "#/definitions/");
            }
            // Version 3 wraps a reference in allOf where it stands beside a default.
            if let Some(Value::Array(all)) = map.get("allOf")
                && let [only] = all.as_slice()
                && only.get("$ref").is_some()
            {
                let only = only.clone();
                map.shift_remove("allOf");
                map.shift_remove("default");
                if let Value::Object(inner) = only {
                    map.extend(inner);
                }
            }
            map.values_mut().for_each(to_v2);
        }
        Value::Array(list) => list.iter_mut().for_each(to_v2),
        _ => {}
    }
    if let Value::Object(map) = schema
        && let Some(Value::String(reference)) = map.get_mut("$ref")
    {
        *reference = reference.replace("#/components/schemas/", "#/definitions/");
    }
}
