//! Defaults of services, endpoints and network policies.

use super::{each, empty, or, text, with};
use serde_json::{Map, Value, json};

/// Seconds a client sticks to its endpoint: three hours.
const AFFINITY_SECONDS: i64 = 10_800;

pub(super) fn service(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        or(spec, "sessionAffinity", "None");
        if text(spec, "sessionAffinity") == "None" {
            spec.shift_remove("sessionAffinityConfig");
        } else if text(spec, "sessionAffinity") == "ClientIP" {
            or(spec, "sessionAffinityConfig", empty());
            with(spec, "sessionAffinityConfig", |config| {
                or(config, "clientIP", empty());
                with(config, "clientIP", |ip| or(ip, "timeoutSeconds", AFFINITY_SECONDS));
            });
        }
        or(spec, "type", "ClusterIP");
        each(spec, "ports", |port| {
            or(port, "protocol", "TCP");
            let target = port.get("targetPort");
            if target.is_none_or(|t| *t == json!(0) || *t == json!(""))
                && let Some(number) = port.get("port").cloned()
            {
                port.insert("targetPort".into(), number);
            }
        });
        let kind = text(spec, "type").to_string();
        let outside = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
        let external_ips =
            kind == "ClusterIP" && spec.get("externalIPs").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
        if outside || external_ips {
            or(spec, "externalTrafficPolicy", "Cluster");
        }
        if outside || kind == "ClusterIP" {
            or(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            or(spec, "allocateLoadBalancerNodePorts", true);
        }
    });
    let balanced = map.get("spec").is_some_and(|s| s.get("type").and_then(Value::as_str) == Some("LoadBalancer"));
    if balanced {
        with(map, "status", |status| {
            with(status, "loadBalancer", |lb| {
                each(lb, "ingress", |ingress| {
                    if !text(ingress, "ip").is_empty() {
                        or(ingress, "ipMode", "VIP");
                    }
                });
            });
        });
    }
}

pub(super) fn endpoints(map: &mut Map<String, Value>) {
    each(map, "subsets", |subset| each(subset, "ports", |port| or(port, "protocol", "TCP")));
}

pub(super) fn endpoint_slice(map: &mut Map<String, Value>) {
    each(map, "ports", |port| {
        or(port, "name", "");
        or(port, "protocol", "TCP");
    });
}

pub(super) fn network_policy(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| {
        for direction in ["ingress", "egress"] {
            each(spec, direction, |rule| each(rule, "ports", |port| or(port, "protocol", "TCP")));
        }
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
        or(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    });
}

pub(super) fn ingress_class(map: &mut Map<String, Value>) {
    with(map, "spec", |spec| with(spec, "parameters", |parameters| or(parameters, "scope", "Cluster")));
}
