//! What is wrong with a verdict on a CertificateSigningRequest, or with the answer to it.
//!
//! Source: Kubernetes API reference, `CertificateSigningRequestStatus`: verdicts exclude each other, are never taken back, and only `approval` gives them; a
//! certificate that was issued stays.

use super::check::{Errors, Path, list, text};
use super::error::FieldError;
use serde_json::Value;

const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];

/// A change through `approval` (`verdicts` may be added) or through `status`.
pub(super) fn change(errs: &mut Errors, new: &Value, old: &Value, verdicts: bool) {
    let null = Value::Null;
    let (status, before) = (new.get("status").unwrap_or(&null), old.get("status").unwrap_or(&null));
    let path = Path::new("status");
    let conditions = list(status, "conditions");
    let has = |kind: &str| conditions.iter().any(|c| text(c, "type") == kind);
    for (i, condition) in conditions.iter().enumerate() {
        let at = path.child("conditions").index(i);
        let (kind, value) = (text(condition, "type"), text(condition, "status"));
        if kind.is_empty() {
            errs.push(FieldError::required(at.child("type"), ""));
        }
        match (FINAL.contains(&kind), value) {
            (true, "True") | (false, "True" | "False" | "Unknown") => {}
            (true, _) => errs.push(FieldError::not_supported(at.child("status"), value, &["True"])),
            (false, "") => errs.push(FieldError::required(at.child("status"), "")),
            (false, _) => {
                errs.push(FieldError::not_supported(at.child("status"), value, &["False", "True", "Unknown"]))
            }
        }
        if conditions[..i].iter().any(|c| text(c, "type") == kind) {
            errs.push(FieldError::duplicate(at.child("type"), kind));
        }
        if kind == "Denied" && has("Approved") {
            errs.push(FieldError::invalid(
                at.child("type"),
                kind,
                "Approved and Denied conditions are mutually exclusive",
            ));
        }
    }
    for kind in FINAL {
        let of = |status: &Value| list(status, "conditions").iter().find(|c| text(c, "type") == kind).cloned();
        let (was, is) = (of(before), of(status));
        let may_add = verdicts != (kind == "Failed");
        let forbidden = |what: &str| {
            FieldError::forbidden(
                path.child("conditions"),
                format!("updates may not {what} a condition of type {kind:?}"),
            )
        };
        match (was, is) {
            (Some(was), Some(is)) if was != is => errs.push(forbidden("modify")),
            (Some(_), None) => errs.push(forbidden("remove")),
            (None, Some(_)) if !may_add => errs.push(forbidden("add")),
            _ => {}
        }
    }
    let (issued, now) = (text(before, "certificate"), text(status, "certificate"));
    if !issued.is_empty() && issued != now {
        errs.push(FieldError::forbidden(
            path.child("certificate"),
            "updates may not modify or remove a certificate that was issued",
        ));
    }
}
