//! Environment variables and where their values come from.

use crate::meta::names;
use crate::quantity::Quantity;
use crate::validate::check::{Errors, Path, invalid_all, list, required, some, text};
use crate::validate::error::FieldError;
use serde_json::Value;

/// Fields of a pod that may stand in an environment variable.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of a pod that may stand in a file of a volume.
pub(super) const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields that exist at all for the downward API.
const KNOWN_FIELDS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];
const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const HUGE_PAGES: [&str; 2] = ["limits.hugepages-", "requests.hugepages-"];

pub(super) fn env(errs: &mut Errors, container: &Value, path: &Path) {
    for (i, variable) in list(container, "env").iter().enumerate() {
        let at = path.index(i);
        if required(errs, variable, "name", &at) {
            let name = text(variable, "name");
            invalid_all(errs, &at.child("name"), name, names::env_var_name(name));
        }
        if let Some(from) = some(variable, "valueFrom") {
            value_from(errs, variable, from, &at.child("valueFrom"));
        }
    }
}

fn value_from(errs: &mut Errors, variable: &Value, from: &Value, path: &Path) {
    let mut sources = 0;
    if let Some(field) = some(from, "fieldRef") {
        sources += 1;
        object_field(errs, field, &ENV_FIELDS, &path.child("fieldRef"));
    }
    if let Some(field) = some(from, "resourceFieldRef") {
        sources += 1;
        resource_field(errs, field, false, &path.child("resourceFieldRef"));
    }
    for reference in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(key) = some(from, reference) {
            sources += 1;
            key_selector(errs, key, &path.child(reference));
        }
    }
    if let Some(file) = some(from, "fileKeyRef") {
        sources += 1;
        let at = path.child("fileKeyRef");
        for key in ["key", "volumeName", "path"] {
            required(errs, file, key, &at);
        }
        if !text(file, "path").is_empty() {
            crate::validate::check::local_non_reserved_path(errs, text(file, "path"), &at.child("path"));
        }
    }
    let problem = match sources {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !text(variable, "value").is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errs.push(FieldError::invalid(path, "", problem));
}

pub(super) fn object_field(errs: &mut Errors, field: &Value, allowed: &[&str], path: &Path) {
    if !required(errs, field, "apiVersion", path) || !required(errs, field, "fieldPath", path) {
        return;
    }
    let at = path.child("fieldPath");
    let (version, name) = (text(field, "apiVersion"), text(field, "fieldPath"));
    let subscripted = name.strip_suffix("']").and_then(|n| n.split_once("['"));
    if version != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {version}");
        errs.push(FieldError::invalid(at, name, detail));
        return;
    }
    if let Some((stem, key)) = subscripted {
        match stem {
            "metadata.annotations" => invalid_all(errs, path, key, names::qualified_name(&key.to_lowercase())),
            "metadata.labels" => invalid_all(errs, path, key, names::qualified_name(key)),
            _ => {
                let detail = format!("error converting fieldPath: field label does not support subscript: {name}");
                errs.push(FieldError::invalid(at, name, detail));
            }
        }
        return;
    }
    let name = if name == "spec.host" { "spec.nodeName" } else { name };
    if !KNOWN_FIELDS.contains(&name) {
        let detail = format!("error converting fieldPath: field label not supported: {name}");
        errs.push(FieldError::invalid(at, name, detail));
    } else if !allowed.contains(&name) {
        errs.push(FieldError::not_supported(at, name, allowed));
    }
}

pub(super) fn resource_field(errs: &mut Errors, field: &Value, needs_container: bool, path: &Path) {
    let resource = text(field, "resource");
    if needs_container && text(field, "containerName").is_empty() {
        errs.push(FieldError::required(path.child("containerName"), ""));
    } else if resource.is_empty() {
        errs.push(FieldError::required(path.child("resource"), ""));
    } else if !RESOURCE_FIELDS.contains(&resource) && !HUGE_PAGES.iter().any(|p| resource.starts_with(p)) {
        errs.push(FieldError::not_supported(path.child("resource"), resource, &RESOURCE_FIELDS));
    }
    let Some(divisor) = some(field, "divisor").and_then(Quantity::from_value).filter(|q| !q.is_zero()) else { return };
    let shown = divisor.to_string();
    let (allowed, what): (&[&str], &str) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "1m and 1 are supported with the cpu resource"),
        _ => (
            &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        ),
    };
    if !allowed.contains(&shown.as_str()) {
        errs.push(FieldError::invalid(path.child("divisor"), resource, format!("only divisor's values {what}")));
    }
}

fn key_selector(errs: &mut Errors, selector: &Value, path: &Path) {
    if required(errs, selector, "name", path) {
        let name = text(selector, "name");
        invalid_all(errs, &path.child("name"), name, names::dns1123_subdomain(name));
    }
    if required(errs, selector, "key", path) {
        let key = text(selector, "key");
        invalid_all(errs, &path.child("key"), key, names::config_map_key(key));
    }
}

pub(super) fn env_from(errs: &mut Errors, container: &Value, path: &Path) {
    for (i, source) in list(container, "envFrom").iter().enumerate() {
        let at = path.index(i);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            invalid_all(errs, &at.child("prefix"), prefix, names::env_var_name(prefix));
        }
        let mut sources = 0;
        for reference in ["configMapRef", "secretRef"] {
            if let Some(from) = some(source, reference) {
                sources += 1;
                if required(errs, from, "name", &at.child(reference)) {
                    let name = text(from, "name");
                    invalid_all(errs, &at.child(reference).child("name"), name, names::dns1123_subdomain(name));
                }
            }
        }
        match sources {
            0 => errs.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errs.push(FieldError::invalid(path, "", "may not have more than one field specified at a time")),
        }
    }
}
