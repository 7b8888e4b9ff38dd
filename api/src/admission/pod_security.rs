//! Pod Security: which level a namespace asks for, and what of a pod is beyond it.
//!
//! Source: Kubernetes documentation, "Pod Security Standards". The checks come in the order in which violations are told:
//! those of `baseline` by name, then those that `restricted` adds or sharpens.

use crate::meta;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A level as of a release of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub level: Level,
    /// `latest` or `v1.NN`
    version: String,
}

/// `restricted:latest`
impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        write!(f, "{level}:{}", self.version)
    }
}

/// One check that a pod does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

impl Policy {
    /// What a namespace asks for; `mode` is `enforce`, `warn` or `audit`.
    pub fn of(namespace: &Value, mode: &str) -> Policy {
        let label = |suffix: &str| meta::label(namespace, &format!("pod-security.kubernetes.io/{mode}{suffix}"));
        let level = match label("") {
            Some("baseline") => Level::Baseline,
            Some("restricted") => Level::Restricted,
            _ => Level::Privileged,
        };
        Policy { level, version: label("-version").unwrap_or("latest").to_string() }
    }

    /// Whether this asks for more than `other`, so that what is there already may not fit.
    pub fn is_stricter_than(&self, other: &Policy) -> bool {
        self.level != Level::Privileged
            && self != other
            && !(self.version == other.version && self.level <= other.level)
    }

    /// The minor release that the level is taken from; none for the latest.
    fn minor(&self) -> u32 {
        self.version.strip_prefix("v1.").and_then(|m| m.parse().ok()).unwrap_or(u32::MAX)
    }

    /// What a pod's (or a template's) metadata and spec violate.
    pub fn violations(&self, pod: &Value) -> Vec<Violation> {
        if self.level == Level::Privileged {
            return Vec::new();
        }
        let pod = Pod { object: pod, spec: pod.get("spec").unwrap_or(&Value::Null), minor: self.minor() };
        let restricted = self.level == Level::Restricted;
        let mut checks: Vec<fn(&Pod) -> Option<Violation>> = vec![app_armor];
        if !restricted {
            checks.push(baseline_capabilities);
        }
        checks.push(host_namespaces);
        if !restricted {
            checks.push(host_path);
        }
        checks.extend([host_ports as fn(&Pod) -> _, probe_hosts, privileged, proc_mount, se_linux]);
        if !restricted {
            checks.push(baseline_seccomp);
        }
        checks.extend([sysctls as fn(&Pod) -> _, host_process]);
        if restricted {
            checks.extend([
                privilege_escalation as fn(&Pod) -> _,
                restricted_capabilities,
                restricted_volumes,
                run_as_non_root,
                run_as_user,
                restricted_seccomp,
            ]);
        }
        checks.into_iter().filter_map(|check| check(&pod)).collect()
    }

    /// The violations as one text: `violates PodSecurity "restricted:latest": reason (detail), ...`.
    pub fn told(&self, violations: &[Violation]) -> String {
        let parts = violations.iter().map(|v| match v.detail.as_str() {
            "" => v.reason.clone(),
            detail => format!("{} ({detail})", v.reason),
        });
        format!("PodSecurity \"{self}\": {}", parts.collect::<Vec<_>>().join(", "))
    }
}

struct Pod<'a> {
    object: &'a Value,
    spec: &'a Value,
    minor: u32,
}

impl Pod<'_> {
    /// Every container, in the order in which they are told.
    fn containers(&self) -> impl Iterator<Item = &Value> {
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|l| meta::list_at(self.spec, &[l]))
    }

    fn names_where(&self, bad: impl Fn(&Value) -> bool) -> Vec<String> {
        self.containers().filter(|c| bad(c)).map(|c| meta::str_at(c, &["name"]).to_string()).collect()
    }

    fn is_windows(&self) -> bool {
        meta::str_at(self.spec, &["os", "name"]) == "windows"
    }
}

fn violation(reason: impl Into<String>, detail: impl Into<String>) -> Option<Violation> {
    Some(Violation { reason: reason.into(), detail: detail.into() })
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`
fn containers(names: &[String]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`: who sets something.
fn setters(pod: bool, names: &[String]) -> String {
    let mut all = Vec::new();
    if pod {
        all.push("pod".to_string());
    }
    if !names.is_empty() {
        all.push(containers(names));
    }
    all.join(" and ")
}

fn note(list: &mut Vec<String>, value: &str) {
    if !list.iter().any(|v| v == value) {
        list.push(value.to_string());
        list.sort();
    }
}

fn app_armor(pod: &Pod) -> Option<Violation> {
    let mut values = Vec::new();
    let mut bad = |holder: &Value| {
        let kind = meta::str_at(holder, &["securityContext", "appArmorProfile", "type"]);
        let bad = !matches!(kind, "" | "RuntimeDefault" | "Localhost");
        if bad {
            note(&mut values, kind);
        }
        bad
    };
    let of_pod = bad(pod.spec);
    let names: Vec<String> =
        pod.containers().filter(|c| bad(c)).map(|c| meta::str_at(c, &["name"]).to_string()).collect();
    let mut details = Vec::new();
    if of_pod || !names.is_empty() {
        details.push(format!("{} must not set AppArmor profile type to {}", setters(of_pod, &names), quoted(&values)));
    }
    let mut annotations: Vec<String> = meta::annotations(pod.object)
        .into_iter()
        .flatten()
        .filter(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            key.starts_with("container.apparmor.security.beta.kubernetes.io/")
                && !(value.is_empty() || value == "runtime/default" || value.starts_with("localhost/"))
        })
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    annotations.sort();
    let count = values.len() + annotations.len();
    if count == 0 {
        return None;
    }
    if !annotations.is_empty() {
        let word = plural("annotation", "annotations", annotations.len());
        details.push(format!("{word} {}", annotations.join(", ")));
    }
    violation(plural("forbidden AppArmor profile", "forbidden AppArmor profiles", count), details.join(", "))
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    meta::list_at(container, &["securityContext", "capabilities", "add"]).iter().filter_map(Value::as_str)
}

fn capabilities_beyond(pod: &Pod, allowed: &[&str]) -> (Vec<String>, Vec<String>) {
    let names = pod.names_where(|c| added(c).any(|cap| !allowed.contains(&cap)));
    let mut caps = Vec::new();
    for cap in pod.containers().flat_map(added).filter(|cap| !allowed.contains(cap)) {
        note(&mut caps, cap);
    }
    (names, caps)
}

fn baseline_capabilities(pod: &Pod) -> Option<Violation> {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let (names, caps) = capabilities_beyond(pod, &DEFAULT);
    if names.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not include {} in securityContext.capabilities.add", containers(&names), quoted(&caps));
    violation("non-default capabilities", detail)
}

fn host_namespaces(pod: &Pod) -> Option<Violation> {
    let set = ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|key| meta::bool_at(pod.spec, &[key]));
    let set: Vec<String> = set.map(|key| format!("{key}=true")).collect();
    if set.is_empty() { None } else { violation("host namespaces", set.join(", ")) }
}

fn host_path(pod: &Pod) -> Option<Violation> {
    let volumes = meta::list_at(pod.spec, &["volumes"]).iter().filter(|v| v.get("hostPath").is_some());
    let names: Vec<String> = volumes.map(|v| meta::str_at(v, &["name"]).to_string()).collect();
    if names.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names)))
}

fn host_ports(pod: &Pod) -> Option<Violation> {
    let ports_of = |c: &Value| -> Vec<i64> {
        let ports = meta::list_at(c, &["ports"]).iter().filter_map(|p| meta::i64_at(p, &["hostPort"]));
        ports.filter(|p| *p != 0).collect()
    };
    let names = pod.names_where(|c| !ports_of(c).is_empty());
    let mut ports: Vec<i64> = pod.containers().flat_map(ports_of).collect();
    ports.sort_unstable();
    ports.dedup();
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural("hostPort", "hostPorts", ports.len()),
        ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    );
    violation("hostPort", detail)
}

/// A probe or hook that names a host makes the node speak to it (since v1.34).
fn probe_hosts(pod: &Pod) -> Option<Violation> {
    if pod.minor < 34 {
        return None;
    }
    let hosts_of = |c: &Value| -> Vec<String> {
        let mut found = Vec::new();
        for place in ["livenessProbe", "readinessProbe", "startupProbe"] {
            for how in ["httpGet", "tcpSocket"] {
                found.push(meta::str_at(c, &[place, how, "host"]).to_string());
            }
        }
        for place in ["postStart", "preStop"] {
            for how in ["httpGet", "tcpSocket"] {
                found.push(meta::str_at(c, &["lifecycle", place, how, "host"]).to_string());
            }
        }
        found.retain(|host| !host.is_empty());
        found
    };
    let names = pod.names_where(|c| !hosts_of(c).is_empty());
    let mut hosts = Vec::new();
    pod.containers().flat_map(hosts_of).for_each(|host| note(&mut hosts, &host));
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} probe or lifecycle {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural("host", "hosts", hosts.len()),
        quoted(&hosts)
    );
    violation("probe or lifecycle host", detail)
}

fn privileged(pod: &Pod) -> Option<Violation> {
    let names = pod.names_where(|c| meta::bool_at(c, &["securityContext", "privileged"]));
    if names.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

fn proc_mount(pod: &Pod) -> Option<Violation> {
    let of = |c: &Value| meta::str_at(c, &["securityContext", "procMount"]).to_string();
    let bad = |kind: &str| !matches!(kind, "" | "Default");
    let names = pod.names_where(|c| bad(&of(c)));
    if names.is_empty() {
        return None;
    }
    let mut kinds = Vec::new();
    pod.containers().map(of).filter(|k| bad(k)).for_each(|k| note(&mut kinds, &k));
    let detail = format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(&kinds));
    violation("procMount", detail)
}

fn se_linux(pod: &Pod) -> Option<Violation> {
    let (mut types, mut user, mut role) = (Vec::new(), false, false);
    let mut bad = |holder: &Value| {
        let of = |key: &str| meta::str_at(holder, &["securityContext", "seLinuxOptions", key]);
        let allowed = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
        let odd_type = !allowed.contains(&of("type"));
        if odd_type {
            note(&mut types, of("type"));
        }
        user |= !of("user").is_empty();
        role |= !of("role").is_empty();
        odd_type || !of("user").is_empty() || !of("role").is_empty()
    };
    let of_pod = bad(pod.spec);
    let names: Vec<String> =
        pod.containers().filter(|c| bad(c)).map(|c| meta::str_at(c, &["name"]).to_string()).collect();
    if !of_pod && names.is_empty() {
        return None;
    }
    let mut said = Vec::new();
    if !types.is_empty() {
        said.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
    }
    if user {
        said.push("user may not be set".into());
    }
    if role {
        said.push("role may not be set".into());
    }
    let word = if of_pod as usize + names.len() == 1 { "sets" } else { "set" };
    let detail =
        format!("{} {word} forbidden securityContext.seLinuxOptions: {}", setters(of_pod, &names), said.join("; "));
    violation("seLinuxOptions", detail)
}

fn seccomp(holder: &Value) -> &str {
    meta::str_at(holder, &["securityContext", "seccompProfile", "type"])
}

fn is_odd_seccomp(kind: &str) -> bool {
    !matches!(kind, "" | "RuntimeDefault" | "Localhost")
}

/// Who sets a profile that is not allowed.
fn odd_seccomp(pod: &Pod) -> Option<String> {
    let of_pod = is_odd_seccomp(seccomp(pod.spec));
    let names = pod.names_where(|c| is_odd_seccomp(seccomp(c)));
    if !of_pod && names.is_empty() {
        return None;
    }
    let mut kinds = Vec::new();
    for kind in pod.containers().chain([pod.spec]).map(seccomp).filter(|k| is_odd_seccomp(k)) {
        note(&mut kinds, kind);
    }
    let setters = setters(of_pod, &names);
    Some(format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(&kinds)))
}

fn baseline_seccomp(pod: &Pod) -> Option<Violation> {
    violation("seccompProfile", odd_seccomp(pod)?)
}

fn restricted_seccomp(pod: &Pod) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    if let Some(detail) = odd_seccomp(pod) {
        return violation("seccompProfile", detail);
    }
    if !seccomp(pod.spec).is_empty() {
        return None;
    }
    let names = pod.names_where(|c| seccomp(c).is_empty());
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&names)
    );
    violation("seccompProfile", detail)
}

fn sysctls(pod: &Pod) -> Option<Violation> {
    /// Name and the release that allowed it first.
    const SAFE: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let set = meta::list_at(pod.spec, &["securityContext", "sysctls"]).iter().map(|s| meta::str_at(s, &["name"]));
    let bad: Vec<&str> =
        set.filter(|name| !SAFE.iter().any(|(safe, since)| safe == name && pod.minor >= *since)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn host_process(pod: &Pod) -> Option<Violation> {
    let set = |holder: &Value| meta::bool_at(holder, &["securityContext", "windowsOptions", "hostProcess"]);
    let names = pod.names_where(set);
    let of_pod = set(pod.spec);
    if !of_pod && names.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.windowsOptions.hostProcess=true", setters(of_pod, &names));
    violation("hostProcess", detail)
}

fn privilege_escalation(pod: &Pod) -> Option<Violation> {
    let kept = |c: &Value| meta::at(c, &["securityContext", "allowPrivilegeEscalation"]) == Some(&Value::Bool(false));
    let names = pod.names_where(|c| !kept(c));
    if names.is_empty() || pod.is_windows() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    violation("allowPrivilegeEscalation != false", detail)
}

fn restricted_capabilities(pod: &Pod) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let drops_all = |c: &Value| {
        meta::list_at(c, &["securityContext", "capabilities", "drop"]).iter().any(|capability| capability == "ALL")
    };
    let mut details = Vec::new();
    let keeping = pod.names_where(|c| !drops_all(c));
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    let (adding, caps) = capabilities_beyond(pod, &["NET_BIND_SERVICE"]);
    if !adding.is_empty() {
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adding),
            quoted(&caps)
        ));
    }
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn restricted_volumes(pod: &Pod) -> Option<Violation> {
    const ALLOWED: [&str; 8] =
        ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    let (mut names, mut types) = (Vec::new(), Vec::new());
    for volume in meta::list_at(pod.spec, &["volumes"]) {
        let source = volume.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).find(|key| *key != "name");
        let source = source.unwrap_or("unknown");
        if !(ALLOWED.contains(&source) || source == "image" && pod.minor >= 36) {
            names.push(meta::str_at(volume, &["name"]).to_string());
            note(&mut types, source);
        }
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", names.len()),
        quoted(&names),
        plural("uses", "use", names.len()),
        plural("restricted volume type", "restricted volume types", types.len()),
        quoted(&types)
    );
    violation("restricted volume types", detail)
}

fn run_as_non_root(pod: &Pod) -> Option<Violation> {
    let of = |holder: &Value| meta::at(holder, &["securityContext", "runAsNonRoot"]).and_then(Value::as_bool);
    let whole = of(pod.spec);
    let root = pod.names_where(|c| of(c) == Some(false));
    if whole == Some(false) || !root.is_empty() {
        let setters = setters(whole == Some(false), &root);
        return violation("runAsNonRoot != true", format!("{setters} must not set securityContext.runAsNonRoot=false"));
    }
    let open = pod.names_where(|c| of(c).is_none());
    if whole == Some(true) || open.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&open));
    violation("runAsNonRoot != true", detail)
}

fn run_as_user(pod: &Pod) -> Option<Violation> {
    let root = |holder: &Value| meta::i64_at(holder, &["securityContext", "runAsUser"]) == Some(0);
    let names = pod.names_where(root);
    if !root(pod.spec) && names.is_empty() {
        return None;
    }
    violation("runAsUser=0", format!("{} must not set runAsUser=0", setters(root(pod.spec), &names)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(level: &str, spec: Value, expect: &[&str]) {
        let namespace = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
        let policy = Policy::of(&namespace, "enforce");
        let found = policy.violations(&json!({"spec": spec}));
        assert_eq!(found.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>(), expect, "{spec}");
    }

    #[test]
    fn levels() {
        let plain = json!({"containers": [{"name": "c"}]});
        check("privileged", json!({"hostNetwork": true, "containers": [{"name": "c"}]}), &[]);
        check("baseline", plain.clone(), &[]);
        check(
            "restricted",
            plain,
            &[
                "allowPrivilegeEscalation != false",
                "unrestricted capabilities",
                "runAsNonRoot != true",
                "seccompProfile",
            ],
        );
        check(
            "baseline",
            json!({"hostPID": true, "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
                "containers": [{"name": "c", "ports": [{"hostPort": 80}], "securityContext": {"privileged": true}}]}),
            &["host namespaces", "hostPath volumes", "hostPort", "privileged"],
        );
        let good = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        check(
            "restricted",
            json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "c", "securityContext": good}]}),
            &[],
        );
    }

    #[test]
    fn told() {
        let policy = Policy { level: Level::Restricted, version: "latest".into() };
        let pod = json!({"spec": {"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(
            policy.told(&policy.violations(&pod)),
            "PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (containers \"a\", \"b\" must set \
             securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (containers \"a\", \"b\" must set \
             securityContext.capabilities.drop=[\"ALL\"])"
        );
    }
}
