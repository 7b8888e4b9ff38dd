//! JSON patch (RFC 6902), with the latitude that the API's clients rely on: `replace` of a member that is not there
//! adds it, a path is read from its first slash on, `""` is the whole document.

use super::{cannot_be_carried_out, kind_of, undecodable_body};
use crate::status::Status;
use serde_json::{Map, Value};

/// The most operations one patch may hold.
const OPERATIONS_MAX: usize = 10_000;

/// How much copies may add, all together; as upstream.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Carries out `patch` (the request's body) on `doc`.
pub fn json_patch(doc: &Value, patch: &[u8]) -> Result<Value, Status> {
    let parsed: Value = serde_json::from_slice(patch).map_err(|e| undecodable_body(&e))?;
    let operations = match parsed {
        Value::Array(operations) => operations,
        Value::Null => Vec::new(),
        other => {
            let text =
                format!("json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp", kind_of(&other));
            return Err(Status::bad_request(format!("error decoding patch: {text}")));
        }
    };
    if operations.len() > OPERATIONS_MAX {
        let detail =
            format!("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}", operations.len());
        return Err(Status::too_large(&detail));
    }
    let mut doc = doc.clone();
    let mut copied = 0_usize;
    for operation in &operations {
        // A copy of a copy doubles: some dozens of operations would fill any memory.
        if operation.get("op").and_then(Value::as_str) == Some("copy")
            && let Some(from) = operation.get("from").and_then(Value::as_str).and_then(|from| find(&doc, from))
        {
            copied = copied.saturating_add(size_up_to(from, COPIED_BYTES_MAX));
            if copied > COPIED_BYTES_MAX {
                let detail =
                    format!("the copies of a JSON patch may add up to {COPIED_BYTES_MAX} bytes, and these add more");
                return Err(Status::too_large(&detail));
            }
        }
        carry_out(&mut doc, operation).ok_or_else(cannot_be_carried_out)?;
    }
    Ok(doc)
}

/// About how long a value is as JSON; counting ends soon after `enough`.
fn size_up_to(value: &Value, enough: usize) -> usize {
    let mut size = 2_usize;
    let mut left = vec![value];
    while let Some(value) = left.pop()
        && size <= enough
    {
        size = size.saturating_add(match value {
            Value::String(text) => text.len() + 3,
            Value::Array(items) => {
                left.extend(items);
                2 + items.len()
            }
            Value::Object(map) => {
                left.extend(map.values());
                2 + map.keys().map(|key| key.len() + 4).sum::<usize>()
            }
            _ => 8,
        });
    }
    size
}

/// None when the operation does not fit the document.
fn carry_out(doc: &mut Value, operation: &Value) -> Option<()> {
    let text = |key: &str| operation.get(key).and_then(Value::as_str);
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    let path = text("path")?;
    match text("op")? {
        "add" => add(doc, path, value()),
        "remove" => remove(doc, path).map(drop),
        "replace" => replace(doc, path, value()),
        "move" => {
            let taken = remove(doc, text("from")?)?;
            add(doc, path, taken)
        }
        "copy" => {
            let taken = find(doc, text("from")?)?.clone();
            add(doc, path, taken)
        }
        "test" => {
            let want = value();
            let same = match find(doc, path) {
                Some(found) => same_value(found, &want),
                // A member that is not there tests equal to null, if its parent is there.
                None => want.is_null() && parent(doc, path).is_some(),
            };
            same.then_some(())
        }
        _ => None,
    }
}

/// Numbers compare by value: `1` equals `1.0`.
fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same_value(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| same_value(v, w)))
        }
        _ => a == b,
    }
}

fn decode_token(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

/// The parents' tokens and the last one. What stands before the first slash does not count.
fn split(path: &str) -> Option<(Vec<String>, String)> {
    let (_, tail) = path.split_once('/')?;
    let mut tokens: Vec<String> = tail.split('/').map(decode_token).collect();
    let last = tokens.pop()?;
    Some((tokens, last))
}

fn step<'a>(value: &'a Value, token: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(token),
        Value::Array(items) => items.get(index(token, items.len())?),
        _ => None,
    }
}

/// An index into a list; negative ones count from the end.
fn index(token: &str, len: usize) -> Option<usize> {
    let n: i64 = token.parse().ok()?;
    let at = if n < 0 { n + len as i64 } else { n };
    usize::try_from(at).ok().filter(|i| *i < len)
}

fn parent<'a>(doc: &'a Value, path: &str) -> Option<&'a Value> {
    let (tokens, _) = split(path)?;
    tokens.iter().try_fold(doc, |v, t| step(v, t)).filter(|v| v.is_object() || v.is_array())
}

fn find<'a>(doc: &'a Value, path: &str) -> Option<&'a Value> {
    if path.is_empty() {
        return Some(doc);
    }
    let (_, last) = split(path)?;
    step(parent(doc, path)?, &last)
}

fn parent_mut<'a>(doc: &'a mut Value, tokens: &[String]) -> Option<&'a mut Value> {
    tokens.iter().try_fold(doc, |value, token| match value {
        Value::Object(map) => map.get_mut(token),
        Value::Array(items) => {
            let at = index(token, items.len())?;
            items.get_mut(at)
        }
        _ => None,
    })
}

fn add(doc: &mut Value, path: &str, value: Value) -> Option<()> {
    let (tokens, last) = split(path)?;
    match parent_mut(doc, &tokens)? {
        Value::Object(map) => insert(map, last, value),
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let n: i64 = last.parse().ok()?;
            let at = if n < 0 { n + items.len() as i64 + 1 } else { n };
            let at = usize::try_from(at).ok().filter(|at| *at <= items.len())?;
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn insert(map: &mut Map<String, Value>, key: String, value: Value) {
    map.insert(key, value);
}

fn remove(doc: &mut Value, path: &str) -> Option<Value> {
    let (tokens, last) = split(path)?;
    match parent_mut(doc, &tokens)? {
        Value::Object(map) => map.shift_remove(&last),
        Value::Array(items) => {
            let at = index(&last, items.len())?;
            Some(items.remove(at))
        }
        _ => None,
    }
}

fn replace(doc: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *doc = value;
        return Some(());
    }
    let (tokens, last) = split(path)?;
    match parent_mut(doc, &tokens)? {
        Value::Object(map) => insert(map, last, value),
        Value::Array(items) => {
            let at = index(&last, items.len())?;
            items[at] = value;
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn copies_of_copies_end() {
        let doc = json!({"data": {"a": "x".repeat(1000)}});
        let double: Vec<Value> =
            (0..40).map(|n| json!({"op": "copy", "from": "/data", "path": format!("/data/c{n}")})).collect();
        let refused = json_patch(&doc, Value::Array(double).to_string().as_bytes()).unwrap_err();
        assert_eq!((refused.code(), refused.reason.as_str()), (413, "RequestEntityTooLarge"));
        let few = json!([{"op": "copy", "from": "/data", "path": "/more"}]);
        assert!(json_patch(&doc, few.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn table() {
        let doc = json!({"a": {"b": 1}, "l": [1, 2], "x/y": 3});
        let check = |patch: Value, expect: Option<Value>| {
            let found = json_patch(&doc, patch.to_string().as_bytes());
            match expect {
                Some(expect) => assert_eq!(found, Ok(expect), "{patch}"),
                None => assert_eq!(found.expect_err("refused").code(), 422, "{patch}"),
            }
        };
        check(json!([]), Some(doc.clone()));
        check(
            json!([{"op": "add", "path": "/l/-", "value": 3}]),
            Some(json!({"a": {"b": 1}, "l": [1, 2, 3], "x/y": 3})),
        );
        check(
            json!([{"op": "add", "path": "/l/0", "value": 3}]),
            Some(json!({"a": {"b": 1}, "l": [3, 1, 2], "x/y": 3})),
        );
        check(json!([{"op": "add", "path": "/l/9", "value": 3}]), None);
        check(json!([{"op": "remove", "path": "/l/-"}]), None);
        check(json!([{"op": "remove", "path": "/q"}]), None);
        check(
            json!([{"op": "replace", "path": "/a/c", "value": 2}]),
            Some(json!({"a": {"b": 1, "c": 2}, "l": [1, 2], "x/y": 3})),
        );
        check(
            json!([{"op": "replace", "path": "/x~1y", "value": 4}]),
            Some(json!({"a": {"b": 1}, "l": [1, 2], "x/y": 4})),
        );
        check(
            json!([{"op": "move", "from": "/a/b", "path": "/m"}]),
            Some(json!({"a": {}, "l": [1, 2], "x/y": 3, "m": 1})),
        );
        check(json!([{"op": "test", "path": "/a/b", "value": 1.0}]), Some(doc.clone()));
        check(json!([{"op": "test", "path": "/a/q", "value": 1}]), None);
        check(json!([{"op": "frob", "path": "/a"}]), None);
        check(json!([{"op": "add", "path": "/q/r", "value": 1}]), None);
        check(json!([{"op": "replace", "path": "", "value": {}}]), Some(json!({})));
        assert_eq!(
            json_patch(&doc, b"[{").expect_err("cut").message,
            "error decoding patch: unexpected end of JSON input"
        );
    }
}
