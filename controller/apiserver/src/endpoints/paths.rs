//! The `paths` of an OpenAPI document, from the table of kinds: enough for clients that look up which kind a path speaks and
//! which parameters a verb takes (kubectl does both before it applies).

use serde_json::{Map, Value, json};
use skiff_api::Kind;
use skiff_api::schema::type_name;
use std::sync::Arc;

/// All paths of the kinds of one group and version.
pub fn of(kinds: &[Arc<Kind>]) -> Value {
    let mut paths = Map::new();
    for kind in kinds {
        let root = match kind.group.as_str() {
            "" => format!("/api/{}", kind.version),
            group => format!("/apis/{group}/{}", kind.version),
        };
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{root}{scope}/{}", kind.plural);
        let item = format!("{collection}/{{name}}");
        if kind.namespaced && kind.has_verb("list") {
            add(&mut paths, &format!("{root}/{}", kind.plural), kind, &[("get", "list")], &own(kind), false);
        }
        let on_collection = [("get", "list"), ("post", "create"), ("delete", "deletecollection")];
        add(&mut paths, &collection, kind, &on_collection, &own(kind), kind.namespaced);
        let on_item = [("get", "get"), ("put", "update"), ("patch", "patch"), ("delete", "delete")];
        add(&mut paths, &item, kind, &on_item, &own(kind), kind.namespaced);
        for sub in &kind.subresources {
            let spoken = Spoken {
                group: if sub.group.is_empty() { kind.group.clone() } else { sub.group.clone() },
                version: if sub.version.is_empty() { kind.version.clone() } else { sub.version.clone() },
                kind: sub.kind.clone(),
                verbs: sub.verbs.clone(),
            };
            let verbs = [("get", "get"), ("put", "update"), ("patch", "patch"), ("post", "create")];
            add(&mut paths, &format!("{item}/{}", sub.name), kind, &verbs, &spoken, kind.namespaced);
        }
    }
    Value::Object(paths)
}

/// What a path speaks.
struct Spoken {
    group: String,
    version: String,
    kind: String,
    verbs: Vec<String>,
}

fn own(kind: &Kind) -> Spoken {
    Spoken {
        group: kind.group.clone(),
        version: kind.version.clone(),
        kind: kind.kind.clone(),
        verbs: kind.verbs.clone(),
    }
}

fn add(
    paths: &mut Map<String, Value>,
    path: &str,
    kind: &Kind,
    verbs: &[(&str, &str)],
    spoken: &Spoken,
    namespaced: bool,
) {
    let mut operations = Map::new();
    for (method, verb) in verbs.iter().filter(|(_, verb)| spoken.verbs.iter().any(|v| v == verb)) {
        operations.insert(method.to_string(), operation(path, kind, method, verb, spoken));
    }
    if operations.is_empty() {
        return;
    }
    let mut parameters = Vec::new();
    if path.contains("{name}") {
        parameters.push(path_parameter("name", &format!("name of the {}", kind.kind)));
    }
    if namespaced {
        parameters.push(path_parameter("namespace", "the namespace that is meant"));
    }
    if !parameters.is_empty() {
        operations.insert("parameters".into(), json!(parameters));
    }
    paths.insert(path.into(), Value::Object(operations));
}

fn path_parameter(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": description, "schema": {"type": "string", "uniqueItems": true}})
}

fn query_parameter(name: &str) -> Value {
    let schema = match name {
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" => json!({"type": "integer", "uniqueItems": true}),
        "watch" | "allowWatchBookmarks" | "sendInitialEvents" | "force" => {
            json!({"type": "boolean", "uniqueItems": true})
        }
        _ => json!({"type": "string", "uniqueItems": true}),
    };
    json!({"name": name, "in": "query", "schema": schema})
}

fn operation(path: &str, kind: &Kind, method: &str, verb: &str, spoken: &Spoken) -> Value {
    let list = [
        "allowWatchBookmarks",
        "continue",
        "fieldSelector",
        "labelSelector",
        "limit",
        "resourceVersion",
        "resourceVersionMatch",
        "sendInitialEvents",
        "timeoutSeconds",
        "watch",
    ];
    let parameters: &[&str] = match verb {
        "list" => &list,
        "create" | "update" => &["dryRun", "fieldManager", "fieldValidation"],
        "patch" => &["dryRun", "fieldManager", "fieldValidation", "force"],
        "delete" => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
        "deletecollection" => &["dryRun", "fieldSelector", "gracePeriodSeconds", "labelSelector", "propagationPolicy"],
        _ => &[],
    };
    let name = if verb == "list" { format!("{}List", spoken.kind) } else { spoken.kind.clone() };
    let reference =
        json!({"$ref": format!("#/components/schemas/{}", schema_name(&spoken.group, &spoken.version, &name))});
    let id: String = path.split('/').filter(|p| !p.starts_with('{')).map(capital).collect();
    let mut operation = json!({
        "operationId": format!("{verb}{id}"),
        "tags": [kind.plural],
        "parameters": parameters.iter().map(|p| query_parameter(p)).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
        "x-kubernetes-action": action(method, verb),
        "x-kubernetes-group-version-kind": {"group": spoken.group, "version": spoken.version, "kind": spoken.kind},
    });
    let media: &[&str] = match verb {
        "patch" => &[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ],
        "create" | "update" => &["*/*"],
        _ => &[],
    };
    if !media.is_empty() {
        let schema = if verb == "patch" { json!({"type": "object"}) } else { reference };
        let content: Map<String, Value> = media.iter().map(|m| (m.to_string(), json!({"schema": schema}))).collect();
        operation["requestBody"] = json!({"content": content, "required": true});
    }
    operation
}

/// The published name of a type: `io.k8s.api.core.v1.Pod`.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    let name = type_name(group, version, kind);
    match name.strip_prefix("meta.") {
        Some(rest) => format!("io.k8s.apimachinery.pkg.apis.meta.{rest}"),
        None => format!("io.k8s.api.{name}"),
    }
}

fn action<'a>(method: &str, verb: &'a str) -> &'a str {
    match (method, verb) {
        ("post", _) => "post",
        ("put", _) => "put",
        (_, verb) => verb,
    }
}

fn capital(part: &str) -> String {
    let clean: String = part.chars().filter(char::is_ascii_alphanumeric).collect();
    let mut chars = clean.chars();
    chars.next().map(|c| c.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_api::kinds;

    #[test]
    fn what_kubectl_reads() {
        let kinds: Vec<Arc<Kind>> = kinds::builtin().iter().filter(|k| k.group == "apps").cloned().collect();
        let paths = of(&kinds);
        let path = &paths["/apis/apps/v1/namespaces/{namespace}/deployments"];
        assert_eq!(path["get"]["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let patch = &paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let parameters = patch["parameters"].as_array().into_iter().flatten();
        let names: Vec<&str> = parameters.filter_map(|p| p["name"].as_str()).collect();
        assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"));
    }
}
