//! What a node should do with traffic to services, decided from Services and EndpointSlices.
//!
//! The rules of choice are Kubernetes' ("Virtual IPs and Service Proxies" in its reference): endpoints that are ready; when there is none, those
//! that still serve while they terminate; a `Local` traffic policy keeps to endpoints on this node, and drops when it has none here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort as SpecPort};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use skiff_netlink::Cidr;

use crate::config::Protocol;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Names one port of one service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    pub namespace: String,
    pub service: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// Where a connection may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub ip: Ipv4Addr,
    pub port: u16,
}

/// One port of one service, decided for this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicePort {
    pub cluster_ips: Vec<Ipv4Addr>,
    /// Addresses outside the cluster's ranges that lead here: external IPs and a load balancer's.
    pub external_ips: Vec<Ipv4Addr>,
    pub node_port: Option<u16>,
    /// A client keeps its endpoint (`sessionAffinity: ClientIP`), as long as the endpoints stay the same.
    pub sticky: bool,
    /// For connections to a cluster IP.
    pub inside: Choice,
    /// For connections to a node port or an external IP.
    pub outside: Choice,
    /// The client's address must stay visible: outside traffic goes to this node's endpoints only (`externalTrafficPolicy: Local`).
    pub keep_client: bool,
}

/// The endpoints to balance over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    pub endpoints: Vec<Endpoint>,
    /// With no endpoints: silently drop, for there are some on other nodes (otherwise: refuse).
    pub elsewhere: bool,
}

/// All service ports of the cluster, decided for one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceState {
    pub ports: BTreeMap<PortKey, ServicePort>,
}

/// Addresses that no service takes over by naming them as its own (CVE-2020-8554 is that fault): whoever may write a
/// Service would get the connections of others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Protected {
    /// The cluster's ranges: services' and pods' addresses, cluster DNS among them.
    pub ranges: Vec<Cidr>,
    /// The nodes and the servers.
    pub addresses: BTreeSet<Ipv4Addr>,
}

impl Protected {
    /// Whether an external address may lead to a service. `by_status`: a load balancer's controller gave it, whose right
    /// that is, also for an address of a node.
    fn leaves(&self, ip: Ipv4Addr, by_status: bool) -> bool {
        let special = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast();
        !special && !self.ranges.iter().any(|range| range.contains(ip)) && (by_status || !self.addresses.contains(&ip))
    }
}

/// What `node` should do with traffic to services. Headless services and services of other kinds of address are left out,
/// and so are external addresses that are `protected`.
pub fn desired(
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
    node: &str,
    protected: &Protected,
) -> ServiceState {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        if let Some(name) = name
            && slice.address_type == "IPv4"
        {
            by_service.entry((namespace, name.as_str())).or_default().push(slice);
        }
    }
    let mut state = ServiceState::default();
    for service in services {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let slices = by_service.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        for (key, port) in ports_of(service, slices, node, protected) {
            state.ports.insert(key, port);
        }
    }
    state
}

fn ports_of(
    service: &Service,
    slices: &[&EndpointSlice],
    node: &str,
    protected: &Protected,
) -> Vec<(PortKey, ServicePort)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let cluster_ips = cluster_ips(service);
    if spec.type_.as_deref() == Some("ExternalName") || cluster_ips.is_empty() {
        return Vec::new();
    }
    let external_ips = external_ips(service, protected);
    let keep_client = spec.external_traffic_policy.as_deref() == Some("Local");
    let inside_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    spec.ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let protocol = Protocol::named(port.protocol.as_deref())?;
            let key = PortKey {
                namespace: service.metadata.namespace.clone().unwrap_or_default(),
                service: service.metadata.name.clone().unwrap_or_default(),
                protocol,
                port: number(port.port)?,
            };
            let candidates = candidates(slices, port, protocol, node);
            let decided = ServicePort {
                cluster_ips: cluster_ips.clone(),
                external_ips: external_ips.clone(),
                node_port: port.node_port.and_then(number),
                sticky,
                inside: choose(&candidates, inside_local),
                outside: choose(&candidates, keep_client),
                keep_client,
            };
            Some((key, decided))
        })
        .collect()
}

/// The service's IPv4 cluster addresses; none for a headless one.
pub fn cluster_ips(service: &Service) -> Vec<Ipv4Addr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let many = spec.cluster_ips.iter().flatten();
    let set: BTreeSet<Ipv4Addr> = spec.cluster_ip.iter().chain(many).filter_map(|ip| ip.parse().ok()).collect();
    set.into_iter().collect()
}

/// Addresses outside of the cluster that lead to the service.
fn external_ips(service: &Service, protected: &Protected) -> Vec<Ipv4Addr> {
    let named = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten()).map(|ip| (ip, false));
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let given = balancer
        .iter()
        .flat_map(|status| status.ingress.iter().flatten())
        .filter_map(|ingress| Some((ingress.ip.as_ref()?, true)));
    named
        .chain(given)
        .filter_map(|(ip, by_status)| Some((ip.parse().ok()?, by_status)))
        .filter(|(ip, by_status)| protected.leaves(*ip, *by_status))
        .map(|(ip, _)| ip)
        .collect()
}

struct Candidate {
    at: Endpoint,
    ready: bool,
    serving: bool,
    terminating: bool,
    here: bool,
}

fn candidates(slices: &[&EndpointSlice], port: &SpecPort, protocol: Protocol, node: &str) -> Vec<Candidate> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter(|offered| {
            offered.name.as_deref().unwrap_or_default() == wanted
                && Protocol::named(offered.protocol.as_deref()) == Some(protocol)
        });
        for at in ports.filter_map(|offered| offered.port.and_then(number)) {
            for endpoint in slice.endpoints.iter().flatten() {
                found.extend(candidate(endpoint, at, node));
            }
        }
    }
    found
}

fn candidate(endpoint: &SliceEndpoint, port: u16, node: &str) -> Option<Candidate> {
    // Every address of an endpoint leads to the same place; clients take the first (EndpointSlice v1).
    let ip = endpoint.addresses.first()?.parse().ok()?;
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    Some(Candidate {
        at: Endpoint { ip, port },
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        here: endpoint.node_name.as_deref() == Some(node),
    })
}

fn choose(candidates: &[Candidate], local: bool) -> Choice {
    let pick = |keep: &dyn Fn(&Candidate) -> bool| -> Vec<Endpoint> {
        let set: BTreeSet<Endpoint> =
            candidates.iter().filter(|candidate| keep(candidate)).map(|candidate| candidate.at).collect();
        set.into_iter().collect()
    };
    let usable = |here: bool| {
        let ready = pick(&|candidate| candidate.ready && (!here || candidate.here));
        if !ready.is_empty() {
            return ready;
        }
        pick(&|candidate| candidate.serving && candidate.terminating && (!here || candidate.here))
    };
    let endpoints = usable(local);
    let elsewhere = local && endpoints.is_empty() && !usable(false).is_empty();
    Choice { endpoints, elsewhere }
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Arc<Service> {
        Arc::new(serde_json::from_str(text).unwrap())
    }

    fn slice(endpoints: &str) -> Arc<EndpointSlice> {
        let text = format!(
            r#"{{"metadata":{{"name":"web-1","namespace":"d","labels":{{"kubernetes.io/service-name":"web"}}}},"addressType":"IPv4",
               "ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],"endpoints":[{endpoints}]}}"#
        );
        Arc::new(serde_json::from_str(&text).unwrap())
    }

    fn one(spec: &str, endpoints: &str) -> Option<ServicePort> {
        let service = service(&format!(
            r#"{{"metadata":{{"name":"web","namespace":"d"}},"spec":{{"clusterIP":"10.43.0.9","ports":[{{"name":"http","port":80,"nodePort":30080}}]{spec}}}}}"#
        ));
        let state = desired(&[service], &[slice(endpoints)], "n1", &Protected::default());
        state.ports.into_values().next()
    }

    fn ips(choice: &Choice) -> Vec<String> {
        choice.endpoints.iter().map(|endpoint| format!("{}:{}", endpoint.ip, endpoint.port)).collect()
    }

    const A: &str = r#"{"addresses":["10.42.1.2"],"nodeName":"n1","conditions":{"ready":true}}"#;
    const B: &str = r#"{"addresses":["10.42.2.2"],"nodeName":"n2","conditions":{"ready":true}}"#;
    const UNREADY: &str = r#"{"addresses":["10.42.1.3"],"nodeName":"n1","conditions":{"ready":false,"serving":false}}"#;
    const LEAVING: &str =
        r#"{"addresses":["10.42.2.9"],"nodeName":"n2","conditions":{"ready":false,"serving":true,"terminating":true}}"#;

    #[test]
    fn endpoints_are_chosen_by_readiness_and_policy() {
        fn check(spec: &str, endpoints: &[&str], inside: &[&str], outside: &[&str]) {
            let got = one(spec, &endpoints.join(",")).unwrap();
            assert_eq!(
                (ips(&got.inside), ips(&got.outside)),
                (inside.iter().map(|s| s.to_string()).collect(), outside.iter().map(|s| s.to_string()).collect())
            );
        }
        check(
            "",
            &[A, B, UNREADY, LEAVING],
            &["10.42.1.2:8080", "10.42.2.2:8080"],
            &["10.42.1.2:8080", "10.42.2.2:8080"],
        );
        check("", &[UNREADY, LEAVING], &["10.42.2.9:8080"], &["10.42.2.9:8080"]);
        check("", &[UNREADY], &[], &[]);
        check(
            r#","internalTrafficPolicy":"Local""#,
            &[A, B],
            &["10.42.1.2:8080"],
            &["10.42.1.2:8080", "10.42.2.2:8080"],
        );
        check(r#","externalTrafficPolicy":"Local""#, &[B], &["10.42.2.2:8080"], &[]);
    }

    #[test]
    fn what_is_nowhere_is_refused_and_what_is_elsewhere_is_dropped() {
        assert!(!one("", UNREADY).unwrap().inside.elsewhere);
        let kept = one(r#","externalTrafficPolicy":"Local""#, B).unwrap();
        assert!(kept.outside.elsewhere && kept.keep_client && !kept.inside.elsewhere);
        assert_eq!(kept.node_port, Some(30080));
    }

    #[test]
    fn no_service_takes_over_what_is_not_its_own() {
        let protected = Protected {
            ranges: vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()],
            addresses: [Ipv4Addr::new(192, 0, 2, 1)].into(),
        };
        let check = |ip: &str, named: bool, given: bool| {
            let service = |spec: &str, status: &str| {
                let text = format!(
                    r#"{{"metadata":{{"name":"web","namespace":"d"}},"spec":{{"clusterIP":"10.43.0.9","ports":[{{"port":80}}]{spec}}}{status}}}"#
                );
                let state = desired(&[self::service(&text)], &[], "n1", &protected);
                !state.ports.into_values().next().unwrap().external_ips.is_empty()
            };
            let by_spec = service(&format!(r#","externalIPs":["{ip}"]"#), "");
            let by_status = service("", &format!(r#","status":{{"loadBalancer":{{"ingress":[{{"ip":"{ip}"}}]}}}}"#));
            assert_eq!((by_spec, by_status), (named, given), "{ip}");
        };
        check("198.51.100.7", true, true);
        check("10.43.0.1", false, false);
        check("10.43.0.10", false, false);
        check("10.42.1.5", false, false);
        check("192.0.2.1", false, true);
        check("127.0.0.1", false, false);
        check("0.0.0.0", false, false);
        check("224.0.0.1", false, false);
    }

    #[test]
    fn headless_and_external_names_have_no_rules() {
        assert_eq!(one(r#","type":"ExternalName","externalName":"x.example""#, A), None);
        let headless =
            service(r#"{"metadata":{"name":"web","namespace":"d"},"spec":{"clusterIP":"None","ports":[{"port":80}]}}"#);
        assert!(desired(&[headless], &[], "n1", &Protected::default()).ports.is_empty());
    }
}
