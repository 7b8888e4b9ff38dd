//! Field selectors: `metadata.name=a,status.phase!=Running`.
//!
//! Only some fields of some kinds can be selected by; the rest is refused, in two wordings, as upstream does: kinds
//! with fields of their own say that the label is not supported, the others name the two that all kinds have.

use crate::kinds::Kind;
use crate::meta;
use crate::status::Status;
use serde_json::Value;

/// All terms must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    pub field: String,
    pub value: String,
    pub negated: bool,
}

impl FieldSelector {
    /// Parses `text` and checks that the kind has each field.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split(text) {
            let (field, value, negated) = term(&part)
                .ok_or_else(|| Status::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'")))?;
            let value = unescape(value).map_err(Status::bad_request)?;
            check(kind, field)?;
            terms.push(Term { field: field.to_string(), value, negated });
        }
        Ok(FieldSelector { terms })
    }

    /// The terms alone, where the kind is not known yet; None when the text cannot be read.
    pub fn read(text: &str) -> Option<Self> {
        let read = |part: String| {
            let (field, value, negated) = term(&part)?;
            Some(Term { field: field.to_string(), value: unescape(value).ok()?, negated })
        };
        Some(FieldSelector { terms: split(text).into_iter().map(read).collect::<Option<_>>()? })
    }

    /// Demands one value more.
    pub fn and(mut self, field: &str, value: &str) -> Self {
        self.terms.push(Term { field: field.into(), value: value.into(), negated: false });
        self
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The value that `field` must have, if the selector demands one.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.field == field && !t.negated).map(|t| t.value.as_str())
    }

    pub fn matches(&self, kind: &Kind, obj: &Value) -> bool {
        self.terms.iter().all(|t| (field_of(kind, obj, &t.field) == t.value) != t.negated)
    }
}

/// Splits at commas that no backslash escapes.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.retain(|p| !p.is_empty());
    parts
}

/// Field, value and whether it must differ.
fn term(part: &str) -> Option<(&str, &str, bool)> {
    for (at, _) in part.char_indices() {
        let rest = &part[at..];
        if let Some(value) = rest.strip_prefix("!=") {
            return Some((&part[..at], value, true));
        }
        if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
            return Some((&part[..at], value, false));
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {value}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

const REFERENCE: [&str; 7] = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];

/// The fields of a kind beside name and namespace; None for kinds without any.
fn own_fields(kind: &Kind) -> Option<&'static [&'static str]> {
    Some(match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Event") => &["reason", "reportingComponent", "source", "type"],
        ("events.k8s.io", "Event") => &["reason", "reportingController", "type"],
        ("", "Node") => &["spec.unschedulable"],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("", "ReplicationController") => &["status.replicas"],
        ("batch", "Job") => &["status.successful"],
        ("certificates.k8s.io", "CertificateSigningRequest") => &["spec.signerName"],
        _ => return None,
    })
}

fn check(kind: &Kind, field: &str) -> Result<(), Status> {
    let common = field == "metadata.name" || (field == "metadata.namespace" && kind.namespaced);
    let Some(own) = own_fields(kind) else {
        if common || field == "metadata.namespace" {
            return Ok(());
        }
        let text = format!("\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"");
        return Err(Status::bad_request(text));
    };
    if common || own.contains(&field) || event_reference(kind, field).is_some() {
        return Ok(());
    }
    Err(Status::bad_request(format!("field label not supported: {field}")))
}

/// The member of an event's reference that `field` names: `involvedObject` in the core group, `regarding` outside.
fn event_reference<'a>(kind: &Kind, field: &'a str) -> Option<&'a str> {
    let prefix = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Event") => "involvedObject.",
        ("events.k8s.io", "Event") => "regarding.",
        _ => return None,
    };
    field.strip_prefix(prefix).filter(|f| REFERENCE.contains(f))
}

/// The value of a selectable field, as text.
pub fn field_of(kind: &Kind, obj: &Value, field: &str) -> String {
    let path: Vec<&str> = field.split('.').collect();
    if let Some(member) = event_reference(kind, field) {
        // Stored in the core form; a caller may hold either.
        let outer = if obj.get("involvedObject").is_some() { "involvedObject" } else { "regarding" };
        return meta::str_at(obj, &[outer, member]).to_string();
    }
    match (kind.kind.as_str(), field) {
        ("Node", "spec.unschedulable") | ("Pod", "spec.hostNetwork") => meta::bool_at(obj, &path).to_string(),
        ("Job", "status.successful") => meta::i64_at(obj, &["status", "succeeded"]).unwrap_or(0).to_string(),
        ("ReplicationController", _) if field == "status.replicas" => meta::i64_at(obj, &path).unwrap_or(0).to_string(),
        ("Pod", "status.podIPs") => {
            let ips = meta::list_at(obj, &path).iter().map(|ip| meta::str_at(ip, &["ip"]));
            ips.collect::<Vec<_>>().join(",")
        }
        // An event is stored in the form in which it was written, and asked for in either.
        ("Event", "source") => {
            let component = either(obj, &["source", "component"], &["deprecatedSource", "component"]);
            if component.is_empty() { reporter(obj) } else { component }
        }
        ("Event", "reportingComponent" | "reportingController") => reporter(obj),
        _ => meta::str_at(obj, &path).to_string(),
    }
}

fn either(obj: &Value, one: &[&str], other: &[&str]) -> String {
    let found = meta::str_at(obj, one);
    if found.is_empty() { meta::str_at(obj, other).to_string() } else { found.to_string() }
}

fn reporter(event: &Value) -> String {
    either(event, &["reportingController"], &["reportingComponent"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    #[test]
    fn matching() {
        let pods = kinds::by_resource("", "v1", "pods").expect("pods");
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"hostNetwork": true}, "status": {"phase": "Running"}});
        for (text, expect) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a", true),
            ("metadata.name!=a", false),
            ("metadata.name=a,", true),
            ("status.phase=Running,spec.nodeName=", true),
            ("spec.hostNetwork=true", true),
            ("metadata.name=a\\,b", false),
        ] {
            let selector = FieldSelector::parse(&pods, text).expect(text);
            assert_eq!(selector.matches(&pods, &pod), expect, "{text}");
        }
    }

    #[test]
    fn events_are_found_in_both_forms() {
        let core = json!({"source": {"component": "a"}, "reportingComponent": "r", "involvedObject": {"name": "x"}});
        let new =
            json!({"deprecatedSource": {"component": "a"}, "reportingController": "r", "regarding": {"name": "x"}});
        let plain = json!({"reportingController": "r", "regarding": {"name": "x"}});
        let check = |group: &str, event: &Value, text: &str, expect: bool| {
            let kind = kinds::by_resource(group, "v1", "events").expect("events");
            let selector = FieldSelector::parse(&kind, text).expect(text);
            assert_eq!(selector.matches(&kind, event), expect, "{group} {text} {event}");
        };
        for event in [&core, &new] {
            check("", event, "source=a", true);
            check("", event, "source=r", false);
            check("", event, "reportingComponent=r,involvedObject.name=x", true);
            check("events.k8s.io", event, "reportingController=r,regarding.name=x", true);
            check("events.k8s.io", event, "reportingController=a", false);
        }
        check("", &plain, "source=r", true);
        check("", &plain, "reportingComponent=r", true);
    }

    #[test]
    fn refused() {
        for (plural, text, expect) in [
            ("pods", "metadata.name", "invalid selector: 'metadata.name'; can't understand 'metadata.name'"),
            ("pods", "spec.x=1", "field label not supported: spec.x"),
            ("pods", "=a", "field label not supported: "),
            (
                "configmaps",
                "data.a=b",
                "\"data.a\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
        ] {
            let kind = kinds::by_resource("", "v1", plural).expect(plural);
            assert_eq!(FieldSelector::parse(&kind, text).expect_err(text).message, expect);
        }
    }
}
