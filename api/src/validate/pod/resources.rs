//! Requests and limits, of containers and of the pod as a whole.

use crate::meta::names;
use crate::quantity::Quantity;
use crate::validate::check::{Errors, NEGATIVE, Path, invalid_all, list, required, some, text};
use crate::validate::error::FieldError;
use serde_json::{Map, Value};
use std::cmp::Ordering;

/// Resources that containers can ask for without a domain in the name.
const STANDARD: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
const HUGE_PAGES: &str = "hugepages-";

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// `example.com/gpu`: counted, never shared.
fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn is_integer(name: &str) -> bool {
    is_extended(name)
}

fn can_overcommit(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE_PAGES)
}

fn sorted(map: Option<&Value>) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = map.and_then(Value::as_object).into_iter().flat_map(Map::iter).collect();
    all.sort_by_key(|(name, _)| *name);
    all
}

/// A list of amounts: no negative one, whole ones where a resource is counted.
pub(super) fn amounts(errs: &mut Errors, amounts: &Value, path: &Path) {
    for (name, value) in sorted(Some(amounts)) {
        resource_name(errs, name, &path.key(name));
        amount(errs, name, value, &path.key(name));
    }
}

fn resource_name(errs: &mut Errors, name: &str, path: &Path) {
    invalid_all(errs, path, name, names::qualified_name(name));
    if !name.contains('/') {
        if !STANDARD.contains(&name) && !name.starts_with(HUGE_PAGES) {
            errs.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errs.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
}

pub(in crate::validate) fn amount(errs: &mut Errors, name: &str, value: &Value, path: &Path) {
    let Some(quantity) = Quantity::from_value(value) else { return };
    if quantity.sign() == Ordering::Less {
        errs.push(FieldError::invalid(path, quantity.to_string(), NEGATIVE));
    }
    if is_integer(name) && !quantity.is_integer() {
        errs.push(FieldError::invalid(path, quantity.to_string(), "must be an integer"));
    }
}

pub(super) fn requirements(errs: &mut Errors, resources: &Value, path: &Path) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let (limits, requests) = (some(resources, "limits"), some(resources, "requests"));
    let (mut base, mut huge) = (false, false);
    for (name, value) in sorted(limits) {
        let at = limits_path.key(name);
        resource_name(errs, name, &at);
        amount(errs, name, value, &at);
        base |= matches!(name.as_str(), "cpu" | "memory");
        huge |= name.starts_with(HUGE_PAGES);
    }
    for (name, value) in sorted(requests) {
        let at = requests_path.key(name);
        resource_name(errs, name, &at);
        amount(errs, name, value, &at);
        within_limit(errs, name, value, limits, &requests_path, &limits_path);
        base |= matches!(name.as_str(), "cpu" | "memory");
        huge |= name.starts_with(HUGE_PAGES);
    }
    if huge && !base {
        errs.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

fn within_limit(
    errs: &mut Errors,
    name: &str,
    value: &Value,
    limits: Option<&Value>,
    requests_path: &Path,
    limits_path: &Path,
) {
    let Some(request) = Quantity::from_value(value) else { return };
    let Some(limit) = limits.and_then(|l| l.get(name)).and_then(Quantity::from_value) else {
        if !can_overcommit(name) {
            errs.push(FieldError::required(limits_path, "Limit must be set for non overcommitable resources"));
        }
        return;
    };
    if request != limit && !can_overcommit(name) {
        let detail = format!("must be equal to {name} limit of {limit}");
        errs.push(FieldError::invalid(requests_path, request.to_string(), detail));
    } else if request > limit {
        let detail = format!("must be less than or equal to {name} limit of {limit}");
        errs.push(FieldError::invalid(requests_path, request.to_string(), detail));
    }
}

/// Resources of the pod as a whole: what its containers ask for must fit in.
pub(super) fn pod_level(errs: &mut Errors, spec: &Value, spec_path: &Path) {
    let Some(resources) = some(spec, "resources") else { return };
    let path = spec_path.child("resources");
    for kind in ["limits", "requests"] {
        for (name, _) in sorted(some(resources, kind)) {
            if !matches!(name.as_str(), "cpu" | "memory") && !name.starts_with(HUGE_PAGES) {
                errs.push(FieldError::not_supported(
                    path.child(kind).key(name),
                    name.clone(),
                    &["cpu", "hugepages-", "memory"],
                ));
            }
        }
    }
    requirements(errs, resources, &path);
    for (name, value) in sorted(some(resources, "requests")) {
        let Some(own) = Quantity::from_value(value) else { continue };
        let total: Quantity = list(spec, "containers")
            .iter()
            .filter_map(|c| c.pointer("/resources/requests").and_then(|r| r.get(name)).and_then(Quantity::from_value))
            .sum();
        if total > own {
            let detail = format!("must be greater than or equal to aggregate container requests of {total}");
            errs.push(FieldError::invalid(path.child("requests").key(name), own.to_string(), detail));
        }
    }
    for (name, value) in sorted(some(resources, "limits")) {
        let Some(own) = Quantity::from_value(value) else { continue };
        for (i, container) in list(spec, "containers").iter().enumerate() {
            let limit = container.pointer("/resources/limits").and_then(|r| r.get(name)).and_then(Quantity::from_value);
            if let Some(limit) = limit.filter(|l| *l > own) {
                let at = spec_path.child("containers").index(i).child("resources").child("limits").key(name);
                let detail = format!("must be less than or equal to pod limits of {own}");
                errs.push(FieldError::invalid(at, limit.to_string(), detail));
            }
        }
    }
}

/// Claims of devices: each named once, each with one source.
pub(super) fn claims(errs: &mut Errors, spec: &Value, spec_path: &Path) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, claim) in list(spec, "resourceClaims").iter().enumerate() {
        let at = spec_path.child("resourceClaims").index(i);
        let name = text(claim, "name");
        if seen.contains(&name) {
            errs.push(FieldError::duplicate(&at, name));
        }
        seen.push(name);
        if required(errs, claim, "name", &at) {
            invalid_all(errs, &at.child("name"), name, names::dns1123_label(name));
        }
        let (direct, template) = (some(claim, "resourceClaimName"), some(claim, "resourceClaimTemplateName"));
        match (direct, template) {
            (Some(_), Some(_)) => {
                let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errs.push(FieldError::invalid(&at, claim.clone(), detail));
            }
            (None, None) => {
                let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errs.push(FieldError::invalid(&at, claim.clone(), detail));
            }
            _ => {}
        }
    }
}
