//! Defaults of pods and of the pod templates inside workloads.

use super::{each, empty, or, storage, text, with};
use crate::quantity::Quantity;
use serde_json::{Map, Value, json};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
/// Permissions of files that volumes make: 0644.
const FILE_MODE: i64 = 0o644;

/// A pod: a template's defaults, and what only a real pod gets.
pub(super) fn pod(map: &mut Map<String, Value>) {
    pair_addresses(map);
    with(map, "spec", |spec| {
        // Requests follow from limits before anything else looks at them.
        for list in ["initContainers", "containers"] {
            each(spec, list, |container| with(container, "resources", requests_from_limits));
        }
        pod_level_requests(spec);
        or(spec, "enableServiceLinks", true);
        if spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false) {
            for list in ["initContainers", "containers"] {
                each(spec, list, |container| each(container, "ports", host_port));
            }
        }
        pod_spec(spec);
    });
    with(map, "status", |status| or(status, "phase", "Pending"));
}

/// An object with a `template`.
pub(super) fn template(map: &mut Map<String, Value>) {
    with(map, "template", |template| with(template, "spec", pod_spec));
}

fn host_port(port: &mut Map<String, Value>) {
    if let Some(number) = port.get("containerPort").cloned() {
        or(port, "hostPort", number);
    }
}

fn requests_from_limits(resources: &mut Map<String, Value>) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    or(resources, "requests", empty());
    with(resources, "requests", |requests| limits.into_iter().for_each(|(name, limit)| or(requests, &name, limit)));
}

/// `podIP` is the first of `podIPs`; a writer may give either.
fn pair_addresses(pod: &mut Map<String, Value>) {
    for (one, many) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let Some(status) = pod.get_mut("status").and_then(Value::as_object_mut) else { return };
        let single = status.get(one).and_then(Value::as_str).unwrap_or("").to_string();
        let first = status.get(many).and_then(|l| l.pointer("/0/ip")).and_then(Value::as_str).unwrap_or("").to_string();
        if !single.is_empty() && single != first {
            status.insert(many.into(), json!([{"ip": single}]));
        } else if single.is_empty() && !first.is_empty() {
            status.insert(one.into(), first.into());
        }
    }
}

/// With resources for the pod as a whole: its requests follow from what all containers ask for, else from its limits.
fn pod_level_requests(spec: &mut Map<String, Value>) {
    let Some(limits) = spec.get("resources").and_then(|r| r.get("limits")).and_then(Value::as_object).cloned() else {
        return;
    };
    let containers = |list: &str| spec.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
    let (main, init) = (containers("containers"), containers("initContainers"));
    let request = |c: &Value, name: &str| {
        c.pointer("/resources/requests").and_then(|r| r.get(name)).and_then(Quantity::from_value)
    };
    let restarts = |c: &Value| c.get("restartPolicy").and_then(Value::as_str) == Some("Always");
    let total = |name: &str| -> Option<Quantity> {
        let any = main.iter().chain(&init).any(|c| request(c, name).is_some());
        let always: Quantity = main.iter().filter_map(|c| request(c, name)).sum();
        let mut sidecars = Quantity::ZERO;
        let mut peak = Quantity::ZERO;
        for c in &init {
            let asked = request(c, name).unwrap_or_default();
            if restarts(c) {
                sidecars = sidecars + asked;
                peak = peak.max(sidecars);
            } else {
                peak = peak.max(sidecars + asked);
            }
        }
        any.then(|| (always + sidecars).max(peak))
    };
    with(spec, "resources", |resources| {
        or(resources, "requests", empty());
        with(resources, "requests", |requests| {
            for (name, limit) in limits {
                match total(&name) {
                    Some(sum) => or(requests, &name, sum.to_string()),
                    None => or(requests, &name, limit),
                }
            }
        });
    });
}

pub(super) fn pod_spec(spec: &mut Map<String, Value>) {
    for list in CONTAINER_LISTS {
        each(spec, list, container);
    }
    each(spec, "volumes", volume);
    with(spec, "resources", round_resources);
    with(spec, "overhead", round);
    or(spec, "restartPolicy", "Always");
    or(spec, "terminationGracePeriodSeconds", 30);
    or(spec, "dnsPolicy", "ClusterFirst");
    or(spec, "securityContext", empty());
    or(spec, "schedulerName", "default-scheduler");
    // The old name of the service account says the same as the new one.
    let account = match (text(spec, "serviceAccountName"), text(spec, "serviceAccount")) {
        ("", old) => old.to_string(),
        (new, _) => new.to_string(),
    };
    if !account.is_empty() {
        spec.insert("serviceAccountName".into(), account.clone().into());
        spec.insert("serviceAccount".into(), account.into());
    }
}

fn container(container: &mut Map<String, Value>) {
    let policy = pull_policy(text(container, "image"));
    or(container, "imagePullPolicy", policy);
    or(container, "terminationMessagePath", "/dev/termination-log");
    or(container, "terminationMessagePolicy", "File");
    each(container, "ports", |port| or(port, "protocol", "TCP"));
    each(container, "env", |env| {
        with(env, "valueFrom", |from| {
            with(from, "fieldRef", |field| or(field, "apiVersion", "v1"));
            with(from, "fileKeyRef", |file| or(file, "optional", false));
        });
    });
    with(container, "resources", round_resources);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        with(container, name, probe);
    }
    with(container, "lifecycle", |lifecycle| {
        for hook in ["postStart", "preStop"] {
            with(lifecycle, hook, |hook| with(hook, "httpGet", http_get));
        }
    });
}

fn probe(probe: &mut Map<String, Value>) {
    or(probe, "timeoutSeconds", 1);
    or(probe, "periodSeconds", 10);
    or(probe, "successThreshold", 1);
    or(probe, "failureThreshold", 3);
    with(probe, "httpGet", http_get);
    with(probe, "grpc", |grpc| or(grpc, "service", ""));
}

fn http_get(get: &mut Map<String, Value>) {
    or(get, "path", "/");
    or(get, "scheme", "HTTP");
}

/// `Always` for a tag that moves (`latest`, or none), `IfNotPresent` for one that should not, and for digests.
pub(crate) fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    let readable = !name.is_empty() && !name.contains(char::is_whitespace) && name == name.trim_matches('/');
    let repository_is_lower =
        !name[..name.len() - last.len()].chars().skip_while(|c| *c != '/').any(char::is_uppercase)
            && !last.split(':').next().unwrap_or_default().chars().any(char::is_uppercase);
    match last.rsplit_once(':') {
        _ if !readable || !repository_is_lower => "IfNotPresent",
        Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
        None if digest.is_some() => "IfNotPresent",
        None => "Always",
    }
}

fn round_resources(resources: &mut Map<String, Value>) {
    for list in ["limits", "requests"] {
        with(resources, list, round);
    }
}

/// Amounts are kept to the thousandth, rounded up.
fn round(list: &mut Map<String, Value>) {
    for amount in list.values_mut() {
        if let Some(quantity) = Quantity::from_value(amount) {
            *amount = quantity.rounded_to_millis().to_string().into();
        }
    }
}

fn volume(volume: &mut Map<String, Value>) {
    if !volume.keys().any(|key| key != "name") {
        or(volume, "emptyDir", empty());
    }
    for (source, fields) in [
        ("secret", "defaultMode"),
        ("configMap", "defaultMode"),
        ("downwardAPI", "defaultMode"),
        ("projected", "defaultMode"),
    ] {
        with(volume, source, |s| or(s, fields, FILE_MODE));
    }
    with(volume, "downwardAPI", downward_items);
    with(volume, "projected", |projected| {
        each(projected, "sources", |source| {
            with(source, "downwardAPI", downward_items);
            with(source, "serviceAccountToken", |token| or(token, "expirationSeconds", 3600));
            with(source, "podCertificate", |cert| or(cert, "maxExpirationSeconds", 86400));
        });
    });
    with(volume, "image", |image| {
        let policy = pull_policy(text(image, "reference"));
        or(image, "pullPolicy", policy);
    });
    with(volume, "ephemeral", |ephemeral| {
        with(ephemeral, "volumeClaimTemplate", |template| with(template, "spec", storage::claim_spec));
    });
    storage::volume_source(volume);
}

fn downward_items(source: &mut Map<String, Value>) {
    each(source, "items", |item| with(item, "fieldRef", |field| or(field, "apiVersion", "v1")));
}

#[cfg(test)]
mod tests {
    use super::pull_policy;

    #[test]
    fn pull_policies() {
        for (image, expect) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("localhost:5000/a", "Always"),
            ("localhost:5000/a:1", "IfNotPresent"),
            ("a@sha256:0000000000000000000000000000000000000000000000000000000000000000", "IfNotPresent"),
            ("a:latest@sha256:00", "Always"),
        ] {
            assert_eq!(pull_policy(image), expect, "{image}");
        }
    }
}
