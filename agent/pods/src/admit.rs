//! What this node refuses, before anything is made: a pod asks for protection or parameters that nothing here would give it.
//!
//! What is refused for good ends the pod as Failed, with the reasons that people know from the kubelet. What the runtime
//! lacks altogether fails the sandbox ([`unsupported`]), as a runtime's own refusal does elsewhere. What other
//! implementations ignore too, but a user may count on, is an event ([`ignored`]). Nothing is dropped in silence.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::observed::End;

/// Parameters that a pod may set without being asked whether it may: they are of its own namespaces, and hurt neither
/// its neighbours nor its node (Kubernetes documentation, "Using sysctls", the safe set of 1.36).
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Facts of the node that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The kernel enforces SELinux labels, which this runtime does not set.
    pub selinux: bool,
}

impl Host {
    /// As it is now (selinuxfs(5) is mounted when SELinux is on).
    pub fn read() -> Host {
        Host { selinux: std::path::Path::new("/sys/fs/selinux/enforce").exists() }
    }
}

/// How a pod ends that this node will not run; `None` for one that it runs. `allowed`: names or `prefix*` of sysctls
/// beyond the safe ones.
pub fn refusal(pod: &Pod, allowed: &[String], host: Host) -> Option<End> {
    let spec = pod.spec.as_ref()?;
    let end = |reason: &str, why: String| {
        Some(End { failed: true, reason: reason.into(), message: format!("Pod was rejected: {why}") })
    };
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return end("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS".into());
    }
    if let Err(why) = sysctls(spec, allowed) {
        return end("SysctlForbidden", why);
    }
    if wants_apparmor(pod, spec) {
        let why = "Cannot enforce AppArmor: this node's runtime applies no AppArmor profiles; use type Unconfined";
        return end("AppArmor", why.into());
    }
    if host.selinux && has_selinux(spec) {
        let why = "Cannot enforce SELinux: this node's runtime sets no SELinux labels; take seLinuxOptions away";
        return end("SELinux", why.into());
    }
    None
}

/// What the runtime has no means for: the sandbox is not made.
pub fn unsupported(spec: &PodSpec) -> Result<(), String> {
    if spec.host_users == Some(false) {
        return Err("hostUsers: false needs a user namespace, which this node's runtime does not support".into());
    }
    if let Some(class) = spec.runtime_class_name.as_deref().filter(|class| !class.is_empty()) {
        return Err(format!("failed to get sandbox runtime: no runtime for {class:?} is configured"));
    }
    if spec.resource_claims.iter().flatten().next().is_some() {
        return Err("resourceClaims need dynamic resource allocation, which this node does not support".into());
    }
    Ok(())
}

/// Why a container cannot be made as it is asked for.
pub fn unsupported_container(pod: &Pod, container: &Container) -> Result<(), String> {
    let shared = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let profile = own
        .and_then(|context| context.seccomp_profile.as_ref())
        .or(shared.and_then(|context| context.seccomp_profile.as_ref()));
    if let Some(profile) = profile.filter(|profile| profile.type_ == "Localhost") {
        let file = profile.localhost_profile.as_deref().unwrap_or_default();
        return Err(format!(
            "the seccomp profile {file:?} of type Localhost cannot be loaded: this node's runtime has RuntimeDefault and Unconfined only"
        ));
    }
    if own.and_then(|context| context.proc_mount.as_deref()).is_some_and(|mount| mount == "Unmasked") {
        return Err("procMount: Unmasked needs hostUsers: false, which this node's runtime does not support".into());
    }
    if container.volume_devices.iter().flatten().next().is_some() {
        return Err("volumeDevices: this node provides no block volumes".into());
    }
    Ok(())
}

/// What is asked for and, as elsewhere on a node like this, has no effect.
pub fn ignored(pod: &Pod, host: Host) -> Vec<&'static str> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut ignored = Vec::new();
    if !host.selinux && has_selinux(spec) {
        ignored.push("seLinuxOptions have no effect: SELinux is not enabled on this node");
    }
    let windows = spec.security_context.as_ref().is_some_and(|context| context.windows_options.is_some())
        || contexts(spec).any(|context| context.windows_options.is_some());
    if windows {
        ignored.push("windowsOptions have no effect: this node runs Linux");
    }
    ignored
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

fn contexts(spec: &PodSpec) -> impl Iterator<Item = &k8s_openapi::api::core::v1::SecurityContext> {
    containers(spec).filter_map(|container| container.security_context.as_ref())
}

fn has_selinux(spec: &PodSpec) -> bool {
    spec.security_context.as_ref().is_some_and(|context| context.se_linux_options.is_some())
        || contexts(spec).any(|context| context.se_linux_options.is_some())
}

/// A profile other than `Unconfined`, by field or by the annotation that came before it.
fn wants_apparmor(pod: &Pod, spec: &PodSpec) -> bool {
    let shared = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let own = contexts(spec).filter_map(|context| context.app_armor_profile.as_ref());
    let annotated = pod.metadata.annotations.iter().flatten().any(|(key, value)| {
        key.starts_with("container.apparmor.security.beta.kubernetes.io/") && value != "unconfined"
    });
    annotated || own.chain(shared).any(|profile| profile.type_ != "Unconfined")
}

fn sysctls(spec: &PodSpec, allowed: &[String]) -> Result<(), String> {
    let wanted = spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    for sysctl in wanted.into_iter().flatten() {
        let name = skiff_runtime::sysctl::dotted(&sysctl.name);
        let forbidden = |why: &str| Err(format!("forbidden sysctl: {:?} {why}", sysctl.name));
        let known = SAFE.contains(&name.as_str())
            || allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == *pattern,
            });
        if !known {
            return forbidden("not allowlisted");
        }
        match skiff_runtime::sysctl::namespace(&name) {
            Some(skiff_runtime::sysctl::Namespace::Network) if spec.host_network == Some(true) => {
                return forbidden("not allowed with host net enabled");
            }
            Some(skiff_runtime::sysctl::Namespace::Ipc) if spec.host_ipc == Some(true) => {
                return forbidden("not allowed with host ipc enabled");
            }
            Some(_) => {}
            None => return forbidden("is not of a pod's own namespaces"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const PLAIN: Host = Host { selinux: false };

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn sysctls_of_the_pods_own_namespaces_only() {
        let allowed: Vec<String> = ["kernel.msg*", "net.core.somaxconn", "kernel.*"].map(str::to_owned).to_vec();
        let check = |name: &str, more: Value, allowed: &[String], expect: &str| {
            let mut spec = more;
            spec["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
            let end = refusal(&pod(spec), allowed, PLAIN);
            match expect {
                "" => assert_eq!(end, None, "{name}"),
                part => {
                    let end = end.unwrap();
                    assert_eq!(end.reason, "SysctlForbidden");
                    assert!(end.message.contains(part), "{name}: {}", end.message);
                }
            }
        };
        check("net.ipv4.tcp_syncookies", json!({}), &[], "");
        check("net/ipv4/tcp_syncookies", json!({}), &[], "");
        check("kernel.shm_rmid_forced", json!({}), &[], "");
        check("kernel.printk_ratelimit_burst", json!({}), &[], "not allowlisted");
        check("kernel.msgmax", json!({}), &[], "not allowlisted");
        check("kernel.msgmax", json!({}), &allowed, "");
        check("net.core.somaxconn", json!({}), &allowed, "");
        check("net.core.somaxconn2", json!({}), &allowed, "not allowlisted");
        // Also what the administrator allows must not be the host's own.
        check("kernel.printk_ratelimit_burst", json!({}), &allowed, "not of a pod's own namespaces");
        check("kernel/core_pattern", json!({}), &allowed, "not of a pod's own namespaces");
        check("net.ipv4.tcp_syncookies", json!({"hostNetwork": true}), &[], "host net enabled");
        check("kernel.shm_rmid_forced", json!({"hostIPC": true}), &[], "host ipc enabled");
        check("kernel.shm_rmid_forced", json!({"hostNetwork": true}), &[], "");
    }

    #[test]
    fn protection_that_nobody_gives_is_refused() {
        let check = |spec: Value, host: Host, expect: Option<&str>| {
            let end = refusal(&pod(spec.clone()), &[], host);
            assert_eq!(end.as_ref().map(|end| end.reason.as_str()), expect, "{spec}");
        };
        let own = |context: Value| json!({"containers": [{"name": "c", "securityContext": context}]});
        check(json!({}), PLAIN, None);
        check(json!({"os": {"name": "linux"}}), PLAIN, None);
        check(json!({"os": {"name": "windows"}}), PLAIN, Some("PodOSNotSupported"));
        check(own(json!({"appArmorProfile": {"type": "RuntimeDefault"}})), PLAIN, Some("AppArmor"));
        check(own(json!({"appArmorProfile": {"type": "Unconfined"}})), PLAIN, None);
        check(
            json!({"securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}}}),
            PLAIN,
            Some("AppArmor"),
        );
        check(own(json!({"seLinuxOptions": {"level": "s0"}})), PLAIN, None);
        check(own(json!({"seLinuxOptions": {"level": "s0"}})), Host { selinux: true }, Some("SELinux"));
        let mut annotated = pod(json!({}));
        let key = "container.apparmor.security.beta.kubernetes.io/c".to_owned();
        annotated.metadata.annotations = Some([(key, "runtime/default".to_owned())].into());
        assert_eq!(refusal(&annotated, &[], PLAIN).map(|end| end.reason), Some("AppArmor".to_owned()));
        assert_eq!(
            ignored(&pod(own(json!({"seLinuxOptions": {"level": "s0"}, "windowsOptions": {}}))), PLAIN).len(),
            2
        );
        assert!(ignored(&pod(json!({})), PLAIN).is_empty());
    }

    #[test]
    fn what_the_runtime_lacks() {
        let check = |spec: Value, part: &str| {
            let got = unsupported(pod(spec.clone()).spec.as_ref().unwrap());
            match part {
                "" => assert_eq!(got, Ok(())),
                part => assert!(got.as_ref().is_err_and(|error| error.contains(part)), "{spec}: {got:?}"),
            }
        };
        check(json!({"hostUsers": true}), "");
        check(json!({"hostUsers": false}), "user namespace");
        check(json!({"runtimeClassName": "kata"}), "no runtime for \"kata\"");
        check(json!({"resourceClaims": [{"name": "gpu"}]}), "dynamic resource allocation");
        let container = |container: Value, part: &str| {
            let mut container = container;
            container["name"] = json!("c");
            let pod = pod(json!({"containers": [container]}));
            let got = unsupported_container(&pod, &pod.spec.as_ref().unwrap().containers[0]);
            match part {
                "" => assert_eq!(got, Ok(())),
                part => assert!(got.as_ref().is_err_and(|error| error.contains(part)), "{got:?}"),
            }
        };
        container(
            json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "procMount": "Default"}}),
            "",
        );
        let local = json!({"type": "Localhost", "localhostProfile": "a.json"});
        container(json!({"securityContext": {"seccompProfile": local}}), "a.json");
        container(json!({"securityContext": {"procMount": "Unmasked"}}), "hostUsers");
        container(json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}), "block volumes");
    }
}
