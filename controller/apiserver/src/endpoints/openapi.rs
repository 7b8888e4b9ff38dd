//! OpenAPI: version 3, one document a group and version, each under its hash; version 2 for clients from before it.
//!
//! Documents are large and seldom asked for, so none is kept: each is made from the schema when a client wants it. Only
//! the hashes stay.

use super::Asked;
use super::discovery::hex;
use super::{openapi_proto, openapi_v2};
use crate::http::respond;
use axum::response::Response;
use http::header::{CACHE_CONTROL, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH, LOCATION, VARY};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};
use skiff_api::schema::openapi_v3;
use skiff_api::status::Status;
use skiff_api::{Kind, kinds};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// The kinds of each document, by path below `/openapi/v3/`, such as `api/v1` or `apis/apps/v1`.
fn documents() -> BTreeMap<String, Vec<Arc<Kind>>> {
    let mut kinds_of: BTreeMap<String, Vec<Arc<Kind>>> = BTreeMap::new();
    for kind in kinds::builtin() {
        let path = match kind.group.as_str() {
            "" => format!("api/{}", kind.version),
            group => format!("apis/{group}/{}", kind.version),
        };
        kinds_of.entry(path).or_default().push(kind.clone());
    }
    kinds_of
}

fn make(kinds: &[Arc<Kind>]) -> Value {
    let version = kinds.first().map(|k| k.api_version()).unwrap_or_default();
    let mut document = openapi_v3(&version, kinds);
    document["paths"] = super::paths::of(kinds);
    document
}

fn hash(text: &[u8]) -> String {
    hex(&Sha512::digest(text)).to_ascii_uppercase()
}

/// The hash of each document, by its path. The documents are the same for as long as the program runs.
static HASHES: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    documents().into_iter().map(|(path, kinds)| (path, hash(make(&kinds).to_string().as_bytes()))).collect()
});

pub fn v3(asked: &Asked<'_>, path: &str) -> Result<Response, Status> {
    if path.is_empty() {
        let mut paths = Map::new();
        for (path, hash) in HASHES.iter() {
            paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
        }
        return asked.json(&json!({"paths": paths}));
    }
    let Some(kinds) = documents().remove(path) else {
        let mut empty = Response::default();
        *empty.status_mut() = http::StatusCode::NOT_FOUND;
        return Ok(empty);
    };
    let current = HASHES.get(path).map(String::as_str).unwrap_or_default();
    let given = asked.query.text("hash");
    if !given.is_empty() && given != current {
        let mut response = respond::response(301, "application/json", Vec::new());
        set(&mut response, LOCATION, &format!("/openapi/v3/{path}?hash={current}"));
        return Ok(response);
    }
    let mut response = tagged(asked, current, || ("application/json", make(&kinds).to_string().into_bytes()));
    if !given.is_empty() {
        // Whoever asks by the hash may keep the answer for good.
        set(&mut response, CACHE_CONTROL, "public, immutable");
    }
    Ok(response)
}

/// Version 2, as JSON or in protobuf, whichever the client names first.
pub fn v2(asked: &Asked<'_>) -> Result<Response, Status> {
    let named = |media: &str| openapi_proto::ASKED.contains(&media);
    let first = asked
        .accept()
        .split(',')
        .map(crate::http::media::essence)
        .find(|media| named(media) || matches!(*media, "application/json" | "application/*" | "*/*"));
    let proto = match first {
        Some(media) => named(media),
        None if asked.accept().is_empty() => false,
        None => {
            let mut refusal = respond::response(406, "application/json", Vec::new());
            set(&mut refusal, VARY, "Accept");
            return Ok(refusal);
        }
    };
    // The hash of all documents stands for the document that is made of them.
    let all: String = HASHES.values().map(String::as_str).collect();
    let tag = hash(format!("{proto}{all}").as_bytes());
    let mut response = tagged(asked, &tag, || {
        let document = openapi_v2::from_v3(documents().values().map(|kinds| make(kinds)));
        match proto {
            true => (openapi_proto::ASKED[1], openapi_proto::encode(&document)),
            false => ("application/json", document.to_string().into_bytes()),
        }
    });
    set(&mut response, VARY, "Accept");
    Ok(response)
}

/// What `make` makes, under a tag by which clients ask whether it is still the same.
fn tagged(asked: &Asked<'_>, tag: &str, make: impl FnOnce() -> (&'static str, Vec<u8>)) -> Response {
    let tag = format!("\"{tag}\"");
    let known = asked.headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(tag.as_str());
    let mut response = match known {
        true => {
            let mut unchanged = Response::default();
            *unchanged.status_mut() = http::StatusCode::NOT_MODIFIED;
            unchanged
        }
        false => {
            let (media, body) = make();
            respond::response(200, media, body)
        }
    };
    set(&mut response, ETAG, &tag);
    response
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
