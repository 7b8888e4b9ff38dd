//! The OpenAPI v3 documents, made from the schema.
//!
//! Clients read the types of fields from them (validation, `kubectl explain`). The paths are added by the server that
//! answers them. Descriptions are our own, short, and by group (`schema/words/`).

use super::{Absent, Field, ListMerge, ListOwnership, ListShape, Schema, Shape, TypeDef};
use crate::kinds::Kind;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

/// The OpenAPI v3 document of one group and version (`v1`, `apps/v1`), for the `kinds` in it, without its paths.
pub fn openapi_v3(group_version: &str, kinds: &[Arc<Kind>]) -> Value {
    let words = words();
    let mut schemas: BTreeMap<String, Value> = BTreeMap::new();
    let mut wanted: Vec<&'static TypeDef> = Vec::new();
    for kind in kinds.iter().filter(|k| k.api_version() == group_version) {
        if let Some(def) = Schema::for_kind(kind) {
            wanted.push(def);
            if kind.is_stored() {
                schemas.insert(full_name(&list_name(def)), list_schema(kind, def));
                wanted.extend(Schema::by_name("meta.v1.ListMeta"));
            }
        }
        for sub in &kind.subresources {
            let group = if sub.group.is_empty() { &kind.group } else { &sub.group };
            let version = if sub.version.is_empty() { &kind.version } else { &sub.version };
            wanted.extend(Schema::by_gvk(group, version, &sub.kind));
        }
    }
    wanted.extend(["meta.v1.DeleteOptions", "meta.v1.Status"].iter().filter_map(|n| Schema::by_name(n)));
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    while let Some(def) = wanted.pop() {
        if seen.insert(&def.name) {
            schemas.insert(full_name(&def.name), type_schema(def, &words, kinds));
            def.fields.iter().for_each(|f| references(&f.shape, &mut wanted));
        }
    }
    for (name, schema) in scalar_schemas() {
        schemas.insert(name.to_string(), schema);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "components": {"schemas": schemas},
    })
}

fn references(shape: &'static Shape, found: &mut Vec<&'static TypeDef>) {
    match shape {
        Shape::Object(def) => found.push(def.get()),
        Shape::List(list) => references(&list.item, found),
        Shape::Map(map) => references(&map.value, found),
        _ => {}
    }
}

/// The name clients know a type by: `io.k8s.api.core.v1.Pod`.
fn full_name(short: &str) -> String {
    let prefix = match short.split('.').next().unwrap_or_default() {
        "meta" => "io.k8s.apimachinery.pkg.apis.",
        "apiextensions" => "io.k8s.apiextensions-apiserver.pkg.apis.",
        "apiregistration" => "io.k8s.kube-aggregator.pkg.apis.",
        _ => "io.k8s.api.",
    };
    format!("{prefix}{short}")
}

fn list_name(def: &TypeDef) -> String {
    format!("{}List", def.name)
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";

fn scalar_schemas() -> [(&'static str, Value); 4] {
    [
        (
            QUANTITY,
            json!({"description": "An amount: a number with a suffix, such as 100m, 2, 1.5Gi.", "oneOf": [{"type": "string"}, {"type": "number"}]}),
        ),
        (
            INT_OR_STRING,
            json!({"description": "A number, or a string such as a name or a percentage.", "format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        ),
        (TIME, json!({"description": "A time in whole seconds (RFC 3339).", "type": "string", "format": "date-time"})),
        (
            MICRO_TIME,
            json!({"description": "A time in microseconds (RFC 3339).", "type": "string", "format": "date-time"}),
        ),
    ]
}

fn shape_schema(shape: &Shape) -> Value {
    match shape {
        Shape::Any => json!({"type": "object"}),
        Shape::String => json!({"type": "string"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Number => json!({"type": "number", "format": "double"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Duration => json!({"type": "string"}),
        Shape::Time => reference(TIME),
        Shape::MicroTime => reference(MICRO_TIME),
        Shape::Quantity => reference(QUANTITY),
        Shape::IntOrString => reference(INT_OR_STRING),
        Shape::Object(def) => reference(&full_name(&def.get().name)),
        Shape::Map(map) => {
            let mut out = json!({"type": "object", "additionalProperties": shape_schema(&map.value)});
            if map.atomic {
                out["x-kubernetes-map-type"] = "atomic".into();
            }
            out
        }
        Shape::List(list) => list_shape_schema(list),
    }
}

fn list_shape_schema(list: &ListShape) -> Value {
    let mut out = json!({"type": "array", "items": shape_schema(&list.item)});
    match &list.ownership {
        ListOwnership::Atomic => out["x-kubernetes-list-type"] = "atomic".into(),
        ListOwnership::Set => out["x-kubernetes-list-type"] = "set".into(),
        ListOwnership::Map(keys) => {
            out["x-kubernetes-list-type"] = "map".into();
            out["x-kubernetes-list-map-keys"] = keys.iter().map(|k| Value::from(k.as_ref())).collect();
        }
    }
    match &list.merge {
        ListMerge::Replace => {}
        ListMerge::Union => out["x-kubernetes-patch-strategy"] = "merge".into(),
        ListMerge::Key(key) => {
            out["x-kubernetes-patch-strategy"] = "merge".into();
            out["x-kubernetes-patch-merge-key"] = key.as_ref().into();
        }
    }
    out
}

fn field_schema(def: &TypeDef, field: &Field, words: &HashMap<&str, &str>) -> Value {
    let mut schema = shape_schema(&field.shape);
    if let Some(values) = ENUMS.get(format!("{}.{}", def.name, field.name).as_str()) {
        let of = if schema.get("items").is_some() { &mut schema["items"] } else { &mut schema };
        of["enum"] = values.split(' ').map(Value::from).collect();
    }
    let described = words.get(format!("{}.{}", def.name, field.name).as_str()).copied().unwrap_or_default();
    let default = match (&field.absent, &field.shape) {
        (Absent::Default(value), _) => Some(value.clone()),
        (Absent::Zero, Shape::String) => Some("".into()),
        (Absent::Zero, Shape::Int32 | Shape::Int64) => Some(0.into()),
        (Absent::Zero, Shape::Bool) => Some(false.into()),
        (Absent::Zero, Shape::Object(_)) => Some(json!({})),
        _ => None,
    };
    // Beside a $ref nothing else may stand, so what is said about the field wraps it.
    if schema.get("$ref").is_some()
        && (!described.is_empty() || default.is_some() || field.retain_keys || field.replaces)
    {
        schema = json!({"allOf": [schema]});
    }
    if !described.is_empty() {
        schema["description"] = described.into();
    }
    if let Some(default) = default {
        schema["default"] = default;
    }
    if field.retain_keys {
        let merges = schema.get("x-kubernetes-patch-strategy").is_some();
        schema["x-kubernetes-patch-strategy"] = if merges { "merge,retainKeys" } else { "retainKeys" }.into();
    }
    if field.replaces {
        schema["x-kubernetes-patch-strategy"] = "replace".into();
    }
    schema
}

fn type_schema(def: &TypeDef, words: &HashMap<&str, &str>, kinds: &[Arc<Kind>]) -> Value {
    let mut properties = Map::new();
    for field in &def.fields {
        properties.insert(field.name.to_string(), field_schema(def, field, words));
    }
    let required: Vec<Value> = def.fields.iter().filter(|f| f.required).map(|f| f.name.as_ref().into()).collect();
    let mut out = json!({"type": "object"});
    if let Some(text) = words.get(def.name.as_ref()) {
        out["description"] = (*text).into();
    }
    if !properties.is_empty() {
        out["properties"] = Value::Object(properties);
    }
    if !required.is_empty() {
        out["required"] = Value::Array(required);
    }
    if def.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    let same = |k: &&Arc<Kind>| super::type_name(&k.group, &k.version, &k.kind) == def.name;
    if let Some(kind) = kinds.iter().find(same) {
        out["x-kubernetes-group-version-kind"] = json!([gvk(kind, &kind.kind)]);
    }
    out
}

fn gvk(kind: &Kind, name: &str) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": name})
}

fn list_schema(kind: &Kind, def: &TypeDef) -> Value {
    json!({
        "type": "object",
        "description": format!("A list of {} objects.", kind.kind),
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"allOf": [reference(&full_name("meta.v1.ListMeta"))], "default": {}},
            "items": {"type": "array", "items": {"allOf": [reference(&full_name(&def.name))], "default": {}}},
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind": [gvk(kind, &kind.list_kind)],
    })
}

/// Our own descriptions, by `TYPE` and `TYPE.FIELD`.
fn words() -> HashMap<&'static str, &'static str> {
    WORDS.iter().copied().flat_map(by_name).collect()
}

const WORDS: &[&str] = &[
    include_str!("../../schema/words/admissionregistration.txt"),
    include_str!("../../schema/words/apiextensions.txt"),
    include_str!("../../schema/words/apps.txt"),
    include_str!("../../schema/words/authentication.txt"),
    include_str!("../../schema/words/authorization.txt"),
    include_str!("../../schema/words/autoscaling.txt"),
    include_str!("../../schema/words/batch.txt"),
    include_str!("../../schema/words/certificates.txt"),
    include_str!("../../schema/words/coordination.txt"),
    include_str!("../../schema/words/core.txt"),
    include_str!("../../schema/words/discovery.txt"),
    include_str!("../../schema/words/meta.txt"),
    include_str!("../../schema/words/networking.txt"),
    include_str!("../../schema/words/node.txt"),
    include_str!("../../schema/words/policy.txt"),
    include_str!("../../schema/words/rbac.txt"),
    include_str!("../../schema/words/scheduling.txt"),
    include_str!("../../schema/words/storage.txt"),
];

/// The values of fields that take no others, by `TYPE.FIELD`.
static ENUMS: LazyLock<HashMap<&str, &str>> =
    LazyLock::new(|| by_name(include_str!("../../schema/enums.txt")).collect());

fn by_name(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(": "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn every_reference_resolves() {
        for version in ["v1", "apps/v1", "rbac.authorization.k8s.io/v1"] {
            let document = openapi_v3(version, kinds::builtin());
            let schemas = document["components"]["schemas"].as_object().expect("schemas");
            let text = document.to_string();
            for part in text.split("#/components/schemas/").skip(1) {
                let name = part.split('"').next().unwrap_or_default();
                assert!(schemas.contains_key(name), "{name} in {version}");
            }
        }
    }

    #[test]
    fn every_enum_is_of_a_text_and_in_order() {
        for (key, values) in ENUMS.iter() {
            let (def, field) = key.rsplit_once('.').expect("TYPE.FIELD");
            let field = Schema::by_name(def).and_then(|d| d.field(field));
            let is_text = |shape: &Shape| matches!(shape, Shape::String);
            let fits = match field.map(|f| &f.shape) {
                Some(Shape::List(list)) => is_text(&list.item),
                Some(shape) => is_text(shape),
                None => false,
            };
            assert!(fits, "{key}");
            assert!(values.split(' ').is_sorted() && !values.split(' ').any(str::is_empty), "{key}: {values}");
        }
        let pods = openapi_v3("v1", kinds::builtin());
        let properties = &pods["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(properties["restartPolicy"]["enum"], json!(["Always", "Never", "OnFailure"]));
    }

    /// Whoever writes one of these by hand finds a text for whatever can be in it.
    #[test]
    fn every_field_that_people_write_is_explained() {
        let words = words();
        let by_hand = [
            "core.v1.Pod",
            "core.v1.Service",
            "core.v1.ConfigMap",
            "core.v1.Secret",
            "core.v1.Namespace",
            "core.v1.ServiceAccount",
            "core.v1.PersistentVolume",
            "core.v1.PersistentVolumeClaim",
            "core.v1.ResourceQuota",
            "core.v1.LimitRange",
            "core.v1.Node",
            "apps.v1.Deployment",
            "apps.v1.StatefulSet",
            "apps.v1.DaemonSet",
            "apps.v1.ReplicaSet",
            "batch.v1.Job",
            "batch.v1.CronJob",
            "networking.v1.Ingress",
            "networking.v1.NetworkPolicy",
            "autoscaling.v2.HorizontalPodAutoscaler",
            "policy.v1.PodDisruptionBudget",
            "rbac.v1.Role",
            "rbac.v1.RoleBinding",
            "rbac.v1.ClusterRole",
            "rbac.v1.ClusterRoleBinding",
            "storage.v1.StorageClass",
        ];
        let mut wanted: Vec<_> = by_hand.iter().map(|name| Schema::by_name(name).expect(name)).collect();
        let (mut seen, mut missing) = (BTreeSet::new(), Vec::new());
        while let Some(def) = wanted.pop() {
            if !seen.insert(def.name.as_ref()) {
                continue;
            }
            for field in &def.fields {
                let key = format!("{}.{}", def.name, field.name);
                if !words.contains_key(key.as_str()) {
                    missing.push(key);
                }
                references(&field.shape, &mut wanted);
            }
        }
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn every_word_is_about_a_field() {
        for key in words().keys() {
            let known = Schema::by_name(key).is_some()
                || key
                    .rsplit_once('.')
                    .is_some_and(|(def, field)| Schema::by_name(def).is_some_and(|d| d.field(field).is_some()));
            assert!(known, "{key}");
        }
    }
}
