//! Defaults of volumes, claims and classes.

use super::{or, with};
use serde_json::{Map, Value, json};

/// Defaults of volume sources that pods and persistent volumes share.
pub(super) fn volume_source(volume: &mut Map<String, Value>) {
    with(volume, "hostPath", |path| or(path, "type", ""));
    with(volume, "iscsi", |iscsi| or(iscsi, "iscsiInterface", "default"));
    with(volume, "rbd", |rbd| {
        or(rbd, "pool", "rbd");
        or(rbd, "user", "admin");
        or(rbd, "keyring", "/etc/ceph/keyring");
    });
    with(volume, "azureDisk", |disk| {
        or(disk, "cachingMode", "ReadWrite");
        or(disk, "fsType", "ext4");
        or(disk, "readOnly", false);
        or(disk, "kind", "Shared");
    });
    with(volume, "scaleIO", |io| {
        or(io, "storageMode", "ThinProvisioned");
        or(io, "fsType", "xfs");
    });
}

pub(super) fn persistent_volume(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        volume_source(spec);
        or(spec, "persistentVolumeReclaimPolicy", "Retain");
        or(spec, "volumeMode", "Filesystem");
    });
    with(map, "status", |status| or(status, "phase", "Pending"));
}

pub(super) fn claim(map: &mut Map<String, Value>) {
    with(map, "spec", claim_spec);
    with(map, "status", |status| or(status, "phase", "Pending"));
}

pub(super) fn claim_spec(spec: &mut Map<String, Value>) {
    or(spec, "volumeMode", "Filesystem");
    // A snapshot or a volume that a claim begins with may be named in an old and a new field.
    if let (Some(old), false) = (spec.get("dataSource").cloned(), spec.contains_key("dataSourceRef")) {
        spec.insert("dataSourceRef".into(), old);
    } else if let (Some(new), false) = (spec.get("dataSourceRef").cloned(), spec.contains_key("dataSource"))
        && new.get("namespace").is_none()
    {
        spec.insert("dataSource".into(), new);
    }
}

pub(super) fn storage_class(map: &mut Map<String, Value>) {
    or(map, "reclaimPolicy", "Delete");
    or(map, "volumeBindingMode", "Immediate");
}

pub(super) fn csi_driver(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        or(spec, "attachRequired", true);
        or(spec, "podInfoOnMount", false);
        or(spec, "storageCapacity", false);
        or(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        or(spec, "volumeLifecycleModes", json!(["Persistent"]));
        or(spec, "requiresRepublish", false);
        or(spec, "seLinuxMount", false);
    });
}
