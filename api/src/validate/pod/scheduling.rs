//! Where a pod may run: affinity, tolerations, spreading, gates; and its DNS settings.

use crate::meta::names;
use crate::validate::check::{Errors, Path, int, invalid_all, list, one_of_if_set, required, some, text};
use crate::validate::error::FieldError;
use crate::validate::selectors::{label_selector, node_selector, node_selector_term};
use serde_json::Value;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn affinity(errs: &mut Errors, spec: &Value, path: &Path) {
    let Some(affinity) = some(spec, "affinity") else { return };
    if let Some(node) = some(affinity, "nodeAffinity") {
        let at = path.child("nodeAffinity");
        if let Some(selector) = some(node, REQUIRED) {
            node_selector(errs, selector, &at.child(REQUIRED));
        }
        for (i, term) in list(node, PREFERRED).iter().enumerate() {
            let at = at.child(PREFERRED).index(i);
            weight(errs, term, &at);
            node_selector_term(errs, term.get("preference").unwrap_or(&Value::Null), &at.child("preference"));
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = some(affinity, kind) else { continue };
        let at = path.child(kind);
        for (i, term) in list(pods, REQUIRED).iter().enumerate() {
            pod_term(errs, term, &at.child(REQUIRED).index(i));
        }
        for (i, weighted) in list(pods, PREFERRED).iter().enumerate() {
            let at = at.child(PREFERRED).index(i);
            weight(errs, weighted, &at);
            pod_term(errs, weighted.get("podAffinityTerm").unwrap_or(&Value::Null), &at.child("podAffinityTerm"));
        }
    }
}

fn weight(errs: &mut Errors, term: &Value, at: &Path) {
    let weight = int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errs.push(FieldError::invalid(at.child("weight"), weight, "must be in the range 1-100"));
    }
}

fn pod_term(errs: &mut Errors, term: &Value, at: &Path) {
    for selector in ["labelSelector", "namespaceSelector"] {
        if let Some(found) = some(term, selector) {
            label_selector(errs, found, &at.child(selector));
        }
    }
    for namespace in list(term, "namespaces") {
        let namespace = namespace.as_str().unwrap_or_default();
        invalid_all(errs, &at.child("namespace"), namespace, names::dns1123_label(namespace));
    }
    match_label_keys(errs, term, at);
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errs.push(FieldError::required(at.child("topologyKey"), "can not be empty"));
    }
    invalid_all(errs, &at.child("topologyKey"), key, names::qualified_name(key));
}

fn match_label_keys(errs: &mut Errors, term: &Value, at: &Path) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = list(term, field);
        if !keys.is_empty() && some(term, "labelSelector").is_none() {
            errs.push(FieldError::forbidden(at.child(field), "must not be specified when labelSelector is not set"));
        }
        for (i, key) in keys.iter().enumerate() {
            let key = key.as_str().unwrap_or_default();
            invalid_all(errs, &at.child(field).index(i), key, names::qualified_name(key));
        }
    }
}

pub(in crate::validate) fn tolerations(errs: &mut Errors, all: &[Value], path: &Path) {
    for (i, toleration) in all.iter().enumerate() {
        let at = path.index(i);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
        if !key.is_empty() {
            invalid_all(errs, &at.child("key"), key, names::qualified_name(key));
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errs.push(FieldError::invalid(at.child("operator"), operator, detail));
        }
        if some(toleration, "tolerationSeconds").is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errs.push(FieldError::invalid(at.child("effect"), effect, detail));
        }
        match operator {
            "" | "Equal" => {
                let problems = names::label_value(value);
                if !problems.is_empty() {
                    errs.push(FieldError::invalid(at.child("operator"), value, problems.join(";")));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errs.push(FieldError::invalid(
                        at.child("operator"),
                        value,
                        "value must be empty when `operator` is 'Exists'",
                    ));
                }
            }
            other => errs.push(FieldError::not_supported(at.child("operator"), other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            crate::validate::check::one_of(
                errs,
                toleration,
                "effect",
                &at,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            );
        }
    }
}

pub(super) fn gates(errs: &mut Errors, spec: &Value, path: &Path) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let at = path.index(i);
        let name = text(gate, "name");
        invalid_all(errs, &at, name, names::qualified_name(name));
        if seen.contains(&name) {
            errs.push(FieldError::duplicate(at.child("name"), name));
        }
        seen.push(name);
    }
}

pub(super) fn spread(errs: &mut Errors, spec: &Value, path: &Path) {
    let all = list(spec, "topologySpreadConstraints");
    for (i, constraint) in all.iter().enumerate() {
        let at = path.index(i);
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errs.push(FieldError::invalid(at.child("maxSkew"), skew, "must be greater than zero"));
        }
        let (key, mode) = (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if key.is_empty() {
            errs.push(FieldError::required(at.child("topologyKey"), "can not be empty"));
        } else {
            invalid_all(errs, &at.child("topologyKey"), key, names::qualified_name(key));
        }
        crate::validate::check::one_of(
            errs,
            constraint,
            "whenUnsatisfiable",
            &at,
            &["DoNotSchedule", "ScheduleAnyway"],
        );
        let same = |other: &Value| text(other, "topologyKey") == key && text(other, "whenUnsatisfiable") == mode;
        if all[i + 1..].iter().any(same) {
            let at = at.child("{topologyKey, whenUnsatisfiable}");
            errs.push(FieldError::duplicate(at, format!("{{{key}, {mode}}}")));
        }
        if let Some(domains) = int(constraint, "minDomains") {
            if domains <= 0 {
                errs.push(FieldError::invalid(at.child("minDomains"), domains, "must be greater than zero"));
            }
            if mode != "DoNotSchedule" {
                let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {mode}");
                errs.push(FieldError::invalid(at.child("minDomains"), domains, detail));
            }
        }
        one_of_if_set(errs, constraint, "nodeAffinityPolicy", &at, &["Honor", "Ignore"]);
        one_of_if_set(errs, constraint, "nodeTaintsPolicy", &at, &["Honor", "Ignore"]);
        match_label_keys(errs, constraint, &at);
        if let Some(selector) = some(constraint, "labelSelector") {
            label_selector(errs, selector, &at.child("labelSelector"));
        }
    }
}

/// The resolver's own limits: three servers, 32 domains of 2048 characters.
pub(super) fn dns_config(errs: &mut Errors, spec: &Value, spec_path: &Path) {
    let policy_is_none = text(spec, "dnsPolicy") == "None";
    let path = spec_path.child("dnsConfig");
    let Some(config) = some(spec, "dnsConfig") else {
        if policy_is_none {
            errs.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
        }
        return;
    };
    let servers = list(config, "nameservers");
    if policy_is_none && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errs.push(FieldError::required(path.child("nameservers"), detail));
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errs.push(FieldError::invalid(path.child("nameservers"), Value::Array(servers.to_vec()), detail));
    }
    for (i, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        invalid_all(errs, &path.child("nameservers").index(i), server, names::ip(server));
    }
    let searches = list(config, "searches");
    if searches.len() > 32 {
        let detail = "must not have more than 32 search paths";
        errs.push(FieldError::invalid(path.child("searches"), Value::Array(searches.to_vec()), detail));
    }
    let length: usize = searches.iter().filter_map(Value::as_str).map(|s| s.len() + 1).sum();
    if length > 2049 {
        let detail = "must not have more than 2048 characters (including spaces) in the search list";
        errs.push(FieldError::invalid(path.child("searches"), Value::Array(searches.to_vec()), detail));
    }
    for (i, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        let bare = search.strip_suffix('.').filter(|s| !s.is_empty()).unwrap_or(search);
        if search != "." {
            invalid_all(errs, &path.child("searches").index(i), search, names::dns1123_subdomain_with_underscore(bare));
        }
    }
    for (i, option) in list(config, "options").iter().enumerate() {
        required(errs, option, "name", &path.child("options").index(i));
    }
}
