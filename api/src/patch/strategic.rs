//! Strategic merge patch, by the rules of the Kubernetes documentation on it (and, for order, of its design notes).
//!
//! The order of a merged list: items that the patch names keep the patch's order, items only the server has keep the
//! server's, and the two sequences are merged by where the server had them, patch items first in doubt.

use crate::schema::{ListMerge, Shape, TypeDef};
use crate::status::Status;
use crate::validate::error::go_quote;
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// What is known about the members of a map: a type's fields, one shape for all, or nothing.
#[derive(Clone, Copy)]
enum Known<'a> {
    Type(&'a TypeDef),
    Members(&'a Shape),
    Nothing,
}

impl<'a> Known<'a> {
    fn of(shape: Option<&'a Shape>) -> Self {
        match shape {
            Some(Shape::Object(def)) => Known::Type(def.get()),
            Some(Shape::Map(map)) => Known::Members(&map.value),
            _ => Known::Nothing,
        }
    }

    fn member(self, key: &str) -> Option<&'a Shape> {
        match self {
            Known::Type(def) => def.field(key).map(|f| &f.shape),
            Known::Members(shape) => Some(shape),
            Known::Nothing => None,
        }
    }

    /// Whether a member's new value takes the place of the old one.
    fn replaces(self, key: &str) -> bool {
        matches!(self, Known::Type(def) if def.field(key).is_some_and(|f| f.replaces))
    }
}

/// Merges `patch` into `map`.
pub(super) fn merge_map(
    map: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    def: Option<&TypeDef>,
) -> Result<(), Status> {
    merge_known(map, patch, def.map_or(Known::Nothing, Known::Type))
}

fn merge_known(map: &mut Map<String, Value>, patch: &Map<String, Value>, known: Known) -> Result<(), Status> {
    match patch.get(DIRECTIVE) {
        Some(Value::String(s)) if s == "replace" => {
            *map = patch.clone();
            map.shift_remove(DIRECTIVE);
            return Ok(());
        }
        Some(Value::String(s)) if s == "delete" => {
            map.clear();
            return Ok(());
        }
        Some(Value::String(s)) if s == "merge" => {}
        Some(other) => return Err(Status::generic(format!("unknown patch type found: {other}"))),
        None => {}
    }
    retain_keys(map, patch)?;
    for (key, value) in patch {
        if key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(SET_ORDER) {
            continue;
        }
        if let Some(list) = key.strip_prefix(DELETE_FROM) {
            delete_from(map, list, value)?;
            continue;
        }
        // A list that has an order of its own is merged with it, below.
        if patch.contains_key(&format!("{SET_ORDER}{key}")) {
            continue;
        }
        merge_member(map, key, value, known)?;
    }
    for (key, order) in patch {
        if let Some(list) = key.strip_prefix(SET_ORDER) {
            merge_ordered(map, list, patch.get(list), order, known)?;
        }
    }
    Ok(())
}

fn merge_member(map: &mut Map<String, Value>, key: &str, value: &Value, known: Known) -> Result<(), Status> {
    if value.is_null() {
        map.shift_remove(key);
        return Ok(());
    }
    let shape = known.member(key);
    match (map.get_mut(key), value) {
        (Some(Value::Object(have)), Value::Object(want)) if !known.replaces(key) => {
            merge_known(have, want, Known::of(shape))
        }
        (Some(Value::Array(have)), Value::Array(want)) => {
            let merged = merge_list(have, want, shape)?;
            *have = merged;
            Ok(())
        }
        _ => {
            if let Some(plain) = without_directives(value) {
                map.insert(key.to_string(), plain);
            } else {
                map.shift_remove(key);
            }
            Ok(())
        }
    }
}

/// A value that the server did not have: nulls and directives have nothing to act on.
fn without_directives(value: &Value) -> Option<Value> {
    match value {
        Value::Object(members) => {
            if members.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return None;
            }
            let mut out = Map::new();
            for (key, member) in members {
                let directive = key == DIRECTIVE
                    || key == RETAIN_KEYS
                    || key.starts_with(SET_ORDER)
                    || key.starts_with(DELETE_FROM);
                if !directive
                    && !member.is_null()
                    && let Some(plain) = without_directives(member)
                {
                    out.insert(key.clone(), plain);
                }
            }
            Some(Value::Object(out))
        }
        Value::Array(items) => {
            let replaced = |i: &Value| i.as_object().is_some_and(|m| m.len() == 1 && m.contains_key(DIRECTIVE));
            Some(Value::Array(items.iter().filter(|i| !replaced(i)).filter_map(without_directives).collect()))
        }
        other => Some(other.clone()),
    }
}

fn retain_keys(map: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), Status> {
    let Some(list) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let bad = || Status::bad_request("invalid patch format of retainKeys");
    let keep: Vec<&str> = list.as_array().ok_or_else(bad)?.iter().filter_map(Value::as_str).collect();
    let stray =
        |(key, value): (&String, &Value)| !key.starts_with('$') && !value.is_null() && !keep.contains(&key.as_str());
    if patch.iter().any(stray) {
        return Err(bad());
    }
    map.retain(|key, _| keep.contains(&key.as_str()));
    Ok(())
}

fn delete_from(map: &mut Map<String, Value>, list: &str, gone: &Value) -> Result<(), Status> {
    let Some(gone) = gone.as_array() else {
        return Err(Status::bad_request("invalid patch format of primitive list"));
    };
    if let Some(Value::Array(have)) = map.get_mut(list) {
        have.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// How a list merges, when it does.
fn strategy(shape: Option<&Shape>) -> Option<(&ListMerge, &Shape)> {
    match shape {
        Some(Shape::List(list)) if list.merge != ListMerge::Replace => Some((&list.merge, &list.item)),
        _ => None,
    }
}

fn merge_list(have: &[Value], want: &[Value], shape: Option<&Shape>) -> Result<Vec<Value>, Status> {
    match strategy(shape) {
        None => Ok(want.iter().filter_map(without_directives).collect()),
        Some((ListMerge::Key(key), item)) => {
            let Some(rest) = apply_item_directives(have, want, key)? else {
                return Ok(plain_items(want, key));
            };
            let mut merged = rest;
            let mut named = Vec::new();
            for part in want.iter().filter(|i| i.get(DIRECTIVE).is_none()) {
                let part_map = part.as_object().ok_or_else(|| Status::generic("lists of lists are not supported"))?;
                let id = key_of(part, key)?;
                named.push(id.clone());
                match merged.iter_mut().find(|m| m.get(key.as_ref()) == Some(&id)) {
                    Some(Value::Object(found)) => merge_known(found, part_map, Known::of(Some(item)))?,
                    _ => merged.extend(without_directives(part)),
                }
            }
            Ok(in_order(merged, &named, &keys_of(have, key), |v| v.get(key.as_ref()).cloned()))
        }
        Some(_) => {
            let mut merged = have.to_vec();
            for item in want {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            Ok(in_order(merged, want, have, |v| Some(v.clone())))
        }
    }
}

/// Merges a list whose order the patch gives.
fn merge_ordered(
    map: &mut Map<String, Value>,
    list: &str,
    want: Option<&Value>,
    order: &Value,
    known: Known,
) -> Result<(), Status> {
    let bad = || Status::bad_request("invalid patch format of setElementOrder list");
    let order = order.as_array().ok_or_else(bad)?;
    let shape = known.member(list);
    let want = want.and_then(Value::as_array);
    let have = map.get(list).and_then(Value::as_array).cloned();
    let merged = match (&have, want) {
        (None, None) => return Ok(()),
        (Some(have), None) => have.clone(),
        (None, Some(want)) => merge_list(&[], want, shape)?,
        (Some(have), Some(want)) => merge_list(have, want, shape)?,
    };
    let have = have.unwrap_or_default();
    let ordered = match strategy(shape) {
        Some((ListMerge::Key(key), _)) => {
            let named: Vec<Value> = order.iter().map(|o| key_of(o, key)).collect::<Result<_, _>>()?;
            let fits = |item: &Value| {
                item.get(DIRECTIVE).is_some() || item.get(key.as_ref()).is_some_and(|id| named.contains(id))
            };
            if !want.into_iter().flatten().all(fits) {
                return Err(out_of_order(want, order, list));
            }
            in_order(merged, &named, &keys_of(&have, key), |v| v.get(key.as_ref()).cloned())
        }
        _ => in_order(merged, order, &have, |v| Some(v.clone())),
    };
    map.insert(list.to_string(), Value::Array(ordered));
    Ok(())
}

fn out_of_order(want: Option<&Vec<Value>>, order: &[Value], list: &str) -> Status {
    let shown = |items: &[Value]| Value::Array(items.to_vec()).to_string();
    Status::generic(format!(
        "The order in patch list:\n{}\n doesn't match {SET_ORDER}{list} list:\n{}\n",
        shown(want.map_or(&[], |w| w)),
        shown(order)
    ))
}

fn key_of(item: &Value, key: &str) -> Result<Value, Status> {
    item.get(key).cloned().ok_or_else(|| {
        Status::generic(format!("map: {item} does not contain declared merge key: {}", go_quote(key).trim_matches('"')))
    })
}

fn keys_of(items: &[Value], key: &str) -> Vec<Value> {
    items.iter().filter_map(|i| i.get(key).cloned()).collect()
}

/// What is left of `have` after the items `$patch: delete` names; None when a `$patch: replace` item drops it all.
fn apply_item_directives(have: &[Value], want: &[Value], key: &str) -> Result<Option<Vec<Value>>, Status> {
    let mut left = have.to_vec();
    for item in want {
        match item.get(DIRECTIVE) {
            None => {}
            Some(Value::String(s)) if s == "replace" => return Ok(None),
            Some(Value::String(s)) if s == "delete" => {
                let id = key_of(item, key)?;
                left.retain(|have| have.get(key) != Some(&id));
            }
            Some(Value::String(s)) if s == "merge" => {
                return Err(Status::generic("merging list cannot yet be specified in the patch"));
            }
            Some(other) => return Err(Status::generic(format!("unknown patch type found: {other}"))),
        }
    }
    Ok(Some(left))
}

/// The items of a list that replaces the server's.
fn plain_items(want: &[Value], _key: &str) -> Vec<Value> {
    want.iter().filter(|i| i.get(DIRECTIVE).is_none()).filter_map(without_directives).collect()
}

/// Merges the items that the patch names (in its order) with those it does not (in the server's order).
fn in_order(
    items: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    id: impl Fn(&Value) -> Option<Value>,
) -> Vec<Value> {
    let position = |order: &[Value], item: &Value| id(item).and_then(|id| order.iter().position(|o| *o == id));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| position(patch_order, item).is_some());
    named.sort_by_key(|item| position(patch_order, item));
    others.sort_by_key(|item| position(server_order, item));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(other), Some(name)) = (others.peek(), named.peek()) {
        let other_first = match (position(server_order, other), position(server_order, name)) {
            (Some(a), Some(b)) => a < b,
            _ => false,
        };
        out.extend(if other_first { others.next() } else { named.next() });
    }
    out.extend(others);
    out.extend(named);
    out
}

#[cfg(test)]
mod tests {
    use crate::patch::strategic;
    use crate::schema::Schema;
    use serde_json::{Value, json};

    fn check(kind: &str, doc: Value, patch: Value, expect: Value) {
        let group = if kind == "PodDisruptionBudget" { "policy" } else { "" };
        let def = Schema::by_gvk(group, "v1", kind).expect("a type");
        assert_eq!(strategic(def, &doc, &patch), Ok(expect), "{patch}");
    }

    fn ports(list: Value) -> Value {
        json!({"spec": {"ports": list}})
    }

    #[test]
    fn lists_by_key() {
        let doc = || ports(json!([{"name": "a", "port": 80}, {"name": "b", "port": 53}]));
        check(
            "Service",
            doc(),
            ports(json!([{"port": 80, "targetPort": 1}])),
            ports(json!([{"name": "a", "port": 80, "targetPort": 1}, {"name": "b", "port": 53}])),
        );
        check(
            "Service",
            doc(),
            ports(json!([{"port": 443}])),
            ports(json!([{"port": 443}, {"name": "a", "port": 80}, {"name": "b", "port": 53}])),
        );
        check(
            "Service",
            doc(),
            ports(json!([{"port": 80, "$patch": "delete"}])),
            ports(json!([{"name": "b", "port": 53}])),
        );
        check("Service", doc(), ports(json!([{"port": 1}, {"$patch": "replace"}])), ports(json!([{"port": 1}])));
        check(
            "Service",
            doc(),
            json!({"spec": {"$setElementOrder/ports": [{"port": 53}, {"port": 80}]}}),
            ports(json!([{"name": "b", "port": 53}, {"name": "a", "port": 80}])),
        );
    }

    #[test]
    fn directives() {
        check(
            "ConfigMap",
            json!({"data": {"a": "1", "b": "2"}}),
            json!({"data": {"a": null, "c": "3"}}),
            json!({"data": {"b": "2", "c": "3"}}),
        );
        check(
            "ConfigMap",
            json!({"data": {"a": "1"}}),
            json!({"data": {"$patch": "replace", "c": "3"}}),
            json!({"data": {"c": "3"}}),
        );
        check("ConfigMap", json!({"data": {"a": "1"}}), json!({"data": {"$patch": "delete"}}), json!({"data": {}}));
        check(
            "ConfigMap",
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
            json!({"metadata": {"finalizers": ["c", "b"]}}),
        );
        check(
            "Pod",
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/"}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
        );
        check(
            "Pod",
            json!({"spec": {"tolerations": [{"key": "a"}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
        );
        check(
            "PodDisruptionBudget",
            json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "minAvailable": 1}}),
            json!({"spec": {"selector": {"matchLabels": {"c": "d"}}}}),
            json!({"spec": {"selector": {"matchLabels": {"c": "d"}}, "minAvailable": 1}}),
        );
    }
}
