//! Probes and lifecycle hooks.

use super::Context;
use crate::meta::names;
use crate::validate::check::{
    Errors, Path, int, invalid_all, list, non_negative, one_of, port_number_or_name, required, some, text,
};
use crate::validate::error::FieldError;
use serde_json::Value;

const MORE_THAN_ONE: &str = "may not specify more than 1 handler type";

pub(super) fn all(errs: &mut Errors, container: &Value, context: &Context, at: &Path) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = some(container, name) else { continue };
        let path = at.child(name);
        handler(errs, probe, context, &path);
        for count in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            non_negative(errs, probe, count, &path);
        }
        let grace = int(probe, "terminationGracePeriodSeconds");
        if let Some(seconds) = grace.filter(|s| *s <= 0) {
            let at = path.child("terminationGracePeriodSeconds");
            errs.push(FieldError::invalid(at, seconds, "must be greater than 0"));
        }
        if name == "readinessProbe" {
            if let Some(seconds) = grace {
                let at = path.child("terminationGracePeriodSeconds");
                errs.push(FieldError::invalid(at, seconds, "must not be set for readinessProbes"));
            }
        } else if let Some(successes) = int(probe, "successThreshold").filter(|n| *n != 1) {
            errs.push(FieldError::invalid(path.child("successThreshold"), successes, "must be 1"));
        }
    }
}

pub(super) fn lifecycle(errs: &mut Errors, container: &Value, context: &Context, at: &Path) {
    let Some(lifecycle) = some(container, "lifecycle") else { return };
    let path = at.child("lifecycle");
    for hook in ["postStart", "preStop"] {
        if let Some(found) = some(lifecycle, hook) {
            handler(errs, found, context, &path.child(hook));
        }
    }
    if some(lifecycle, "stopSignal").is_some() && some(context.spec, "os").is_none() {
        let detail = "may not be set for containers with empty `spec.os.name`";
        errs.push(FieldError::forbidden(path.child("stopSignal"), detail));
    }
}

/// Exactly one way to ask.
fn handler(errs: &mut Errors, holder: &Value, context: &Context, path: &Path) {
    let mut found = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(action) = some(holder, kind) else { continue };
        let at = path.child(kind);
        found += 1;
        if found > 1 {
            errs.push(FieldError::forbidden(at, MORE_THAN_ONE));
            continue;
        }
        match kind {
            "exec" => {
                if list(action, "command").is_empty() {
                    errs.push(FieldError::required(at.child("command"), ""));
                }
            }
            "httpGet" => http_get(errs, action, &at),
            "sleep" => {
                let seconds = int(action, "seconds").unwrap_or(0);
                if seconds < 0 || seconds > context.grace_seconds {
                    let detail = format!(
                        "must be non-negative and less than terminationGracePeriodSeconds ({})",
                        context.grace_seconds
                    );
                    errs.push(FieldError::invalid(at, seconds, detail));
                }
            }
            _ => port_number_or_name(errs, action.get("port"), &at.child("port")),
        }
    }
    if found == 0 {
        errs.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(errs: &mut Errors, action: &Value, at: &Path) {
    required(errs, action, "path", at);
    port_number_or_name(errs, action.get("port"), &at.child("port"));
    one_of(errs, action, "scheme", at, &["HTTP", "HTTPS"]);
    for header in list(action, "httpHeaders") {
        let name = text(header, "name");
        invalid_all(errs, &at.child("httpHeaders"), name, names::http_header_name(name));
    }
}
