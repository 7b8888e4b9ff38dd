//! Rows of volumes, claims and classes.

use super::cells::{UNSET, age, text, text_or};
use super::{AGE, Printer};
use crate::meta;
use crate::quantity::Quantity;
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn printer(kind: &str) -> Option<Printer> {
    Some(match kind {
        "PersistentVolume" => (
            &[
                ("Capacity", "string", 0, "Size of the volume"),
                ("Access Modes", "string", 0, "How it can be mounted"),
                ("Reclaim Policy", "string", 0, "What happens to it after its claim"),
                ("Status", "string", 0, "Whether it is bound"),
                ("Claim", "string", 0, "Claim it is bound to"),
                ("StorageClass", "string", 0, "Class it is of"),
                ("VolumeAttributesClass", "string", 0, "Class of its attributes"),
                ("Reason", "string", 0, "Why it failed"),
                AGE,
                ("VolumeMode", "string", 1, "Filesystem or block device"),
            ],
            volume,
        ),
        "PersistentVolumeClaim" => (
            &[
                ("Status", "string", 0, "Whether it is bound"),
                ("Volume", "string", 0, "Volume it is bound to"),
                ("Capacity", "string", 0, "Size of the volume"),
                ("Access Modes", "string", 0, "How it can be mounted"),
                ("StorageClass", "string", 0, "Class it asks for"),
                ("VolumeAttributesClass", "string", 0, "Class of its attributes"),
                AGE,
                ("VolumeMode", "string", 1, "Filesystem or block device"),
            ],
            claim,
        ),
        "StorageClass" => (
            &[
                ("Provisioner", "string", 0, "Who makes its volumes"),
                ("ReclaimPolicy", "string", 0, "What happens to a volume after its claim"),
                ("VolumeBindingMode", "string", 0, "When a claim is bound"),
                ("AllowVolumeExpansion", "boolean", 0, "Whether volumes can grow"),
                AGE,
            ],
            |obj, now| {
                vec![
                    text(obj, &["provisioner"]),
                    text_or(obj, &["reclaimPolicy"], "Delete"),
                    text_or(obj, &["volumeBindingMode"], "Immediate"),
                    meta::bool_at(obj, &["allowVolumeExpansion"]).into(),
                    age(obj, now),
                ]
            },
        ),
        _ => return None,
    })
}

fn access_modes(obj: &Value, path: &[&str]) -> Value {
    let modes = meta::list_at(obj, path).iter().filter_map(Value::as_str);
    let short = |mode| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    };
    let mut all: Vec<&str> = Vec::new();
    for mode in modes.map(short) {
        if !all.contains(&mode) {
            all.push(mode);
        }
    }
    all.join(",").into()
}

fn size(obj: &Value, path: &[&str]) -> Value {
    meta::at(obj, path).and_then(Quantity::from_value).map(|q| q.to_string()).unwrap_or_default().into()
}

fn volume(obj: &Value, now: Timestamp) -> Vec<Value> {
    let claim =
        (meta::str_at(obj, &["spec", "claimRef", "namespace"]), meta::str_at(obj, &["spec", "claimRef", "name"]));
    let claim = if claim.1.is_empty() { String::new() } else { format!("{}/{}", claim.0, claim.1) };
    vec![
        size(obj, &["spec", "capacity", "storage"]),
        access_modes(obj, &["spec", "accessModes"]),
        text(obj, &["spec", "persistentVolumeReclaimPolicy"]),
        phase(obj),
        claim.into(),
        text(obj, &["spec", "storageClassName"]),
        text_or(obj, &["spec", "volumeAttributesClassName"], UNSET),
        text(obj, &["status", "reason"]),
        age(obj, now),
        text_or(obj, &["spec", "volumeMode"], UNSET),
    ]
}

fn phase(obj: &Value) -> Value {
    if meta::is_being_deleted(obj) { "Terminating".into() } else { text(obj, &["status", "phase"]) }
}

fn claim(obj: &Value, now: Timestamp) -> Vec<Value> {
    let bound = !meta::str_at(obj, &["spec", "volumeName"]).is_empty();
    let when_bound = |value: Value| if bound { value } else { "".into() };
    vec![
        phase(obj),
        text(obj, &["spec", "volumeName"]),
        when_bound(size(obj, &["status", "capacity", "storage"])),
        when_bound(access_modes(obj, &["status", "accessModes"])),
        text(obj, &["spec", "storageClassName"]),
        text_or(obj, &["spec", "volumeAttributesClassName"], UNSET),
        age(obj, now),
        text_or(obj, &["spec", "volumeMode"], UNSET),
    ]
}
