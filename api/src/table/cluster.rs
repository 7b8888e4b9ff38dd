//! Rows of nodes, namespaces, settings, events, rights and the other kinds that concern the cluster.

use super::cells::{NONE, age, human_duration, number, since, text, text_or};
use super::{AGE, Printer};
use crate::meta;
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn printer(kind: &str) -> Option<Printer> {
    Some(match kind {
        "Node" => (
            &[
                ("Status", "string", 0, "Whether pods run there"),
                ("Roles", "string", 0, "What the node is for"),
                AGE,
                ("Version", "string", 0, "Version of its agent"),
                ("Internal-IP", "string", 1, "Its address inside the cluster"),
                ("External-IP", "string", 1, "Its address outside"),
                ("OS-Image", "string", 1, "Operating system"),
                ("Kernel-Version", "string", 1, "Kernel"),
                ("Container-Runtime", "string", 1, "What runs its containers"),
            ],
            node,
        ),
        "Namespace" => (&[("Status", "string", 0, "Whether it is being deleted"), AGE], |obj, now| {
            vec![text(obj, &["status", "phase"]), age(obj, now)]
        }),
        "ConfigMap" => (&[("Data", "string", 0, "Number of entries"), AGE], |obj, now| {
            vec![(entries(obj, "data") + entries(obj, "binaryData")).into(), age(obj, now)]
        }),
        "Secret" => (
            &[("Type", "string", 0, "What it is used for"), ("Data", "string", 0, "Number of entries"), AGE],
            |obj, now| vec![text(obj, &["type"]), entries(obj, "data").into(), age(obj, now)],
        ),
        "ServiceAccount" => (&[("Secrets", "string", 0, "Number of secrets it lists"), AGE], |obj, now| {
            vec![meta::list_at(obj, &["secrets"]).len().into(), age(obj, now)]
        }),
        "Event" => (
            &[
                ("Last Seen", "string", 0, "Time since it last happened"),
                ("Type", "string", 0, "Normal or Warning"),
                ("Reason", "string", 0, "Why it happened, in a word"),
                ("Object", "string", 0, "What it happened to"),
                ("Subobject", "string", 1, "Part of the object"),
                ("Source", "string", 1, "Who tells"),
                ("Message", "string", 0, "What happened"),
                ("First Seen", "string", 1, "Time since it first happened"),
                ("Count", "string", 1, "How often it happened"),
                ("Name", "string", 1, "Name of the event"),
            ],
            event,
        ),
        "Lease" => (&[("Holder", "string", 0, "Who holds it"), AGE], |obj, now| {
            vec![text(obj, &["spec", "holderIdentity"]), age(obj, now)]
        }),
        "ResourceQuota" => (
            &[
                ("Request", "string", 0, "Used and allowed, of what is requested or counted"),
                ("Limit", "string", 0, "Used and allowed, of limits"),
                AGE,
            ],
            quota,
        ),
        "RoleBinding" | "ClusterRoleBinding" => (
            &[
                ("Role", "string", 0, "Rights that are given"),
                AGE,
                ("Users", "string", 1, "Users who get them"),
                ("Groups", "string", 1, "Groups that get them"),
                ("ServiceAccounts", "string", 1, "Service accounts that get them"),
            ],
            binding,
        ),
        "PriorityClass" => (
            &[
                ("Value", "integer", 0, "The priority"),
                ("Global-Default", "boolean", 0, "Whether pods without a class get it"),
                AGE,
                ("PreemptionPolicy", "string", 0, "Whether it may displace pods"),
            ],
            |obj, now| {
                vec![
                    number(obj, &["value"]).into(),
                    meta::bool_at(obj, &["globalDefault"]).into(),
                    age(obj, now),
                    text(obj, &["preemptionPolicy"]),
                ]
            },
        ),
        "RuntimeClass" => (&[("Handler", "string", 0, "Runtime that handles it"), AGE], |obj, now| {
            vec![text(obj, &["handler"]), age(obj, now)]
        }),
        "CertificateSigningRequest" => (
            &[
                AGE,
                ("SignerName", "string", 0, "Who shall sign"),
                ("Requestor", "string", 0, "Who asked"),
                ("RequestedDuration", "string", 0, "How long it shall be valid"),
                ("Condition", "string", 0, "Approved, denied, issued"),
            ],
            signing_request,
        ),
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            (&[("Webhooks", "integer", 0, "Number of webhooks"), AGE], |obj, now| {
                vec![meta::list_at(obj, &["webhooks"]).len().into(), age(obj, now)]
            })
        }
        "ValidatingAdmissionPolicy" => (
            &[
                ("Validations", "integer", 0, "Number of rules"),
                ("ParamKind", "string", 0, "Kind of its parameters"),
                AGE,
            ],
            |obj, now| {
                let kind = meta::at(obj, &["spec", "paramKind"])
                    .map(|k| format!("{}/{}", meta::str_at(k, &["apiVersion"]), meta::str_at(k, &["kind"])));
                vec![
                    meta::list_at(obj, &["spec", "validations"]).len().into(),
                    kind.unwrap_or_else(|| "<unset>".into()).into(),
                    age(obj, now),
                ]
            },
        ),
        _ => return None,
    })
}

fn entries(obj: &Value, key: &str) -> usize {
    meta::map_at(obj, &[key]).map_or(0, |m| m.len())
}

fn node(obj: &Value, now: Timestamp) -> Vec<Value> {
    let ready = meta::list_at(obj, &["status", "conditions"]).iter().find(|c| meta::str_at(c, &["type"]) == "Ready");
    let mut status = match ready {
        Some(c) if meta::str_at(c, &["status"]) == "True" => "Ready".to_string(),
        Some(_) => "NotReady".to_string(),
        None => "Unknown".to_string(),
    };
    if meta::bool_at(obj, &["spec", "unschedulable"]) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in meta::labels(obj).into_iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.push(role),
            _ if key == "kubernetes.io/role" => roles.extend(value.as_str().filter(|v| !v.is_empty())),
            _ => {}
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = meta::list_at(obj, &["status", "addresses"]).iter().find(|a| meta::str_at(a, &["type"]) == kind);
        Value::from(found.map_or(NONE, |a| meta::str_at(a, &["address"])))
    };
    let info = |key: &str| text_or(obj, &["status", "nodeInfo", key], "<unknown>");
    vec![
        status.into(),
        if roles.is_empty() { NONE.into() } else { roles.join(",").into() },
        age(obj, now),
        text(obj, &["status", "nodeInfo", "kubeletVersion"]),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn event(obj: &Value, now: Timestamp) -> Vec<Value> {
    // Held in the core form or in that of events.k8s.io.
    let either = |a: &[&str], b: &[&str]| {
        let found = meta::str_at(obj, a);
        if found.is_empty() { meta::str_at(obj, b) } else { found }.to_string()
    };
    let micro = |path: &[&str]| since(obj, path, now);
    let moment = |old: &str, new: &str| {
        [old, new].into_iter().find(|key| meta::time_at(obj, &[key]).is_some()).map(|key| micro(&[key]))
    };
    let first_seen = moment("firstTimestamp", "deprecatedFirstTimestamp").unwrap_or_else(|| micro(&["eventTime"]));
    let mut last_seen = moment("lastTimestamp", "deprecatedLastTimestamp").unwrap_or_else(|| first_seen.clone());
    let mut count = number(obj, &["count"]).max(number(obj, &["deprecatedCount"]));
    if obj.get("series").is_some_and(Value::is_object) {
        last_seen = micro(&["series", "lastObservedTime"]);
        count = number(obj, &["series", "count"]);
    } else if count == 0 {
        // Written in the new form, with no count: it happened once.
        count = 1;
    }
    let reference = if obj.get("regarding").is_some() { "regarding" } else { "involvedObject" };
    let of = |key: &str| meta::str_at(obj, &[reference, key]);
    let target = if of("name").is_empty() {
        of("kind").to_lowercase()
    } else {
        format!("{}/{}", of("kind").to_lowercase(), of("name"))
    };
    let component = either(&["source", "component"], &["deprecatedSource", "component"]);
    let component =
        if component.is_empty() { either(&["reportingComponent"], &["reportingController"]) } else { component };
    let host = either(&["source", "host"], &["deprecatedSource", "host"]);
    let host = if host.is_empty() { meta::str_at(obj, &["reportingInstance"]).to_string() } else { host };
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    vec![
        last_seen.into(),
        text(obj, &["type"]),
        text(obj, &["reason"]),
        target.into(),
        of("fieldPath").into(),
        source.into(),
        either(&["message"], &["note"]).trim().into(),
        first_seen.into(),
        count.into(),
        meta::name(obj).into(),
    ]
}

fn quota(obj: &Value, now: Timestamp) -> Vec<Value> {
    let mut hard: Vec<(&String, &Value)> = meta::map_at(obj, &["status", "hard"]).into_iter().flatten().collect();
    hard.sort_by_key(|(name, _)| *name);
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, allowed) in hard {
        let used = meta::str_at(obj, &["status", "used", name]);
        let cell =
            format!("{name}: {}/{}", if used.is_empty() { "0" } else { used }, allowed.as_str().unwrap_or_default());
        if name.starts_with("limits") { limits.push(cell) } else { requests.push(cell) }
    }
    vec![requests.join(", ").into(), limits.join(", ").into(), age(obj, now)]
}

fn binding(obj: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", meta::str_at(obj, &["roleRef", "kind"]), meta::str_at(obj, &["roleRef", "name"]));
    let subjects = |kind: &str| {
        let all = meta::list_at(obj, &["subjects"]).iter().filter(|s| meta::str_at(s, &["kind"]) == kind);
        let named = all.map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", meta::str_at(s, &["namespace"]), meta::str_at(s, &["name"])),
            _ => meta::str_at(s, &["name"]).to_string(),
        });
        Value::from(named.collect::<Vec<_>>().join(", "))
    };
    vec![role.into(), age(obj, now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}

fn signing_request(obj: &Value, now: Timestamp) -> Vec<Value> {
    let duration = meta::i64_at(obj, &["spec", "expirationSeconds"]).map_or(NONE.to_string(), human_duration);
    let mut words = Vec::new();
    for condition in ["Approved", "Denied", "Failed"] {
        if meta::list_at(obj, &["status", "conditions"]).iter().any(|c| meta::str_at(c, &["type"]) == condition) {
            words.push(condition);
        }
    }
    if words.is_empty() {
        words.push("Pending");
    }
    if !meta::str_at(obj, &["status", "certificate"]).is_empty() {
        words.push("Issued");
    }
    vec![
        age(obj, now),
        text(obj, &["spec", "signerName"]),
        text(obj, &["spec", "username"]),
        duration.into(),
        words.join(",").into(),
    ]
}
