//! `metav1.Status`: how every failure is told to a client.
//!
//! Clients branch on `reason` and `code`, scripts read `message`, so the texts are the ones that Kubernetes clients
//! know. A `Status` is also this crate's error type for whatever ends a request.

use crate::validate::FieldError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The answer to a request that failed (or to a delete that succeeded).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub kind: String,
    pub api_version: String,
    #[serde(default)]
    pub metadata: Map<String, Value>,
    /// `Failure` or `Success`.
    #[serde(default)]
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    #[serde(default)]
    pub code: u16,
}

/// What the failure is about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// A kind (`Pod`) or a resource (`pods`), as upstream does for the reason at hand.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Objects with `reason`, `message` and `field`, each optional.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Value>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// `pods` or `deployments.apps`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_string() } else { format!("{resource}.{group}") }
}

impl Status {
    /// A failure with code, reason and message; an empty reason means "unknown" and is not sent.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Status {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: Map::new(),
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
        }
    }

    /// What a delete answers when the object is gone; `code` 200.
    pub fn deleted(group: &str, resource: &str, name: &str, uid: &str) -> Self {
        let details = Details {
            name: name.into(),
            group: group.into(),
            kind: resource.into(),
            uid: uid.into(),
            ..Details::default()
        };
        Status { details: Some(details), ..Status::success(200) }
    }

    /// A success that has nothing else to say. The code of a plain success is sent (201 for a binding).
    pub fn success(code: u16) -> Self {
        Status { status: "Success".into(), ..Status::failure(code, "", "") }.with_code_shown(code)
    }

    fn with_code_shown(mut self, code: u16) -> Self {
        self.code = if code == 200 { 0 } else { code };
        self
    }

    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(details);
        self
    }

    fn about(self, group: &str, kind: &str, name: &str) -> Self {
        self.with_details(Details { name: name.into(), group: group.into(), kind: kind.into(), ..Details::default() })
    }

    /// The HTTP status.
    pub fn code(&self) -> u16 {
        if self.code == 0 { 200 } else { self.code }
    }

    /// The JSON body. Key order is upstream's.
    pub fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if self.code == 0
            && let Some(map) = value.as_object_mut()
        {
            map.remove("code");
        }
        value
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(group, resource));
        Status::failure(404, "NotFound", message).about(group, resource, name)
    }

    /// No such path: unknown group, version or resource.
    pub fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        Status::failure(404, "NotFound", message).with_details(Details::default())
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(group, resource));
        Status::failure(409, "AlreadyExists", message).about(group, resource, name)
    }

    /// `detail` is what does not fit, for example [`Status::MODIFIED`].
    pub fn conflict(group: &str, resource: &str, name: &str, detail: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {detail}", qualified(group, resource));
        Status::failure(409, "Conflict", message).about(group, resource, name)
    }

    /// The detail of a conflict on a stale `resourceVersion`.
    pub const MODIFIED: &'static str =
        "the object has been modified; please apply your changes to the latest version and try again";

    /// Validation failed. `errs` in the order the rules run; equal messages are told once.
    pub fn invalid(group: &str, kind: &str, name: &str, errs: &[FieldError]) -> Self {
        let causes = errs.iter().map(FieldError::cause).collect();
        let what = qualified(group, kind);
        let message = match aggregate(errs.iter().map(|e| e.to_string())) {
            Some(all) => format!("{what} \"{name}\" is invalid: {all}"),
            None => format!("{what} \"{name}\" is invalid"),
        };
        Status::failure(422, "Invalid", message).with_details(Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            causes,
            ..Details::default()
        })
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::failure(400, "BadRequest", message)
    }

    /// `resource` and `name` may be empty; `detail` says why.
    pub fn forbidden(group: &str, resource: &str, name: &str, detail: &str) -> Self {
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {detail}"),
            (false, true) => format!("{} is forbidden: {detail}", qualified(group, resource)),
            (false, false) => format!("{} \"{name}\" is forbidden: {detail}", qualified(group, resource)),
        };
        Status::failure(403, "Forbidden", message).about(group, resource, name)
    }

    pub fn unauthorized() -> Self {
        Status::failure(401, "Unauthorized", "Unauthorized")
    }

    pub fn method_not_supported(_group: &str, _resource: &str, _verb: &str) -> Self {
        let message = "the server does not allow this method on the requested resource";
        Status::failure(405, "MethodNotAllowed", message).with_details(Details::default())
    }

    /// A kind that cannot do what was asked (for example a delete of a collection): names the resource.
    pub fn method_not_supported_on(group: &str, resource: &str, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind \"{}\"", qualified(group, resource));
        Status::failure(405, "MethodNotAllowed", message).about(group, resource, "")
    }

    /// A watch or a list asked for a version that is compacted away.
    pub fn expired(message: impl Into<String>) -> Self {
        Status::failure(410, "Expired", message)
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Status::failure(410, "Gone", message)
    }

    pub fn internal_error(cause: impl std::fmt::Display) -> Self {
        let cause = cause.to_string();
        let mut causes = Map::new();
        causes.insert("message".into(), json!(cause));
        Status::failure(500, "InternalError", format!("Internal error occurred: {cause}"))
            .with_details(Details { causes: vec![Value::Object(causes)], ..Details::default() })
    }

    /// An error that upstream does not type: code 500, no reason, the text alone.
    pub fn generic(message: impl Into<String>) -> Self {
        Status::failure(500, "", message)
    }

    pub fn too_large(detail: &str) -> Self {
        Status::failure(413, "RequestEntityTooLarge", format!("Request entity is too large: {detail}"))
    }

    /// `accepted` are the media types that would be read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Status::failure(415, "UnsupportedMediaType", message)
    }

    /// `accepted` are the media types that can be answered.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Status::failure(406, "NotAcceptable", message)
    }

    /// The server could not do `verb` in time; try again in `retry_after_seconds`.
    pub fn server_timeout(group: &str, resource: &str, verb: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {verb} operation against {} could not be completed at this time, please try again.",
            qualified(group, resource)
        );
        Status::failure(500, "ServerTimeout", message).with_details(Details {
            group: group.into(),
            kind: resource.into(),
            name: verb.into(),
            retry_after_seconds,
            ..Details::default()
        })
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Status::failure(429, "TooManyRequests", message)
            .with_details(Details { retry_after_seconds, ..Details::default() })
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Status::failure(503, "ServiceUnavailable", message)
    }

    pub fn timeout(detail: &str, retry_after_seconds: u32) -> Self {
        Status::failure(504, "Timeout", format!("Timeout: {detail}"))
            .with_details(Details { retry_after_seconds, ..Details::default() })
    }
}

/// Joins messages as upstream's aggregate errors do: one alone as it is, several in brackets, equal ones once.
pub fn aggregate(messages: impl Iterator<Item = String>) -> Option<String> {
    let mut seen: Vec<String> = Vec::new();
    for message in messages {
        if !seen.contains(&message) {
            seen.push(message);
        }
    }
    match seen.len() {
        0 => None,
        1 => seen.pop(),
        _ => Some(format!("[{}]", seen.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::FieldError;

    #[test]
    fn messages() {
        let check = |status: Status, code: u16, message: &str| {
            assert_eq!((status.code(), status.message.as_str()), (code, message));
        };
        check(Status::not_found("", "pods", "a"), 404, "pods \"a\" not found");
        check(Status::already_exists("apps", "deployments", "d"), 409, "deployments.apps \"d\" already exists");
        check(Status::forbidden("", "pods", "", "no"), 403, "pods is forbidden: no");
        let errs = [FieldError::required("spec.a", ""), FieldError::invalid("spec.b", json!("x"), "bad")];
        check(
            Status::invalid("apps", "Deployment", "d", &errs),
            422,
            "Deployment.apps \"d\" is invalid: [spec.a: Required value, spec.b: Invalid value: \"x\": bad]",
        );
    }

    #[test]
    fn keys_stand_in_the_usual_order() {
        let body = Status::not_found("", "pods", "a").to_value();
        let keys: Vec<_> = body.as_object().map(|m| m.keys().cloned().collect()).unwrap_or_default();
        assert_eq!(keys, ["kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"]);
    }
}
