//! What is wrong with an object, or with a change of it.
//!
//! [`create`], [`update`] and [`status_update`] find the rules of a kind; each topic has its file. Objects must be
//! defaulted and prepared first. Errors come in the order upstream finds them, because clients show them in that order.

mod batch;
mod certificates;
mod check;
mod cluster;
pub mod error;
mod metadata;
mod networking;
mod pod;
mod policy;
mod rbac;
mod selectors;
mod service;
mod storage;
mod workloads;

#[cfg(test)]
mod tests;

use crate::kinds::Kind;
use check::Errors;
pub use error::{FieldError, FieldErrorKind};
use metadata::NameRule;
use serde_json::Value;

/// What is wrong with a new object.
pub fn create(kind: &Kind, obj: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    if kind.is("", "Pod") {
        pod::create(&mut errs, kind, obj);
        return errs;
    }
    if !kind.is_stored() {
        body(&mut errs, kind, obj);
        return errs;
    }
    metadata::create(&mut errs, kind, obj, name_rule(kind));
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("networking.k8s.io", "Ingress") => networking::ingress(&mut errs, obj, true),
        ("batch", "CronJob") => {
            batch::cron_job(&mut errs, obj);
            batch::cron_job_name(&mut errs, obj);
        }
        _ => body(&mut errs, kind, obj),
    }
    // What the cluster is not configured for is told only about a service that is valid otherwise.
    if errs.is_empty() && kind.is("", "Service") {
        service::families(&mut errs, obj);
    }
    errs
}

/// What is wrong with a change from `old` to `new` through the object's own path.
pub fn update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    // Told twice, once for all kinds and once by the kind's own rules: clients see the causes so.
    metadata::update_of_any(&mut errs, new, old);
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            pod::update(&mut errs, new, old);
            return errs;
        }
        ("apps", "StatefulSet") => {
            // The spec as a whole is looked at first: what may not change is told once.
            metadata::update(&mut errs, new, old);
            body(&mut errs, kind, new);
            workloads::stateful_set_update(&mut errs, new, old);
            return errs;
        }
        ("batch", "Job") => {
            body(&mut errs, kind, new);
            metadata::update(&mut errs, new, old);
            batch::job_update(&mut errs, new, old);
            return errs;
        }
        _ => metadata::update(&mut errs, new, old),
    }
    changes(&mut errs, kind, new, old);
    body(&mut errs, kind, new);
    changes_after(&mut errs, kind, new, old);
    errs
}

/// What is wrong with a change of a pod through its `resize` path.
pub fn resize(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    pod::resize(&mut errs, new, old);
    errs
}

/// What is wrong with a change of a pod through its `ephemeralcontainers` path.
pub fn ephemeral_containers(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    pod::ephemeral_containers(&mut errs, new, old);
    errs
}

/// What is wrong with a change through the `status` path.
pub fn status_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    metadata::update_of_any(&mut errs, new, old);
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::status_update(&mut errs, new, old),
        ("", "Service") => {
            metadata::update(&mut errs, new, old);
            service::status(&mut errs, new);
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            metadata::update(&mut errs, new, old);
            certificates::change(&mut errs, new, old, false);
        }
        ("policy", "PodDisruptionBudget") => {
            metadata::update(&mut errs, new, old);
            policy::disruption_budget_status(&mut errs, new);
        }
        ("apps", _) | ("", "ReplicationController") => {
            metadata::update(&mut errs, new, old);
            workloads::status_counts(&mut errs, new);
        }
        _ => metadata::update(&mut errs, new, old),
    }
    errs
}

/// What is wrong with a verdict on a CertificateSigningRequest, through its `approval` path.
pub fn approval(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    metadata::update_of_any(&mut errs, new, old);
    metadata::update(&mut errs, new, old);
    certificates::change(&mut errs, new, old, true);
    errs
}

/// The rule for names of a kind.
fn name_rule(kind: &Kind) -> NameRule {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("rbac.authorization.k8s.io", _) => metadata::segment,
        ("", "Namespace" | "Service") => metadata::label,
        _ => metadata::subdomain,
    }
}

/// The rules for everything but metadata.
fn body(errs: &mut Errors, kind: &Kind, obj: &Value) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("apps", "Deployment") => workloads::deployment(errs, obj),
        ("apps", "ReplicaSet") => workloads::replica_set(errs, obj),
        ("apps", "StatefulSet") => workloads::stateful_set(errs, obj),
        ("apps", "DaemonSet") => workloads::daemon_set(errs, obj),
        ("apps", "ControllerRevision") => workloads::revision(errs, obj),
        ("autoscaling", "Scale") => workloads::scale(errs, obj),
        ("", "ReplicationController") => workloads::replication_controller(errs, obj),
        ("", "PodTemplate") => {
            pod::template(errs, obj.get("template").unwrap_or(&Value::Null), &check::Path::new("template"));
        }
        ("", "Service") => service::service(errs, obj),
        ("", "Endpoints") => service::endpoints(errs, obj),
        ("discovery.k8s.io", "EndpointSlice") => service::endpoint_slice(errs, obj),
        ("rbac.authorization.k8s.io", "Role") => rbac::role(errs, obj, true),
        ("rbac.authorization.k8s.io", "ClusterRole") => rbac::role(errs, obj, false),
        ("rbac.authorization.k8s.io", "RoleBinding") => rbac::binding(errs, obj, true),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => rbac::binding(errs, obj, false),
        ("", "Namespace") => cluster::namespace(errs, obj),
        ("", "Node") => cluster::node(errs, obj),
        ("", "ConfigMap") => cluster::config_map(errs, obj),
        ("", "Secret") => cluster::secret(errs, obj),
        ("", "Event") => cluster::event(errs, obj, false),
        ("events.k8s.io", "Event") => cluster::event(errs, obj, true),
        ("", "Binding") => cluster::binding(errs, obj),
        ("", "PersistentVolume") => storage::volume(errs, obj),
        ("", "PersistentVolumeClaim") => storage::claim(errs, obj),
        ("certificates.k8s.io", "CertificateSigningRequest") => cluster::signing_request(errs, obj),
        ("", "LimitRange") => policy::limit_range(errs, obj),
        ("", "ResourceQuota") => policy::quota(errs, obj),
        ("policy", "PodDisruptionBudget") => policy::disruption_budget(errs, obj),
        ("autoscaling", "HorizontalPodAutoscaler") => policy::autoscaler(errs, obj),
        ("batch", "Job") => batch::job(errs, obj),
        ("batch", "CronJob") => batch::cron_job(errs, obj),
        ("networking.k8s.io", "NetworkPolicy") => networking::network_policy(errs, obj),
        ("networking.k8s.io", "Ingress") => networking::ingress(errs, obj, false),
        ("networking.k8s.io", "IngressClass") => networking::ingress_class(errs, obj),
        ("storage.k8s.io", "StorageClass") => storage::storage_class(errs, obj),
        ("coordination.k8s.io", "Lease") => cluster::lease(errs, obj),
        ("scheduling.k8s.io", "PriorityClass") => cluster::priority_class(errs, obj),
        ("node.k8s.io", "RuntimeClass") => cluster::runtime_class(errs, obj),
        _ => {}
    }
}

/// What may not change, where it is told before the rules of the new object.
fn changes(errs: &mut Errors, kind: &Kind, new: &Value, old: &Value) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Service") => service::update(errs, new, old),
        ("", "ConfigMap") => cluster::immutable_data(errs, new, old, &["data", "binaryData"]),
        ("", "Secret") => cluster::secret_update(errs, new, old),
        ("apps", "ControllerRevision") => check::immutable(errs, new, old, "data", &check::Path::new("")),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => rbac::binding_update(errs, new, old),
        ("scheduling.k8s.io", "PriorityClass") => cluster::priority_class_update(errs, new, old),
        ("node.k8s.io", "RuntimeClass") => check::immutable(errs, new, old, "handler", &check::Path::new("")),
        ("discovery.k8s.io", "EndpointSlice") => check::immutable(errs, new, old, "addressType", &check::Path::new("")),
        ("storage.k8s.io", "StorageClass") => storage::storage_class_update(errs, new, old),
        ("", "ResourceQuota") => policy::quota_update(errs, new, old),
        ("networking.k8s.io", "IngressClass") => networking::ingress_class_update(errs, new, old),
        _ => {}
    }
}

/// What may not change, where it is told after them.
fn changes_after(errs: &mut Errors, kind: &Kind, new: &Value, old: &Value) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("apps", "Deployment" | "ReplicaSet" | "DaemonSet") => workloads::same_selector(errs, new, old),
        ("", "Node") => cluster::node_update(errs, new, old),
        ("", "PersistentVolume") => storage::volume_update(errs, new, old),
        ("", "PersistentVolumeClaim") => storage::claim_update(errs, new, old),
        _ => {}
    }
}
