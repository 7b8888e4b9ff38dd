//! Selectors inside objects: of labels, of nodes.

use super::check::{Errors, Path, invalid_all, list, text};
use super::error::FieldError;
use crate::meta::{self, names};
use serde_json::Value;

/// A `LabelSelector` object.
pub(super) fn label_selector(errs: &mut Errors, selector: &Value, path: &Path) {
    super::metadata::labels(errs, meta::map_at(selector, &["matchLabels"]), &path.child("matchLabels"));
    for (i, term) in list(selector, "matchExpressions").iter().enumerate() {
        let at = path.child("matchExpressions").index(i);
        let values = list(term, "values");
        match text(term, "operator") {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errs.push(FieldError::required(
                        at.child("values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    ));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errs.push(FieldError::forbidden(at.child("values"), detail));
                }
            }
            other => errs.push(FieldError::invalid(at.child("operator"), other, "not a valid selector operator")),
        }
        let key = text(term, "key");
        invalid_all(errs, &at.child("key"), key, names::qualified_name(key));
        for (j, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            invalid_all(errs, &at.child("values").index(j), value, names::label_value(value));
        }
    }
}

/// A `NodeSelector`: terms of which one must hold.
pub(super) fn node_selector(errs: &mut Errors, selector: &Value, path: &Path) {
    let at = path.child("nodeSelectorTerms");
    let terms = list(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        errs.push(FieldError::required(at, "must have at least one node selector term"));
        return;
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(errs, term, &at.index(i));
    }
}

pub(super) fn node_selector_term(errs: &mut Errors, term: &Value, path: &Path) {
    for (i, requirement) in list(term, "matchExpressions").iter().enumerate() {
        let at = path.child("matchExpressions").index(i);
        requirement_shape(errs, requirement, &at);
        let key = text(requirement, "key");
        invalid_all(errs, &at.child("key"), key, names::qualified_name(key));
    }
    for (i, requirement) in list(term, "matchFields").iter().enumerate() {
        let at = path.child("matchFields").index(i);
        let values = list(requirement, "values");
        match text(requirement, "operator") {
            "In" | "NotIn" => {
                if values.len() != 1 {
                    let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                    errs.push(FieldError::required(at.child("values"), detail));
                }
            }
            other => errs.push(FieldError::invalid(at.child("operator"), other, "not a valid selector operator")),
        }
        let key = text(requirement, "key");
        if key != "metadata.name" {
            errs.push(FieldError::invalid(at.child("key"), key, "not a valid field selector key"));
        }
    }
}

fn requirement_shape(errs: &mut Errors, requirement: &Value, at: &Path) {
    let values = list(requirement, "values");
    match text(requirement, "operator") {
        "In" | "NotIn" => {
            if values.is_empty() {
                errs.push(FieldError::required(
                    at.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errs.push(FieldError::forbidden(at.child("values"), detail));
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errs.push(FieldError::required(at.child("values"), detail));
            }
        }
        other => errs.push(FieldError::invalid(at.child("operator"), other, "not a valid selector operator")),
    }
}
