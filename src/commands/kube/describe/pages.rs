//! The pages of the kinds that people look at most.

use super::page::{Page, word};
use serde_json::Value;

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// `Running`, `Waiting (CrashLoopBackOff)`, `Terminated (Error, exit code 1)`.
fn state(state: &Value) -> String {
    let Some((name, inner)) = state.as_object().and_then(|o| o.iter().next()) else { return "Waiting".into() };
    let reason = inner["reason"].as_str().unwrap_or_default();
    match name.as_str() {
        "running" => format!("Running since {}", word(&inner["startedAt"])),
        "terminated" => format!("Terminated ({reason}, exit code {})", word(&inner["exitCode"])),
        _ => match inner["message"].as_str() {
            Some(message) => format!("Waiting ({reason}: {message})"),
            None => format!("Waiting ({reason})"),
        },
    }
}

fn container(page: &mut Page, spec: &Value, status: Option<&Value>) {
    page.section(1, &word(&spec["name"]));
    page.line(2, "Image", &word(&spec["image"]));
    for (name, field) in [("Command", "command"), ("Args", "args")] {
        if spec[field].is_array() {
            page.line(2, name, &list(&spec[field]).map(word).collect::<Vec<_>>().join(" "));
        }
    }
    for port in list(&spec["ports"]) {
        page.line(
            2,
            "Port",
            &format!("{}/{}", word(&port["containerPort"]), port["protocol"].as_str().unwrap_or("TCP")),
        );
    }
    if let Some(status) = status {
        page.line(2, "Container ID", &word(&status["containerID"]));
        page.line(2, "State", &state(&status["state"]));
        if status["lastState"].as_object().is_some_and(|s| !s.is_empty()) {
            page.line(2, "Last State", &state(&status["lastState"]));
        }
        page.line(2, "Ready", &word(&status["ready"]));
        page.line(2, "Restart Count", &word(&status["restartCount"]));
    }
    for (name, field) in [("Limits", "limits"), ("Requests", "requests")] {
        if spec["resources"][field].is_object() {
            page.pairs(2, name, &spec["resources"][field]);
        }
    }
    for (name, field) in [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")] {
        if spec[field].is_object() {
            page.line(2, name, &spec[field].to_string());
        }
    }
    for env in list(&spec["env"]) {
        let value = if env["valueFrom"].is_object() { env["valueFrom"].to_string() } else { word(&env["value"]) };
        page.line(2, "Environment", &format!("{}={value}", word(&env["name"])));
    }
    for mount in list(&spec["volumeMounts"]) {
        let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
        page.line(2, "Mount", &format!("{} from {} ({mode})", word(&mount["mountPath"]), word(&mount["name"])));
    }
}

fn containers(page: &mut Page, spec: &Value, status: &Value) {
    let kinds = [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
    ];
    for (title, field, statuses) in kinds {
        if list(&spec[field]).next().is_none() {
            continue;
        }
        page.section(0, title);
        for one in list(&spec[field]) {
            container(page, one, list(&status[statuses]).find(|s| s["name"] == one["name"]));
        }
    }
}

fn volumes(page: &mut Page, spec: &Value) {
    for volume in list(&spec["volumes"]) {
        let source = volume.as_object().into_iter().flatten().find(|(k, _)| *k != "name");
        let source = source.map_or_else(|| "<none>".into(), |(kind, value)| format!("{kind} {value}"));
        page.line(0, "Volume", &format!("{}: {source}", word(&volume["name"])));
    }
}

pub fn pod(page: &mut Page, pod: &Value) {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    page.line(0, "Node", &word(&spec["nodeName"]));
    page.line(0, "Service Account", &word(&spec["serviceAccountName"]));
    page.line(0, "Status", &word(&status["phase"]));
    for field in ["reason", "message"] {
        if status[field].is_string() {
            page.line(0, if field == "reason" { "Reason" } else { "Message" }, &word(&status[field]));
        }
    }
    page.line(0, "IP", &word(&status["podIP"]));
    page.line(0, "QoS Class", &word(&status["qosClass"]));
    containers(page, spec, status);
    page.conditions(&status["conditions"]);
    volumes(page, spec);
    page.pairs(0, "Node Selectors", &spec["nodeSelector"]);
    for toleration in list(&spec["tolerations"]) {
        let effect = toleration["effect"].as_str().unwrap_or_default();
        page.line(0, "Toleration", &format!("{}:{effect}", word(&toleration["key"])));
    }
}

pub fn node(page: &mut Page, node: &Value, pods: &[Value]) {
    let (spec, status) = (&node["spec"], &node["status"]);
    for taint in list(&spec["taints"]) {
        let value = taint["value"].as_str().map(|v| format!("={v}")).unwrap_or_default();
        page.line(0, "Taint", &format!("{}{value}:{}", word(&taint["key"]), word(&taint["effect"])));
    }
    page.line(0, "Unschedulable", if spec["unschedulable"] == true { "true" } else { "false" });
    page.line(0, "Pod CIDR", &word(&spec["podCIDR"]));
    page.conditions(&status["conditions"]);
    for address in list(&status["addresses"]) {
        page.line(0, &word(&address["type"]), &word(&address["address"]));
    }
    page.pairs(0, "Capacity", &status["capacity"]);
    page.pairs(0, "Allocatable", &status["allocatable"]);
    page.pairs(0, "System Info", &status["nodeInfo"]);
    page.section(0, &format!("Pods ({})", pods.len()));
    let row =
        |p: &Value| vec![word(&p["metadata"]["namespace"]), word(&p["metadata"]["name"]), word(&p["status"]["phase"])];
    page.table(&["Namespace", "Name", "Status"], &pods.iter().map(row).collect::<Vec<_>>());
}

pub fn workload(page: &mut Page, object: &Value) {
    let (spec, status) = (&object["spec"], &object["status"]);
    page.pairs(0, "Selector", &spec["selector"]["matchLabels"]);
    let count = |field: &str| status[field].as_u64().unwrap_or(0);
    let replicas = format!(
        "{} desired | {} total | {} updated | {} ready | {} available",
        word(&spec["replicas"]),
        count("replicas"),
        count("updatedReplicas"),
        count("readyReplicas"),
        count("availableReplicas")
    );
    page.line(0, "Replicas", &replicas);
    if spec["strategy"]["type"].is_string() {
        page.line(0, "Strategy", &word(&spec["strategy"]["type"]));
        let rolling = &spec["strategy"]["rollingUpdate"];
        if rolling.is_object() {
            let text = format!(
                "{} max unavailable, {} max surge",
                word(&rolling["maxUnavailable"]),
                word(&rolling["maxSurge"])
            );
            page.line(0, "Rolling Update", &text);
        }
    }
    containers(page, &spec["template"]["spec"], &Value::Null);
    volumes(page, &spec["template"]["spec"]);
    page.conditions(&status["conditions"]);
}

pub fn service(page: &mut Page, service: &Value, slices: &[Value]) {
    let spec = &service["spec"];
    page.pairs(0, "Selector", &spec["selector"]);
    page.line(0, "Type", &word(&spec["type"]));
    page.line(0, "IP", &word(&spec["clusterIP"]));
    for port in list(&spec["ports"]) {
        let name = port["name"].as_str().unwrap_or("<unset>");
        let mut text =
            format!("{name} {}/{} to {}", word(&port["port"]), word(&port["protocol"]), word(&port["targetPort"]));
        if port["nodePort"].is_u64() {
            text.push_str(&format!(", on every node at {}", port["nodePort"]));
        }
        page.line(0, "Port", &text);
    }
    let ready = |e: &&Value| e["conditions"]["ready"] != false;
    let addresses: Vec<String> = slices
        .iter()
        .flat_map(|s| list(&s["endpoints"]))
        .filter(ready)
        .flat_map(|e| list(&e["addresses"]))
        .map(word)
        .collect();
    page.line(0, "Endpoints", if addresses.is_empty() { "<none>".into() } else { addresses.join(", ") }.as_str());
    page.line(0, "Session Affinity", &word(&spec["sessionAffinity"]));
}

/// A Secret's values are not shown, only their sizes.
pub fn secret(page: &mut Page, secret: &Value) {
    page.line(0, "Type", &word(&secret["type"]));
    page.section(0, "Data");
    for (key, value) in secret["data"].as_object().into_iter().flatten() {
        let encoded = value.as_str().unwrap_or_default();
        let padding = encoded.bytes().rev().take_while(|b| *b == b'=').count();
        page.line(1, key, &format!("{} bytes", (encoded.len() / 4 * 3).saturating_sub(padding.min(2))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn states() {
        let check = |value: Value, expect: &str| assert_eq!(state(&value), expect);
        check(json!({}), "Waiting");
        check(json!({"running": {"startedAt": "t"}}), "Running since t");
        check(json!({"waiting": {"reason": "CrashLoopBackOff", "message": "m"}}), "Waiting (CrashLoopBackOff: m)");
        check(json!({"terminated": {"reason": "Error", "exitCode": 3}}), "Terminated (Error, exit code 3)");
    }

    #[test]
    fn secrets_stay_secret() {
        let mut page = Page::default();
        secret(&mut page, &json!({"type": "Opaque", "data": {"k": "aGVsbG8="}}));
        let text = page.text();
        assert!(text.contains("5 bytes") && !text.contains("aGVsbG8"), "{text}");
    }
}
