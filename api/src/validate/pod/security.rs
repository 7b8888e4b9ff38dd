//! Security contexts, of pods and of containers.

use super::Context;
use crate::validate::check::{Errors, Path, flag, int, list, local_descending_path, one_of_if_set, shown, some, text};
use crate::validate::error::FieldError;
use serde_json::{Map, Value, json};

const SYSCTL: &str = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn id(errs: &mut Errors, value: Option<i64>, path: Path) {
    if let Some(id) = value.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        errs.push(FieldError::invalid(path, id, "must be between 0 and 2147483647, inclusive"));
    }
}

pub(super) fn pod(errs: &mut Errors, spec: &Value, spec_path: &Path) {
    if flag(spec, "hostNetwork") {
        host_network(errs, spec, spec_path);
    }
    let empty = json!({});
    let context = some(spec, "securityContext").unwrap_or(&empty);
    let path = spec_path.child("securityContext");
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(errs, int(context, key), path.child(key));
    }
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        id(errs, group.as_i64(), path.child("supplementalGroups").index(i));
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errs.push(FieldError::invalid(path.child("shareProcessNamespace"), true, detail));
    }
    sysctls(errs, context, &path.child("sysctls"));
    one_of_if_set(errs, context, "fsGroupChangePolicy", &path, &["Always", "OnRootMismatch"]);
    seccomp(errs, context, &path);
    app_armor(errs, context, &path);
    one_of_if_set(errs, context, "supplementalGroupsPolicy", &path, &["Merge", "Strict"]);
    one_of_if_set(errs, context, "seLinuxChangePolicy", &path, &["MountOption", "Recursive"]);
}

fn host_network(errs: &mut Errors, spec: &Value, spec_path: &Path) {
    for (i, container) in list(spec, "containers").iter().enumerate() {
        for (j, port) in list(container, "ports").iter().enumerate() {
            let (inside, outside) = (int(port, "containerPort").unwrap_or(0), int(port, "hostPort").unwrap_or(0));
            // In a template the host's port may still be open; a pod's was filled in.
            if outside != 0 && inside != outside {
                let at = spec_path.child("containers").index(i).child("ports").index(j).child("hostPort");
                errs.push(FieldError::invalid(at, outside, "must match `containerPort` when `hostNetwork` is true"));
            }
        }
    }
}

fn sysctls(errs: &mut Errors, context: &Value, path: &Path) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, sysctl) in list(context, "sysctls").iter().enumerate() {
        let at = path.index(i).child("name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            errs.push(FieldError::required(&at, ""));
        } else if !is_sysctl(name) {
            errs.push(FieldError::invalid(&at, name, SYSCTL));
        } else if seen.contains(&name) {
            errs.push(FieldError::duplicate(&at, name));
        }
        seen.push(name);
    }
}

fn is_sysctl(name: &str) -> bool {
    let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let segment = |s: &str| match (s.bytes().next(), s.bytes().last()) {
        (Some(a), Some(b)) => alnum(a) && alnum(b) && s.bytes().all(|c| alnum(c) || c == b'-' || c == b'_'),
        _ => false,
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn seccomp(errs: &mut Errors, context: &Value, path: &Path) {
    let Some(profile) = some(context, "seccompProfile") else { return };
    let at = path.child("seccompProfile");
    match text(profile, "type") {
        "" => errs.push(FieldError::required(at.child("type"), "type is required when seccompProfile is set")),
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        other => {
            errs.push(FieldError::not_supported(
                at.child("type"),
                other,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            ));
        }
    }
    let local = some(profile, "localhostProfile");
    match (text(profile, "type"), local) {
        ("Localhost", None) => {
            errs.push(FieldError::required(at.child("localhostProfile"), "must be set when seccomp type is Localhost"));
        }
        ("Localhost", Some(file)) => {
            local_descending_path(errs, file.as_str().unwrap_or_default(), &at.child("localhostProfile"));
        }
        (_, Some(file)) => {
            let detail = "can only be set when seccomp type is Localhost";
            errs.push(FieldError::invalid(at.child("localhostProfile"), file.clone(), detail));
        }
        _ => {}
    }
}

fn app_armor(errs: &mut Errors, context: &Value, path: &Path) {
    let Some(profile) = some(context, "appArmorProfile") else { return };
    let at = path.child("appArmorProfile");
    let local = some(profile, "localhostProfile");
    match text(profile, "type") {
        "Localhost" => match local.and_then(Value::as_str) {
            None => {
                let detail = "must be set when AppArmor type is Localhost";
                errs.push(FieldError::required(at.child("localhostProfile"), detail));
            }
            Some(name) if name.trim() != name => {
                let detail = "must not be padded with whitespace";
                errs.push(FieldError::invalid(at.child("localhostProfile"), name, detail));
            }
            Some("") => {
                let detail = "must be set when AppArmor type is Localhost";
                errs.push(FieldError::required(at.child("localhostProfile"), detail));
            }
            Some(_) => {}
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(name) = local {
                let detail = "can only be set when AppArmor type is Localhost";
                errs.push(FieldError::invalid(at.child("localhostProfile"), name.clone(), detail));
            }
        }
        "" => errs.push(FieldError::required(at.child("type"), "type is required when appArmorProfile is set")),
        other => {
            errs.push(FieldError::not_supported(
                at.child("type"),
                other,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            ));
        }
    }
}

pub(super) fn container(errs: &mut Errors, context: &Value, pod: &Context, path: &Path) {
    for key in ["runAsUser", "runAsGroup"] {
        id(errs, int(context, key), path.child(key));
    }
    one_of_if_set(errs, context, "procMount", path, &["Default", "Unmasked"]);
    let host_users = some(pod.spec, "hostUsers").and_then(Value::as_bool).unwrap_or(true);
    if host_users && text(context, "procMount") == "Unmasked" {
        let detail = "`hostUsers` must be false to use `Unmasked`";
        errs.push(FieldError::invalid(path.child("procMount"), "Unmasked", detail));
    }
    seccomp(errs, context, path);
    if some(context, "allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false) {
        if flag(context, "privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errs.push(FieldError::invalid(path, internal_form(context), detail));
        }
        let added = some(context, "capabilities").map(|c| list(c, "add")).unwrap_or_default();
        if added.iter().any(|c| c == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errs.push(FieldError::invalid(path, internal_form(context), detail));
        }
    }
    app_armor(errs, context, path);
}

/// A container's security context as messages show it: the fields under the names of the reference implementation.
fn internal_form(context: &Value) -> Value {
    let mut out = Map::new();
    let capabilities = some(context, "capabilities")
        .map_or(Value::Null, |c| json!({"Add": shown(c, "add"), "Drop": shown(c, "drop")}));
    out.insert("Capabilities".into(), capabilities);
    for (name, key) in [
        ("Privileged", "privileged"),
        ("SELinuxOptions", "seLinuxOptions"),
        ("WindowsOptions", "windowsOptions"),
        ("RunAsUser", "runAsUser"),
        ("RunAsGroup", "runAsGroup"),
        ("RunAsNonRoot", "runAsNonRoot"),
        ("ReadOnlyRootFilesystem", "readOnlyRootFilesystem"),
        ("AllowPrivilegeEscalation", "allowPrivilegeEscalation"),
        ("ProcMount", "procMount"),
        ("SeccompProfile", "seccompProfile"),
        ("AppArmorProfile", "appArmorProfile"),
    ] {
        out.insert(name.into(), shown(context, key));
    }
    Value::Object(out)
}

/// A user namespace excludes sharing the host's other namespaces.
pub(super) fn host_users(errs: &mut Errors, spec: &Value, path: &Path) {
    if some(spec, "hostUsers").and_then(Value::as_bool) != Some(false) {
        return;
    }
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        if flag(spec, key) {
            errs.push(FieldError::forbidden(path.child(key), "when `hostUsers` is false"));
        }
    }
}

const LINUX_ONLY_CONTAINER: [&str; 10] = [
    "seLinuxOptions",
    "seccompProfile",
    "appArmorProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// What only the other operating system has.
pub(super) fn os(errs: &mut Errors, spec: &Value, name: &str, path: &Path) {
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let contexts = lists.iter().flat_map(|l| {
        list(spec, l)
            .iter()
            .enumerate()
            .map(move |(i, c)| (path.child(l).index(i).child("securityContext"), c.get("securityContext")))
    });
    let pod_path = path.child("securityContext");
    let pod = some(spec, "securityContext");
    if name == "linux" {
        let all = std::iter::once((pod_path, pod)).chain(contexts);
        for (at, context) in all {
            if context.is_some_and(|c| some(c, "windowsOptions").is_some()) {
                errs.push(FieldError::forbidden(
                    at.child("windowsOptions"),
                    "windows options cannot be set for a linux pod",
                ));
            }
        }
        return;
    }
    if name != "windows" {
        return;
    }
    let detail = "cannot be set for a windows pod";
    const POD: [&str; 11] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
    ];
    for key in ["hostPID", "hostIPC"] {
        if flag(spec, key) {
            errs.push(FieldError::forbidden(path.child(key), detail));
        }
    }
    for key in POD {
        if pod.is_some_and(|p| some(p, key).is_some()) {
            errs.push(FieldError::forbidden(pod_path.child(key), detail));
        }
    }
    if some(spec, "shareProcessNamespace").is_some() {
        errs.push(FieldError::forbidden(pod_path.child("shareProcessNamespace"), detail));
    }
    for (at, context) in contexts {
        for key in LINUX_ONLY_CONTAINER {
            if context.is_some_and(|c| some(c, key).is_some()) {
                errs.push(FieldError::forbidden(at.child(key), detail));
            }
        }
    }
}
