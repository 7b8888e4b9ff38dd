//! What the rules are made of: a place in an object, the list of complaints, and the small checks they share.

use super::error::FieldError;
use crate::meta;
use serde_json::Value;

/// The path of a field, for messages: `spec.containers[0].name`.
#[derive(Debug, Clone)]
pub(super) struct Path(String);

impl Path {
    pub fn new(root: &str) -> Self {
        Path(root.into())
    }
    pub fn child(&self, name: &str) -> Path {
        if self.0.is_empty() { Path(name.into()) } else { Path(format!("{}.{name}", self.0)) }
    }
    pub fn index(&self, i: usize) -> Path {
        Path(format!("{}[{i}]", self.0))
    }
    pub fn key(&self, key: &str) -> Path {
        Path(format!("{}[{key}]", self.0))
    }
}

impl From<Path> for String {
    fn from(path: Path) -> String {
        path.0
    }
}
impl From<&Path> for String {
    fn from(path: &Path) -> String {
        path.0.clone()
    }
}

pub(super) type Errors = Vec<FieldError>;

/// The string at a member, empty when absent.
pub(super) fn text<'a>(obj: &'a Value, key: &str) -> &'a str {
    obj.get(key).and_then(Value::as_str).unwrap_or("")
}

pub(super) fn int(obj: &Value, key: &str) -> Option<i64> {
    obj.get(key).and_then(Value::as_i64)
}

pub(super) fn flag(obj: &Value, key: &str) -> bool {
    obj.get(key).and_then(Value::as_bool).unwrap_or(false)
}

pub(super) fn list<'a>(obj: &'a Value, key: &str) -> &'a [Value] {
    meta::list_at(obj, &[key])
}

/// A member that is there and not null.
pub(super) fn some<'a>(obj: &'a Value, key: &str) -> Option<&'a Value> {
    obj.get(key).filter(|v| !v.is_null())
}

/// The member, null when absent: how a message shows an unset pointer.
pub(super) fn shown(obj: &Value, key: &str) -> Value {
    obj.get(key).cloned().unwrap_or(Value::Null)
}

/// A value with the keys of its maps in order, as messages show maps.
pub(super) fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut members: Vec<(String, Value)> = map.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().collect())
        }
        other => other.clone(),
    }
}

pub(super) fn invalid_all(errs: &mut Errors, path: &Path, value: impl Into<Value>, problems: Vec<String>) {
    let value = value.into();
    errs.extend(problems.into_iter().map(|p| FieldError::invalid(path, value.clone(), p)));
}

pub(super) const NEGATIVE: &str = "must be greater than or equal to 0";

/// The integer at `key` is not negative.
pub(super) fn non_negative(errs: &mut Errors, obj: &Value, key: &str, path: &Path) {
    if let Some(n) = int(obj, key).filter(|n| *n < 0) {
        errs.push(FieldError::invalid(path.child(key), n, NEGATIVE));
    }
}

/// The string at `key` is one of `allowed` (shown in that order).
pub(super) fn one_of(errs: &mut Errors, obj: &Value, key: &str, path: &Path, allowed: &[&str]) {
    let value = text(obj, key);
    if !allowed.contains(&value) {
        errs.push(FieldError::not_supported(path.child(key), value, allowed));
    }
}

/// As [`one_of`], for a field that may be unset.
pub(super) fn one_of_if_set(errs: &mut Errors, obj: &Value, key: &str, path: &Path, allowed: &[&str]) {
    if some(obj, key).is_some() {
        one_of(errs, obj, key, path, allowed);
    }
}

/// As [`one_of`], and required.
pub(super) fn required_one_of(errs: &mut Errors, obj: &Value, key: &str, path: &Path, allowed: &[&str]) {
    if text(obj, key).is_empty() {
        errs.push(FieldError::required(path.child(key), ""));
    } else {
        one_of(errs, obj, key, path, allowed);
    }
}

/// The string at `key` is not empty.
pub(super) fn required(errs: &mut Errors, obj: &Value, key: &str, path: &Path) -> bool {
    let missing = text(obj, key).is_empty();
    if missing {
        errs.push(FieldError::required(path.child(key), ""));
    }
    !missing
}

pub(super) const IMMUTABLE: &str = "field is immutable";

/// The member does not change.
pub(super) fn immutable(errs: &mut Errors, new: &Value, old: &Value, key: &str, path: &Path) {
    if some(new, key) != some(old, key) {
        errs.push(FieldError::invalid(path.child(key), shown(new, key), IMMUTABLE));
    }
}

/// A port's number or name.
pub(super) fn port_number_or_name(errs: &mut Errors, value: Option<&Value>, path: &Path) {
    use crate::meta::names;
    match value {
        Some(Value::String(name)) => invalid_all(errs, path, name.clone(), names::port_name(name)),
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or(0);
            invalid_all(errs, path, number, names::port_number(number));
        }
    }
}

/// A relative path that does not climb.
pub(super) fn local_descending_path(errs: &mut Errors, target: &str, path: &Path) {
    if target.starts_with('/') {
        errs.push(FieldError::invalid(path, target, "must be a relative path"));
    }
    no_backsteps(errs, target, path);
}

pub(super) fn no_backsteps(errs: &mut Errors, target: &str, path: &Path) {
    if target.split('/').any(|part| part == "..") {
        errs.push(FieldError::invalid(path, target, "must not contain '..'"));
    }
}

/// As [`local_descending_path`], and no name that the kubelet keeps for itself.
pub(super) fn local_non_reserved_path(errs: &mut Errors, target: &str, path: &Path) {
    local_descending_path(errs, target, path);
    if target.starts_with("..") && !target.starts_with("../") {
        errs.push(FieldError::invalid(path, target, "must not start with '..'"));
    }
}

/// An integer or a percentage, not negative.
pub(super) fn int_or_percent(errs: &mut Errors, value: &Value, path: &Path) {
    match value {
        Value::String(s) => {
            if !s.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit())) {
                errs.push(FieldError::invalid(path, s.clone(), "must be an integer or percentage (e.g '5%')"));
            }
        }
        other => {
            if let Some(n) = other.as_i64().filter(|n| *n < 0) {
                errs.push(FieldError::invalid(path, n, NEGATIVE));
            }
        }
    }
}

/// The number, percentages as they are written.
pub(super) fn int_or_percent_value(value: &Value) -> i64 {
    match value {
        Value::String(s) => s.strip_suffix('%').and_then(|n| n.parse().ok()).unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    }
}

pub(super) fn not_more_than_100_percent(errs: &mut Errors, value: &Value, path: &Path) {
    if value.is_string() && int_or_percent_value(value) > 100 {
        errs.push(FieldError::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}
