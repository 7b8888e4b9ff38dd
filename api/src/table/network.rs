//! Rows of services, endpoints and what routes to them.

use super::cells::{NONE, UNSET, age, first_three, joined, labels, selector, text, text_or};
use super::{AGE, Printer, SELECTOR};
use crate::meta;
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn printer(kind: &str) -> Option<Printer> {
    Some(match kind {
        "Service" => (
            &[
                ("Type", "string", 0, "Who can reach the service"),
                ("Cluster-IP", "string", 0, "Its address inside the cluster"),
                ("External-IP", "string", 0, "Its addresses outside"),
                ("Port(s)", "string", 0, "Ports and node ports"),
                AGE,
                SELECTOR,
            ],
            service,
        ),
        "Endpoints" => (&[("Endpoints", "string", 0, "Addresses behind the service"), AGE], |obj, now| {
            vec![endpoints(obj).into(), age(obj, now)]
        }),
        "EndpointSlice" => (
            &[
                ("AddressType", "string", 0, "Family of the addresses"),
                ("Ports", "string", 0, "Ports of each endpoint"),
                ("Endpoints", "string", 0, "Addresses behind the service"),
                AGE,
            ],
            endpoint_slice,
        ),
        "Ingress" => (
            &[
                ("Class", "string", 0, "Class that serves it"),
                ("Hosts", "string", 0, "Hosts of its rules"),
                ("Address", "string", 0, "Where it is reached"),
                ("Ports", "string", 0, "Ports it listens on"),
                AGE,
            ],
            ingress,
        ),
        "IngressClass" => (
            &[
                ("Controller", "string", 0, "Who serves the class"),
                ("Parameters", "string", 0, "Where its settings are"),
                AGE,
            ],
            ingress_class,
        ),
        "NetworkPolicy" => (&[("Pod-Selector", "string", 0, "Pods it applies to"), AGE], |obj, now| {
            vec![selector(obj, &["spec", "podSelector"]), age(obj, now)]
        }),
        _ => return None,
    })
}

fn service(obj: &Value, now: Timestamp) -> Vec<Value> {
    let first = meta::list_at(obj, &["spec", "clusterIPs"]).first().and_then(Value::as_str);
    let ports = meta::list_at(obj, &["spec", "ports"]).iter().map(|port| {
        let (number, protocol) = (meta::i64_at(port, &["port"]).unwrap_or(0), meta::str_at(port, &["protocol"]));
        match meta::i64_at(port, &["nodePort"]).unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node_port => format!("{number}:{node_port}/{protocol}"),
        }
    });
    vec![
        text(obj, &["spec", "type"]),
        first.unwrap_or(NONE).into(),
        external(obj).into(),
        joined(ports).into(),
        age(obj, now),
        labels(obj, &["spec", "selector"]),
    ]
}

fn external(obj: &Value) -> String {
    let given = || meta::list_at(obj, &["spec", "externalIPs"]).iter().filter_map(Value::as_str).map(str::to_string);
    match meta::str_at(obj, &["spec", "type"]) {
        "ClusterIP" | "NodePort" => joined(given()),
        "LoadBalancer" => {
            let balanced = meta::list_at(obj, &["status", "loadBalancer", "ingress"]).iter().map(balancer);
            let mut all: Vec<String> = balanced.filter(|a| !a.is_empty()).collect();
            all.extend(given());
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        "ExternalName" => meta::str_at(obj, &["spec", "externalName"]).to_string(),
        _ => "<unknown>".into(),
    }
}

fn balancer(ingress: &Value) -> String {
    let ip = meta::str_at(ingress, &["ip"]);
    if ip.is_empty() { meta::str_at(ingress, &["hostname"]).into() } else { ip.into() }
}

fn endpoints(obj: &Value) -> String {
    let mut all = Vec::new();
    for subset in meta::list_at(obj, &["subsets"]) {
        let ports = meta::list_at(subset, &["ports"]);
        for address in meta::list_at(subset, &["addresses"]) {
            let ip = meta::str_at(address, &["ip"]);
            if ports.is_empty() {
                all.push(ip.to_string());
            }
            for port in ports {
                let number = meta::i64_at(port, &["port"]).unwrap_or(0);
                all.push(if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") });
            }
        }
    }
    first_three(&all, NONE)
}

fn endpoint_slice(obj: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = meta::list_at(obj, &["ports"])
        .iter()
        .map(|p| match meta::i64_at(p, &["port"]) {
            Some(number) => number.to_string(),
            None if meta::str_at(p, &["name"]).is_empty() => "*".into(),
            None => meta::str_at(p, &["name"]).into(),
        })
        .collect();
    let endpoints = meta::list_at(obj, &["endpoints"]).iter();
    let addresses: Vec<String> = endpoints
        .flat_map(|e| meta::list_at(e, &["addresses"]))
        .filter_map(Value::as_str)
        .map(str::to_string)
        .collect();
    vec![
        text(obj, &["addressType"]),
        first_three(&ports, UNSET).into(),
        first_three(&addresses, UNSET).into(),
        age(obj, now),
    ]
}

fn ingress(obj: &Value, now: Timestamp) -> Vec<Value> {
    let hosts: Vec<String> = meta::list_at(obj, &["spec", "rules"])
        .iter()
        .map(|r| meta::str_at(r, &["host"]).to_string())
        .filter(|h| !h.is_empty())
        .collect();
    let addresses = meta::list_at(obj, &["status", "loadBalancer", "ingress"]).iter().map(balancer);
    let addresses: Vec<String> = addresses.filter(|a| !a.is_empty()).collect();
    let tls = !meta::list_at(obj, &["spec", "tls"]).is_empty();
    vec![
        text_or(obj, &["spec", "ingressClassName"], NONE),
        first_three(&hosts, "*").into(),
        addresses.join(",").into(),
        if tls { "80, 443" } else { "80" }.into(),
        age(obj, now),
    ]
}

fn ingress_class(obj: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match meta::at(obj, &["spec", "parameters"]) {
        Some(p) if p.is_object() => {
            let group = meta::str_at(p, &["apiGroup"]);
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", meta::str_at(p, &["kind"]), meta::str_at(p, &["name"]))
        }
        _ => NONE.into(),
    };
    vec![text(obj, &["spec", "controller"]), parameters.into(), age(obj, now)]
}
