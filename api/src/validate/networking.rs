//! Network policies, ingresses and their classes.

use super::check::{Errors, Path, immutable, int, invalid_all, list, port_number_or_name, required, some, text};
use super::error::FieldError;
use super::selectors::label_selector;
use crate::meta::{self, names};
use serde_json::{Value, json};
use std::net::IpAddr;

const CONTROLLER_LEN_MAX: usize = 250;
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub(super) fn network_policy(errs: &mut Errors, obj: &Value) {
    let (spec, path) = (obj.get("spec").unwrap_or(&Value::Null), Path::new("spec"));
    label_selector(errs, spec.get("podSelector").unwrap_or(&Value::Null), &path.child("podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(spec, direction).iter().enumerate() {
            let at = path.child(direction).index(i);
            for (j, port) in list(rule, "ports").iter().enumerate() {
                policy_port(errs, port, &at.child("ports").index(j));
            }
            for (j, peer) in list(rule, peers).iter().enumerate() {
                policy_peer(errs, peer, &at.child(peers).index(j));
            }
        }
    }
    let types = list(spec, "policyTypes");
    let at = path.child("policyTypes");
    if types.len() > 2 {
        errs.push(FieldError::invalid(&at, json!(types), "may not specify more than two policyTypes"));
        return;
    }
    for (i, kind) in types.iter().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            errs.push(FieldError::not_supported(at.index(i), kind.clone(), &["Egress", "Ingress"]));
        }
    }
}

fn policy_port(errs: &mut Errors, port: &Value, path: &Path) {
    super::check::one_of_if_set(errs, port, "protocol", path, &["SCTP", "TCP", "UDP"]);
    let end = int(port, "endPort");
    let Some(first) = some(port, "port") else {
        if let Some(end) = end {
            let detail = "may not be specified when `port` is not specified";
            errs.push(FieldError::invalid(path.child("endPort"), end, detail));
        }
        return;
    };
    if let (Some(_), Some(end)) = (first.as_str(), end) {
        let detail = "may not be specified when `port` is non-numeric";
        errs.push(FieldError::invalid(path.child("endPort"), end, detail));
    }
    port_number_or_name(errs, Some(first), &path.child("port"));
    if let (Some(first), Some(end)) = (first.as_i64(), end) {
        if end < first {
            errs.push(FieldError::invalid(path.child("endPort"), end, "must be greater than or equal to `port`"));
        }
        invalid_all(errs, &path.child("endPort"), end, names::port_number(end));
    }
}

fn policy_peer(errs: &mut Errors, peer: &Value, path: &Path) {
    let mut count = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = some(peer, key) {
            count += 1;
            label_selector(errs, selector, &path.child(key));
        }
    }
    let block = some(peer, "ipBlock");
    if let Some(block) = block {
        count += 1;
        ip_block(errs, block, &path.child("ipBlock"));
    }
    if count == 0 {
        errs.push(FieldError::required(path, "must specify a peer"));
    } else if count > 1 && block.is_some() {
        errs.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
    }
}

fn ip_block(errs: &mut Errors, block: &Value, path: &Path) {
    let cidr = text(block, "cidr");
    if !required(errs, block, "cidr", path) {
        return;
    }
    let problems = names::cidr(cidr);
    let readable = problems.is_empty();
    invalid_all(errs, &path.child("cidr"), cidr, problems);
    for (i, except) in list(block, "except").iter().enumerate() {
        let at = path.child("except").index(i);
        let except = except.as_str().unwrap_or_default();
        let problems = names::cidr(except);
        let fine = problems.is_empty();
        invalid_all(errs, &at, except, problems);
        if readable && fine && !is_strictly_inside(except, cidr) {
            errs.push(FieldError::invalid(at, except, format!("must be a strict subset of `{}`", "cidr")));
        }
    }
}

fn is_strictly_inside(inner: &str, outer: &str) -> bool {
    let parts = |cidr: &str| -> Option<(u128, u32, u32)> {
        let (ip, bits) = cidr.split_once('/')?;
        let bits: u32 = bits.parse().ok()?;
        match ip.parse().ok()? {
            IpAddr::V4(ip) => Some((u128::from(u32::from(ip)), bits, 32)),
            IpAddr::V6(ip) => Some((u128::from(ip), bits, 128)),
        }
    };
    let (Some((a, inner_bits, width)), Some((b, outer_bits, other))) = (parts(inner), parts(outer)) else {
        return false;
    };
    let shift = width - outer_bits.min(width);
    width == other && inner_bits > outer_bits && a.checked_shr(shift) == b.checked_shr(shift)
}

pub(super) fn ingress(errs: &mut Errors, obj: &Value, is_new: bool) {
    let (spec, path) = (obj.get("spec").unwrap_or(&Value::Null), Path::new("spec"));
    let rules = list(spec, "rules");
    let backend = some(spec, "defaultBackend");
    if rules.is_empty() && backend.is_none() {
        let shown = spec.get("rules").cloned().unwrap_or(Value::Null);
        errs.push(FieldError::invalid(&path, shown, "either `defaultBackend` or `rules` must be specified"));
    }
    if let Some(backend) = backend {
        ingress_backend(errs, backend, &path.child("defaultBackend"));
    }
    for (i, rule) in rules.iter().enumerate() {
        ingress_rule(errs, rule, &path.child("rules").index(i));
    }
    for (i, tls) in list(spec, "tls").iter().enumerate() {
        for (j, host) in list(tls, "hosts").iter().enumerate() {
            let host = host.as_str().unwrap_or_default();
            host_name(errs, host, &path.child("tls").index(i).child("hosts").index(j));
        }
        let secret = text(tls, "secretName");
        if !secret.is_empty() {
            let at = path.child("tls").index(i).child("secretName");
            invalid_all(errs, &at, secret, names::dns1123_subdomain(secret));
        }
    }
    let class = some(spec, "ingressClassName").and_then(Value::as_str);
    if let Some(class) = class {
        invalid_all(errs, &path.child("ingressClassName"), class, names::dns1123_subdomain(class));
    }
    if let (true, Some(_), Some(old)) = (is_new, class, meta::annotation(obj, CLASS_ANNOTATION)) {
        let at = Path::new("annotations").child(CLASS_ANNOTATION);
        errs.push(FieldError::invalid(at, old, "can not be set when the class field is also set"));
    }
}

fn host_name(errs: &mut Errors, host: &str, path: &Path) {
    let problems =
        if host.contains('*') { names::wildcard_dns1123_subdomain(host) } else { names::dns1123_subdomain(host) };
    invalid_all(errs, path, host, problems);
}

fn ingress_rule(errs: &mut Errors, rule: &Value, path: &Path) {
    let host = text(rule, "host");
    if !host.is_empty() {
        if host.parse::<IpAddr>().is_ok() {
            errs.push(FieldError::invalid(path.child("host"), host, "must be a DNS name, not an IP address"));
        } else {
            host_name(errs, host, &path.child("host"));
        }
    }
    let Some(http) = some(rule, "http") else { return };
    let at = path.child("http").child("paths");
    let paths = list(http, "paths");
    if paths.is_empty() {
        errs.push(FieldError::required(&at, ""));
    }
    for (i, entry) in paths.iter().enumerate() {
        ingress_path(errs, entry, &at.index(i));
    }
}

fn ingress_path(errs: &mut Errors, entry: &Value, path: &Path) {
    let target = text(entry, "path");
    let at = path.child("path");
    match some(entry, "pathType").and_then(Value::as_str) {
        None => errs.push(FieldError::required(path.child("pathType"), "pathType must be specified")),
        Some("Exact" | "Prefix") => {
            if !target.starts_with('/') {
                errs.push(FieldError::invalid(&at, target, "must be an absolute path"));
            }
            for odd in ["//", "/./", "/../", "%2f", "%2F"] {
                if target.contains(odd) {
                    errs.push(FieldError::invalid(&at, target, format!("must not contain '{odd}'")));
                }
            }
            for odd in ["/..", "/."] {
                if target.ends_with(odd) {
                    errs.push(FieldError::invalid(&at, target, format!("cannot end with '{odd}'")));
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !target.is_empty() && !target.starts_with('/') {
                errs.push(FieldError::invalid(&at, target, "must be an absolute path"));
            }
        }
        Some(other) => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            errs.push(FieldError::not_supported(path.child("pathType"), other, &known));
        }
    }
    ingress_backend(errs, entry.get("backend").unwrap_or(&Value::Null), &path.child("backend"));
}

fn ingress_backend(errs: &mut Errors, backend: &Value, path: &Path) {
    let (resource, service) = (some(backend, "resource"), some(backend, "service"));
    match (resource, service) {
        (Some(_), Some(_)) => {
            errs.push(FieldError::invalid(path, "", "cannot set both resource and service backends"));
        }
        (None, None) => errs.push(FieldError::required(path, "resource or service backend is required")),
        (Some(resource), None) => {
            required(errs, resource, "kind", &path.child("resource"));
            required(errs, resource, "name", &path.child("resource"));
        }
        (None, Some(service)) => {
            let at = path.child("service");
            let name = text(service, "name");
            if required(errs, service, "name", &at) {
                invalid_all(errs, &at.child("name"), name, names::dns1035_label(name));
            }
            let port = service.get("port").unwrap_or(&Value::Null);
            let (name, number) = (text(port, "name"), int(port, "number").unwrap_or(0));
            let at = at.child("port");
            match (name.is_empty(), number) {
                (true, 0) => errs.push(FieldError::required(path, "port name or number is required")),
                (false, 0) => invalid_all(errs, &at.child("name"), name, names::port_name(name)),
                (true, number) => invalid_all(errs, &at.child("number"), number, names::port_number(number)),
                (false, _) => errs.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
            }
        }
    }
}

pub(super) fn ingress_class(errs: &mut Errors, obj: &Value) {
    let (spec, path) = (obj.get("spec").unwrap_or(&Value::Null), Path::new("spec"));
    let controller = text(spec, "controller");
    if controller.len() > CONTROLLER_LEN_MAX {
        errs.push(FieldError::too_long(path.child("controller"), CONTROLLER_LEN_MAX));
    }
    if required(errs, spec, "controller", &path) {
        invalid_all(errs, &path.child("controller"), controller, names::domain_prefixed_path(controller));
    }
    let Some(parameters) = some(spec, "parameters") else { return };
    let at = path.child("parameters");
    required(errs, parameters, "kind", &at);
    required(errs, parameters, "name", &at);
    let namespaced = !text(parameters, "namespace").is_empty();
    match text(parameters, "scope") {
        "Cluster" if namespaced => {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errs.push(FieldError::forbidden(at.child("namespace"), detail));
        }
        "Namespace" if !namespaced => {
            let detail = "`parameters.scope` is set to 'Namespace'";
            errs.push(FieldError::required(at.child("namespace"), detail));
        }
        "Cluster" | "Namespace" => {}
        other => errs.push(FieldError::not_supported(at.child("scope"), other, &["Cluster", "Namespace"])),
    }
}

pub(super) fn ingress_class_update(errs: &mut Errors, new: &Value, old: &Value) {
    let spec = |obj: &Value| obj.get("spec").cloned().unwrap_or(Value::Null);
    immutable(errs, &spec(new), &spec(old), "controller", &Path::new("spec"));
}

#[cfg(test)]
mod tests {
    use super::is_strictly_inside;

    #[test]
    fn blocks_in_blocks() {
        assert!(is_strictly_inside("10.1.2.0/24", "10.1.0.0/16"));
        assert!(!is_strictly_inside("10.1.0.0/16", "10.1.0.0/16"));
        assert!(!is_strictly_inside("10.2.0.0/24", "10.1.0.0/16"));
        assert!(is_strictly_inside("10.2.0.0/24", "0.0.0.0/0"));
        assert!(!is_strictly_inside("fd00::/64", "10.1.0.0/16"));
    }
}
