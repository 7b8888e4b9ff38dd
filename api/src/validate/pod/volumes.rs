//! Volumes: exactly one source each, and the rules of each source.

use super::{Context, env};
use crate::meta::{self, names};
use crate::quantity::Quantity;
use crate::validate::check::{
    Errors, Path, int, invalid_all, list, local_non_reserved_path, no_backsteps, one_of_if_set, required, some, text,
};
use crate::validate::error::FieldError;
use crate::validate::storage;
use serde_json::Value;
use std::cmp::Ordering;

/// The sources in the order they are looked at: of two, the later one is the one too many.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];
const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks all volumes; returns the names of the valid ones and whether each can be a block device.
pub(super) fn volumes(errs: &mut Errors, context: &Context, path: &Path) -> Vec<(String, bool)> {
    let mut valid: Vec<(String, bool)> = Vec::new();
    for (i, volume) in list(context.spec, "volumes").iter().enumerate() {
        let at = path.index(i);
        let mut own = Errors::new();
        source(&mut own, volume, context, &at);
        let name = text(volume, "name");
        if name.is_empty() {
            own.push(FieldError::required(at.child("name"), ""));
        } else {
            invalid_all(&mut own, &at.child("name"), name, names::dns1123_label(name));
        }
        if valid.iter().any(|(known, _)| known == name) {
            own.push(FieldError::duplicate(at.child("name"), name));
        }
        if own.is_empty() {
            let block = some(volume, "persistentVolumeClaim").is_some() || some(volume, "ephemeral").is_some();
            valid.push((name.to_string(), block));
        }
        errs.extend(own);
    }
    valid
}

fn source(errs: &mut Errors, volume: &Value, context: &Context, path: &Path) {
    let mut found = 0;
    for kind in SOURCES {
        let Some(source) = some(volume, kind) else { continue };
        let at = path.child(kind);
        found += 1;
        if found > 1 {
            errs.push(FieldError::forbidden(at, "may not specify more than 1 volume type"));
            continue;
        }
        match kind {
            "emptyDir" => empty_dir(errs, source, &at),
            "secret" => {
                required(errs, source, "secretName", &at);
                mode(errs, source, "defaultMode", &at);
                items(errs, source, &at.child("items"));
            }
            "configMap" => {
                required(errs, source, "name", &at);
                mode(errs, source, "defaultMode", &at);
                items(errs, source, &at.child("items"));
            }
            "downwardAPI" => {
                mode(errs, source, "defaultMode", &at);
                list(source, "items").iter().for_each(|item| downward_item(errs, item, &at));
            }
            "projected" => projected(errs, source, &at),
            "persistentVolumeClaim" => {
                required(errs, source, "claimName", &at);
            }
            "ephemeral" => ephemeral(errs, source, volume, context, &at),
            "image" => {
                required(errs, source, "reference", &at);
                one_of_if_set(errs, source, "pullPolicy", &at, &["Always", "IfNotPresent", "Never"]);
            }
            "csi" => csi(errs, source, &at),
            _ => plain_source(errs, kind, source, &at),
        }
    }
    if found == 0 {
        errs.push(FieldError::required(path, "must specify a volume type"));
    }
}

/// Sources that persistent volumes have too.
pub(in crate::validate) fn plain_source(errs: &mut Errors, kind: &str, source: &Value, at: &Path) {
    let mut need = |keys: &[&str]| {
        for key in keys {
            required(errs, source, key, at);
        }
    };
    match kind {
        "hostPath" => {
            if required(errs, source, "path", at) {
                no_backsteps(errs, text(source, "path"), &at.child("path"));
            }
            one_of_if_set(errs, source, "type", at, &HOST_PATH_TYPES);
        }
        "nfs" => {
            need(&["server", "path"]);
            let target = text(source, "path");
            if !target.is_empty() && !target.starts_with('/') {
                errs.push(FieldError::invalid(at.child("path"), target, "must be an absolute path"));
            }
        }
        "gitRepo" => {
            need(&["repository"]);
            crate::validate::check::local_descending_path(errs, text(source, "directory"), &at.child("directory"));
        }
        "gcePersistentDisk" => need(&["pdName"]),
        "awsElasticBlockStore" | "cinder" => need(&["volumeID"]),
        "iscsi" => {
            need(&["targetPortal", "iqn"]);
            let lun = int(source, "lun").unwrap_or(0);
            if !(0..=255).contains(&lun) {
                errs.push(FieldError::invalid(at.child("lun"), lun, "must be between 0 and 255, inclusive"));
            }
        }
        "glusterfs" => need(&["endpoints", "path"]),
        "rbd" => {
            if list(source, "monitors").is_empty() {
                errs.push(FieldError::required(at.child("monitors"), ""));
            }
            required(errs, source, "image", at);
        }
        "cephfs" if list(source, "monitors").is_empty() => {
            errs.push(FieldError::required(at.child("monitors"), ""));
        }
        "quobyte" => need(&["registry", "volume"]),
        "azureFile" => need(&["secretName", "shareName"]),
        "azureDisk" => {
            need(&["diskName", "diskURI"]);
            one_of_if_set(errs, source, "cachingMode", at, &["None", "ReadOnly", "ReadWrite"]);
        }
        "vsphereVolume" => need(&["volumePath"]),
        "photonPersistentDisk" => need(&["pdID"]),
        "portworxVolume" => need(&["volumeID"]),
        "flexVolume" => need(&["driver"]),
        "storageos" => need(&["volumeName"]),
        "scaleIO" => need(&["gateway", "system", "volumeName"]),
        _ => {}
    }
}

fn empty_dir(errs: &mut Errors, source: &Value, at: &Path) {
    let limit = some(source, "sizeLimit").and_then(Quantity::from_value);
    if limit.is_some_and(|q| q.sign() == Ordering::Less) {
        let detail = "SizeLimit field must be a valid resource quantity";
        errs.push(FieldError::forbidden(at.child("sizeLimit"), detail));
    }
}

fn mode(errs: &mut Errors, source: &Value, key: &str, at: &Path) {
    if let Some(mode) = int(source, key).filter(|m| !(0..=0o777).contains(m)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errs.push(FieldError::invalid(at.child(key), mode, detail));
    }
}

fn items(errs: &mut Errors, source: &Value, path: &Path) {
    for (i, item) in list(source, "items").iter().enumerate() {
        let at = path.index(i);
        required(errs, item, "key", &at);
        if required(errs, item, "path", &at) {
            local_non_reserved_path(errs, text(item, "path"), &at.child("path"));
        }
        mode(errs, item, "mode", &at);
    }
}

fn downward_item(errs: &mut Errors, item: &Value, at: &Path) {
    if required(errs, item, "path", at) {
        local_non_reserved_path(errs, text(item, "path"), &at.child("path"));
    }
    match (some(item, "fieldRef"), some(item, "resourceFieldRef")) {
        (Some(field), resource) => {
            env::object_field(errs, field, &env::VOLUME_FIELDS, &at.child("fieldRef"));
            if resource.is_some() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errs.push(FieldError::invalid(at, "resource", detail));
            }
        }
        (None, Some(resource)) => env::resource_field(errs, resource, true, &at.child("resourceFieldRef")),
        (None, None) => errs.push(FieldError::required(at, "one of fieldRef and resourceFieldRef is required")),
    }
    mode(errs, item, "mode", at);
}

fn projected(errs: &mut Errors, source: &Value, path: &Path) {
    mode(errs, source, "defaultMode", path);
    let mut paths: Vec<String> = Vec::new();
    for (i, part) in list(source, "sources").iter().enumerate() {
        let at = path.child("sources").index(i);
        let mut found = 0;
        for kind in
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]
        {
            let Some(inner) = some(part, kind) else { continue };
            let inner_at = at.child(kind);
            found += 1;
            if found > 1 {
                errs.push(FieldError::forbidden(inner_at, "may not specify more than 1 volume type"));
                continue;
            }
            let mut claim = |errs: &mut Errors, target: &str, who: &str| {
                if target.is_empty() {
                    return;
                }
                if paths.iter().any(|p| p == target) {
                    errs.push(FieldError::invalid(path, who, "conflicting duplicate paths"));
                } else {
                    paths.push(target.to_string());
                }
            };
            match kind {
                "secret" | "configMap" => {
                    required(errs, inner, "name", &inner_at);
                    items(errs, inner, &inner_at.child("items"));
                    let who = text(inner, "name");
                    list(inner, "items").iter().for_each(|item| claim(errs, text(item, "path"), who));
                }
                "downwardAPI" => {
                    for item in list(inner, "items") {
                        downward_item(errs, item, &inner_at);
                        claim(errs, text(item, "path"), "downwardAPI");
                    }
                }
                "serviceAccountToken" => token(errs, inner, &inner_at, path),
                _ => {
                    let key = if kind == "podCertificate" { "credentialBundlePath" } else { "path" };
                    claim(errs, text(inner, key), kind);
                }
            }
        }
    }
}

fn token(errs: &mut Errors, source: &Value, at: &Path, projected: &Path) {
    let seconds = int(source, "expirationSeconds").unwrap_or(3600);
    if seconds < 600 {
        let detail = "may not specify a duration less than 10 minutes";
        errs.push(FieldError::invalid(at.child("expirationSeconds"), seconds, detail));
    }
    if seconds > 1 << 32 {
        let detail = "may not specify a duration larger than 2^32 seconds";
        errs.push(FieldError::invalid(at.child("expirationSeconds"), seconds, detail));
    }
    let target = text(source, "path");
    if target.is_empty() {
        errs.push(FieldError::required(projected.child("path"), ""));
    } else {
        local_non_reserved_path(errs, target, &projected.child("path"));
    }
}

fn csi(errs: &mut Errors, source: &Value, at: &Path) {
    if required(errs, source, "driver", at) {
        storage::driver_name(errs, text(source, "driver"), &at.child("driver"));
    }
    if let Some(secret) = some(source, "nodePublishSecretRef") {
        required(errs, secret, "name", &at.child("nodePublishSecretRef"));
    }
}

fn ephemeral(errs: &mut Errors, source: &Value, volume: &Value, context: &Context, at: &Path) {
    let at = at.child("volumeClaimTemplate");
    let Some(template) = some(source, "volumeClaimTemplate") else {
        errs.push(FieldError::required(at, ""));
        return;
    };
    let meta_path = at.child("metadata");
    crate::validate::metadata::labels(errs, meta::labels(template), &meta_path.child("labels"));
    crate::validate::metadata::annotations(errs, meta::annotations(template), &meta_path.child("annotations"));
    storage::claim_spec(errs, template.get("spec").unwrap_or(&Value::Null), &at.child("spec"));
    if !context.name.is_empty() {
        let name = text(volume, "name");
        let claim = format!("{}-{name}", context.name);
        for problem in names::dns1123_subdomain(&claim) {
            errs.push(FieldError::invalid(at.child("name"), name, format!("PVC name \"{claim}\": {problem}")));
        }
    }
}
