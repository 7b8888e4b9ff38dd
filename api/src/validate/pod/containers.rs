//! Containers: the three lists of a pod, and what all three have in common.

use super::{Context, env, probes, resources, security};
use crate::meta::names;
use crate::validate::check::{
    Errors, Path, flag, int, invalid_all, list, local_descending_path, one_of_if_set, required, required_one_of, some,
    text,
};
use crate::validate::error::FieldError;
use serde_json::Value;

pub(super) fn containers(errs: &mut Errors, context: &Context, path: &Path) {
    let all = list(context.spec, "containers");
    if all.is_empty() {
        errs.push(FieldError::required(path, ""));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, container) in all.iter().enumerate() {
        let at = path.index(i);
        common(errs, container, context, &at);
        unique_name(errs, container, &mut seen, &at);
        probes::lifecycle(errs, container, context, &at);
        probes::all(errs, container, context, &at);
        restart_policy(errs, container, &at);
    }
    host_port_conflicts(errs, all, path);
}

fn unique_name<'a>(errs: &mut Errors, container: &'a Value, seen: &mut Vec<&'a str>, at: &Path) {
    let name = text(container, "name");
    if seen.contains(&name) {
        errs.push(FieldError::duplicate(at.child("name"), name));
    } else {
        seen.push(name);
    }
}

fn restart_policy(errs: &mut Errors, container: &Value, at: &Path) {
    one_of_if_set(errs, container, "restartPolicy", at, &["Always", "Never", "OnFailure"]);
    let rules = list(container, "restartPolicyRules");
    if !rules.is_empty() && some(container, "restartPolicy").is_none() {
        let detail = "must specify restartPolicy when restart rules are used";
        errs.push(FieldError::required(at.child("restartPolicy"), detail));
    }
}

pub(super) fn init_containers(errs: &mut Errors, context: &Context, spec_path: &Path) {
    let path = spec_path.child("initContainers");
    let all = list(context.spec, "initContainers");
    let mut seen: Vec<&str> = list(context.spec, "containers").iter().map(|c| text(c, "name")).collect();
    for (i, container) in all.iter().enumerate() {
        let at = path.index(i);
        common(errs, container, context, &at);
        let sidecar = text(container, "restartPolicy") == "Always";
        // A sidecar runs beside the others, so it may be probed; what runs to its end may not.
        if sidecar {
            probes::lifecycle(errs, container, context, &at);
            probes::all(errs, container, context, &at);
        }
        let name = text(container, "name");
        if !name.is_empty() {
            unique_name(errs, container, &mut seen, &at);
        }
        if !sidecar {
            if some(container, "lifecycle").is_some() {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errs.push(FieldError::forbidden(at.child("lifecycle"), detail));
            }
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                if some(container, probe).is_some() {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    errs.push(FieldError::forbidden(at.child(probe), detail));
                }
            }
        }
        restart_policy(errs, container, &at);
        // Init containers run one after the other, so only conflicts inside one count.
        host_port_conflicts(errs, std::slice::from_ref(container), &path);
    }
}

pub(super) fn ephemeral_containers(errs: &mut Errors, context: &Context, spec_path: &Path) {
    const FORBIDDEN: [&str; 6] =
        ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy"];
    let path = spec_path.child("ephemeralContainers");
    let others = list(context.spec, "containers").iter().chain(list(context.spec, "initContainers"));
    let targets: Vec<&str> = list(context.spec, "containers").iter().map(|c| text(c, "name")).collect();
    let mut seen: Vec<&str> = others.map(|c| text(c, "name")).collect();
    for (i, container) in list(context.spec, "ephemeralContainers").iter().enumerate() {
        let at = path.index(i);
        common(errs, container, context, &at);
        unique_name(errs, container, &mut seen, &at);
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !targets.contains(&target) {
            errs.push(FieldError::not_found(at.child("targetContainerName"), target));
        }
        for field in FORBIDDEN {
            if some(container, field).is_some() {
                errs.push(FieldError::forbidden(at.child(field), "cannot be set for an Ephemeral Container"));
            }
        }
        let resources = some(container, "resources");
        if resources.is_some_and(|r| r.as_object().is_some_and(|m| !m.is_empty())) {
            errs.push(FieldError::forbidden(at.child("resources"), "cannot be set for an Ephemeral Container"));
        }
        for (j, mount) in list(container, "volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !text(mount, field).is_empty() {
                    let at = at.child("volumeMounts").index(j).child(field);
                    errs.push(FieldError::forbidden(at, "cannot be set for an Ephemeral Container"));
                }
            }
        }
    }
}

fn common(errs: &mut Errors, container: &Value, context: &Context, at: &Path) {
    if required(errs, container, "name", at) {
        let name = text(container, "name");
        invalid_all(errs, &at.child("name"), name, names::dns1123_label(name));
    }
    required(errs, container, "image", at);
    required_one_of(errs, container, "terminationMessagePolicy", at, &["FallbackToLogsOnError", "File"]);
    ports(errs, container, &at.child("ports"));
    env::env(errs, container, &at.child("env"));
    env::env_from(errs, container, &at.child("envFrom"));
    mounts(errs, container, context, &at.child("volumeMounts"));
    devices(errs, container, context, &at.child("volumeDevices"));
    required_one_of(errs, container, "imagePullPolicy", at, &["Always", "IfNotPresent", "Never"]);
    if let Some(resources) = some(container, "resources") {
        resources::requirements(errs, resources, &at.child("resources"));
    }
    resize_policy(errs, container, context, &at.child("resizePolicy"));
    if let Some(security) = some(container, "securityContext") {
        security::container(errs, security, context, &at.child("securityContext"));
    }
}

fn ports(errs: &mut Errors, container: &Value, path: &Path) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in list(container, "ports").iter().enumerate() {
        let at = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let problems = names::port_name(name);
            if !problems.is_empty() {
                invalid_all(errs, &at.child("name"), name, problems);
            } else if seen.contains(&name) {
                errs.push(FieldError::duplicate(at.child("name"), name));
            } else {
                seen.push(name);
            }
        }
        match int(port, "containerPort").unwrap_or(0) {
            0 => errs.push(FieldError::required(at.child("containerPort"), "")),
            number => invalid_all(errs, &at.child("containerPort"), number, names::port_number(number)),
        }
        if let Some(number) = int(port, "hostPort").filter(|n| *n != 0) {
            invalid_all(errs, &at.child("hostPort"), number, names::port_number(number));
        }
        required_one_of(errs, port, "protocol", &at, &["SCTP", "TCP", "UDP"]);
    }
}

fn host_port_conflicts(errs: &mut Errors, containers: &[Value], path: &Path) {
    let mut seen: Vec<String> = Vec::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in list(container, "ports").iter().enumerate() {
            let Some(number) = int(port, "hostPort").filter(|n| *n != 0) else { continue };
            let what = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if seen.contains(&what) {
                let at = path.index(i).child("ports").index(j).child("hostPort");
                errs.push(FieldError::duplicate(at, what));
            } else {
                seen.push(what);
            }
        }
    }
}

fn mounts(errs: &mut Errors, container: &Value, context: &Context, path: &Path) {
    let devices = list(container, "volumeDevices");
    let mut seen: Vec<&str> = Vec::new();
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let at = path.index(i);
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        required(errs, mount, "name", &at);
        if !context.volumes.iter().any(|(known, _)| known == name) {
            errs.push(FieldError::not_found(at.child("name"), name));
        }
        required(errs, mount, "mountPath", &at);
        if seen.contains(&target) {
            errs.push(FieldError::invalid(at.child("mountPath"), target, "must be unique"));
        }
        seen.push(target);
        if devices.iter().any(|d| text(d, "name") == name) {
            errs.push(FieldError::invalid(at.child("name"), name, "must not already exist in volumeDevices"));
        }
        if devices.iter().any(|d| text(d, "devicePath") == target) {
            let detail = "must not already exist as a path in volumeDevices";
            errs.push(FieldError::invalid(at.child("mountPath"), target, detail));
        }
        let (sub, expr) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !sub.is_empty() {
            local_descending_path(errs, sub, &path.child("subPath"));
        }
        if !expr.is_empty() {
            if !sub.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errs.push(FieldError::invalid(at.child("subPathExpr"), expr, detail));
            }
            local_descending_path(errs, expr, &path.child("subPathExpr"));
        }
        propagation(errs, mount, container, path);
        recursive_read_only(errs, mount, path);
    }
}

fn propagation(errs: &mut Errors, mount: &Value, container: &Value, path: &Path) {
    one_of_if_set(errs, mount, "mountPropagation", path, &["Bidirectional", "HostToContainer", "None"]);
    let privileged = some(container, "securityContext").is_some_and(|s| flag(s, "privileged"));
    if text(mount, "mountPropagation") == "Bidirectional" && !privileged {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errs.push(FieldError::forbidden(path.child("mountPropagation"), detail));
    }
}

fn recursive_read_only(errs: &mut Errors, mount: &Value, path: &Path) {
    let at = path.child("recursiveReadOnly");
    match some(mount, "recursiveReadOnly").and_then(Value::as_str) {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !flag(mount, "readOnly") {
                errs.push(FieldError::forbidden(&at, "may only be specified when readOnly is true"));
            }
            if some(mount, "mountPropagation").is_some_and(|p| p != "None") {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errs.push(FieldError::forbidden(&at, detail));
            }
        }
        Some(other) => errs.push(FieldError::not_supported(&at, other, &["Disabled", "Enabled", "IfPossible"])),
    }
}

fn devices(errs: &mut Errors, container: &Value, context: &Context, path: &Path) {
    let mounts = list(container, "volumeMounts");
    let (mut seen_names, mut seen_paths): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (i, device) in list(container, "volumeDevices").iter().enumerate() {
        let at = path.index(i);
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        required(errs, device, "name", &at);
        if seen_names.contains(&name) {
            errs.push(FieldError::invalid(at.child("name"), name, "must be unique"));
        }
        match context.volumes.iter().find(|(known, _)| known == name) {
            None => errs.push(FieldError::not_found(at.child("name"), name)),
            Some((_, false)) => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errs.push(FieldError::invalid(at.child("name"), name, detail));
            }
            Some(_) => {}
        }
        required(errs, device, "devicePath", &at);
        if seen_paths.contains(&target) {
            errs.push(FieldError::invalid(at.child("devicePath"), target, "must be unique"));
        }
        if target.split('/').any(|p| p == "..") {
            errs.push(FieldError::invalid(at.child("devicePath"), target, "can not contain backsteps ('..')"));
        } else {
            seen_paths.push(target);
        }
        if mounts.iter().any(|m| text(m, "name") == name) {
            errs.push(FieldError::invalid(at.child("name"), name, "must not already exist in volumeMounts"));
        }
        if mounts.iter().any(|m| text(m, "mountPath") == target) {
            let detail = "must not already exist as a path in volumeMounts";
            errs.push(FieldError::invalid(at.child("devicePath"), target, detail));
        }
        seen_names.push(name);
    }
}

fn resize_policy(errs: &mut Errors, container: &Value, context: &Context, path: &Path) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, policy) in list(container, "resizePolicy").iter().enumerate() {
        let at = path.index(i);
        let resource = text(policy, "resourceName");
        if seen.contains(&resource) {
            errs.push(FieldError::duplicate(&at, resource));
        }
        seen.push(resource);
        match resource {
            "" => errs.push(FieldError::required(path, "")),
            "cpu" | "memory" => {}
            other => errs.push(FieldError::not_supported(path, other, &["cpu", "memory"])),
        }
        match text(policy, "restartPolicy") {
            "" => errs.push(FieldError::required(path, "")),
            "NotRequired" | "RestartContainer" => {}
            other => errs.push(FieldError::not_supported(path, other, &["NotRequired", "RestartContainer"])),
        }
        if text(context.spec, "restartPolicy") == "Never" && text(policy, "restartPolicy") != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errs.push(FieldError::invalid(path, text(policy, "restartPolicy"), detail));
        }
    }
}
