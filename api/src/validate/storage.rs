//! Volumes, claims and classes.

use super::check::{Errors, Path, invalid_all, list, one_of_if_set, required, some, text};
use super::error::FieldError;
use crate::meta::{self, names};
use crate::quantity::Quantity;
use serde_json::{Map, Value};
use std::cmp::Ordering;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const NOT_POSITIVE: &str = "must be greater than zero";

/// A CSI driver's name: a domain of at most 63 characters, in any case.
pub(super) fn driver_name(errs: &mut Errors, name: &str, path: &Path) {
    if name.len() > 63 {
        errs.push(FieldError::too_long(path, 63));
    }
    invalid_all(errs, path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

fn access_modes(errs: &mut Errors, spec: &Value, path: &Path) {
    let modes = list(spec, "accessModes");
    let at = path.child("accessModes");
    if modes.is_empty() {
        errs.push(FieldError::required(&at, "at least 1 access mode is required"));
    }
    let named: Vec<&str> = modes.iter().filter_map(Value::as_str).collect();
    for mode in &named {
        if !ACCESS_MODES.contains(mode) {
            errs.push(FieldError::not_supported(&at, *mode, &ACCESS_MODES));
        }
    }
    if named.contains(&"ReadWriteOncePod") && named.iter().any(|m| *m != "ReadWriteOncePod") {
        errs.push(FieldError::forbidden(&at, "may not use ReadWriteOncePod with other access modes"));
    }
}

pub(super) fn claim_spec(errs: &mut Errors, spec: &Value, path: &Path) {
    access_modes(errs, spec, path);
    if let Some(selector) = some(spec, "selector") {
        super::selectors::label_selector(errs, selector, &path.child("selector"));
    }
    let at = path.child("resources").key("storage");
    match meta::at(spec, &["resources", "requests", "storage"]).and_then(Quantity::from_value) {
        None => errs.push(FieldError::required(at, "")),
        Some(size) if size.sign() != Ordering::Greater => {
            errs.push(FieldError::invalid(at, size.to_string(), NOT_POSITIVE));
        }
        Some(_) => {}
    }
    if let Some(class) = some(spec, "storageClassName").and_then(Value::as_str).filter(|c| !c.is_empty()) {
        invalid_all(errs, &path.child("storageClassName"), class, names::dns1123_subdomain(class));
    }
    one_of_if_set(errs, spec, "volumeMode", path, &["Block", "Filesystem"]);
    for source in ["dataSource", "dataSourceRef"] {
        if let Some(found) = some(spec, source) {
            let at = path.child(source);
            required(errs, found, "name", &at);
            required(errs, found, "kind", &at);
            if text(found, "apiGroup").is_empty() && text(found, "kind") != "PersistentVolumeClaim" {
                let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
                errs.push(FieldError::invalid(&at, text(found, "kind"), detail));
            }
        }
    }
}

pub(super) fn claim(errs: &mut Errors, obj: &Value) {
    claim_spec(errs, obj.get("spec").unwrap_or(&Value::Null), &Path::new("spec"));
}

/// A bound claim may only grow.
pub(super) fn claim_update(errs: &mut Errors, new: &Value, old: &Value) {
    let part = |obj: &Value| {
        let mut spec = meta::map_at(obj, &["spec"]).cloned().unwrap_or_default();
        spec.shift_remove("volumeAttributesClassName");
        if meta::str_at(old, &["spec", "volumeName"]).is_empty() {
            spec.shift_remove("volumeName");
        }
        if let Some(requests) =
            spec.get_mut("resources").and_then(|r| r.get_mut("requests")).and_then(Value::as_object_mut)
        {
            requests.shift_remove("storage");
        }
        spec
    };
    if part(new) != part(old) {
        let detail =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errs.push(FieldError::forbidden("spec", detail));
    }
    let size =
        |obj: &Value| meta::at(obj, &["spec", "resources", "requests", "storage"]).and_then(Quantity::from_value);
    if let (Some(now), Some(was)) = (size(new), size(old))
        && now != was
    {
        if meta::str_at(old, &["status", "phase"]) != "Bound" {
            let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
            errs.push(FieldError::forbidden("spec", detail));
        } else if now < was {
            errs.push(FieldError::forbidden(
                "spec.resources.requests.storage",
                "field can not be less than previous value",
            ));
        }
    }
}

pub(super) fn volume(errs: &mut Errors, obj: &Value) {
    let null = Value::Null;
    let spec = obj.get("spec").unwrap_or(&null);
    let path = Path::new("spec");
    access_modes(errs, spec, &path);
    let capacity = meta::map_at(spec, &["capacity"]).cloned().unwrap_or_default();
    let at = path.child("capacity");
    if capacity.is_empty() {
        errs.push(FieldError::required(&at, ""));
    }
    if !capacity.contains_key("storage") || capacity.len() > 1 {
        let other = capacity.keys().find(|k| *k != "storage").cloned().unwrap_or_default();
        errs.push(FieldError::not_supported(&at, other, &["storage"]));
    }
    for (name, amount) in &capacity {
        if Quantity::from_value(amount).is_some_and(|q| q.sign() != Ordering::Greater) {
            errs.push(FieldError::invalid(at.key(name), amount.clone(), NOT_POSITIVE));
        }
    }
    one_of_if_set(errs, spec, "persistentVolumeReclaimPolicy", &path, &["Delete", "Recycle", "Retain"]);
    volume_source(errs, spec, &path);
    if let Some(affinity) = some(spec, "nodeAffinity") {
        match some(affinity, "required") {
            Some(required) => {
                super::selectors::node_selector(errs, required, &path.child("nodeAffinity").child("required"));
            }
            None => errs.push(FieldError::required(
                path.child("nodeAffinity").child("required"),
                "must specify required node constraints",
            )),
        }
    }
    if !text(spec, "storageClassName").is_empty() {
        let class = text(spec, "storageClassName");
        invalid_all(errs, &path.child("storageClassName"), class, names::dns1123_subdomain(class));
    }
    one_of_if_set(errs, spec, "volumeMode", &path, &["Block", "Filesystem"]);
}

fn volume_source(errs: &mut Errors, spec: &Value, path: &Path) {
    const NOT_SOURCES: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let sources = spec.as_object().into_iter().flat_map(Map::iter);
    let mut found = 0;
    for (kind, source) in sources.filter(|(k, v)| !NOT_SOURCES.contains(&k.as_str()) && !v.is_null()) {
        let at = path.child(kind);
        found += 1;
        if found > 1 {
            errs.push(FieldError::forbidden(at, "may not specify more than 1 volume type"));
            continue;
        }
        match kind.as_str() {
            "local" => {
                if required(errs, source, "path", &at) {
                    super::check::no_backsteps(errs, text(source, "path"), &at.child("path"));
                }
                if some(spec, "nodeAffinity").is_none() {
                    errs.push(FieldError::required(path.child("nodeAffinity"), "Local volume requires node affinity"));
                }
            }
            "csi" => {
                if required(errs, source, "driver", &at) {
                    driver_name(errs, text(source, "driver"), &at.child("driver"));
                }
                required(errs, source, "volumeHandle", &at);
            }
            _ => super::pod::plain_source(errs, kind, source, &at),
        }
    }
    if found == 0 {
        errs.push(FieldError::required(path, "must specify a volume type"));
    }
    let path_is_root = meta::str_at(spec, &["hostPath", "path"]) == "/";
    if path_is_root && text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errs.push(FieldError::forbidden(path.child("persistentVolumeReclaimPolicy"), detail));
    }
}

pub(super) fn volume_update(errs: &mut Errors, new: &Value, old: &Value) {
    let source = |obj: &Value| {
        let mut spec = meta::map_at(obj, &["spec"]).cloned().unwrap_or_default();
        let changes = [
            "accessModes",
            "capacity",
            "claimRef",
            "mountOptions",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "nodeAffinity",
            "volumeMode",
            "volumeAttributesClassName",
        ];
        spec.retain(|key, _| !changes.contains(&key.as_str()));
        spec
    };
    if source(new) != source(old) {
        errs.push(FieldError::forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        ));
    }
    let mode = |obj: &Value| meta::at(obj, &["spec", "volumeMode"]).cloned().unwrap_or(Value::Null);
    if mode(new) != mode(old) {
        errs.push(FieldError::invalid("spec.volumeMode", mode(new), super::check::IMMUTABLE));
    }
}

pub(super) fn storage_class(errs: &mut Errors, obj: &Value) {
    let root = Path::new("");
    if required(errs, obj, "provisioner", &root) {
        let name = text(obj, "provisioner");
        invalid_all(errs, &root.child("provisioner"), name, names::qualified_name(&name.to_lowercase()));
    }
    if some(obj, "reclaimPolicy").is_some() {
        one_of_if_set(errs, obj, "reclaimPolicy", &root, &["Delete", "Retain"]);
    }
    one_of_if_set(errs, obj, "volumeBindingMode", &root, &["Immediate", "WaitForFirstConsumer"]);
}

pub(super) fn storage_class_update(errs: &mut Errors, new: &Value, old: &Value) {
    for (key, detail) in [
        ("parameters", "updates to parameters are forbidden."),
        ("provisioner", "updates to provisioner are forbidden."),
        ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
    ] {
        if some(new, key) != some(old, key) {
            errs.push(FieldError::forbidden(key, detail));
        }
    }
    super::check::immutable(errs, new, old, "volumeBindingMode", &Path::new(""));
}
