//! `metadata`: names, labels, annotations, owners, finalizers, and what of them never changes.

use super::check::{Errors, IMMUTABLE, NEGATIVE, Path, flag, invalid_all, text};
use super::error::FieldError;
use crate::kinds::Kind;
use crate::meta::{self, names};
use serde_json::{Map, Value};

/// All annotations together, in bytes.
const ANNOTATIONS_MAX: usize = 256 * 1024;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "foregroundDeletion", "orphan"];

/// The rule for an object's name; the flag says that a suffix will follow.
pub(super) type NameRule = fn(&str, bool) -> Vec<String>;

pub(super) fn subdomain(name: &str, prefix: bool) -> Vec<String> {
    if prefix { names::dns1123_subdomain(&names::mask_trailing_dash(name)) } else { names::dns1123_subdomain(name) }
}

pub(super) fn label(name: &str, prefix: bool) -> Vec<String> {
    if prefix { names::dns1123_label(&names::mask_trailing_dash(name)) } else { names::dns1123_label(name) }
}

/// RBAC kinds take whatever can stand in a path.
pub(super) fn segment(name: &str, _prefix: bool) -> Vec<String> {
    names::path_segment(name)
}

pub(super) fn create(errs: &mut Errors, kind: &Kind, obj: &Value, rule: NameRule) {
    let path = Path::new("metadata");
    let generate = meta::generate_name(obj);
    if !generate.is_empty() {
        invalid_all(errs, &path.child("generateName"), generate, rule(generate, true));
    }
    let name = meta::name(obj);
    if name.is_empty() {
        errs.push(FieldError::required(path.child("name"), "name or generateName is required"));
    } else {
        invalid_all(errs, &path.child("name"), name, rule(name, false));
    }
    let namespace = meta::namespace(obj);
    if kind.namespaced {
        if namespace.is_empty() {
            errs.push(FieldError::required(path.child("namespace"), ""));
        } else {
            invalid_all(errs, &path.child("namespace"), namespace, names::dns1123_label(namespace));
        }
    } else if !namespace.is_empty() {
        errs.push(FieldError::forbidden(path.child("namespace"), "not allowed on this type"));
    }
    if meta::generation(obj) < 0 {
        errs.push(FieldError::invalid(path.child("generation"), meta::generation(obj), NEGATIVE));
    }
    labels(errs, meta::labels(obj), &path.child("labels"));
    annotations(errs, meta::annotations(obj), &path.child("annotations"));
    owners(errs, obj, &path.child("ownerReferences"));
    finalizers(errs, obj, &path.child("finalizers"));
}

pub(super) fn update(errs: &mut Errors, new: &Value, old: &Value) {
    update_of_any(errs, new, old);
    finalizers(errs, new, &Path::new("metadata").child("finalizers"));
}

/// The rules that need nothing of the kind.
pub(super) fn update_of_any(errs: &mut Errors, new: &Value, old: &Value) {
    let path = Path::new("metadata");
    if meta::is_being_deleted(old) {
        let had = meta::finalizers(old);
        let added: Vec<String> =
            meta::finalizers(new).into_iter().filter(|f| !had.contains(f)).map(super::error::go_quote).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errs.push(FieldError::forbidden(path.child("finalizers"), detail));
        }
    }
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (was, is) = (meta::at(old, &["metadata", key]), meta::at(new, &["metadata", key]));
        let set = |v: Option<&Value>| v.filter(|v| !v.is_null() && v.as_str() != Some("")).cloned();
        if set(was) != set(is) {
            errs.push(FieldError::invalid(path.child(key), is.cloned().unwrap_or(Value::Null), IMMUTABLE));
        }
    }
    labels(errs, meta::labels(new), &path.child("labels"));
    annotations(errs, meta::annotations(new), &path.child("annotations"));
    owners(errs, new, &path.child("ownerReferences"));
}

pub(super) fn labels(errs: &mut Errors, labels: Option<&Map<String, Value>>, path: &Path) {
    let mut all: Vec<(&String, &Value)> = labels.into_iter().flatten().collect();
    all.sort_by_key(|(key, _)| *key);
    for (key, value) in all {
        invalid_all(errs, path, key.clone(), names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        invalid_all(errs, path, value, names::label_value(value));
    }
}

pub(super) fn annotations(errs: &mut Errors, annotations: Option<&Map<String, Value>>, path: &Path) {
    let mut size = 0;
    let mut all: Vec<(&String, &Value)> = annotations.into_iter().flatten().collect();
    all.sort_by_key(|(key, _)| *key);
    for (key, value) in all {
        invalid_all(errs, path, key.clone(), names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX {
        errs.push(FieldError::too_long(path, ANNOTATIONS_MAX));
    }
}

fn owners(errs: &mut Errors, obj: &Value, path: &Path) {
    let all = meta::owner_references(obj);
    let mut controller: Option<String> = None;
    for owner in all {
        let (group, version) = crate::kinds::split_api_version(text(owner, "apiVersion"));
        if version.is_empty() {
            errs.push(FieldError::invalid(
                path.child("apiVersion"),
                text(owner, "apiVersion"),
                "version must not be empty",
            ));
        }
        for key in ["kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                errs.push(FieldError::invalid(path.child(key), "", "must not be empty"));
            }
        }
        if group.is_empty() && version == "v1" && text(owner, "kind") == "Event" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errs.push(FieldError::invalid(path, owner.clone(), detail));
        }
        if flag(owner, "controller") {
            let name = format!("{}/{}", text(owner, "kind"), text(owner, "name"));
            match &controller {
                Some(first) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                    );
                    errs.push(FieldError::invalid(path, Value::Array(all.to_vec()), detail));
                }
                None => controller = Some(name),
            }
        }
    }
}

fn finalizers(errs: &mut Errors, obj: &Value, path: &Path) {
    let all = meta::finalizers(obj);
    for name in &all {
        invalid_all(errs, path, *name, names::qualified_name(name));
    }
    if all.contains(&"orphan") && all.contains(&"foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errs.push(FieldError::invalid(path, serde_json::json!(all), detail));
    }
    for (i, name) in all.iter().enumerate() {
        if !name.contains('/') && !STANDARD_FINALIZERS.contains(name) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errs.push(FieldError::invalid(path.index(i), *name, detail));
        }
    }
}
