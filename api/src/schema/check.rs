//! What a strict reading of a document finds: fields nobody knows, values of the wrong type.

use super::{Shape, TypeDef};
use crate::meta;
use crate::quantity::Quantity;
use serde_json::Value;
use std::fmt;

/// A field that the schema does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownField {
    /// `spec.containers[0].imagePulPolicy`
    pub path: String,
}

impl fmt::Display for UnknownField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown field \"{}\"", self.path)
    }
}

impl TypeDef {
    /// Unknown fields, in the order of the document.
    pub fn unknown_fields(&self, obj: &Value) -> Vec<UnknownField> {
        let mut found = Vec::new();
        find_unknown(self, obj, None, &mut found);
        found
    }

    /// Removes unknown fields and tells which they were.
    pub fn prune(&self, obj: &mut Value) -> Vec<UnknownField> {
        let found = self.unknown_fields(obj);
        if !found.is_empty() {
            remove_unknown(self, obj);
        }
        found
    }

    /// The first value of a wrong type, in the words of the decoder that clients know: `json: cannot unmarshal ...`.
    pub fn type_error(&self, obj: &Value) -> Option<String> {
        self.type_error_at(obj).map(|(_, why)| why)
    }

    /// The same, with the path of the field (no indices, no keys of maps), which not all of the words name.
    pub fn type_error_at(&self, obj: &Value) -> Option<(String, String)> {
        let mut at = Place { owner: short(&self.name), path: String::new() };
        let why = object_error(self, obj, &mut at)?;
        Some((at.path, why))
    }
}

/// The most problems that are told of one document, as upstream. What is left out was not looked for any further.
pub const PROBLEMS_MAX: usize = 100;

/// A place in a document: a chain back to its root. The text is made only for a place that is told.
#[derive(Clone, Copy)]
pub struct Trail<'t> {
    pub parent: Option<&'t Trail<'t>>,
    pub step: Step<'t>,
}

#[derive(Clone, Copy)]
pub enum Step<'t> {
    Key(&'t str),
    Index(usize),
}

impl fmt::Display for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Key(key) if self.parent.is_some() => write!(f, ".{key}"),
            Step::Key(key) => f.write_str(key),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

fn find_unknown(def: &TypeDef, value: &Value, parent: Option<&Trail<'_>>, found: &mut Vec<UnknownField>) {
    let Some(map) = value.as_object() else { return };
    for (key, inner) in map {
        if found.len() >= PROBLEMS_MAX {
            return;
        }
        let here = Trail { parent, step: Step::Key(key) };
        match def.field(key) {
            Some(field) if has_fields(&field.shape) => find_in_shape(&field.shape, inner, &here, found),
            Some(_) => {}
            None if def.open => {}
            None => found.push(UnknownField { path: here.to_string() }),
        }
    }
}

fn find_in_shape(shape: &Shape, value: &Value, here: &Trail<'_>, found: &mut Vec<UnknownField>) {
    match (shape, value) {
        (Shape::Object(def), Value::Object(_)) => find_unknown(def.get(), value, Some(here), found),
        (Shape::List(list), Value::Array(items)) if has_fields(&list.item) => {
            for (i, item) in items.iter().enumerate() {
                find_in_shape(&list.item, item, &Trail { parent: Some(here), step: Step::Index(i) }, found);
            }
        }
        (Shape::Map(map), Value::Object(members)) if has_fields(&map.value) => {
            for (key, member) in members {
                find_in_shape(&map.value, member, &Trail { parent: Some(here), step: Step::Key(key) }, found);
            }
        }
        _ => {}
    }
}

/// Whether there may be named fields below. Most values are scalars; no path is made for them.
fn has_fields(shape: &Shape) -> bool {
    matches!(shape, Shape::Object(_) | Shape::List(_) | Shape::Map(_))
}

fn remove_unknown(def: &TypeDef, value: &mut Value) {
    let Some(map) = value.as_object_mut() else { return };
    if !def.open {
        map.retain(|key, _| def.field(key).is_some());
    }
    for (key, inner) in map.iter_mut() {
        if let Some(field) = def.field(key) {
            remove_in_shape(&field.shape, inner);
        }
    }
}

fn remove_in_shape(shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(def), value) => remove_unknown(def.get(), value),
        (Shape::List(list), Value::Array(items)) => items.iter_mut().for_each(|i| remove_in_shape(&list.item, i)),
        (Shape::Map(map), Value::Object(members)) => members.values_mut().for_each(|m| remove_in_shape(&map.value, m)),
        _ => {}
    }
}

/// Where the decoder is: the innermost struct and the path of field names without indices.
struct Place<'a> {
    owner: &'a str,
    path: String,
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn object_error<'a>(def: &'a TypeDef, value: &Value, at: &mut Place<'a>) -> Option<String> {
    let map = match value {
        Value::Null => return None,
        Value::Object(map) => map,
        other => return Some(mismatch(other, &type_text(&Shape::Any, Some(def)), at)),
    };
    let (owner, len) = (at.owner, at.path.len());
    for (key, inner) in map {
        let Some(field) = def.field(key) else { continue };
        at.owner = short(&def.name);
        if !at.path.is_empty() {
            at.path.push('.');
        }
        at.path.push_str(key);
        if let Some(error) = shape_error(&field.shape, inner, at) {
            return Some(error);
        }
        at.path.truncate(len);
    }
    at.owner = owner;
    None
}

fn shape_error<'a>(shape: &'a Shape, value: &Value, at: &mut Place<'a>) -> Option<String> {
    if value.is_null() {
        return None;
    }
    let wrong = |at: &Place| Some(mismatch(value, &type_text(shape, None), at));
    match shape {
        Shape::Any => None,
        Shape::Object(def) => object_error(def.get(), value, at),
        Shape::List(list) => match value {
            Value::Array(items) => items.iter().find_map(|item| shape_error(&list.item, item, at)),
            _ => wrong(at),
        },
        Shape::Map(map) => match value {
            Value::Object(members) => members.values().find_map(|member| shape_error(&map.value, member, at)),
            _ => wrong(at),
        },
        Shape::String => {
            if value.is_string() {
                None
            } else {
                wrong(at)
            }
        }
        Shape::Bool => {
            if value.is_boolean() {
                None
            } else {
                wrong(at)
            }
        }
        Shape::Number => {
            if value.is_number() {
                None
            } else {
                wrong(at)
            }
        }
        Shape::Int32 => match value.as_i64() {
            Some(n) if i32::try_from(n).is_ok() => None,
            _ => wrong(at),
        },
        Shape::Int64 => {
            if value.as_i64().is_some() {
                None
            } else {
                wrong(at)
            }
        }
        Shape::Bytes => match value.as_str() {
            Some(text) => base64_error(text),
            None => wrong(at),
        },
        Shape::Time | Shape::MicroTime => match value.as_str() {
            Some(text) => time_error(text, matches!(shape, Shape::MicroTime)),
            None => Some(format!("json: cannot unmarshal {} into Go value of type string", described(value))),
        },
        Shape::Duration => {
            if value.is_string() {
                None
            } else {
                wrong(at)
            }
        }
        Shape::IntOrString => match value {
            Value::String(_) => None,
            _ if value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => None,
            _ => Some(format!("json: cannot unmarshal {} into Go value of type int32", described(value))),
        },
        Shape::Quantity => Quantity::read(value).err().map(|e| e.to_string()),
    }
}

fn mismatch(value: &Value, wanted: &str, at: &Place) -> String {
    let found = described(value);
    if at.path.is_empty() {
        return format!("json: cannot unmarshal {found} into Go value of type {wanted}");
    }
    format!("json: cannot unmarshal {found} into Go struct field {}.{} of type {wanted}", at.owner, at.path)
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
        // An integer out of range, or a fraction where an integer belongs: the number itself is the problem.
        Value::Number(n) if n.is_f64() || n.as_i64().is_none_or(|n| i32::try_from(n).is_err()) => format!("number {n}"),
        Value::Number(_) => "number".into(),
    }
}

/// The name of a type as a Go program prints it.
fn type_text(shape: &Shape, object: Option<&TypeDef>) -> String {
    if let Some(def) = object {
        let mut parts = def.name.rsplit('.');
        let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or("v1"));
        return format!("{version}.{name}");
    }
    match shape {
        Shape::Any => "interface {}".into(),
        Shape::String => "string".into(),
        Shape::Bytes => "[]uint8".into(),
        Shape::Int32 => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Number => "float64".into(),
        Shape::Bool => "bool".into(),
        Shape::Time => "v1.Time".into(),
        Shape::MicroTime => "v1.MicroTime".into(),
        Shape::Duration => "v1.Duration".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::Object(def) => type_text(shape, Some(def.get())),
        Shape::List(list) => format!("[]{}", type_text(&list.item, None)),
        Shape::Map(map) => format!("map[string]{}", type_text(&map.value, None)),
    }
}

fn base64_error(text: &str) -> Option<String> {
    let clean: String = text.chars().filter(|c| *c != '\n' && *c != '\r').collect();
    if crate::base64::decode(text).is_some() {
        return None;
    }
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    let at = clean.find(|c| !ok(c)).unwrap_or(clean.trim_end_matches('=').len().max(clean.len() / 4 * 4));
    Some(format!("illegal base64 data at input byte {at}"))
}

fn time_error(text: &str, micro: bool) -> Option<String> {
    if meta::parse_time(text).is_some() {
        return None;
    }
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    Some(format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{text}\" as \"2006\""))
}

#[cfg(test)]
mod tests {
    use crate::schema::Schema;
    use serde_json::json;

    #[test]
    fn unknown_fields_by_path() {
        let def = Schema::by_gvk("apps", "v1", "Deployment").expect("a type");
        let mut obj = json!({"metadata": {"nothing": 1, "labels": {"any": "x"}}, "spec": {
            "template": {"spec": {"containers": [{"name": "a", "imagePulPolicy": "x", "resources": {"limits": {"cpu": 1}}}]}}, "foo": 1}});
        let found: Vec<String> = def.unknown_fields(&obj).iter().map(|f| f.to_string()).collect();
        assert_eq!(
            found,
            [
                "unknown field \"metadata.nothing\"",
                "unknown field \"spec.template.spec.containers[0].imagePulPolicy\"",
                "unknown field \"spec.foo\""
            ]
        );
        def.prune(&mut obj);
        assert!(def.unknown_fields(&obj).is_empty());
    }

    #[test]
    fn type_errors() {
        let def = Schema::by_gvk("", "v1", "Pod").expect("a type");
        let check = |obj, expect: Option<&str>| assert_eq!(def.type_error(&obj).as_deref(), expect, "{obj}");
        check(json!({"spec": {"containers": [{"ports": [{"containerPort": 80}]}]}}), None);
        check(
            json!({"spec": {"containers": [{"ports": [{"containerPort": "x"}]}]}}),
            Some(
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
            ),
        );
        check(
            json!({"metadata": {"labels": {"a": 1}}}),
            Some("json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"),
        );
        check(
            json!({"metadata": {"labels": []}}),
            Some(
                "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string",
            ),
        );
        check(
            json!({"spec": {"containers": {}}}),
            Some("json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"),
        );
        check(json!([1]), Some("json: cannot unmarshal array into Go value of type v1.Pod"));
        check(
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}),
            Some("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
        );
    }
}
