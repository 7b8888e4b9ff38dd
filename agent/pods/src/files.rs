//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// The host's name inside a pod.
pub fn hostname(pod: &Pod, node_name: &str) -> String {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|spec| spec.hostname_override.clone()).filter(|name| !name.is_empty()) {
        return name;
    }
    if spec.is_some_and(|spec| spec.host_network == Some(true)) {
        return node_name.to_owned();
    }
    let name = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let mut name = name.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    // A host name has 63 characters at most (hostname(7)), a pod's name may have more.
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's name below its subdomain, when it has one.
fn fqdn(pod: &Pod, hostname: &str, domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|name| !name.is_empty())?;
    Some(format!("{hostname}.{subdomain}.{}.svc.{domain}", pod.metadata.namespace.as_deref().unwrap_or_default()))
}

/// Characters of a host name that the kernel keeps (hostname(7)).
const KERNEL_NAME_CHARS_MAX: usize = 64;

/// What the kernel says the host's name is: with `setHostnameAsFQDN` the name below its subdomain, in full.
pub fn kernel_hostname(pod: &Pod, hostname: &str, domain: &str) -> Result<String, String> {
    let wanted = pod.spec.as_ref().is_some_and(|spec| {
        spec.set_hostname_as_fqdn == Some(true) && spec.host_network != Some(true) && spec.hostname_override.is_none()
    });
    match fqdn(pod, hostname, domain).filter(|_| wanted) {
        Some(full) if full.len() > KERNEL_NAME_CHARS_MAX => Err(format!(
            "Failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({KERNEL_NAME_CHARS_MAX} characters is the max, {} characters requested)",
            full.len()
        )),
        Some(full) => Ok(full),
        None => Ok(hostname.to_owned()),
    }
}

/// `/etc/hosts`. `host_file`: the node's own, for pods that share its network.
pub fn hosts(pod: &Pod, hostname: &str, domain: &str, pod_ips: &[String], host_file: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut text = String::from("# Kubernetes-managed hosts file");
    if spec.is_some_and(|spec| spec.host_network == Some(true)) {
        text.push_str(" (host network).\n");
        text.push_str(host_file);
        if !host_file.ends_with('\n') {
            text.push('\n');
        }
    } else {
        text.push_str(".\n");
        for line in [
            "127.0.0.1\tlocalhost",
            "::1\tlocalhost ip6-localhost ip6-loopback",
            "fe00::\tip6-localnet",
            "ff02::1\tip6-allnodes",
            "ff02::2\tip6-allrouters",
        ] {
            text.push_str(line);
            text.push('\n');
        }
        for ip in pod_ips {
            match fqdn(pod, hostname, domain) {
                Some(full) => text.push_str(&format!("{ip}\t{full}\t{hostname}\n")),
                None => text.push_str(&format!("{ip}\t{hostname}\n")),
            }
        }
    }
    for alias in spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()) {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        ));
    }
    text
}

/// What resolv.conf(5) holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses.
    pub nameservers: Vec<String>,
    /// Domains.
    pub searches: Vec<String>,
    /// `ndots:5` and the like.
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads a file. Servers on a loopback address are left out: a pod has another loopback.
    pub fn parse(text: &str) -> Resolver {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let usable = |word: &&str| word.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback());
                    resolver.nameservers.extend(words.next().filter(usable).map(str::to_owned));
                }
                Some("search") => resolver.searches = words.filter(|word| *word != ".").map(str::to_owned).collect(),
                Some("options") => resolver.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolver
    }

    /// The node's own, from the first file with a server that a pod can reach.
    pub fn of_host() -> Resolver {
        let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
        let parsed =
            files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).map(|text| Resolver::parse(&text));
        let mut last = Resolver::default();
        for resolver in parsed {
            if !resolver.nameservers.is_empty() {
                return resolver;
            }
            last = resolver;
        }
        last
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// A pod's resolver by its DNS policy and configuration.
pub fn resolver(spec: &PodSpec, namespace: &str, cluster_dns: &[String], domain: &str, host: &Resolver) -> Resolver {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => spec.host_network != Some(true),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut resolver = if cluster && !cluster_dns.is_empty() {
        let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        Resolver {
            nameservers: cluster_dns.to_vec(),
            searches: own.into_iter().chain(host.searches.iter().cloned()).collect(),
            options: vec!["ndots:5".into()],
        }
    } else if policy == "None" {
        Resolver::default()
    } else {
        host.clone()
    };
    if let Some(config) = &spec.dns_config {
        resolver.nameservers.extend(config.nameservers.iter().flatten().cloned());
        resolver.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            let same = |have: &String| have == name || have.starts_with(&format!("{name}:"));
            resolver.options.retain(|have| !same(have));
            resolver.options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    resolver.nameservers.retain(|server| seen.insert(server.clone()));
    resolver.searches.retain(|domain| seen.insert(domain.clone()));
    resolver
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resolvers() {
        let host = Resolver::parse("nameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch lan .\noptions edns0\n");
        assert_eq!(host.nameservers, ["9.9.9.9"]);
        let check = |spec: serde_json::Value, expect: &str| {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(resolver(&spec, "n", &["10.43.0.10".into()], "cluster.local", &host).text(), expect, "{spec:?}");
        };
        check(
            json!({}),
            "nameserver 10.43.0.10\nsearch n.svc.cluster.local svc.cluster.local cluster.local lan\noptions ndots:5\n",
        );
        check(json!({"hostNetwork": true}), "nameserver 9.9.9.9\nsearch lan\noptions edns0\n");
        check(json!({"dnsPolicy": "Default"}), "nameserver 9.9.9.9\nsearch lan\noptions edns0\n");
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]}}),
            "nameserver 1.1.1.1\nsearch x\noptions ndots:2\n",
        );
    }

    #[test]
    fn names_in_full() {
        let check = |spec: serde_json::Value, expect: Result<&str, &str>| {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap();
            let got = kernel_hostname(&pod, &hostname(&pod, "node"), "cluster.local");
            match expect {
                Ok(name) => assert_eq!(got.as_deref(), Ok(name)),
                Err(part) => assert!(got.as_ref().is_err_and(|error| error.contains(part)), "{got:?}"),
            }
        };
        check(json!({"subdomain": "s"}), Ok("p"));
        check(json!({"setHostnameAsFQDN": true}), Ok("p"));
        check(json!({"setHostnameAsFQDN": true, "subdomain": "s"}), Ok("p.s.n.svc.cluster.local"));
        check(json!({"setHostnameAsFQDN": true, "subdomain": "s".repeat(60)}), Err("64 characters is the max"));
        check(json!({"setHostnameAsFQDN": true, "subdomain": "s", "hostNetwork": true}), Ok("node"));
    }

    #[test]
    fn names() {
        let check = |pod: serde_json::Value, expect_name: &str, expect_line: &str| {
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let name = hostname(&pod, "node");
            assert_eq!(name, expect_name);
            let text = hosts(&pod, &name, "cluster.local", &["10.0.0.1".into()], "1.2.3.4 host");
            let host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
            let head = if host {
                "# Kubernetes-managed hosts file (host network)."
            } else {
                "# Kubernetes-managed hosts file."
            };
            assert_eq!(text.lines().next(), Some(head));
            assert!(text.lines().any(|line| line == expect_line), "{text}");
        };
        check(json!({"metadata": {"name": "p"}, "spec": {"containers": []}}), "p", "10.0.0.1\tp");
        check(
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [], "hostname": "h", "subdomain": "s"}}),
            "h",
            "10.0.0.1\th.s.n.svc.cluster.local\th",
        );
        check(
            json!({"metadata": {"name": "p"}, "spec": {"containers": [], "hostNetwork": true, "hostAliases": [{"ip": "5.5.5.5", "hostnames": ["a", "b"]}]}}),
            "node",
            "5.5.5.5\ta\tb",
        );
    }
}
