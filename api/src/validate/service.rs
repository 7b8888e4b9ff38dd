//! Services, and the endpoints behind them.

use super::check::{
    Errors, NEGATIVE, Path, int, invalid_all, list, one_of, one_of_if_set, port_number_or_name, required,
    required_one_of, shown, some, text,
};
use super::error::FieldError;
use super::metadata;
use crate::meta::{self, names};
use serde_json::{Value, json};
use std::net::IpAddr;

const AFFINITY_SECONDS_MAX: i64 = 86_400;

pub(super) fn service(errs: &mut Errors, obj: &Value) {
    let null = Value::Null;
    let spec = obj.get("spec").unwrap_or(&null);
    let path = Path::new("spec");
    let kind = text(spec, "type");
    let headless = text(spec, "clusterIP") == "None";
    if list(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errs.push(FieldError::required(path.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" => {
            for (i, port) in list(spec, "ports").iter().enumerate() {
                if int(port, "port") == Some(10250) {
                    let at = path.child("ports").index(i);
                    errs.push(FieldError::invalid(
                        at,
                        10250,
                        "may not expose port 10250 externally since it is used by kubelet",
                    ));
                }
            }
            headless_forbidden(errs, headless, "LoadBalancer", &path);
        }
        "NodePort" => headless_forbidden(errs, headless, "NodePort", &path),
        "ExternalName" => external_name(errs, spec, &path),
        _ => {}
    }
    ports(errs, spec, &path.child("ports"));
    metadata::labels(errs, meta::map_at(spec, &["selector"]), &path.child("selector"));
    affinity(errs, spec, &path);
    for (i, ip) in list(spec, "externalIPs").iter().enumerate() {
        let (ip, at) = (ip.as_str().unwrap_or_default(), path.child("externalIPs").index(i));
        let problems = names::ip(ip);
        if problems.is_empty() {
            non_special_ip(errs, ip, &at);
        }
        invalid_all(errs, &at, ip, problems);
    }
    required_one_of(errs, spec, "type", &path, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    node_ports(errs, spec, &path);
    load_balancer(errs, spec, &path);
    external_traffic(errs, spec, &path);
    if matches!(kind, "NodePort" | "LoadBalancer" | "ClusterIP") && some(spec, "internalTrafficPolicy").is_none() {
        errs.push(FieldError::required(path.child("internalTrafficPolicy"), ""));
    }
    one_of_if_set(errs, spec, "internalTrafficPolicy", &path, &["Cluster", "Local"]);
    one_of_if_set(errs, spec, "trafficDistribution", &path, &["PreferClose", "PreferSameZone", "PreferSameNode"]);
    cluster_ips(errs, spec, &path);
}

fn headless_forbidden(errs: &mut Errors, headless: bool, kind: &str, path: &Path) {
    if headless {
        let detail = format!("may not be set to 'None' for {kind} services");
        errs.push(FieldError::invalid(path.child("clusterIPs").index(0), "None", detail));
    }
}

fn external_name(errs: &mut Errors, spec: &Value, path: &Path) {
    if !list(spec, "clusterIPs").is_empty() {
        let detail = "may not be set for ExternalName services";
        errs.push(FieldError::forbidden(path.child("clusterIPs"), detail));
    }
    for key in ["ipFamilies", "ipFamilyPolicy"] {
        if some(spec, key).is_some() {
            errs.push(FieldError::forbidden(path.child(key), "may not be set for ExternalName services"));
        }
    }
    // One trailing dot makes a name absolute.
    let name = text(spec, "externalName");
    let bare = name.strip_suffix('.').unwrap_or(name);
    if bare.is_empty() {
        errs.push(FieldError::required(path.child("externalName"), ""));
    } else {
        invalid_all(errs, &path.child("externalName"), bare, names::dns1123_subdomain(bare));
    }
}

fn ports(errs: &mut Errors, spec: &Value, path: &Path) {
    let all = list(spec, "ports");
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in all.iter().enumerate() {
        let at = path.index(i);
        let name = text(port, "name");
        if all.len() > 1 && name.is_empty() {
            errs.push(FieldError::required(at.child("name"), ""));
        } else if !name.is_empty() {
            invalid_all(errs, &at.child("name"), name, names::dns1123_label(name));
            if seen.contains(&name) {
                errs.push(FieldError::duplicate(at.child("name"), name));
            } else {
                seen.push(name);
            }
        }
        let number = int(port, "port").unwrap_or(0);
        invalid_all(errs, &at.child("port"), number, names::port_number(number));
        required_one_of(errs, port, "protocol", &at, &["SCTP", "TCP", "UDP"]);
        port_number_or_name(errs, port.get("targetPort"), &at.child("targetPort"));
        if let Some(protocol) = some(port, "appProtocol").and_then(Value::as_str) {
            invalid_all(errs, &at.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
    for (i, port) in all.iter().enumerate() {
        let same = |other: &&Value| {
            text(other, "protocol") == text(port, "protocol") && int(other, "port") == int(port, "port")
        };
        if all[..i].iter().any(|other| same(&other)) {
            // As the reference implementation prints what it compares.
            let shown = json!({"Name": "", "Protocol": text(port, "protocol"), "AppProtocol": null,
                "Port": int(port, "port").unwrap_or(0), "TargetPort": 0, "NodePort": 0});
            errs.push(FieldError::duplicate(path.index(i), shown));
        }
    }
}

fn affinity(errs: &mut Errors, spec: &Value, path: &Path) {
    required_one_of(errs, spec, "sessionAffinity", path, &["ClientIP", "None"]);
    let config = some(spec, "sessionAffinityConfig");
    let at = path.child("sessionAffinityConfig");
    match (text(spec, "sessionAffinity"), config) {
        ("ClientIP", config) => {
            let seconds = config.and_then(|c| meta::i64_at(c, &["clientIP", "timeoutSeconds"]));
            match seconds {
                None => errs.push(FieldError::required(&at, "when session affinity type is ClientIP")),
                Some(seconds) if seconds <= 0 || seconds > AFFINITY_SECONDS_MAX => {
                    let detail = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
                    errs.push(FieldError::invalid(at.child("clientIP").child("timeoutSeconds"), seconds, detail));
                }
                Some(_) => {}
            }
        }
        ("None", Some(_)) => errs.push(FieldError::forbidden(&at, "must not be set when session affinity is None")),
        _ => {}
    }
}

/// Addresses that mean this machine, or nobody, are no endpoints.
fn non_special_ip(errs: &mut Errors, ip: &str, path: &Path) {
    let Ok(parsed) = ip.parse::<IpAddr>() else { return };
    let link_local = match parsed {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_local_multicast = match parsed {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let mut refuse = |bad: bool, detail: &str| {
        if bad {
            errs.push(FieldError::invalid(path, ip, detail));
        }
    };
    refuse(parsed.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)");
    refuse(parsed.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    refuse(link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    refuse(link_local_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
}

fn node_ports(errs: &mut Errors, spec: &Value, path: &Path) {
    let kind = text(spec, "type");
    let mut seen: Vec<(i64, &str)> = Vec::new();
    for (i, port) in list(spec, "ports").iter().enumerate() {
        let Some(number) = int(port, "nodePort").filter(|n| *n != 0) else { continue };
        let at = path.child("ports").index(i).child("nodePort");
        if kind == "ClusterIP" {
            errs.push(FieldError::forbidden(at, "may not be used when `type` is 'ClusterIP'"));
            continue;
        }
        let key = (number, text(port, "protocol"));
        if seen.contains(&key) {
            errs.push(FieldError::duplicate(at, number));
        }
        seen.push(key);
    }
}

fn load_balancer(errs: &mut Errors, spec: &Value, path: &Path) {
    let balanced = text(spec, "type") == "LoadBalancer";
    if !list(spec, "loadBalancerSourceRanges").is_empty() {
        let at = path.child("LoadBalancerSourceRanges");
        if !balanced {
            errs.push(FieldError::forbidden(&at, "may only be used when `type` is 'LoadBalancer'"));
        }
        for (i, range) in list(spec, "loadBalancerSourceRanges").iter().enumerate() {
            let range = range.as_str().unwrap_or_default();
            invalid_all(errs, &at.index(i), range, names::cidr(range.trim()));
        }
    }
    if some(spec, "allocateLoadBalancerNodePorts").is_none() && balanced {
        errs.push(FieldError::required(path.child("allocateLoadBalancerNodePorts"), ""));
    }
    if some(spec, "allocateLoadBalancerNodePorts").is_some() && !balanced {
        let at = path.child("allocateLoadBalancerNodePorts");
        errs.push(FieldError::forbidden(at, "may only be used when `type` is 'LoadBalancer'"));
    }
    if let Some(class) = some(spec, "loadBalancerClass").and_then(Value::as_str) {
        let at = path.child("loadBalancerClass");
        if balanced {
            invalid_all(errs, &at, class, names::qualified_name(class));
        } else {
            errs.push(FieldError::forbidden(at, "may only be used when `type` is 'LoadBalancer'"));
        }
    }
}

fn external_traffic(errs: &mut Errors, spec: &Value, path: &Path) {
    let policy = text(spec, "externalTrafficPolicy");
    let kind = text(spec, "type");
    let reachable =
        matches!(kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && !list(spec, "externalIPs").is_empty());
    let health_port = int(spec, "healthCheckNodePort").unwrap_or(0);
    if policy.is_empty() {
        if reachable {
            errs.push(FieldError::required(path.child("externalTrafficPolicy"), ""));
        }
    } else if !reachable {
        let detail = "may only be set for externally-accessible services";
        errs.push(FieldError::invalid(path.child("externalTrafficPolicy"), policy, detail));
    } else {
        one_of(errs, spec, "externalTrafficPolicy", path, &["Cluster", "Local"]);
    }
    if health_port < 0 {
        errs.push(FieldError::invalid(path.child("healthCheckNodePort"), health_port, NEGATIVE));
    } else if health_port > 0 && !(kind == "LoadBalancer" && policy == "Local") {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errs.push(FieldError::invalid(path.child("healthCheckNodePort"), health_port, detail));
    }
}

fn cluster_ips(errs: &mut Errors, spec: &Value, path: &Path) {
    if text(spec, "type") == "ExternalName" {
        return;
    }
    for (i, family) in list(spec, "ipFamilies").iter().enumerate() {
        let name = family.as_str().unwrap_or_default();
        let at = path.child("ipFamilies").index(i);
        if !matches!(name, "IPv4" | "IPv6") {
            errs.push(FieldError::not_supported(&at, name, &["IPv4", "IPv6"]));
        }
        if list(spec, "ipFamilies")[..i].contains(family) {
            errs.push(FieldError::duplicate(&at, name));
        }
    }
    one_of_if_set(errs, spec, "ipFamilyPolicy", path, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let at = path.child("clusterIPs");
    let (single, ips) = (text(spec, "clusterIP"), list(spec, "clusterIPs"));
    if ips.is_empty() {
        if !single.is_empty() {
            errs.push(FieldError::required(&at, ""));
        }
    } else if ips[0].as_str().unwrap_or_default() != single {
        errs.push(FieldError::invalid(&at, shown(spec, "clusterIPs"), "first value must match `clusterIP`"));
    }
    let families = list(spec, "ipFamilies");
    for (i, ip) in ips.iter().enumerate() {
        let (ip, at) = (ip.as_str().unwrap_or_default(), at.index(i));
        if ip == "None" {
            if ips.len() > 1 {
                errs.push(FieldError::invalid(
                    path.child("clusterIPs"),
                    shown(spec, "clusterIPs"),
                    "'None' must be the first and only value",
                ));
            }
            continue;
        }
        let problems = names::ip(ip);
        if !problems.is_empty() {
            invalid_all(errs, &at, ip, problems);
            continue;
        }
        let is_v6 = ip.contains(':');
        let family = families.get(i).and_then(Value::as_str);
        if family == Some("IPv4") && is_v6 {
            errs.push(FieldError::invalid(
                &at,
                ip,
                format!("expected an IPv4 value as indicated by `ipFamilies[{i}]`"),
            ));
        }
        if family == Some("IPv6") && !is_v6 {
            errs.push(FieldError::invalid(
                &at,
                ip,
                format!("expected an IPv6 value as indicated by `ipFamilies[{i}]`"),
            ));
        }
    }
    if ips.len() > 2 {
        errs.push(FieldError::invalid(&at, shown(spec, "clusterIPs"), "may only hold up to 2 values"));
    }
}

/// The cluster has one address family. A headless service without a selector may name any.
pub(super) fn families(errs: &mut Errors, obj: &Value) {
    let null = Value::Null;
    let spec = obj.get("spec").unwrap_or(&null);
    let free = text(spec, "clusterIP") == "None" && meta::map_at(spec, &["selector"]).is_none_or(|s| s.is_empty());
    if free || text(spec, "type") == "ExternalName" {
        return;
    }
    let path = Path::new("spec");
    if text(spec, "ipFamilyPolicy") == "RequireDualStack" {
        let detail = "this cluster is not configured for dual-stack services";
        errs.push(FieldError::invalid(path.child("ipFamilyPolicy"), "RequireDualStack", detail));
    }
    for (i, family) in list(spec, "ipFamilies").iter().enumerate() {
        if family != "IPv4" {
            let at = path.child("ipFamilies").index(i);
            errs.push(FieldError::invalid(at, family.clone(), "not configured on this cluster"));
        }
    }
}

pub(super) fn update(errs: &mut Errors, new: &Value, old: &Value) {
    let null = Value::Null;
    let (now, was) = (new.get("spec").unwrap_or(&null), old.get("spec").unwrap_or(&null));
    let path = Path::new("spec");
    let had_ip = text(was, "type") != "ExternalName" && text(now, "type") != "ExternalName";
    let (first_now, first_was) = (list(now, "clusterIPs").first(), list(was, "clusterIPs").first());
    if had_ip && first_was.is_some() && first_now.is_some() && first_now != first_was {
        errs.push(FieldError::invalid(
            path.child("clusterIPs").index(0),
            shown(now, "clusterIPs"),
            "may not change once set",
        ));
    }
    let both_balanced = text(now, "type") == "LoadBalancer" && text(was, "type") == "LoadBalancer";
    if both_balanced && some(now, "loadBalancerClass") != some(was, "loadBalancerClass") {
        errs.push(FieldError::invalid(
            path.child("loadBalancerClass"),
            shown(now, "loadBalancerClass"),
            "may not change once set",
        ));
    }
}

pub(super) fn status(errs: &mut Errors, obj: &Value) {
    let ingress = meta::list_at(obj, &["status", "loadBalancer", "ingress"]);
    let path = Path::new("status").child("loadBalancer").child("ingress");
    if !ingress.is_empty() && meta::str_at(obj, &["spec", "type"]) != "LoadBalancer" {
        errs.push(FieldError::forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'"));
        return;
    }
    for (i, entry) in ingress.iter().enumerate() {
        let at = path.index(i);
        let (ip, host) = (text(entry, "ip"), text(entry, "hostname"));
        if !ip.is_empty() {
            invalid_all(errs, &at.child("ip"), ip, names::ip(ip));
        }
        if !ip.is_empty() && some(entry, "ipMode").is_none() {
            errs.push(FieldError::required(at.child("ipMode"), "must be specified when `ip` is set"));
        }
        one_of_if_set(errs, entry, "ipMode", &at, &["Proxy", "VIP"]);
        if !host.is_empty() {
            invalid_all(errs, &at.child("hostname"), host, names::dns1123_subdomain(host));
            if host.parse::<IpAddr>().is_ok() {
                errs.push(FieldError::invalid(at.child("hostname"), host, "must be a DNS name, not an IP address"));
            }
        }
    }
}

pub(super) fn endpoints(errs: &mut Errors, obj: &Value) {
    let path = Path::new("subsets");
    for (i, subset) in list(obj, "subsets").iter().enumerate() {
        let at = path.index(i);
        if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
            errs.push(FieldError::required(&at, "must specify `addresses` or `notReadyAddresses`"));
        }
        for name in ["addresses", "notReadyAddresses"] {
            for (j, address) in list(subset, name).iter().enumerate() {
                let at = at.child(name).index(j);
                let ip = text(address, "ip");
                let problems = names::ip(ip);
                let valid = problems.is_empty();
                invalid_all(errs, &at.child("ip"), ip, problems);
                if !text(address, "hostname").is_empty() {
                    let host = text(address, "hostname");
                    invalid_all(errs, &at.child("hostname"), host, names::dns1123_label(host));
                }
                if let Some(node) = some(address, "nodeName").and_then(Value::as_str) {
                    invalid_all(errs, &at.child("nodeName"), node, names::dns1123_subdomain(node));
                }
                if valid {
                    non_special_ip(errs, ip, &at.child("ip"));
                }
            }
        }
        let ports = list(subset, "ports");
        for (j, port) in ports.iter().enumerate() {
            let at = at.child("ports").index(j);
            let name = text(port, "name");
            if ports.len() > 1 && name.is_empty() {
                errs.push(FieldError::required(at.child("name"), ""));
            } else if !name.is_empty() {
                invalid_all(errs, &at.child("name"), name, names::dns1123_label(name));
            }
            let number = int(port, "port").unwrap_or(0);
            invalid_all(errs, &at.child("port"), number, names::port_number(number));
            required_one_of(errs, port, "protocol", &at, &["SCTP", "TCP", "UDP"]);
            if let Some(protocol) = some(port, "appProtocol").and_then(Value::as_str) {
                invalid_all(errs, &at.child("appProtocol"), protocol, names::qualified_name(protocol));
            }
        }
    }
}

/// Sizes of one slice: 1000 endpoints, 20000 ports, 100 addresses an endpoint.
const SLICE_ENDPOINTS_MAX: usize = 1000;
const SLICE_PORTS_MAX: usize = 20_000;
const ENDPOINT_ADDRESSES_MAX: usize = 100;

pub(super) fn endpoint_slice(errs: &mut Errors, obj: &Value) {
    let family = text(obj, "addressType");
    let root = Path::new("");
    required_one_of(errs, obj, "addressType", &root, &["FQDN", "IPv4", "IPv6"]);
    let endpoints = list(obj, "endpoints");
    if endpoints.len() > SLICE_ENDPOINTS_MAX {
        errs.push(FieldError::too_many("endpoints", endpoints.len(), SLICE_ENDPOINTS_MAX));
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let at = Path::new("endpoints").index(i);
        let addresses = list(endpoint, "addresses");
        if addresses.is_empty() {
            errs.push(FieldError::required(at.child("addresses"), "must contain at least 1 address"));
        } else if addresses.len() > ENDPOINT_ADDRESSES_MAX {
            errs.push(FieldError::too_many(at.child("addresses"), addresses.len(), ENDPOINT_ADDRESSES_MAX));
        }
        for (j, address) in addresses.iter().enumerate() {
            let (address, at) = (address.as_str().unwrap_or_default(), at.child("addresses").index(j));
            slice_address(errs, address, family, &at);
        }
        if let Some(node) = some(endpoint, "nodeName").and_then(Value::as_str) {
            invalid_all(errs, &at.child("nodeName"), node, names::dns1123_subdomain(node));
        }
        if let Some(host) = some(endpoint, "hostname").and_then(Value::as_str) {
            invalid_all(errs, &at.child("hostname"), host, names::dns1123_label(host));
        }
        for (j, zone) in meta::list_at(endpoint, &["hints", "forZones"]).iter().enumerate() {
            let at = at.child("hints").child("forZones").index(j);
            required(errs, zone, "name", &at);
        }
    }
    slice_ports(errs, obj);
}

fn slice_address(errs: &mut Errors, address: &str, family: &str, at: &Path) {
    match family {
        "IPv4" | "IPv6" => {
            let ok = match address.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => family == "IPv4",
                Ok(IpAddr::V6(_)) => family == "IPv6",
                Err(_) => false,
            };
            if !ok {
                let detail =
                    if family == "IPv4" { "must be a valid IPv4 address" } else { "must be a valid IPv6 address" };
                let detail =
                    if names::ip(address).is_empty() { detail.to_string() } else { names::ip(address).remove(0) };
                errs.push(FieldError::invalid(at, address, detail));
            } else {
                non_special_ip(errs, address, at);
            }
        }
        "FQDN" => {
            let bare = address.strip_suffix('.').unwrap_or(address);
            invalid_all(errs, at, address, names::dns1123_subdomain(bare));
            if !bare.contains('.') {
                errs.push(FieldError::invalid(
                    at,
                    address,
                    "should be a domain with at least two segments separated by dots",
                ));
            }
        }
        _ => {}
    }
}

fn slice_ports(errs: &mut Errors, obj: &Value) {
    let ports = list(obj, "ports");
    if ports.len() > SLICE_PORTS_MAX {
        errs.push(FieldError::too_many("ports", ports.len(), SLICE_PORTS_MAX));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let at = Path::new("ports").index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            invalid_all(errs, &at.child("name"), name, names::dns1123_label(name));
        }
        if seen.contains(&name) {
            errs.push(FieldError::duplicate(at.child("name"), name));
        } else {
            seen.push(name);
        }
        required_one_of(errs, port, "protocol", &at, &["SCTP", "TCP", "UDP"]);
        if let Some(number) = int(port, "port") {
            invalid_all(errs, &at.child("port"), number, names::port_number(number));
        }
        if let Some(protocol) = some(port, "appProtocol").and_then(Value::as_str) {
            invalid_all(errs, &at.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}
