//! Namespaces, nodes, settings, accounts, leases, events, and the small kinds of the cluster.

use super::check::{
    Errors, IMMUTABLE, NEGATIVE, Path, flag, immutable, int, invalid_all, list, one_of, required, shown, some, text,
};
use super::error::FieldError;
use crate::meta::{self, names};
use crate::quantity::Quantity;
use serde_json::{Map, Value, json};
use std::cmp::Ordering;

/// The most that a ConfigMap or a Secret holds, in bytes.
const DATA_MAX: usize = 1024 * 1024;

pub(super) fn namespace(errs: &mut Errors, obj: &Value) {
    pod_security_labels(errs, obj);
    for (i, name) in meta::list_at(obj, &["spec", "finalizers"]).iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        let at = Path::new("spec").child("finalizers");
        invalid_all(errs, &at, name, names::qualified_name(name));
        if !name.contains('/') && name != "kubernetes" {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errs.push(FieldError::invalid(at.index(i), name, detail));
        }
    }
}

/// The labels that set a namespace's pod security level.
fn pod_security_labels(errs: &mut Errors, obj: &Value) {
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("pod-security.kubernetes.io/{mode}");
        let at = Path::new("metadata").child("labels");
        if let Some(level) = meta::label(obj, &key)
            && !matches!(level, "privileged" | "baseline" | "restricted")
        {
            let detail = "must be one of privileged, baseline, restricted";
            errs.push(FieldError::invalid(at.key(&key), level, detail));
        }
        let key = format!("{key}-version");
        if let Some(version) = meta::label(obj, &key) {
            let minor = version.strip_prefix("v1.").filter(|m| !m.is_empty() && m.bytes().all(|c| c.is_ascii_digit()));
            if version != "latest" && minor.is_none_or(|m| m.len() > 1 && m.starts_with('0')) {
                errs.push(FieldError::invalid(at.key(&key), version, "must be \"latest\" or \"v1.x\""));
            }
        }
    }
}

pub(super) fn node(errs: &mut Errors, obj: &Value) {
    let null = Value::Null;
    let spec = obj.get("spec").unwrap_or(&null);
    taints(errs, spec, &Path::new("metadata").child("taints"));
    let path = Path::new("spec");
    for (i, cidr) in list(spec, "podCIDRs").iter().enumerate() {
        let cidr = cidr.as_str().unwrap_or_default();
        invalid_all(errs, &path.child("podCIDRs").index(i), cidr, names::cidr(cidr));
    }
    for (name, amount) in meta::map_at(obj, &["status", "capacity"]).into_iter().flatten() {
        if Quantity::from_value(amount).is_some_and(|q| q.sign() == Ordering::Less) {
            let at = Path::new("status").child("capacity").key(name);
            errs.push(FieldError::invalid(at, amount.clone(), NEGATIVE));
        }
    }
}

fn taints(errs: &mut Errors, spec: &Value, path: &Path) {
    let all = list(spec, "taints");
    for (i, taint) in all.iter().enumerate() {
        let at = path.index(i);
        let key = text(taint, "key");
        invalid_all(errs, &at.child("key"), key, names::qualified_name(key));
        let problems = names::label_value(text(taint, "value"));
        if !problems.is_empty() {
            errs.push(FieldError::invalid(at.child("value"), text(taint, "value"), problems.join(";")));
        }
        if text(taint, "effect").is_empty() {
            errs.push(FieldError::required(at.child("effect"), ""));
        } else {
            one_of(errs, taint, "effect", &at, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
        let same = |other: &Value| text(other, "key") == key && text(other, "effect") == text(taint, "effect");
        if all[..i].iter().any(same) {
            let value = json!({"Key": key, "Value": text(taint, "value"), "Effect": text(taint, "effect"), "TimeAdded": shown(taint, "timeAdded")});
            let mut error = FieldError::duplicate(&at, value);
            error.detail = "taints must be unique by key and effect pair".into();
            errs.push(error);
        }
    }
}

pub(super) fn node_update(errs: &mut Errors, new: &Value, old: &Value) {
    let of = |obj: &Value, key: &str| meta::at(obj, &["spec", key]).cloned().unwrap_or(Value::Null);
    let (was, now) = (of(old, "podCIDRs"), of(new, "podCIDRs"));
    if !was.is_null() && was != now {
        errs.push(FieldError::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    let (was, now) = (of(old, "providerID"), of(new, "providerID"));
    if !was.is_null() && was != now {
        errs.push(FieldError::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
}

fn data_keys(errs: &mut Errors, obj: &Value, field: &str) -> usize {
    let mut size = 0;
    let mut all: Vec<(&String, &Value)> = meta::map_at(obj, &[field]).into_iter().flat_map(Map::iter).collect();
    all.sort_by_key(|(key, _)| *key);
    for (key, value) in all {
        invalid_all(errs, &Path::new(field).key(key), key.clone(), names::config_map_key(key));
        let text = value.as_str().unwrap_or_default();
        size += if field == "data" && obj.get("type").is_none() { text.len() } else { decoded_len(text) };
    }
    size
}

fn decoded_len(text: &str) -> usize {
    crate::base64::decode(text).map_or(text.len(), |bytes| bytes.len())
}

pub(super) fn config_map(errs: &mut Errors, obj: &Value) {
    let binary = meta::map_at(obj, &["binaryData"]);
    let mut both: Vec<&String> = meta::map_at(obj, &["data"])
        .into_iter()
        .flat_map(Map::keys)
        .filter(|k| binary.is_some_and(|b| b.contains_key(*k)))
        .collect();
    both.sort();
    let mut size = data_keys(errs, obj, "data");
    for key in both {
        let detail = "duplicate of key present in binaryData";
        errs.push(FieldError::invalid(Path::new("data").key(key), key.clone(), detail));
    }
    let mut wrapped = Map::new();
    if let Some(binary) = binary {
        wrapped.insert("type".into(), "".into());
        wrapped.insert("binaryData".into(), Value::Object(binary.clone()));
    }
    size += data_keys(errs, &Value::Object(wrapped), "binaryData");
    if size > DATA_MAX {
        errs.push(FieldError::too_long("[]", DATA_MAX));
    }
}

/// What is marked immutable stays so, with what it holds.
pub(super) fn immutable_data(errs: &mut Errors, new: &Value, old: &Value, fields: &[&str]) {
    if !flag(old, "immutable") {
        return;
    }
    let path = Path::new("");
    if !flag(new, "immutable") {
        errs.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if some(new, field) != some(old, field) {
            errs.push(FieldError::forbidden(path.child(field), "field is immutable when `immutable` is set"));
        }
    }
}

pub(super) fn secret(errs: &mut Errors, obj: &Value) {
    let size = data_keys(errs, obj, "data");
    if size > DATA_MAX {
        errs.push(FieldError::too_long("data", DATA_MAX));
    }
    let at = |key: &str| Path::new("data").key(key);
    let held = |key: &str| meta::at(obj, &["data", key]).and_then(Value::as_str);
    let decoded = |key: &str| held(key).and_then(crate::base64::decode);
    match text(obj, "type") {
        "kubernetes.io/service-account-token"
            if meta::annotation(obj, "kubernetes.io/service-account.name").unwrap_or("").is_empty() =>
        {
            let at = Path::new("metadata").child("annotations").key("kubernetes.io/service-account.name");
            errs.push(FieldError::required(at, ""));
        }
        "kubernetes.io/dockercfg" => {
            json_config(errs, ".dockercfg", held(".dockercfg").is_some(), decoded(".dockercfg"))
        }
        "kubernetes.io/dockerconfigjson" => {
            json_config(errs, ".dockerconfigjson", held(".dockerconfigjson").is_some(), decoded(".dockerconfigjson"));
        }
        "kubernetes.io/basic-auth" if held("username").is_none() && held("password").is_none() => {
            errs.push(FieldError::required(at("username"), ""));
            errs.push(FieldError::required(at("password"), ""));
        }
        "kubernetes.io/ssh-auth" if held("ssh-privatekey").unwrap_or("").is_empty() => {
            errs.push(FieldError::required(at("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if held(key).is_none() {
                    errs.push(FieldError::required(at(key), ""));
                }
            }
        }
        _ => {}
    }
}

fn json_config(errs: &mut Errors, key: &str, there: bool, bytes: Option<Vec<u8>>) {
    let at = Path::new("data").key(key);
    if !there {
        errs.push(FieldError::required(at, ""));
    } else if let Err(e) = serde_json::from_slice::<Map<String, Value>>(&bytes.unwrap_or_default()) {
        let problem = if e.is_eof() { "unexpected end of JSON input".to_string() } else { e.to_string() };
        errs.push(FieldError::invalid(at, "<secret contents redacted>", problem));
    }
}

pub(super) fn secret_update(errs: &mut Errors, new: &Value, old: &Value) {
    immutable(errs, new, old, "type", &Path::new(""));
    immutable_data(errs, new, old, &["data"]);
}

pub(super) fn lease(errs: &mut Errors, obj: &Value) {
    let null = Value::Null;
    let spec = obj.get("spec").unwrap_or(&null);
    let path = Path::new("spec");
    if let Some(seconds) = int(spec, "leaseDurationSeconds").filter(|s| *s <= 0) {
        errs.push(FieldError::invalid(path.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
    }
    if let Some(count) = int(spec, "leaseTransitions").filter(|n| *n < 0) {
        errs.push(FieldError::invalid(path.child("leaseTransitions"), count, NEGATIVE));
    }
    if some(spec, "preferredHolder").is_some_and(|h| h != "") && some(spec, "strategy").is_none_or(|s| s == "") {
        errs.push(FieldError::required(
            path.child("strategy"),
            "must be specified when `preferredHolder` is specified",
        ));
    }
}

pub(super) fn event(errs: &mut Errors, obj: &Value, is_new_form: bool) {
    let reference = if obj.get("regarding").is_some() { "regarding" } else { "involvedObject" };
    let of = meta::str_at(obj, &[reference, "namespace"]);
    let namespace = meta::namespace(obj);
    let fits = if of.is_empty() {
        matches!(namespace, "default" | "kube-system") || namespace.is_empty()
    } else {
        of == namespace
    };
    if !fits {
        let at = Path::new("involvedObject").child("namespace");
        errs.push(FieldError::invalid(at, of, "does not match event.namespace"));
    }
    if !is_new_form {
        return;
    }
    if some(obj, "eventTime").is_none() {
        errs.push(FieldError::required("eventTime", ""));
    }
    let controller = if text(obj, "reportingController").is_empty() {
        text(obj, "reportingComponent")
    } else {
        text(obj, "reportingController")
    };
    if controller.is_empty() {
        errs.push(FieldError::required("reportingController", ""));
    } else {
        invalid_all(errs, &Path::new("reportingController"), controller, names::qualified_name(controller));
    }
    for (key, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        if text(obj, key).is_empty() {
            errs.push(FieldError::required(key, ""));
        } else if text(obj, key).len() > max {
            errs.push(FieldError::invalid(key, "", format!("can have at most {max} characters")));
        }
    }
    let note = if text(obj, "note").is_empty() { text(obj, "message") } else { text(obj, "note") };
    if note.len() > 1024 {
        errs.push(FieldError::invalid("message", "", "can have at most 1024 characters"));
    }
    let kind = text(obj, "type");
    if kind.is_empty() {
        errs.push(FieldError::required("type", ""));
    } else if !matches!(kind, "Normal" | "Warning") {
        errs.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
    }
}

/// The highest priority a user may define; the rest is the system's.
const PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) fn priority_class(errs: &mut Errors, obj: &Value) {
    let name = meta::name(obj);
    let value = int(obj, "value").unwrap_or(0);
    let system =
        matches!((name, value), ("system-cluster-critical", 2_000_000_000) | ("system-node-critical", 2_000_001_000));
    if name.starts_with("system-") {
        if !system {
            let detail = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known system priority class"
            );
            errs.push(FieldError::forbidden("metadata.name", detail));
        }
    } else if value > PRIORITY_MAX {
        let detail = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
        errs.push(FieldError::forbidden("value", detail));
    }
    if some(obj, "preemptionPolicy").is_some() {
        one_of(errs, obj, "preemptionPolicy", &Path::new(""), &["PreemptLowerPriority", "Never"]);
    }
}

pub(super) fn priority_class_update(errs: &mut Errors, new: &Value, old: &Value) {
    if int(new, "value") != int(old, "value") {
        errs.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
    if some(new, "preemptionPolicy") != some(old, "preemptionPolicy") {
        errs.push(FieldError::invalid("preemptionPolicy", shown(new, "preemptionPolicy"), IMMUTABLE));
    }
}

pub(super) fn runtime_class(errs: &mut Errors, obj: &Value) {
    let handler = text(obj, "handler");
    invalid_all(errs, &Path::new("handler"), handler, names::dns1123_label(handler));
    if let Some(scheduling) = some(obj, "scheduling") {
        let path = Path::new("scheduling");
        super::metadata::labels(errs, meta::map_at(scheduling, &["nodeSelector"]), &path.child("nodeSelector"));
        super::pod::tolerations(errs, list(scheduling, "tolerations"), &path.child("tolerations"));
    }
}

/// What a certificate may be for, in order: the values of `KeyUsage` in the API reference of `certificates.k8s.io/v1`.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const EXPIRATION_SECONDS_MIN: i64 = 600;

pub(super) fn signing_request(errs: &mut Errors, obj: &Value) {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let path = Path::new("spec");
    let request = text(spec, "request");
    let pem = crate::base64::decode(request).unwrap_or_default();
    if !String::from_utf8_lossy(&pem).trim_start().starts_with("-----BEGIN CERTIFICATE REQUEST-----") {
        let detail = "PEM block type must be CERTIFICATE REQUEST";
        errs.push(FieldError::invalid(path.child("request"), shown(spec, "request"), detail));
    }
    let usages = list(spec, "usages");
    if usages.is_empty() {
        errs.push(FieldError::required(path.child("usages"), ""));
    }
    for (i, usage) in usages.iter().enumerate() {
        let at = path.child("usages").index(i);
        if !usage.as_str().is_some_and(|usage| USAGES.contains(&usage)) {
            errs.push(FieldError::not_supported(at, usage.clone(), USAGES));
        } else if usages[..i].contains(usage) {
            errs.push(FieldError::duplicate(at, usage.clone()));
        }
    }
    if let Some(seconds) = int(spec, "expirationSeconds").filter(|seconds| *seconds < EXPIRATION_SECONDS_MIN) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errs.push(FieldError::invalid(path.child("expirationSeconds"), seconds, detail));
    }
    if text(spec, "signerName") == "kubernetes.io/legacy-unknown" {
        let detail = "the legacy signerName is not allowed via this API version";
        errs.push(FieldError::invalid(path.child("signerName"), text(spec, "signerName"), detail));
        return;
    }
    if required(errs, spec, "signerName", &path) && !text(spec, "signerName").contains('/') {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errs.push(FieldError::invalid(path.child("signerName"), text(spec, "signerName"), detail));
    }
}

pub(super) fn binding(errs: &mut Errors, obj: &Value) {
    let null = Value::Null;
    let target = obj.get("target").unwrap_or(&null);
    let path = Path::new("target");
    let kind = text(target, "kind");
    if !matches!(kind, "" | "Node") {
        errs.push(FieldError::not_supported(path.child("kind"), kind, &["Node", "<empty>"]));
    }
    required(errs, target, "name", &path);
}
