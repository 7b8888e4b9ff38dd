//! The typed round trip: what an object looks like after it was read into its types and written again.
//!
//! Nulls and empty optional values vanish, values that a type always carries appear, quantities and times take their
//! canonical form. Clients see the outcome of this in every answer, so a server that keeps objects as documents has to
//! do it by rule.

use super::{Absent, Shape, TypeDef};
use crate::meta;
use crate::quantity::Quantity;
use serde_json::{Map, Value};

impl TypeDef {
    /// Brings `obj` into the form a typed reader and writer leaves. Applying it twice changes nothing. Values of a
    /// wrong type stay as they are: [`TypeDef::type_error`] tells about them.
    pub fn normalize(&self, obj: &mut Value) {
        if let Some(map) = obj.as_object_mut() {
            normalize_object(self, map);
        }
    }
}

fn normalize_object(def: &TypeDef, map: &mut Map<String, Value>) {
    for field in &def.fields {
        let name = field.name.as_ref();
        match map.get_mut(name) {
            Some(value) if !value.is_null() => {
                normalize_value(&field.shape, value);
                let drop = match &field.absent {
                    Absent::Zero => false,
                    Absent::Optional => {
                        is_empty_collection(value) && !matches!(field.shape, Shape::Object(_) | Shape::Any)
                    }
                    Absent::Null => is_empty_collection(value) && matches!(field.shape, Shape::List(_) | Shape::Map(_)),
                    Absent::Omitted | Absent::Default(_) => is_dropped(&field.shape, value),
                };
                // An empty list of managers is a request to forget them all, so it stays until that was read.
                if drop && name != "managedFields" {
                    absent(field, map);
                }
            }
            _ => absent(field, map),
        }
    }
}

/// Puts what stands for an absent field.
fn absent(field: &super::Field, map: &mut Map<String, Value>) {
    let name = field.name.as_ref();
    match &field.absent {
        Absent::Zero => {
            map.insert(name.to_string(), zero(&field.shape));
        }
        Absent::Null => {
            map.insert(name.to_string(), Value::Null);
        }
        Absent::Omitted | Absent::Optional | Absent::Default(_) => {
            map.shift_remove(name);
        }
    }
}

/// The zero value of a type, as it is sent.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes | Shape::Duration => "".into(),
        Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => 0.into(),
        Shape::Bool => false.into(),
        Shape::Quantity => "0".into(),
        Shape::Any | Shape::Time | Shape::MicroTime | Shape::List(_) | Shape::Map(_) => Value::Null,
        Shape::Object(def) => {
            let mut map = Map::new();
            normalize_object(def.get(), &mut map);
            Value::Object(map)
        }
    }
}

/// Whether an optional value that is not behind a pointer counts as not set.
fn is_dropped(shape: &Shape, value: &Value) -> bool {
    match shape {
        // Optional objects are behind pointers, so an empty one is still something.
        Shape::Object(_) | Shape::Any | Shape::Quantity | Shape::IntOrString => false,
        _ => match value {
            Value::String(text) => text.is_empty(),
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::Bool(b) => !b,
            other => is_empty_collection(other),
        },
    }
}

fn is_empty_collection(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn normalize_value(shape: &Shape, value: &mut Value) {
    match (shape, &mut *value) {
        (Shape::Object(def), Value::Object(map)) => normalize_object(def.get(), map),
        (Shape::List(list), Value::Array(items)) => items.iter_mut().for_each(|item| normalize_item(&list.item, item)),
        (Shape::Map(map), Value::Object(members)) => {
            members.values_mut().for_each(|member| normalize_item(&map.value, member));
        }
        // Base64 is often wrapped; readers get it whole, so that every one of them can decode it.
        (Shape::Bytes, Value::String(text)) if text.contains(['\r', '\n']) => {
            text.retain(|c| !matches!(c, '\r' | '\n'))
        }
        (Shape::Quantity, _) => {
            if let Some(quantity) = Quantity::from_value(value) {
                *value = quantity.to_string().into();
            }
        }
        (Shape::Time, Value::String(text)) => {
            if let Some(at) = meta::parse_time(text) {
                *value = meta::format_time(at).into();
            }
        }
        (Shape::MicroTime, Value::String(text)) => {
            if let Some(at) = meta::parse_time(text) {
                *value = meta::format_micro_time(at).into();
            }
        }
        _ => {}
    }
}

/// An item of a list or a map is held by value: null is its zero value.
fn normalize_item(shape: &Shape, item: &mut Value) {
    if item.is_null() {
        *item = zero(shape);
    } else {
        normalize_value(shape, item);
    }
}

#[cfg(test)]
mod tests {
    use crate::schema::Schema;
    use serde_json::{Value, json};

    fn check(group: &str, kind: &str, mut obj: Value, expect: Value) {
        let def = Schema::by_gvk(group, "v1", kind).expect("a type");
        def.normalize(&mut obj);
        assert_eq!(obj, expect);
        def.normalize(&mut obj);
        assert_eq!(obj, expect, "twice");
    }

    #[test]
    fn round_trips() {
        check(
            "",
            "ConfigMap",
            json!({"metadata": {"name": "a", "labels": {}, "creationTimestamp": null, "finalizers": []}, "data": {"n": null}, "binaryData": {}, "immutable": false}),
            json!({"metadata": {"name": "a"}, "data": {"n": ""}, "immutable": false}),
        );
        check(
            "",
            "Secret",
            json!({"metadata": {"name": "a"}, "data": {"a": "YWJj\nZGVm\r\n", "b": "YQ=="}}),
            json!({"metadata": {"name": "a"}, "data": {"a": "YWJjZGVm", "b": "YQ=="}}),
        );
        check(
            "",
            "ConfigMap",
            json!({"metadata": {"name": "a"}, "binaryData": {"a": "YWJj\nZGVm"}}),
            json!({"metadata": {"name": "a"}, "binaryData": {"a": "YWJjZGVm"}}),
        );
        check(
            "rbac.authorization.k8s.io",
            "Role",
            json!({"metadata": {"name": "a"}, "rules": []}),
            json!({"metadata": {"name": "a"}, "rules": null}),
        );
        check(
            "",
            "Pod",
            json!({"spec": {"hostNetwork": false, "priority": 0, "nodeName": "", "containers": [{"name": "c", "image": "", "env": [],
                "resources": {"limits": {"cpu": "1000m", "memory": 1024}}}], "volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"metadata": {}, "spec": {"priority": 0, "containers": [{"name": "c",
                "resources": {"limits": {"cpu": "1", "memory": "1024"}}}], "volumes": [{"name": "v", "emptyDir": {}}]}, "status": {}}),
        );
        check(
            "discovery.k8s.io",
            "EndpointSlice",
            json!({"addressType": "IPv4", "endpoints": []}),
            json!({"metadata": {}, "addressType": "IPv4", "endpoints": null, "ports": null}),
        );
    }
}
