//! OpenAPI version 2, made from the version 3 documents: what kubectl before 1.28 reads to apply and to explain.
//!
//! Version 2 has one document for everything. References and bodies stand elsewhere than in version 3, a schema knows no
//! alternatives, and parameters carry their type themselves.

use serde_json::{Map, Value, json};

/// One document from many: all schemas and all paths.
pub fn from_v3(documents: impl Iterator<Item = Value>) -> Value {
    let (mut definitions, mut paths) = (Map::new(), Map::new());
    for mut document in documents {
        if let Some(Value::Object(all)) = document.get_mut("paths").map(Value::take) {
            paths.extend(all.into_iter().map(|(path, item)| (path, path_item(item))));
        }
        if let Some(Value::Object(schemas)) = document.pointer_mut("/components/schemas").map(Value::take) {
            for (name, mut schema) in schemas {
                if !definitions.contains_key(&name) {
                    to_v2(&mut schema);
                    definitions.insert(name, schema);
                }
            }
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": super::version()["gitVersion"]},
        "paths": paths,
        "definitions": definitions,
    })
}

fn to_v2(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // Version 3 wraps a reference in allOf where it stands beside a default, which version 2 cannot tell.
            if let Some([only]) = map.get("allOf").and_then(Value::as_array).map(Vec::as_slice)
                && let Some(target) = only.get("$ref").cloned()
            {
                map.shift_remove("allOf");
                map.shift_remove("default");
                map.insert("$ref".into(), target);
            }
            // An amount, or a number that may be a name: text is what both can be written as.
            if map.shift_remove("oneOf").is_some() {
                map.insert("type".into(), "string".into());
            }
            if let Some(Value::String(target)) = map.get_mut("$ref") {
                *target = target.replace("#/components/schemas/", "#/definitions/");
            }
            map.values_mut().for_each(to_v2);
        }
        Value::Array(list) => list.iter_mut().for_each(to_v2),
        _ => {}
    }
}

fn path_item(mut item: Value) -> Value {
    if let Some(map) = item.as_object_mut() {
        for (key, value) in map.iter_mut() {
            match key.as_str() {
                "parameters" => parameters(value),
                _ => operation(value),
            }
        }
    }
    item
}

fn operation(operation: &mut Value) {
    if let Some(list) = operation.get_mut("parameters") {
        parameters(list);
    }
    let body = operation.as_object_mut().and_then(|map| map.shift_remove("requestBody"));
    if let Some(content) = body.as_ref().and_then(|b| b.get("content")).and_then(Value::as_object) {
        let mut schema = content.values().next().and_then(|c| c.get("schema")).cloned().unwrap_or_else(|| json!({}));
        to_v2(&mut schema);
        operation["consumes"] = content.keys().map(|k| Value::from(k.as_str())).collect();
        if let Some(list) = operation["parameters"].as_array_mut() {
            list.insert(0, json!({"name": "body", "in": "body", "required": true, "schema": schema}));
        }
    }
    operation["produces"] = json!(["application/json", "application/yaml"]);
    let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
    for response in responses.into_iter().flat_map(|r| r.values_mut()) {
        let content = response.as_object_mut().and_then(|map| map.shift_remove("content"));
        let schema = content.as_ref().and_then(|c| c.as_object()?.values().next()?.get("schema").cloned());
        if let Some(mut schema) = schema {
            to_v2(&mut schema);
            response["schema"] = schema;
        }
    }
}

/// The type of a parameter stands beside its name.
fn parameters(list: &mut Value) {
    for parameter in list.as_array_mut().into_iter().flatten() {
        let Some(map) = parameter.as_object_mut() else { continue };
        if let Some(Value::Object(schema)) = map.shift_remove("schema") {
            map.extend(schema);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_between_versions() {
        let v3 = json!({
            "paths": {"/x": {
                "parameters": [{"name": "name", "in": "path", "schema": {"type": "string"}}],
                "put": {
                    "parameters": [{"name": "dryRun", "in": "query", "schema": {"type": "string"}}],
                    "requestBody": {"content": {"*/*": {"schema": {"$ref": "#/components/schemas/X"}}}},
                    "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/X"}}}}},
                },
            }},
            "components": {"schemas": {"X": {"properties": {
                "one": {"allOf": [{"$ref": "#/components/schemas/Y"}], "default": {}, "description": "d"},
                "amount": {"oneOf": [{"type": "string"}, {"type": "number"}]},
            }}}},
        });
        let v2 = from_v3([v3].into_iter());
        let at = |pointer: &str| v2.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/definitions/X/properties/one"), json!({"description": "d", "$ref": "#/definitions/Y"}));
        assert_eq!(at("/definitions/X/properties/amount"), json!({"type": "string"}));
        assert_eq!(at("/paths/~1x/put/parameters/0/schema/$ref"), "#/definitions/X");
        assert_eq!(at("/paths/~1x/put/parameters/1"), json!({"name": "dryRun", "in": "query", "type": "string"}));
        assert_eq!(at("/paths/~1x/put/responses/200/schema/$ref"), "#/definitions/X");
        assert_eq!(at("/paths/~1x/parameters/0/type"), "string");
    }
}
