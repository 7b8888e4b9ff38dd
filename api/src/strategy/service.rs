//! What the server keeps and drops on Services: values it allocated, and fields that only some types have.
//!
//! The cluster has one address family, so families follow by rule. Allocation itself (addresses, ports) is the
//! server's: it fills `clusterIP` and `nodePort` where they are still empty after this.

use super::{set_member, set_or_remove};
use crate::meta;
use serde_json::{Value, json};

pub(super) fn create(obj: &mut Value) {
    set_or_remove(obj, "status", None);
    pair_cluster_ips(obj, None);
    set_families(obj);
}

pub(super) fn update(new: &mut Value, old: &Value) {
    keep_allocated(new, old);
    drop_what_the_type_lacks(new, old);
    pair_cluster_ips(new, Some(old));
    set_families(new);
}

fn kind(obj: &Value) -> &str {
    meta::str_at(obj, &["spec", "type"])
}

fn has_node_ports(obj: &Value) -> bool {
    matches!(kind(obj), "NodePort" | "LoadBalancer")
}

fn has_cluster_ip(obj: &Value) -> bool {
    kind(obj) != "ExternalName"
}

fn spec_text<'a>(obj: &'a Value, key: &str) -> &'a str {
    meta::str_at(obj, &["spec", key])
}

fn needs_health_port(obj: &Value) -> bool {
    kind(obj) == "LoadBalancer" && spec_text(obj, "externalTrafficPolicy") == "Local"
}

/// A writer that leaves allocated values out keeps them: that is how a PUT of a plain manifest works.
fn keep_allocated(new: &mut Value, old: &Value) {
    if has_cluster_ip(old) && has_cluster_ip(new) {
        if spec_text(new, "clusterIP").is_empty() {
            set_member(new, "spec", "clusterIP", meta::at(old, &["spec", "clusterIP"]).cloned());
        }
        if meta::list_at(new, &["spec", "clusterIPs"]).is_empty()
            && spec_text(new, "clusterIP") == spec_text(old, "clusterIP")
        {
            set_member(new, "spec", "clusterIPs", meta::at(old, &["spec", "clusterIPs"]).cloned());
        }
    }
    if has_node_ports(old) && has_node_ports(new) {
        let known = meta::list_at(old, &["spec", "ports"]).to_vec();
        for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let unset = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) == 0;
            // By name: the writer may have changed everything else of the port.
            let same = |k: &&Value| meta::str_at(k, &["name"]) == meta::str_at(port, &["name"]);
            let found = known.iter().find(same).and_then(|k| k.get("nodePort")).cloned();
            if let (true, Some(number), Some(map)) = (unset, found, port.as_object_mut()) {
                map.insert("nodePort".into(), number);
            }
        }
    }
    if needs_health_port(old)
        && needs_health_port(new)
        && meta::i64_at(new, &["spec", "healthCheckNodePort"]).unwrap_or(0) == 0
    {
        set_member(new, "spec", "healthCheckNodePort", meta::at(old, &["spec", "healthCheckNodePort"]).cloned());
    }
}

/// Fields of the old type that the writer did not touch go when the type changes.
fn drop_what_the_type_lacks(new: &mut Value, old: &Value) {
    let untouched = |new: &Value, key: &str| meta::at(new, &["spec", key]) == meta::at(old, &["spec", key]);
    let needs_external_policy =
        |obj: &Value| has_node_ports(obj) || !meta::list_at(obj, &["spec", "externalIPs"]).is_empty();
    if has_cluster_ip(old) && !has_cluster_ip(new) && untouched(new, "clusterIP") {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            set_member(new, "spec", key, None);
        }
    }
    if has_node_ports(old) && !has_node_ports(new) {
        let known: Vec<Value> =
            meta::list_at(old, &["spec", "ports"]).iter().filter_map(|p| p.get("nodePort").cloned()).collect();
        for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(map) = port.as_object_mut()
                && map.get("nodePort").is_some_and(|n| known.contains(n))
            {
                map.shift_remove("nodePort");
            }
        }
    }
    if needs_health_port(old) && !needs_health_port(new) && untouched(new, "healthCheckNodePort") {
        set_member(new, "spec", "healthCheckNodePort", None);
    }
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if untouched(new, key) {
                set_member(new, "spec", key, None);
            }
        }
    }
    if needs_external_policy(old) && !needs_external_policy(new) && untouched(new, "externalTrafficPolicy") {
        set_member(new, "spec", "externalTrafficPolicy", None);
    }
    if kind(new) == "ExternalName" && kind(old) != "ExternalName" && untouched(new, "internalTrafficPolicy") {
        set_member(new, "spec", "internalTrafficPolicy", None);
    }
    // A load balancer's addresses go with it.
    if kind(new) != "LoadBalancer" && new.get("status").is_some() {
        set_member(new, "status", "loadBalancer", Some(json!({})));
    }
}

/// `clusterIP` is the first of `clusterIPs`; a writer may give or clear either.
fn pair_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let first = |obj: &Value| {
        meta::list_at(obj, &["spec", "clusterIPs"]).first().and_then(Value::as_str).unwrap_or("").to_string()
    };
    let single = spec_text(new, "clusterIP").to_string();
    let Some(old) = old else {
        if !single.is_empty() && first(new).is_empty() {
            set_member(new, "spec", "clusterIPs", Some(json!([single])));
        }
        return;
    };
    if !has_cluster_ip(new) {
        return;
    }
    let same_list = meta::at(new, &["spec", "clusterIPs"]) == meta::at(old, &["spec", "clusterIPs"]);
    if single != spec_text(old, "clusterIP") && same_list {
        // Only the one was changed: the list follows.
        let list = if single.is_empty() { None } else { Some(json!([single])) };
        set_member(new, "spec", "clusterIPs", list);
    }
}

/// One address family: everything but an ExternalName has it. A headless service without a selector may point
/// anywhere, so it asks for both.
fn set_families(obj: &mut Value) {
    if !has_cluster_ip(obj) {
        return;
    }
    let headless = spec_text(obj, "clusterIP") == "None";
    let selects = meta::map_at(obj, &["spec", "selector"]).is_some_and(|s| !s.is_empty());
    let given = !meta::list_at(obj, &["spec", "ipFamilies"]).is_empty();
    if headless && !selects && !given && spec_text(obj, "ipFamilyPolicy").is_empty() {
        set_member(obj, "spec", "ipFamilyPolicy", Some("RequireDualStack".into()));
        set_member(obj, "spec", "ipFamilies", Some(json!(["IPv4", "IPv6"])));
        return;
    }
    if spec_text(obj, "ipFamilyPolicy").is_empty() {
        let count =
            meta::list_at(obj, &["spec", "ipFamilies"]).len().max(meta::list_at(obj, &["spec", "clusterIPs"]).len());
        if count < 2 {
            set_member(obj, "spec", "ipFamilyPolicy", Some("SingleStack".into()));
        }
    }
    if !given {
        let ip = spec_text(obj, "clusterIP");
        let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
        let both = headless && !selects && spec_text(obj, "ipFamilyPolicy") != "SingleStack";
        set_member(obj, "spec", "ipFamilies", Some(if both { json!(["IPv4", "IPv6"]) } else { json!([family]) }));
    }
}
