//! Walks over typed values: which paths a value sets, what changed between two, how one merges into another.
//!
//! Granular maps and keyed lists are walked into; scalars, atomic values and values of any form are leaves.

use super::path::{FieldSet, Known, PathElement};
use crate::schema::{Absent, ListOwnership, ListShape, Shape};
use serde_json::{Map, Value};

/// How a place is treated.
enum Form<'a> {
    Leaf,
    Map,
    List(&'a ListShape),
}

fn form(known: Known<'_>) -> Form<'_> {
    match known {
        Known::Type(def) if def.atomic => Form::Leaf,
        Known::Type(_) => Form::Map,
        Known::Shape(Shape::Map(map)) if map.atomic => Form::Leaf,
        Known::Shape(Shape::Map(_)) => Form::Map,
        Known::Shape(Shape::List(list)) if list.ownership == ListOwnership::Atomic => Form::Leaf,
        Known::Shape(Shape::List(list)) => Form::List(list),
        Known::Shape(_) => Form::Leaf,
    }
}

/// The element that names an item of a list.
fn element(list: &ListShape, item: &Value) -> PathElement {
    match &list.ownership {
        ListOwnership::Map(keys) => {
            let mut pairs: Vec<(String, Value)> = Vec::with_capacity(keys.len());
            for key in keys {
                let found = item.get(key.as_ref()).filter(|v| !v.is_null()).cloned();
                if let Some(value) = found.or_else(|| key_default(&list.item, key)) {
                    pairs.push((key.to_string(), value));
                }
            }
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            PathElement::Key(pairs)
        }
        _ => PathElement::Value(item.clone()),
    }
}

/// A key that is left out counts with its default.
fn key_default(item: &Shape, key: &str) -> Option<Value> {
    let field = item.object()?.field(key)?;
    match (&field.absent, &field.shape) {
        (Absent::Default(value), _) => Some(value.clone()),
        (Absent::Zero, Shape::String) => Some("".into()),
        (Absent::Zero, Shape::Int32 | Shape::Int64) => Some(0.into()),
        _ => None,
    }
}

fn members(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn items(value: Option<&Value>) -> Option<&Vec<Value>> {
    value.and_then(Value::as_array)
}

fn is_empty_map(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty)
}

/// What an applied configuration gets wrong, as paths and reasons.
pub(super) fn check(known: Known, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check_at(known, value, &mut Vec::new(), &mut found);
    found
}

fn check_at(known: Known, value: &Value, path: &mut Vec<PathElement>, found: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let at = |path: &[PathElement]| path.iter().map(|e| e.to_string()).collect::<String>();
    let expected = |what: &str, path: &[PathElement]| format!("{}: expected {what}, got {}", at(path), go_value(value));
    match known {
        Known::Type(def) => match value {
            Value::Object(map) => {
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort();
                for key in keys {
                    path.push(PathElement::Field(key.clone()));
                    match def.field(key) {
                        Some(field) => check_at(Known::of(&field.shape), &map[key], path, found),
                        None if def.open => {}
                        None => found.push(format!("{}: field not declared in schema", at(path))),
                    }
                    path.pop();
                }
            }
            _ => found.push(expected("map", path)),
        },
        Known::Shape(Shape::Map(shape)) => match value {
            Value::Object(map) => {
                for (key, member) in map {
                    path.push(PathElement::Field(key.clone()));
                    check_at(Known::of(&shape.value), member, path, found);
                    path.pop();
                }
            }
            _ => found.push(expected("map", path)),
        },
        Known::Shape(Shape::List(shape)) => match value {
            Value::Array(list) => check_list(shape, list, path, found),
            _ => found.push(expected("list", path)),
        },
        Known::Shape(shape) => {
            let (what, ok) = match shape {
                Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Duration => {
                    ("string", value.is_string())
                }
                Shape::Int32 | Shape::Int64 | Shape::Number => ("numeric (int or float)", value.is_number()),
                Shape::Bool => ("boolean", value.is_boolean()),
                _ => ("", true),
            };
            if !ok {
                found.push(expected(what, path));
            }
        }
    }
}

fn check_list(shape: &ListShape, list: &[Value], path: &mut Vec<PathElement>, found: &mut Vec<String>) {
    let mut seen: Vec<PathElement> = Vec::new();
    for (i, item) in list.iter().enumerate() {
        if shape.ownership == ListOwnership::Atomic {
            path.push(PathElement::Index(i));
        } else {
            let name = element(shape, item);
            if seen.contains(&name) {
                let at: String = path.iter().map(|e| e.to_string()).collect();
                found.push(format!("{at}: duplicate entries for key {name}"));
            }
            seen.push(name.clone());
            path.push(name);
        }
        check_at(Known::of(&shape.item), item, path, found);
        path.pop();
    }
}

/// A value as the reference implementation's messages show it.
fn go_value(value: &Value) -> String {
    let inner = match value {
        Value::String(s) => s.clone(),
        Value::Object(_) => "map[]".into(),
        Value::Array(_) => "[]".into(),
        other => other.to_string(),
    };
    format!("&value.valueUnstructured{{Value:{inner}}}")
}

/// The paths that a value sets.
pub(super) fn field_set(known: Known, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    collect(known, value, &mut Vec::new(), &mut set);
    set
}

fn collect(known: Known, value: &Value, path: &mut Vec<PathElement>, set: &mut FieldSet) {
    match form(known) {
        Form::Leaf => set.insert(path),
        Form::Map => {
            for (key, member) in members(Some(value)).into_iter().flatten() {
                let name = PathElement::Field(key.clone());
                let below = known.step(&name);
                path.push(name);
                collect(below, member, path, set);
                let named = matches!(known, Known::Type(def) if def.field(key).is_some());
                if member.is_null() || is_empty_map(member) || !named {
                    set.insert(path);
                }
                path.pop();
            }
        }
        Form::List(list) => {
            for item in items(Some(value)).into_iter().flatten() {
                path.push(element(list, item));
                collect(Known::of(&list.item), item, path, set);
                set.insert(path);
                path.pop();
            }
        }
    }
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub added: FieldSet,
    pub removed: FieldSet,
    pub modified: FieldSet,
}

impl Comparison {
    pub fn without_below(&self, ignored: &FieldSet) -> Comparison {
        Comparison {
            added: self.added.without_below(ignored),
            removed: self.removed.without_below(ignored),
            modified: self.modified.without_below(ignored),
        }
    }
}

pub(super) fn compare(known: Known, old: &Value, new: &Value) -> Comparison {
    let mut out = Comparison::default();
    compare_at(known, Some(old), Some(new), &mut Vec::new(), &mut out);
    out
}

fn compare_at(
    known: Known,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<PathElement>,
    out: &mut Comparison,
) {
    let leaf = |path: &mut Vec<PathElement>, out: &mut Comparison| match (old, new) {
        (None, Some(_)) => out.added.insert(path),
        (Some(_), None) => out.removed.insert(path),
        (Some(a), Some(b)) if !equal(a, b) => out.modified.insert(path),
        _ => {}
    };
    match form(known) {
        Form::Leaf => return leaf(path, out),
        Form::Map => {
            let (a, b) = (members(old), members(new));
            if a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                return leaf(path, out);
            }
            let keys = a.into_iter().flatten().map(|(k, _)| k);
            let more = b.into_iter().flatten().map(|(k, _)| k).filter(|k| a.is_none_or(|a| !a.contains_key(*k)));
            for key in keys.chain(more) {
                let name = PathElement::Field(key.clone());
                let below = known.step(&name);
                path.push(name);
                compare_at(below, a.and_then(|m| m.get(key)), b.and_then(|m| m.get(key)), path, out);
                path.pop();
            }
        }
        Form::List(list) => {
            let (a, b) = (items(old), items(new));
            if a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty) {
                return leaf(path, out);
            }
            let index = |l: Option<&'_ Vec<Value>>| -> Vec<(PathElement, Value)> {
                l.into_iter().flatten().map(|i| (element(list, i), i.clone())).collect()
            };
            let (a, b) = (index(a), index(b));
            let all = |l: &[(PathElement, Value)], name: &PathElement| {
                l.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect::<Vec<_>>()
            };
            let mut seen: Vec<&PathElement> = Vec::new();
            for (name, _) in a.iter().chain(&b) {
                if seen.contains(&name) {
                    continue;
                }
                seen.push(name);
                path.push(name.clone());
                let (was, is) = (all(&a, name), all(&b, name));
                if was.len() > 1 || is.len() > 1 {
                    // Items that cannot be told apart are owned as one.
                    match (was.is_empty(), is.is_empty()) {
                        (true, _) => out.added.insert(path),
                        (_, true) => out.removed.insert(path),
                        _ if was != is => out.modified.insert(path),
                        _ => {}
                    }
                } else {
                    compare_at(Known::of(&list.item), was.first(), is.first(), path, out);
                }
                path.pop();
            }
        }
    }
    match (old, new) {
        (None, Some(_)) => out.added.insert(path),
        (Some(_), None) => out.removed.insert(path),
        _ => {}
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

/// `config` merged into `live`; what both have is as in `config`.
pub(super) fn merge(known: Known, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    let leaf = || config.or(live).cloned();
    match form(known) {
        Form::Leaf => leaf(),
        Form::Map => {
            let (a, b) = (members(live), members(config));
            if a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                return leaf();
            }
            let mut out = Map::new();
            let keys = a.into_iter().flatten().map(|(k, _)| k);
            let more = b.into_iter().flatten().map(|(k, _)| k).filter(|k| a.is_none_or(|a| !a.contains_key(*k)));
            for key in keys.chain(more) {
                let below = known.step(&PathElement::Field(key.clone()));
                if let Some(merged) = merge(below, a.and_then(|m| m.get(key)), b.and_then(|m| m.get(key))) {
                    out.insert(key.clone(), merged);
                }
            }
            Some(Value::Object(out))
        }
        Form::List(list) => {
            let (a, b) = (items(live), items(config));
            if a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty) {
                return leaf();
            }
            let empty = Vec::new();
            Some(Value::Array(merge_lists(list, a.unwrap_or(&empty), b.unwrap_or(&empty))))
        }
    }
}

/// Items keep the order of `live`; items that `config` names keep the order they have there.
fn merge_lists(list: &ListShape, live: &[Value], config: &[Value]) -> Vec<Value> {
    let left: Vec<PathElement> = live.iter().map(|i| element(list, i)).collect();
    let right: Vec<PathElement> = config.iter().map(|i| element(list, i)).collect();
    let item = Known::of(&list.item);
    let find = |names: &[PathElement], from: &'_ [Value], name: &PathElement| {
        names.iter().position(|n| n == name).and_then(|i| from.get(i).cloned())
    };
    let mut shared = right.iter().filter(|name| left.contains(name));
    let mut next_shared = shared.next();
    let mut done: Vec<&PathElement> = Vec::new();
    let mut out = Vec::with_capacity(left.len().max(right.len()));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() {
            let name = &left[l];
            if *name == right[r] {
                done.push(&right[r]);
                out.extend(merge(item, find(&left, live, name).as_ref(), config.get(r)));
                l += 1;
                r += 1;
                next_shared = shared.next();
                continue;
            }
            if right.contains(name) && next_shared.is_some_and(|next| next != name) {
                l += 1;
                continue;
            }
        }
        if l < left.len() {
            let name = &left[l];
            if !right.contains(name) {
                out.push(live[l].clone());
                l += 1;
                continue;
            }
            if done.contains(&name) {
                l += 1;
            }
        }
        if r < right.len() {
            let name = &right[r];
            done.push(name);
            out.extend(merge(item, find(&left, live, name).as_ref(), config.get(r)));
            r += 1;
            if next_shared == Some(name) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// `value` without the paths in `gone`. None when nothing is left of a map or a list.
pub(super) fn remove(known: Known, value: &Value, gone: &FieldSet) -> Option<Value> {
    match form(known) {
        Form::Leaf => Some(value.clone()),
        Form::Map => {
            let map = members(Some(value))?;
            if map.is_empty() {
                return Some(value.clone());
            }
            let mut out = Map::new();
            for (key, member) in map {
                let name = PathElement::Field(key.clone());
                if gone.has(&name) {
                    continue;
                }
                let left = match gone.child(&name) {
                    Some(below) if !below.is_empty() => remove(known.step(&name), member, below),
                    _ => Some(member.clone()),
                };
                if let Some(left) = left {
                    out.insert(key.clone(), left);
                }
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
        Form::List(list) => {
            let all = items(Some(value))?;
            if all.is_empty() {
                return Some(value.clone());
            }
            let mut out = Vec::new();
            for item in all {
                let name = element(list, item);
                if gone.has(&name) {
                    continue;
                }
                match gone.child(&name) {
                    Some(below) if !below.is_empty() => out.extend(remove(Known::of(&list.item), item, below)),
                    _ => out.push(item.clone()),
                }
            }
            (!out.is_empty()).then_some(Value::Array(out))
        }
    }
}
