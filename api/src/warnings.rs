//! What the writer of a valid object should hear: fields that do nothing any more, values that surprise.
//!
//! Source: the Kubernetes API reference and its deprecation guide. The texts are an interface: tools show them.

pub mod idle;

use crate::kinds::Kind;
use crate::meta::{self, names};
use crate::quantity::Quantity;
use serde_json::{Map, Value};

/// Warnings about `new`; on an update only about what `old` did not have already.
pub fn of(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<String> {
    let found = about(kind, new);
    match old {
        Some(old) if !found.is_empty() => {
            let known = about(kind, old);
            found.into_iter().filter(|text| is_of_any_write(text) || !known.contains(text)).collect()
        }
        _ => found,
    }
}

/// Told on every write, not only on the one that brought it in.
fn is_of_any_write(text: &str) -> bool {
    text.starts_with("v1 ")
}

/// What is told with every answer about a kind, reads included.
pub fn of_kind(kind: &Kind) -> Option<&'static str> {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ("", "ComponentStatus") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}

fn about(kind: &Kind, obj: &Value) -> Vec<String> {
    let mut out = Vec::new();
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            let problems = names::dns1123_label(meta::name(obj));
            if !problems.is_empty() {
                out.push(format!(
                    "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS \
                     label is recommended: [{}]",
                    problems.join(" ")
                ));
            }
            pod(&mut out, obj, "");
        }
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("", "ReplicationController")
        | ("batch", "Job") => {
            let problems = names::dns1123_label(meta::name(obj));
            if !problems.is_empty() && kind.kind != "DaemonSet" {
                out.push(format!(
                    "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a \
                     DNS label is recommended: [{}]",
                    problems.join(" ")
                ));
            }
            pod(&mut out, meta::at(obj, &["spec", "template"]).unwrap_or(&Value::Null), "spec.template.");
        }
        ("batch", "CronJob") => {
            let template = meta::at(obj, &["spec", "jobTemplate", "spec", "template"]).unwrap_or(&Value::Null);
            pod(&mut out, template, "spec.jobTemplate.spec.template.");
        }
        ("", "PodTemplate") => pod(&mut out, obj.get("template").unwrap_or(&Value::Null), "template."),
        ("", "ServiceAccount") => {
            const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
            if meta::annotation(obj, MOUNTABLE).is_some() {
                out.push(format!(
                    "metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate \
                     access to mounted secrets"
                ));
            }
        }
        ("networking.k8s.io", "Ingress") if meta::annotation(obj, "kubernetes.io/ingress.class").is_some() => {
            out.push(
                "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"
                    .into(),
            );
        }
        _ => {}
    }
    out
}

/// Labels of nodes that got other names.
fn renamed_label(key: &str) -> Option<(&'static str, &'static str)> {
    Some(match key {
        "beta.kubernetes.io/arch" => ("v1.14", "kubernetes.io/arch"),
        "beta.kubernetes.io/os" => ("v1.14", "kubernetes.io/os"),
        "failure-domain.beta.kubernetes.io/region" => ("v1.17", "topology.kubernetes.io/region"),
        "failure-domain.beta.kubernetes.io/zone" => ("v1.17", "topology.kubernetes.io/zone"),
        "beta.kubernetes.io/instance-type" => ("v1.17", "node.kubernetes.io/instance-type"),
        _ => return None,
    })
}

/// Volumes that are deprecated or do nothing any more.
const VOLUMES: [(&str, &str); 10] = [
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ("awsElasticBlockStore", "deprecated in v1.17, non-functional in v1.27+"),
];

/// About a pod or a template, whose fields stand at `at` + `spec`.
fn pod(out: &mut Vec<String>, pod: &Value, at: &str) {
    let Some(spec) = pod.get("spec") else { return };
    let path = format!("{at}spec");
    for (key, _) in sorted(meta::map_at(spec, &["nodeSelector"])) {
        if let Some((since, new)) = renamed_label(key) {
            out.push(format!("{path}.nodeSelector[{key}]: deprecated since {since}; use \"{new}\" instead"));
        }
    }
    for (i, constraint) in meta::list_at(spec, &["topologySpreadConstraints"]).iter().enumerate() {
        let key = meta::str_at(constraint, &["topologyKey"]);
        if let Some((since, new)) = renamed_label(key) {
            out.push(format!(
                "{path}.topologySpreadConstraints[{i}].topologyKey: {key} is deprecated since {since}; use \"{new}\" instead"
            ));
        }
    }
    annotations(out, pod, at);
    for (i, secret) in meta::list_at(spec, &["imagePullSecrets"]).iter().enumerate() {
        if meta::str_at(secret, &["name"]).is_empty() {
            out.push(format!("{path}.imagePullSecrets[{i}].name: invalid empty name \"\""));
        }
    }
    for (i, volume) in meta::list_at(spec, &["volumes"]).iter().enumerate() {
        for (kind, what) in VOLUMES.iter().filter(|(kind, _)| volume.get(kind).is_some_and(|v| !v.is_null())) {
            out.push(format!("{path}.volumes[{i}].{kind}: {what}"));
        }
        let sources = meta::list_at(volume, &["projected", "sources"]);
        let empty = |s: &Value| s.as_object().is_none_or(|m| m.values().all(Value::is_null));
        if volume.get("projected").is_some_and(Value::is_object) && sources.iter().all(empty) {
            out.push(format!("volume {:?} (Projected) has no sources provided", meta::str_at(volume, &["name"])));
        }
    }
    containers(out, spec, &path);
    fractions(out, meta::map_at(spec, &["overhead"]), &format!("{path}.overhead"));
    if meta::i64_at(spec, &["terminationGracePeriodSeconds"]).is_some_and(|s| s < 0) {
        out.push(format!(
            "{path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
}

fn annotations(out: &mut Vec<String>, pod: &Value, at: &str) {
    for (key, _) in sorted(meta::annotations(pod)) {
        let path = format!("{at}metadata.annotations[{key}]");
        if key == "seccomp.security.alpha.kubernetes.io/pod"
            || key.starts_with("container.seccomp.security.alpha.kubernetes.io/")
        {
            out.push(format!("{path}: non-functional in v1.27+; use the \"seccompProfile\" field instead"));
        } else if key.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            out.push(format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        } else if key == "security.alpha.kubernetes.io/sysctls" || key == "security.alpha.kubernetes.io/unsafe-sysctls"
        {
            out.push(format!("{path}: non-functional in v1.11+; use the \"sysctls\" field instead"));
        }
    }
}

fn containers(out: &mut Vec<String>, spec: &Value, path: &str) {
    // Where each port was first defined: number and protocol, and its place.
    let mut ports: Vec<(i64, String, String)> = Vec::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in meta::list_at(spec, &[list]).iter().enumerate() {
            let at = format!("{path}.{list}[{i}]");
            for key in ["limits", "requests"] {
                fractions(out, meta::map_at(container, &["resources", key]), &format!("{at}.resources.{key}"));
            }
            let mut seen: Vec<&str> = Vec::new();
            for (j, env) in meta::list_at(container, &["env"]).iter().enumerate() {
                let name = meta::str_at(env, &["name"]);
                // A value that builds on the one before hides nothing.
                let builds_on = meta::str_at(env, &["value"]).contains(&format!("$({name})"));
                if seen.contains(&name) && !builds_on {
                    out.push(format!(
                        "{at}.env[{j}]: hides previous definition of {name:?}, which may be dropped when using apply"
                    ));
                }
                seen.push(name);
            }
            let first_of_container = ports.len();
            for (j, port) in meta::list_at(container, &["ports"]).iter().enumerate() {
                let number = meta::i64_at(port, &["containerPort"]).unwrap_or(0);
                let protocol = meta::str_at(port, &["protocol"]).to_string();
                let place = format!("{at}.ports[{j}]");
                let own = ports[first_of_container..].iter().find(|(n, p, _)| *n == number && *p == protocol);
                if let Some((_, _, first)) = own {
                    out.push(format!("{place}: duplicate port definition with {first}"));
                } else {
                    ports.push((number, protocol, place));
                }
            }
        }
    }
}

/// Bytes come in whole numbers.
fn fractions(out: &mut Vec<String>, amounts: Option<&Map<String, Value>>, path: &str) {
    for (name, value) in sorted(amounts) {
        let counted = name == "memory" || name == "ephemeral-storage" || name.starts_with("hugepages-");
        if counted && Quantity::from_value(value).is_some_and(|q| !q.is_integer()) {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            out.push(format!("{path}[{name}]: fractional byte value {shown:?} is invalid, must be an integer"));
        }
    }
}

fn sorted(map: Option<&Map<String, Value>>) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = map.into_iter().flatten().collect();
    all.sort_by_key(|(key, _)| *key);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    #[test]
    fn told_once() {
        let pods = kinds::by_resource("", "v1", "pods").expect("pods");
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c",
            "env": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}],
            "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}],
            "resources": {"requests": {"memory": "1500m"}}}]}});
        let expect = [
            "spec.containers[0].resources.requests[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
            "spec.containers[0].env[1]: hides previous definition of \"a\", which may be dropped when using apply",
            "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
        ];
        assert_eq!(of(&pods, &pod, None), expect);
        assert!(of(&pods, &pod, Some(&pod)).is_empty(), "an update is told only of what is new");
        let plain = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        assert!(of(&pods, &plain, None).is_empty());
    }
}
