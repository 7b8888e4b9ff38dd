//! Options of writes: what may be asked for, checked before anything else happens.

use crate::call::Call;
use serde_json::json;
use skiff_api::status::Status;
use skiff_api::validate::FieldError;

/// Checks dryRun, fieldValidation and fieldManager. `options` is the kind that the refusal names, such as `CreateOptions`.
pub fn check(call: &Call, options: &str) -> Result<(), Status> {
    let mut errors = Vec::new();
    let manager = call.query.text("fieldManager");
    if options == "PatchOptions" {
        let applying =
            matches!(&call.body, crate::call::Body::Raw { media, .. } if media == "application/apply-patch+yaml");
        if applying && manager.is_empty() {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        if !applying && call.query.has("force") {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
    }
    if manager.chars().count() > 128 {
        errors.push(FieldError::too_long("fieldManager", 128));
    }
    if let Some((index, odd)) = manager.char_indices().find(|(_, c)| c.is_control()) {
        let detail = format!("invalid character {} (at position {index})", go_rune(odd));
        errors.push(FieldError::invalid("fieldManager", manager, detail));
    }
    errors.extend(dry_run_errors(&call.query.all("dryRun").collect::<Vec<_>>()));
    let validation = call.query.text("fieldValidation");
    if !matches!(validation, "" | "Ignore" | "Warn" | "Strict") {
        errors.push(FieldError::not_supported("fieldValidation", validation, &["", "Ignore", "Strict", "Warn"]));
    }
    refuse(options, &errors)
}

/// A character as Go's `%#U` prints it: its number, and itself where it can be seen.
fn go_rune(c: char) -> String {
    let number = format!("U+{:04X}", u32::from(c));
    if c.is_control() { number } else { format!("{number} '{c}'") }
}

pub fn dry_run_errors(values: &[&str]) -> Vec<FieldError> {
    if values.iter().all(|v| *v == "All") {
        return Vec::new();
    }
    vec![FieldError::not_supported("dryRun", json!(values), &["All"])]
}

pub fn refuse(options: &str, errors: &[FieldError]) -> Result<(), Status> {
    match errors {
        [] => Ok(()),
        errors => Err(Status::invalid("meta.k8s.io", options, "", errors)),
    }
}
