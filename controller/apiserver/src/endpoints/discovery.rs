//! Which groups, versions and resources there are: the old way one document each, and the aggregated way.

use super::{Asked, advertised, not_found_page};
use crate::http::media::{Format, Offers, Shape};
use crate::http::respond;
use crate::state::State;
use axum::response::Response;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skiff_api::Kind;
use skiff_api::kinds;
use skiff_api::status::Status;
use std::sync::Arc;

/// Groups with their versions, in the order of the table.
fn groups() -> Vec<(String, Vec<String>)> {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for kind in kinds::builtin() {
        match all.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, versions)) if versions.contains(&kind.version) => {}
            Some((_, versions)) => versions.push(kind.version.clone()),
            None => all.push((kind.group.clone(), vec![kind.version.clone()])),
        }
    }
    all
}

fn kinds_of(group: &str, version: &str) -> Vec<Arc<Kind>> {
    kinds::builtin().iter().filter(|k| k.group == group && k.version == version).cloned().collect()
}

pub fn answer(state: &State, asked: &Asked<'_>, parts: &[&str]) -> Result<Response, Status> {
    match parts {
        ["api"] | ["apis"] => {
            let core = parts[0] == "api";
            let wanted = asked.wanted(Offers::Discovery)?;
            if let Shape::Discovery { beta } = wanted.shape {
                return Ok(aggregated(asked, core, beta));
            }
            let document = if core { api_versions(advertised(state, asked)) } else { group_list() };
            Ok(respond::document(200, document.to_string().into_bytes(), wanted))
        }
        ["api", version] => resources(asked, "", version),
        ["apis", group, version] => resources(asked, group, version),
        ["apis", group] => match groups().iter().find(|(g, _)| g == group) {
            Some((group, versions)) => asked.json(&group_document(group, versions, true)),
            None => Ok(not_found_page()),
        },
        _ => Ok(not_found_page()),
    }
}

fn api_versions(address: &str) -> Value {
    let versions: Vec<String> = groups().into_iter().find(|(g, _)| g.is_empty()).map(|(_, v)| v).unwrap_or_default();
    json!({
        "kind": "APIVersions",
        "versions": versions,
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn group_document(group: &str, versions: &[String], typed: bool) -> Value {
    let entry = |v: &String| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    let mut document = json!({});
    if typed {
        document["kind"] = json!("APIGroup");
        document["apiVersion"] = json!("v1");
    }
    document["name"] = json!(group);
    document["versions"] = versions.iter().map(entry).collect();
    document["preferredVersion"] = versions.first().map(entry).unwrap_or_default();
    document
}

fn group_list() -> Value {
    let all: Vec<Value> = groups()
        .iter()
        .filter(|(g, _)| !g.is_empty())
        .map(|(g, versions)| group_document(g, versions, false))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all})
}

fn resources(asked: &Asked<'_>, group: &str, version: &str) -> Result<Response, Status> {
    let list = kinds_of(group, version);
    if list.is_empty() {
        return Err(Status::no_such_resource());
    }
    let mut entries = Vec::new();
    for kind in list {
        let mut entry = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": kind.verbs,
        });
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        if !kind.storage_version_hash.is_empty() {
            entry["storageVersionHash"] = json!(kind.storage_version_hash);
        }
        entries.push(entry);
        for sub in &kind.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, sub.name),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if !sub.group.is_empty() {
                entry["group"] = json!(sub.group);
                entry["version"] = json!(sub.version);
            }
            entries.push(entry);
        }
    }
    let mut document = json!({"kind": "APIResourceList"});
    // The core group's document has no apiVersion: so it has always been.
    if !group.is_empty() {
        document["apiVersion"] = json!("v1");
    }
    document["groupVersion"] = json!(kinds::api_version(group, version));
    document["resources"] = json!(entries);
    asked.json(&document)
}

fn aggregated(asked: &Asked<'_>, core: bool, beta: bool) -> Response {
    let mut items = Vec::new();
    for (group, versions) in groups().into_iter().filter(|(g, _)| g.is_empty() == core) {
        let versions: Vec<Value> = versions
            .iter()
            .map(|version| {
                let resources: Vec<Value> = kinds_of(&group, version).iter().map(|k| aggregated_resource(k)).collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            })
            .collect();
        let metadata = if core { json!({}) } else { json!({"name": group}) };
        items.push(json!({"metadata": metadata, "versions": versions}));
    }
    let version = if beta { "v2beta1" } else { "v2" };
    let document = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let text = document.to_string().into_bytes();
    // Clients keep these documents by their hash and ask whether it is still the same.
    let tag = format!("\"{}\"", hex(&Sha256::digest(&text)));
    let known = asked.headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(tag.as_str());
    let mut response = match known {
        true => {
            let mut empty = Response::default();
            *empty.status_mut() = http::StatusCode::NOT_MODIFIED;
            empty
        }
        false => {
            respond::document(200, text, crate::http::media::Wanted { format: Format::Json, ..Default::default() })
        }
    };
    let media = if beta {
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
    } else {
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut entry = json!({
        "resource": kind.plural,
        "responseKind": {"group": "", "version": "", "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        let subs: Vec<Value> = kind
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
                    "verbs": sub.verbs,
                })
            })
            .collect();
        entry["subresources"] = json!(subs);
    }
    entry
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
