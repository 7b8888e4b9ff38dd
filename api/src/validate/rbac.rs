//! Roles and bindings.

use super::check::{Errors, Path, list, required, some, text};
use super::error::FieldError;
use crate::meta::{self, names};
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(errs: &mut Errors, obj: &Value, namespaced: bool) {
    for (i, rule) in list(obj, "rules").iter().enumerate() {
        policy_rule(errs, rule, namespaced, &Path::new("rules").index(i));
    }
    if let Some(aggregation) = some(obj, "aggregationRule") {
        let selectors = list(aggregation, "clusterRoleSelectors");
        let at = Path::new("aggregationRule").child("clusterRoleSelectors");
        if selectors.is_empty() {
            errs.push(FieldError::required(
                &at,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            ));
        }
        for (i, selector) in selectors.iter().enumerate() {
            super::selectors::label_selector(errs, selector, &at.index(i));
        }
    }
}

fn policy_rule(errs: &mut Errors, rule: &Value, namespaced: bool, path: &Path) {
    if list(rule, "verbs").is_empty() {
        errs.push(FieldError::required(path.child("verbs"), "verbs must contain at least one value"));
    }
    let urls = list(rule, "nonResourceURLs");
    if !urls.is_empty() {
        let shown = Value::Array(urls.to_vec());
        let at = path.child("nonResourceURLs");
        if namespaced {
            errs.push(FieldError::invalid(&at, shown.clone(), "namespaced rules cannot apply to non-resource URLs"));
        }
        let resources = ["apiGroups", "resources", "resourceNames"].iter().any(|key| !list(rule, key).is_empty());
        if resources {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            errs.push(FieldError::invalid(&at, shown, detail));
        }
        return;
    }
    if list(rule, "apiGroups").is_empty() {
        errs.push(FieldError::required(path.child("apiGroups"), "resource rules must supply at least one api group"));
    }
    if list(rule, "resources").is_empty() {
        errs.push(FieldError::required(path.child("resources"), "resource rules must supply at least one resource"));
    }
}

pub(super) fn binding(errs: &mut Errors, obj: &Value, namespaced: bool) {
    let null = Value::Null;
    let role = obj.get("roleRef").unwrap_or(&null);
    let path = Path::new("roleRef");
    if text(role, "apiGroup") != GROUP {
        errs.push(FieldError::not_supported(path.child("apiGroup"), text(role, "apiGroup"), &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(role, "kind")) {
        errs.push(FieldError::not_supported(path.child("kind"), text(role, "kind"), kinds));
    }
    if required(errs, role, "name", &path) {
        let name = text(role, "name");
        super::check::invalid_all(errs, &path.child("name"), name, names::path_segment(name));
    }
    for (i, subject) in list(obj, "subjects").iter().enumerate() {
        role_subject(errs, subject, namespaced, &Path::new("subjects").index(i));
    }
}

fn role_subject(errs: &mut Errors, subject: &Value, namespaced: bool, path: &Path) {
    required(errs, subject, "name", path);
    let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                super::check::invalid_all(errs, &path.child("name"), name, names::dns1123_subdomain(name));
            }
            if !group.is_empty() {
                errs.push(FieldError::not_supported(path.child("apiGroup"), group, &[""]));
            }
            // In a binding without a namespace of its own, the account's must be told.
            if !namespaced && text(subject, "namespace").is_empty() {
                errs.push(FieldError::required(path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errs.push(FieldError::not_supported(path.child("apiGroup"), group, &[GROUP]));
            }
        }
        other => {
            errs.push(FieldError::not_supported(path.child("kind"), other, &["ServiceAccount", "User", "Group"]));
        }
    }
}

/// A binding's role never changes: make another binding.
pub(super) fn binding_update(errs: &mut Errors, new: &Value, old: &Value) {
    if new.get("roleRef") != old.get("roleRef") {
        let of = |key: &str| meta::str_at(new, &["roleRef", key]).to_string();
        let shown = json!({"APIGroup": of("apiGroup"), "Kind": of("kind"), "Name": of("name")});
        errs.push(FieldError::invalid("roleRef", shown, "cannot change roleRef"));
    }
}
