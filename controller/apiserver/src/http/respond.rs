//! From answers to HTTP responses: JSON or YAML, whole objects, metadata only, or tables.

use super::media::{Format, Shape, Wanted};
use crate::call::{Answer, List};
use crate::storage::encode::Stored;
use crate::storage::forms;
use crate::storage::peek::peek;
use crate::verbs::watch::{Notice, WatchStream};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::status::Status;
use skiff_api::{Kind, meta, table};
use std::sync::Arc;

/// Which part of an object a row of a table carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    Metadata,
    Object,
    None,
}

impl Include {
    pub fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "" | "Metadata" => Ok(Include::Metadata),
            "Object" => Ok(Include::Object),
            "None" => Ok(Include::None),
            other => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', \
                 'None', or empty"
            ))),
        }
    }
}

/// Renders a successful answer.
pub fn answer(answer: Answer, wanted: Wanted, include: &str) -> Result<Response, Status> {
    let code = match &answer {
        Answer::Object { code, .. } | Answer::Value { code, .. } => *code,
        _ => 200,
    };
    let body = match (answer, wanted.shape) {
        (Answer::Watch(stream), _) => return watch(*stream, wanted, include),
        (Answer::Value { value, .. }, Shape::Table { beta }) if meta::kind(&value) == "Scale" => {
            to_bytes(&scale_table(&value, beta, Include::parse(include)?))
        }
        (Answer::Value { value, .. }, _) => to_bytes(&value),
        (Answer::Object { object, .. }, Shape::Plain | Shape::Discovery { .. }) => object.to_json(),
        (Answer::Object { object, .. }, Shape::Partial { list: false, beta }) => partial(&object, beta),
        (Answer::Object { kind, .. }, Shape::Partial { list: true, .. }) => {
            return Err(not_a_list(&kind, false));
        }
        (Answer::Object { kind, object, .. }, Shape::Table { beta }) => {
            let rows = vec![row(&kind, &object, Include::parse(include)?, beta)];
            to_bytes(&table_of(&kind, rows, json!({"resourceVersion": object.revision.to_string()}), beta, true))
        }
        (Answer::List(list), Shape::Plain | Shape::Discovery { .. }) => plain_list(&list),
        (Answer::List(list), Shape::Partial { list: true, beta }) => partial_list(&list, beta),
        (Answer::List(list), Shape::Partial { list: false, .. }) => return Err(not_a_list(&list.kind, true)),
        (Answer::List(list), Shape::Table { beta }) => {
            let include = Include::parse(include)?;
            let rows = list.items.iter().map(|item| row(&list.kind, item, include, beta)).collect();
            to_bytes(&table_of(&list.kind, rows, list_metadata(&list), beta, true))
        }
    };
    Ok(document(code, body, wanted))
}

/// Whether a list in this form is made of the stored bytes as they are.
pub fn is_spliced(wanted: Wanted) -> bool {
    wanted.format == Format::Json && !wanted.pretty && matches!(wanted.shape, Shape::Plain | Shape::Discovery { .. })
}

fn not_a_list(kind: &Kind, is_list: bool) -> Status {
    let (wanted, found, name) = match is_list {
        true => ("PartialObjectMetadata", "a list", format!("{}List", kind.kind)),
        false => ("PartialObjectMetadataList", "not a list", kind.kind.clone()),
    };
    let package = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or_default() };
    Status::failure(
        406,
        "NotAcceptable",
        format!("you requested {wanted}, but the requested object is {found} (*{package}.{name})"),
    )
}

/// A body in the wanted format. `json` is JSON text.
pub fn document(code: u16, json: Vec<u8>, wanted: Wanted) -> Response {
    match wanted.format {
        Format::Json if wanted.pretty => {
            let value: Value = serde_json::from_slice(&json).unwrap_or_default();
            let mut text = serde_json::to_vec_pretty(&value).unwrap_or(json);
            text.push(b'\n');
            response(code, "application/json", text)
        }
        Format::Json => {
            let mut text = json;
            text.push(b'\n');
            response(code, "application/json", text)
        }
        Format::Yaml => response(code, "application/yaml", yaml(&json).into_bytes()),
    }
}

/// YAML with sorted keys, as Kubernetes writes it.
fn yaml(json: &[u8]) -> String {
    let value: Value = serde_json::from_slice(json).unwrap_or_default();
    let mut out = String::new();
    super::yaml::write(&value, &mut out);
    out
}

pub fn response(code: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub fn status(status: &Status, wanted: Wanted) -> Response {
    let mut response = document(status.code(), to_bytes(&status.to_value()), wanted);
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status.code() == 401 {
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Puts the warnings in `Warning` headers (RFC 7234 section 5.5, code 299).
/// What the warnings of one answer may fill.
const WARNINGS_BYTES_MAX: usize = 4096;

pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    let name = HeaderName::from_static("warning");
    // As upstream: beyond 4 KiB in all, each is cut to 256 characters; beyond that, the rest is left out.
    let long = warnings.iter().map(String::len).sum::<usize>() > WARNINGS_BYTES_MAX;
    let mut left = WARNINGS_BYTES_MAX;
    for text in warnings {
        let text: String = if long { text.chars().take(256).collect() } else { text.clone() };
        let Some(after) = left.checked_sub(text.len()) else { break };
        left = after;
        let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
        let clean: String = escaped.chars().filter(|c| !c.is_control()).collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{clean}\"").as_bytes()) {
            response.headers_mut().append(name.clone(), value);
        }
    }
}

fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn list_metadata(list: &List) -> Value {
    let mut metadata = json!({"resourceVersion": list.revision.to_string()});
    if !list.continue_token.is_empty() {
        metadata["continue"] = json!(list.continue_token);
    }
    if let Some(remaining) = list.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    metadata
}

fn plain_list(list: &List) -> Vec<u8> {
    let size: usize = list.items.iter().map(|i| i.bytes.len() + 48).sum();
    let mut out = Vec::with_capacity(size + 256);
    let head =
        json!({"kind": list.kind.list_kind, "apiVersion": list.kind.api_version(), "metadata": list_metadata(list)});
    out.extend_from_slice(&to_bytes(&head));
    out.pop();
    out.extend_from_slice(b",\"items\":[");
    for (index, item) in list.items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        item.write_to(&mut out, false);
    }
    out.extend_from_slice(b"]}");
    out
}

fn meta_version(beta: bool) -> &'static str {
    if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

fn partial_value(object: &Stored, beta: bool) -> Value {
    let mut metadata = peek(&object.bytes, &["metadata"]).unwrap_or_else(|| json!({}));
    if let (Some(map), true) = (metadata.as_object_mut(), object.revision != 0) {
        map.insert("resourceVersion".into(), json!(object.revision.to_string()));
    }
    json!({"kind": "PartialObjectMetadata", "apiVersion": meta_version(beta), "metadata": metadata})
}

fn partial(object: &Stored, beta: bool) -> Vec<u8> {
    to_bytes(&partial_value(object, beta))
}

fn partial_list(list: &List, beta: bool) -> Vec<u8> {
    // An empty list is null here, not []: so the reference server answers.
    let items = match list.items.is_empty() {
        true => Value::Null,
        false => list.items.iter().map(|i| partial_value(i, beta)).collect(),
    };
    to_bytes(&json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": meta_version(beta),
        "metadata": list_metadata(list),
        "items": items,
    }))
}

fn row(kind: &Kind, object: &Stored, include: Include, beta: bool) -> Value {
    let whole = object.decode();
    let mut row = json!({"cells": table::row(kind, &whole, Timestamp::now())});
    if let Some(conditions) = table::row_conditions(kind, &whole) {
        row["conditions"] = conditions;
    }
    row["object"] = match include {
        Include::Metadata => partial_value(object, beta),
        Include::Object => whole,
        Include::None => Value::Null,
    };
    row
}

fn table_of(kind: &Kind, rows: Vec<Value>, metadata: Value, beta: bool, columns: bool) -> Value {
    let columns = match columns {
        true => serde_json::to_value(table::columns(kind)).unwrap_or_default(),
        false => Value::Null,
    };
    json!({
        "kind": "Table",
        "apiVersion": meta_version(beta),
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn scale_table(scale: &Value, beta: bool, include: Include) -> Value {
    let column = |name: &str, kind: &str, description: &str| json!({"name": name, "type": kind, "format": "", "description": description, "priority": 0});
    let metadata = scale.get("metadata").cloned().unwrap_or_default();
    let created = meta::creation_timestamp(scale);
    let age =
        created.map_or("<unknown>".into(), |at| table::human_duration(Timestamp::now().as_second() - at.as_second()));
    let part = match include {
        Include::Metadata => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": meta_version(beta), "metadata": metadata})
        }
        Include::Object => scale.clone(),
        Include::None => Value::Null,
    };
    json!({
        "kind": "Table",
        "apiVersion": meta_version(beta),
        "metadata": {"resourceVersion": meta::resource_version(scale)},
        "columnDefinitions": [
            column("Name", "string", "Name of the object that is scaled."),
            column("Desired", "integer", "Replicas that are wanted."),
            column("Available", "integer", "Replicas that are there."),
            column("Age", "string", "Time since the object was made."),
        ],
        "rows": [{
            "cells": [
                meta::name(scale),
                meta::i64_at(scale, &["spec", "replicas"]).unwrap_or(0),
                meta::i64_at(scale, &["status", "replicas"]).unwrap_or(0),
                age,
            ],
            "object": part,
        }],
    })
}

/// One event a line, as long as the watch lasts.
fn watch(stream: WatchStream, wanted: Wanted, include: &str) -> Result<Response, Status> {
    let include = Include::parse(include)?;
    let lines = stream::unfold((stream, wanted.shape, true), move |(mut stream, shape, mut first)| async move {
        let mut chunk = Vec::new();
        let notice = stream.next().await?;
        write_notice(&mut chunk, &stream.kind.clone(), notice, shape, include, &mut first);
        // What can be told without waiting goes in the same chunk.
        while stream.has_ready() && chunk.len() < 64 * 1024 {
            match stream.next().await {
                Some(notice) => write_notice(&mut chunk, &stream.kind.clone(), notice, shape, include, &mut first),
                None => break,
            }
        }
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(chunk)), (stream, shape, first)))
    });
    let content_type = if wanted.format == Format::Yaml { "application/yaml" } else { "application/json" };
    Ok(response(200, content_type, Body::from_stream(lines)))
}

fn write_notice(out: &mut Vec<u8>, kind: &Arc<Kind>, notice: Notice, shape: Shape, include: Include, first: &mut bool) {
    match notice {
        Notice::Change { change, object } => {
            let object = forms::as_kind(object, kind);
            out.extend_from_slice(format!("{{\"type\":\"{}\",\"object\":", change.name()).as_bytes());
            match shape {
                Shape::Table { beta } => {
                    let metadata = json!({"resourceVersion": object.revision.to_string()});
                    let rows = vec![row(kind, &object, include, beta)];
                    // Only the first event carries the columns.
                    out.extend_from_slice(&to_bytes(&table_of(kind, rows, metadata, beta, std::mem::take(first))));
                }
                Shape::Partial { beta, .. } => out.extend_from_slice(&partial(&object, beta)),
                _ => object.write_to(out, true),
            }
        }
        Notice::Bookmark { revision, initial_end } => {
            let mut metadata = json!({"resourceVersion": revision.to_string()});
            if initial_end {
                metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
            }
            let (name, version) = match shape {
                Shape::Partial { beta, .. } => ("PartialObjectMetadata".to_string(), meta_version(beta).to_string()),
                _ => (kind.kind.clone(), kind.api_version()),
            };
            let object = match shape {
                Shape::Table { beta } => {
                    let inner = json!({"kind": "PartialObjectMetadata", "apiVersion": meta_version(beta), "metadata": metadata});
                    let empty = Stored { bytes: Stored::encode(&inner, &kind.kind, &kind.api_version()), revision };
                    let cells = table::row(kind, &empty.decode(), Timestamp::now());
                    let rows = vec![json!({"cells": cells, "object": inner})];
                    table_of(kind, rows, json!({"resourceVersion": revision.to_string()}), beta, std::mem::take(first))
                }
                _ => json!({"kind": name, "apiVersion": version, "metadata": metadata}),
            };
            out.extend_from_slice(format!("{{\"type\":\"BOOKMARK\",\"object\":{object}").as_bytes());
        }
        Notice::Error(status) => {
            out.extend_from_slice(format!("{{\"type\":\"ERROR\",\"object\":{}", status.to_value()).as_bytes());
        }
    }
    out.extend_from_slice(b"}\n");
}
