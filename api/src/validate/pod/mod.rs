//! Pods and pod templates, in the order their parts are checked.

mod containers;
mod env;
mod parts;
mod probes;
pub(super) mod resources;
mod scheduling;
mod security;
mod update;
mod volumes;

use super::check::{Errors, Path, int, invalid_all, list, some, text};
use super::error::FieldError;
use super::metadata;
use crate::kinds::Kind;
use crate::meta::{self, names};
use serde_json::Value;

pub(super) use parts::{ephemeral_containers, resize};
pub(super) use scheduling::tolerations;
pub(super) use update::{status_update, update};
pub(super) use volumes::plain_source;

/// What the parts of a pod need to know of the whole.
pub(super) struct Context<'a> {
    pub spec: &'a Value,
    /// Name of the pod; empty in a template.
    pub name: &'a str,
    /// `terminationGracePeriodSeconds`.
    pub grace_seconds: i64,
    /// Names of valid volumes, and whether each can be a block device.
    pub volumes: Vec<(String, bool)>,
}

pub(super) fn create(errs: &mut Errors, kind: &Kind, pod: &Value) {
    metadata::create(errs, kind, pod, metadata::subdomain);
    whole(errs, pod);
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let path = Path::new("spec");
    if !list(spec, "ephemeralContainers").is_empty() {
        errs.push(FieldError::forbidden(path.child("ephemeralContainers"), "cannot be set on create"));
    }
    if !text(spec, "nodeName").is_empty() && !list(spec, "schedulingGates").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errs.push(FieldError::forbidden(path.child("nodeName"), detail));
    }
}

/// The rules that hold for metadata and spec of a pod at any time.
pub(super) fn whole(errs: &mut Errors, pod: &Value) {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let path = Path::new("spec");
    pod_spec(errs, spec, meta::name(pod), &path);
    if text(spec, "serviceAccountName").is_empty() {
        for (i, volume) in list(spec, "volumes").iter().enumerate() {
            for (j, source) in meta::list_at(volume, &["projected", "sources"]).iter().enumerate() {
                if some(source, "serviceAccountToken").is_some() {
                    let at = path.child("volumes").index(i).child("projected").child("sources").index(j);
                    let detail = "must not be specified when serviceAccountName is not set";
                    errs.push(FieldError::forbidden(at.child("serviceAccountToken"), detail));
                }
            }
        }
    }
    for name in ["containers", "initContainers"] {
        for (i, container) in list(spec, name).iter().enumerate() {
            let image = text(container, "image");
            if image != image.trim() {
                let at = path.child(name).index(i).child("image");
                errs.push(FieldError::invalid(at, image, "must not have leading or trailing whitespace"));
            }
        }
    }
}

/// A pod template inside a workload.
pub(super) fn template(errs: &mut Errors, template: &Value, path: &Path) {
    let at = path.child("metadata");
    metadata::labels(errs, meta::labels(template), &at.child("labels"));
    metadata::annotations(errs, meta::annotations(template), &at.child("annotations"));
    let spec = template.get("spec").unwrap_or(&Value::Null);
    pod_spec(errs, spec, "", &path.child("spec"));
    if !list(spec, "ephemeralContainers").is_empty() {
        let at = path.child("spec").child("ephemeralContainers");
        errs.push(FieldError::forbidden(at, "ephemeral containers not allowed in pod template"));
    }
}

pub(super) fn pod_spec(errs: &mut Errors, spec: &Value, name: &str, path: &Path) {
    let mut context = Context {
        spec,
        name,
        grace_seconds: int(spec, "terminationGracePeriodSeconds").unwrap_or(30),
        volumes: Vec::new(),
    };
    context.volumes = volumes::volumes(errs, &context, &path.child("volumes"));
    resources::claims(errs, spec, path);
    resources::pod_level(errs, spec, path);
    containers::containers(errs, &context, &path.child("containers"));
    containers::init_containers(errs, &context, path);
    containers::ephemeral_containers(errs, &context, path);
    super::check::required_one_of(errs, spec, "restartPolicy", path, &["Always", "Never", "OnFailure"]);
    super::check::required_one_of(
        errs,
        spec,
        "dnsPolicy",
        path,
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    metadata::labels(errs, meta::map_at(spec, &["nodeSelector"]), &path.child("nodeSelector"));
    security::pod(errs, spec, path);
    for (i, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        super::check::required(errs, secret, "name", &path.child("imagePullSecrets").index(i));
    }
    scheduling::affinity(errs, spec, &path.child("affinity"));
    scheduling::dns_config(errs, spec, path);
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let condition = text(gate, "conditionType");
        let at = path.child("readinessGates").index(i).child("conditionType");
        invalid_all(errs, &at, condition, names::qualified_name(condition));
    }
    scheduling::gates(errs, spec, &path.child("schedulingGates"));
    scheduling::spread(errs, spec, &path.child("topologySpreadConstraints"));
    security::host_users(errs, spec, path);
    names_of(errs, spec, path);
    scheduling::tolerations(errs, list(spec, "tolerations"), &path.child("tolerations"));
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let at = path.child("hostAliases").index(i);
        let ip = text(alias, "ip");
        invalid_all(errs, &at.child("ip"), ip, names::ip(ip));
        for hostname in list(alias, "hostnames") {
            let hostname = hostname.as_str().unwrap_or_default();
            invalid_all(errs, &at.child("hostnames"), hostname, names::dns1123_subdomain(hostname));
        }
    }
    if !text(spec, "priorityClassName").is_empty() {
        let class = text(spec, "priorityClassName");
        invalid_all(errs, &path.child("priorityClassName"), class, names::dns1123_subdomain(class));
    }
    if let Some(class) = some(spec, "runtimeClassName") {
        let class = class.as_str().unwrap_or_default();
        invalid_all(errs, &path.child("runtimeClassName"), class, names::dns1123_subdomain(class));
    }
    super::check::one_of_if_set(errs, spec, "preemptionPolicy", path, &["PreemptLowerPriority", "Never"]);
    if let Some(overhead) = some(spec, "overhead") {
        resources::amounts(errs, overhead, &path.child("overhead"));
    }
    if let Some(os) = some(spec, "os") {
        super::check::required_one_of(errs, os, "name", &path.child("os"), &["linux", "windows"]);
        security::os(errs, spec, text(os, "name"), path);
    }
}

fn names_of(errs: &mut Errors, spec: &Value, path: &Path) {
    let check = |errs: &mut Errors, key: &str, rule: fn(&str) -> Vec<String>| {
        let value = text(spec, key);
        if !value.is_empty() {
            invalid_all(errs, &path.child(key), value, rule(value));
        }
    };
    check(errs, "serviceAccountName", names::dns1123_subdomain);
    check(errs, "nodeName", names::dns1123_subdomain);
    if let Some(seconds) = int(spec, "activeDeadlineSeconds").filter(|s| !(1..=i64::from(i32::MAX)).contains(s)) {
        let detail = "must be between 1 and 2147483647, inclusive";
        errs.push(FieldError::invalid(path.child("activeDeadlineSeconds"), seconds, detail));
    }
    check(errs, "hostname", names::dns1123_label);
    check(errs, "subdomain", names::dns1123_label);
}
