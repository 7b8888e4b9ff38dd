//! What the cluster's names mean at one moment.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, RecordType};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Seconds for which an answer may be kept; the specification suggests few, because endpoints change.
pub const TTL_S: u32 = 5;
/// The version of the specification that the zone's names follow (its section 2.2).
const SCHEMA_VERSION: &str = "1.1.0";
/// Aliases of aliases that are followed within the zone; resolvers elsewhere follow 8 to 16.
pub const ALIASES_MAX: usize = 8;
const DNS_PORT: i32 = 53;
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// All names of a cluster. Names are kept in lower case, without the final dot.
#[derive(Debug, Clone, PartialEq)]
pub struct Zone {
    domain: String,
    /// A name without records is one below which there are names: it exists, but has no data.
    names: HashMap<String, Vec<RData>>,
    start_of_authority: RData,
}

/// What a zone says about a name and type.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    Records(Vec<RData>),
    /// The name is another's, which may be another's again: each in turn, and what the last has of the type asked (none:
    /// it is not this zone's).
    Alias {
        targets: Vec<Name>,
        records: Option<Vec<RData>>,
    },
    /// Aliases that lead back to one another, or on and on.
    Loop,
    /// The name is there, but has nothing of this type.
    NoData,
    NoName,
    /// Not this zone's.
    Elsewhere,
}

impl Zone {
    /// The zone of `domain` (`cluster.local`). Objects whose names cannot be DNS names are left out.
    pub fn new(domain: &str, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Zone {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        let authority = fqdn(&format!("ns.dns.{domain}")).unwrap_or_else(Name::root);
        let mailbox = fqdn(&format!("hostmaster.{domain}")).unwrap_or_else(Name::root);
        let start_of_authority = RData::SOA(SOA::new(authority, mailbox, 1, 7200, 1800, 86400, TTL_S));
        let mut zone = Zone { domain: domain.clone(), names: HashMap::new(), start_of_authority };
        zone.exists(&domain);
        zone.exists(&format!("svc.{domain}"));
        zone.exists(&format!("pod.{domain}"));
        zone.add(&format!("dns-version.{domain}"), RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()])));
        let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
            let labels = slice.metadata.labels.as_ref();
            if let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) {
                by_service
                    .entry((slice.metadata.namespace.as_deref().unwrap_or_default(), service))
                    .or_default()
                    .push(slice);
            }
        }
        for service in services {
            let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else { continue };
            let slices = by_service.get(&(namespace.as_str(), name.as_str())).map(Vec::as_slice).unwrap_or_default();
            zone.service(&format!("{name}.{namespace}.svc.{domain}"), service, slices);
        }
        zone
    }

    /// Adds the name of cluster DNS itself, as charts and programs look for it: `kube-dns.kube-system`, at the address that
    /// answers. A Service of that name with an address keeps it.
    pub fn answered_at(mut self, ip: Ipv4Addr) -> Zone {
        let name = format!("kube-dns.kube-system.svc.{}", self.domain);
        let known = self.names.get(&name).is_some_and(|records| !records.is_empty());
        if !known {
            self.add(&name, RData::A(A(ip)));
            if let Some(target) = fqdn(&name) {
                self.offer(&name, Some("dns"), Some("UDP"), DNS_PORT, &target);
                self.offer(&name, Some("dns-tcp"), Some("TCP"), DNS_PORT, &target);
            }
        }
        self.reverse(ip, &name);
        self
    }

    /// The domain, without the final dot.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The record that goes with "no".
    pub fn start_of_authority(&self) -> (Option<Name>, RData) {
        (fqdn(&self.domain), self.start_of_authority.clone())
    }

    /// What the zone says. A reverse name it does not know is not its own.
    pub fn find(&self, name: &Name, kind: RecordType) -> Found {
        let mut targets: Vec<Name> = Vec::new();
        loop {
            let found = self.find_once(targets.last().unwrap_or(name), kind);
            let records = match found {
                Found::Alias { targets: next, .. } => {
                    targets.extend(next);
                    if targets.len() > ALIASES_MAX {
                        return Found::Loop;
                    }
                    continue;
                }
                found if targets.is_empty() => return found,
                Found::Records(records) => Some(records),
                Found::NoData | Found::NoName => Some(Vec::new()),
                Found::Elsewhere | Found::Loop => None,
            };
            return Found::Alias { targets, records };
        }
    }

    /// The same for one name: an alias is not followed.
    fn find_once(&self, name: &Name, kind: RecordType) -> Found {
        let name = name.to_lowercase().to_ascii();
        let name = name.trim_end_matches('.');
        let ours = name == self.domain || name.strip_suffix(&self.domain).is_some_and(|rest| rest.ends_with('.'));
        if !ours && !self.names.contains_key(name) {
            return Found::Elsewhere;
        }
        if name == self.domain && kind == RecordType::SOA {
            return Found::Records(vec![self.start_of_authority.clone()]);
        }
        let Some(records) = self.names.get(name) else { return self.synthesized(name, kind) };
        if let [RData::CNAME(CNAME(target))] = records.as_slice()
            && kind != RecordType::CNAME
        {
            return Found::Alias { targets: vec![target.clone()], records: None };
        }
        let picked: Vec<RData> =
            records.iter().filter(|record| kind == RecordType::ANY || record.record_type() == kind).cloned().collect();
        if picked.is_empty() { Found::NoData } else { Found::Records(picked) }
    }

    /// `a-b-c-d.NAMESPACE.pod.DOMAIN` is the address it spells (the specification's section 2.5).
    fn synthesized(&self, name: &str, kind: RecordType) -> Found {
        let inside = name.strip_suffix(&self.domain).and_then(|rest| rest.strip_suffix(".pod."));
        let Some(inside) = inside else { return Found::NoName };
        match inside.split_once('.') {
            // A namespace of pods.
            None => Found::NoData,
            Some((dashed, namespace)) if !namespace.contains('.') => match dashed.replace('-', ".").parse() {
                Ok(ip) if kind == RecordType::A || kind == RecordType::ANY => Found::Records(vec![RData::A(A(ip))]),
                Ok(_) => Found::NoData,
                Err(_) => Found::NoName,
            },
            Some(_) => Found::NoName,
        }
    }

    fn service(&mut self, name: &str, service: &Service, slices: &[&EndpointSlice]) {
        let Some(spec) = &service.spec else { return };
        if spec.type_.as_deref() == Some("ExternalName") {
            if let Some(target) = spec.external_name.as_deref().and_then(fqdn) {
                self.add(name, RData::CNAME(CNAME(target)));
            }
            return;
        }
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let ports: Vec<&ServicePort> = spec.ports.iter().flatten().collect();
        if headless {
            self.exists(name);
        }
        let addresses: BTreeSet<Ipv4Addr> =
            spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).filter_map(|ip| ip.parse().ok()).collect();
        for ip in addresses {
            self.add(name, RData::A(A(ip)));
            self.reverse(ip, name);
        }
        if !headless && let Some(target) = fqdn(name) {
            for port in &ports {
                self.offer(name, port.name.as_deref(), port.protocol.as_deref(), port.port, &target);
            }
        }
        // Only a headless service names its endpoints.
        for slice in slices.iter().filter(|_| headless) {
            for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_published(endpoint)) {
                self.endpoint(name, slice, endpoint);
            }
        }
    }

    fn endpoint(&mut self, service: &str, slice: &EndpointSlice, endpoint: &Endpoint) {
        let Some(ip) = endpoint.addresses.first().and_then(|ip| ip.parse::<Ipv4Addr>().ok()) else { return };
        let label = endpoint.hostname.clone().unwrap_or_else(|| ip.to_string().replace('.', "-"));
        let host = format!("{}.{service}", label.to_ascii_lowercase());
        let Some(target) = fqdn(&host) else { return };
        self.add(service, RData::A(A(ip)));
        self.add(&host, RData::A(A(ip)));
        self.reverse(ip, &host);
        for port in slice.ports.iter().flatten() {
            if let Some(number) = port.port {
                self.offer(service, port.name.as_deref(), port.protocol.as_deref(), number, &target);
            }
        }
    }

    /// A port of a service under `_name._protocol`, and under the service itself.
    fn offer(&mut self, service: &str, port_name: Option<&str>, protocol: Option<&str>, port: i32, target: &Name) {
        let Ok(number) = u16::try_from(port) else { return };
        let record = RData::SRV(SRV::new(0, 100, number, target.clone()));
        self.add(service, record.clone());
        if let Some(port_name) = port_name.filter(|name| !name.is_empty()) {
            let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
            self.add(&format!("_{port_name}._{protocol}.{service}"), record);
        }
    }

    fn reverse(&mut self, ip: Ipv4Addr, name: &str) {
        if let Some(target) = fqdn(name) {
            let [a, b, c, d] = ip.octets();
            let owner = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
            let records = self.names.entry(owner).or_default();
            if !records.contains(&RData::PTR(PTR(target.clone()))) {
                records.push(RData::PTR(PTR(target)));
            }
        }
    }

    fn add(&mut self, name: &str, record: RData) {
        self.exists(name);
        if let Some(records) = self.names.get_mut(&name.to_ascii_lowercase())
            && !records.contains(&record)
        {
            records.push(record);
        }
    }

    /// The name and every name above it, up to the domain.
    fn exists(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        let mut rest = name.as_str();
        while rest.len() >= self.domain.len() && !self.names.contains_key(rest) {
            self.names.insert(rest.to_owned(), Vec::new());
            match rest.split_once('.') {
                Some((_, above)) => rest = above,
                None => return,
            }
        }
    }
}

/// Whether DNS names an endpoint: those that are ready, which includes the unready ones of a service that publishes them.
fn is_published(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn fqdn(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name.trim_end_matches('.')).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        let services = [
            r#"{"metadata":{"name":"web","namespace":"default"},"spec":{"clusterIP":"10.43.0.9","ports":[{"name":"http","port":80,"targetPort":8080}]}}"#,
            r#"{"metadata":{"name":"db","namespace":"data"},"spec":{"clusterIP":"None","ports":[{"name":"sql","port":5432}]}}"#,
            r#"{"metadata":{"name":"away","namespace":"default"},"spec":{"type":"ExternalName","externalName":"Example.com"}}"#,
            r#"{"metadata":{"name":"near","namespace":"default"},"spec":{"type":"ExternalName","externalName":"web.default.svc.cluster.local."}}"#,
            r#"{"metadata":{"name":"self","namespace":"default"},"spec":{"type":"ExternalName","externalName":"self.default.svc.cluster.local"}}"#,
            r#"{"metadata":{"name":"ring","namespace":"default"},"spec":{"type":"ExternalName","externalName":"RING2.default.svc.cluster.local"}}"#,
            r#"{"metadata":{"name":"ring2","namespace":"default"},"spec":{"type":"ExternalName","externalName":"ring.default.svc.cluster.local"}}"#,
            r#"{"metadata":{"name":"far","namespace":"default"},"spec":{"type":"ExternalName","externalName":"near.default.svc.cluster.local"}}"#,
            r#"{"metadata":{"name":"out","namespace":"default"},"spec":{"type":"ExternalName","externalName":"away.default.svc.cluster.local"}}"#,
            r#"{"metadata":{"name":"empty","namespace":"default"},"spec":{"clusterIP":"None"}}"#,
        ];
        let slices = [
            r#"{"metadata":{"name":"db-1","namespace":"data","labels":{"kubernetes.io/service-name":"db"}},"addressType":"IPv4",
            "ports":[{"name":"sql","port":5432,"protocol":"TCP"}],"endpoints":[
            {"addresses":["10.42.1.5"],"hostname":"db-0","conditions":{"ready":true}},
            {"addresses":["10.42.1.6"],"conditions":{}},
            {"addresses":["10.42.1.7"],"hostname":"db-2","conditions":{"ready":false,"serving":true}}]}"#,
        ];
        let services: Vec<_> = services.iter().map(|text| Arc::new(serde_json::from_str(text).unwrap())).collect();
        let slices: Vec<_> = slices.iter().map(|text| Arc::new(serde_json::from_str(text).unwrap())).collect();
        Zone::new("cluster.local", &services, &slices).answered_at(Ipv4Addr::new(10, 43, 0, 10))
    }

    #[test]
    fn a_service_keeps_the_name_of_cluster_dns() {
        let own = r#"{"metadata":{"name":"kube-dns","namespace":"kube-system"},"spec":{"clusterIP":"10.43.0.10","ports":[{"name":"dns","port":53,"protocol":"UDP"}]}}"#;
        let service = Arc::new(serde_json::from_str(own).unwrap());
        let plain = Zone::new("cluster.local", std::slice::from_ref(&service), &[]);
        assert_eq!(plain.clone().answered_at(Ipv4Addr::new(10, 43, 0, 10)), plain);
    }

    #[test]
    fn a_chain_has_a_bound() {
        let link = |n: usize| {
            let text = format!(
                r#"{{"metadata":{{"name":"s{n}","namespace":"d"}},"spec":{{"type":"ExternalName","externalName":"s{}.d.svc.cluster.local"}}}}"#,
                n + 1
            );
            Arc::new(serde_json::from_str::<Service>(&text).unwrap())
        };
        let services: Vec<_> = (0..10_000).map(link).collect();
        let zone = Zone::new("cluster.local", &services, &[]);
        let find =
            |n: usize| zone.find(&Name::from_ascii(format!("s{n}.d.svc.cluster.local.")).unwrap(), RecordType::A);
        assert_eq!(find(0), Found::Loop);
        assert_eq!(find(10_000 - ALIASES_MAX - 1), Found::Loop);
        assert!(
            matches!(find(10_000 - ALIASES_MAX), Found::Alias { targets, records: Some(_) } if targets.len() == ALIASES_MAX)
        );
    }

    #[test]
    fn names_mean_what_the_specification_says() {
        let zone = zone();
        let check = |name: &str, kind: RecordType, expect: &str| {
            let found = zone.find(&Name::from_ascii(name).unwrap(), kind);
            let list =
                |records: &[RData]| records.iter().map(|record| record.to_string()).collect::<Vec<_>>().join(", ");
            let got = match &found {
                Found::Records(records) => list(records),
                Found::Alias { targets, records } => {
                    let targets: Vec<_> = targets.iter().map(|target| format!("-> {target} ")).collect();
                    format!("{}{}", targets.concat(), records.as_deref().map_or("upstream".into(), list))
                }
                other => format!("{other:?}"),
            };
            assert_eq!(got, expect, "{name} {kind}");
        };
        use RecordType::{A, AAAA, MX, PTR, SOA, SRV, TXT};
        check("web.default.svc.cluster.local.", A, "10.43.0.9");
        check("WEB.default.svc.Cluster.Local.", A, "10.43.0.9");
        check("web.default.svc.cluster.local.", AAAA, "NoData");
        check("web.default.svc.cluster.local.", MX, "NoData");
        check("nope.default.svc.cluster.local.", A, "NoName");
        check("web.nope.svc.cluster.local.", A, "NoName");
        check("default.svc.cluster.local.", A, "NoData");
        check("svc.cluster.local.", A, "NoData");
        check("_http._tcp.web.default.svc.cluster.local.", SRV, "0 100 80 web.default.svc.cluster.local.");
        check("_tcp.web.default.svc.cluster.local.", SRV, "NoData");
        check("_ftp._tcp.web.default.svc.cluster.local.", SRV, "NoName");
        check("db.data.svc.cluster.local.", A, "10.42.1.5, 10.42.1.6");
        check("db-0.db.data.svc.cluster.local.", A, "10.42.1.5");
        check("10-42-1-6.db.data.svc.cluster.local.", A, "10.42.1.6");
        check("db-2.db.data.svc.cluster.local.", A, "NoName");
        check(
            "_sql._tcp.db.data.svc.cluster.local.",
            SRV,
            "0 100 5432 db-0.db.data.svc.cluster.local., 0 100 5432 10-42-1-6.db.data.svc.cluster.local.",
        );
        check("empty.default.svc.cluster.local.", A, "NoData");
        check("away.default.svc.cluster.local.", A, "-> Example.com. upstream");
        check("near.default.svc.cluster.local.", A, "-> web.default.svc.cluster.local. 10.43.0.9");
        check("near.default.svc.cluster.local.", AAAA, "-> web.default.svc.cluster.local. ");
        check(
            "far.default.svc.cluster.local.",
            A,
            "-> near.default.svc.cluster.local. -> web.default.svc.cluster.local. 10.43.0.9",
        );
        check("out.default.svc.cluster.local.", A, "-> away.default.svc.cluster.local. -> Example.com. upstream");
        check("self.default.svc.cluster.local.", A, "Loop");
        check("self.default.svc.cluster.local.", RecordType::CNAME, "self.default.svc.cluster.local.");
        check("ring.default.svc.cluster.local.", A, "Loop");
        check("kube-dns.kube-system.svc.cluster.local.", A, "10.43.0.10");
        check(
            "_dns._udp.kube-dns.kube-system.svc.cluster.local.",
            SRV,
            "0 100 53 kube-dns.kube-system.svc.cluster.local.",
        );
        check("10.0.43.10.in-addr.arpa.", PTR, "kube-dns.kube-system.svc.cluster.local.");
        check("10-42-3-4.any.pod.cluster.local.", A, "10.42.3.4");
        check("10-42-3-4.any.pod.cluster.local.", AAAA, "NoData");
        check("10-42-3.any.pod.cluster.local.", A, "NoName");
        check("9.0.43.10.in-addr.arpa.", PTR, "web.default.svc.cluster.local.");
        check("5.1.42.10.in-addr.arpa.", PTR, "db-0.db.data.svc.cluster.local.");
        check("9.9.43.10.in-addr.arpa.", PTR, "Elsewhere");
        check("dns-version.cluster.local.", TXT, "1.1.0");
        check("cluster.local.", SOA, "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5");
        check("notcluster.local.", A, "Elsewhere");
        check("example.com.", A, "Elsewhere");
        check(".", A, "Elsewhere");
    }
}
