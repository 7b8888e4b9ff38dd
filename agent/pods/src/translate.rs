//! From a pod's object to what the runtime takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};
use skiff_api::expand::expand;
use skiff_runtime::{ContainerSpec, ImageConfig, LogSpec, Mount, PodSpec, Resources, Security};

use crate::observed::container_id;
use crate::resources::{NodeCapacity, container_resources, oom_score_adj, pod_resources};
use crate::traits::{EnsuredImage, HostPort, PodIdentity};
use crate::volumes::{Content, Place};

/// Who a pod is.
pub fn identity(pod: &Pod) -> PodIdentity {
    let own = |text: &Option<String>| text.clone().unwrap_or_default();
    PodIdentity { namespace: own(&pod.metadata.namespace), name: own(&pod.metadata.name), uid: own(&pod.metadata.uid) }
}

/// The runtime's pod.
///
/// `pids_max`: most processes and threads in all of its containers; 0 for no limit.
pub fn pod_spec(pod: &Pod, hostname: &str, places: &[Place], pids_max: u64) -> PodSpec {
    let id = identity(pod);
    let spec = pod.spec.as_ref();
    let flag = |flag: Option<bool>| flag.unwrap_or(false);
    let sysctls = spec
        .and_then(|spec| spec.security_context.as_ref())
        .and_then(|context| context.sysctls.clone())
        .unwrap_or_default();
    PodSpec {
        id: id.uid,
        name: format!("{}/{}", id.namespace, id.name),
        hostname: hostname.to_owned(),
        host_network: spec.is_some_and(|spec| flag(spec.host_network)),
        host_pid: spec.is_some_and(|spec| flag(spec.host_pid)),
        host_ipc: spec.is_some_and(|spec| flag(spec.host_ipc)),
        share_process_namespace: spec.is_some_and(|spec| flag(spec.share_process_namespace)),
        sysctls: sysctls.into_iter().map(|sysctl| (sysctl.name, sysctl.value)).collect(),
        tmpfs: places.iter().filter_map(|place| place.tmpfs.clone()).collect(),
        resources: Resources { pids: pids_max, ..pod_resources(pod) },
        ..PodSpec::default()
    }
}

/// The ports of the node that lead to a pod.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let containers =
        pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(HostPort {
                host_port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
                host_ip: port.host_ip.clone().unwrap_or_default(),
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        })
        .collect()
}

/// Where the files of one pod are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPaths {
    /// Hosts, resolver, termination messages, volumes, the record.
    pub dir: PathBuf,
    /// `CONTAINER/ATTEMPT.log`.
    pub logs: PathBuf,
}

impl PodPaths {
    /// Below the agent's directories.
    pub fn new(root: &Path, logs: &Path, pod: &PodIdentity) -> PodPaths {
        PodPaths { dir: root.join(&pod.uid), logs: logs.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid)) }
    }

    /// One instance's log.
    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs.join(container).join(format!("{attempt}.log"))
    }

    /// One instance's termination message.
    pub fn termination(&self, container: &str, attempt: u32) -> PathBuf {
        self.dir.join("messages").join(container_id(container, attempt))
    }

    /// Where volumes are.
    pub fn volumes(&self) -> PathBuf {
        self.dir.join("volumes")
    }
}

/// What a container is made of, besides its object.
pub struct Parts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// Which instance.
    pub attempt: u32,
    /// The image.
    pub image: &'a EnsuredImage,
    /// Variables.
    pub env: &'a [(String, String)],
    /// Volumes.
    pub places: &'a [Place],
    /// Files.
    pub paths: &'a PodPaths,
    /// For OOM scores.
    pub node: NodeCapacity,
}

impl Parts<'_> {
    /// The runtime's container, or why it cannot be.
    pub fn spec(&self) -> Result<ContainerSpec, String> {
        let (container, image) = (self.container, &self.image.config);
        let own: BTreeMap<&str, &str> = self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let expanded = |words: &[String]| -> Vec<String> {
            words.iter().map(|word| expand(word, |name| own.get(name).map(|value| value.to_string()))).collect()
        };
        let command = container.command.as_deref().filter(|words| !words.is_empty());
        let args = container.args.as_deref().filter(|words| !words.is_empty());
        let words = match (command, args) {
            (Some(command), args) => [expanded(command), expanded(args.unwrap_or_default())].concat(),
            (None, Some(args)) => [image.entrypoint.clone(), expanded(args)].concat(),
            (None, None) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
        };
        if words.is_empty() {
            return Err("no command specified".into());
        }
        let mut env = image.env_pairs();
        for (name, value) in self.env {
            match env.iter_mut().find(|(have, _)| have == name) {
                Some(entry) => entry.1.clone_from(value),
                None => env.push((name.clone(), value.clone())),
            }
        }
        Ok(ContainerSpec {
            id: container_id(&container.name, self.attempt),
            name: container.name.clone(),
            image: self.image.id.clone(),
            args: words,
            env,
            cwd: container
                .working_dir
                .clone()
                .filter(|dir| !dir.is_empty())
                .unwrap_or_else(|| image.working_dir.clone()),
            mounts: self.mounts(&own)?,
            resources: container_resources(container),
            security: security(self.pod, container, image)?,
            tty: container.tty.unwrap_or(false),
            stdin: container.stdin.unwrap_or(false),
            stdin_once: container.stdin_once.unwrap_or(false),
            log: Some(LogSpec::at(self.paths.log(&container.name, self.attempt))),
            oom_score_adj: oom_score_adj(self.pod, container, self.node),
            rlimits: Vec::new(),
            stop_signal: stop_signal(container, image),
            labels: BTreeMap::new(),
        })
    }

    fn mounts(&self, env: &BTreeMap<&str, &str>) -> Result<Vec<Mount>, String> {
        let privileged =
            self.container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false);
        let mut mounts = Vec::new();
        for wanted in self.container.volume_mounts.iter().flatten() {
            let place = self.places.iter().find(|place| place.name == wanted.name);
            let place =
                place.ok_or_else(|| format!("the volume mount {:?} names no volume of the pod", wanted.name))?;
            let sub_path = match wanted.sub_path_expr.as_deref().filter(|text| !text.is_empty()) {
                Some(text) => expand(text, |name| env.get(name).map(|value| value.to_string())),
                None => wanted.sub_path.clone().unwrap_or_default(),
            };
            if sub_path.starts_with('/') || sub_path.split('/').any(|part| part == "..") {
                return Err(format!("subPath {sub_path:?} must be relative and without '..'"));
            }
            let bidirectional = wanted.mount_propagation.as_deref() == Some("Bidirectional");
            if bidirectional && (!privileged || place.tmpfs.is_some()) {
                return Err(format!(
                    "mountPropagation Bidirectional of {:?} is for privileged containers and volumes on the node's file systems",
                    wanted.name
                ));
            }
            mounts.push(Mount {
                source: place.path.clone(),
                sub_path,
                target: wanted.mount_path.clone(),
                read_only: wanted.read_only.unwrap_or(false) || place.content == Content::Files,
                recursive_read_only: matches!(wanted.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
                host_to_container: wanted.mount_propagation.as_deref() == Some("HostToContainer"),
                bidirectional,
                devices: privileged && matches!(place.content, Content::Host(_)),
            });
        }
        // Outer ones before those inside them.
        mounts.sort_by_key(|mount| mount.target.split('/').filter(|part| !part.is_empty()).count());
        let message = self.container.termination_message_path.clone().filter(|path| !path.is_empty());
        let message = message.unwrap_or_else(|| "/dev/termination-log".into());
        let files = [
            (self.paths.dir.join("hosts"), "/etc/hosts".to_owned()),
            (self.paths.dir.join("hostname"), "/etc/hostname".to_owned()),
            (self.paths.dir.join("resolv.conf"), "/etc/resolv.conf".to_owned()),
            (self.paths.termination(&self.container.name, self.attempt), message),
        ];
        for (source, target) in files {
            if !mounts.iter().any(|mount| mount.target.trim_end_matches('/') == target) {
                mounts.push(Mount { source, target, ..Mount::default() });
            }
        }
        Ok(mounts)
    }
}

fn security(pod: &Pod, container: &Container, image: &ImageConfig) -> Result<Security, String> {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let shared = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let number = |id: Option<i64>| {
        id.map(|id| u32::try_from(id).map_err(|_| format!("the user or group id {id} is out of range"))).transpose()
    };
    let uid = number(own.run_as_user.or(shared.run_as_user))?;
    let gid = number(own.run_as_group.or(shared.run_as_group))?;
    if own.run_as_non_root.or(shared.run_as_non_root) == Some(true) {
        let user = image.user.split(':').next().unwrap_or_default();
        match (uid, user.parse::<u32>()) {
            (Some(0), _) => return Err("container's runAsUser breaks non-root policy".into()),
            (Some(_), _) => {}
            (None, Ok(0)) => return Err("container has runAsNonRoot and image will run as root".into()),
            (None, Ok(_)) => {}
            (None, Err(_)) if user.is_empty() => {
                return Err("container has runAsNonRoot and image will run as root".into());
            }
            (None, Err(_)) => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root"
                ));
            }
        }
    }
    let mut groups = Vec::new();
    for group in shared.supplemental_groups.iter().flatten().copied().chain(shared.fs_group) {
        groups.extend(number(Some(group))?);
    }
    let seccomp = own.seccomp_profile.as_ref().or(shared.seccomp_profile.as_ref());
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    Ok(Security {
        user: image.user.clone(),
        uid,
        gid,
        groups,
        strict_groups: shared.supplemental_groups_policy.as_deref() == Some("Strict"),
        privileged,
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        seccomp_unconfined: seccomp.is_some_and(|profile| profile.type_ == "Unconfined"),
        // Refused before (`admit`): without a user namespace it would lay the host bare.
        unmasked_proc: false,
    })
}

/// The signal that asks a container to end: the object's, else the image's.
pub fn stop_signal(container: &Container, image: &ImageConfig) -> i32 {
    let own = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    signal_number(own.unwrap_or(&image.stop_signal))
}

/// `SIGQUIT`, `QUIT` or `3`; anything else is SIGTERM.
fn signal_number(text: &str) -> i32 {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { number } else { libc::SIGTERM };
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<nix::sys::signal::Signal>().map_or(libc::SIGTERM, |signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(
        pod_security: serde_json::Value,
        container: serde_json::Value,
        user: &str,
    ) -> Result<ContainerSpec, String> {
        let mut container = container;
        container["name"] = json!("c");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [container], "securityContext": pod_security}}))
        .unwrap();
        let config = ImageConfig {
            user: user.into(),
            entrypoint: vec!["entry".into()],
            cmd: vec!["cmd".into()],
            env: vec!["A=image".into(), "B=image".into()],
            stop_signal: "SIGQUIT".into(),
            ..ImageConfig::default()
        };
        let image =
            EnsuredImage { id: "sha256:0".into(), image_ref: String::new(), config, present: true, size_bytes: 0 };
        let place = Place { name: "v".into(), path: "/v".into(), tmpfs: None, content: Content::Empty };
        let paths = PodPaths::new(Path::new("/r"), Path::new("/l"), &identity(&pod));
        let env = [("A".to_owned(), "own".to_owned())];
        let container = &pod.spec.as_ref().unwrap().containers[0];
        Parts {
            pod: &pod,
            container,
            attempt: 2,
            image: &image,
            env: &env,
            places: &[place],
            paths: &paths,
            node: NodeCapacity::default(),
        }
        .spec()
    }

    #[test]
    fn commands() {
        let check = |container: serde_json::Value, expect: &[&str]| {
            let got = spec(json!({}), container, "").unwrap();
            assert_eq!(got.args, expect);
            assert_eq!(got.env[0].1, "own");
            assert_eq!((got.stop_signal, got.id.as_str()), (libc::SIGQUIT, "c-2"));
            assert_eq!(got.log.unwrap().path, PathBuf::from("/l/n_p_u/c/2.log"));
        };
        check(json!({}), &["entry", "cmd"]);
        check(json!({"args": ["x"]}), &["entry", "x"]);
        check(json!({"command": ["sh"]}), &["sh"]);
        check(json!({"command": ["sh", "$(A)"], "args": ["$(B)", "$$(A)"]}), &["sh", "own", "$(B)", "$(A)"]);
    }

    #[test]
    fn users() {
        let check =
            |pod: serde_json::Value, container: serde_json::Value, user: &str, expect: Result<Option<u32>, &str>| {
                let got = spec(pod, json!({ "securityContext": container }), user).map(|spec| spec.security.uid);
                match expect {
                    Ok(uid) => assert_eq!(got, Ok(uid)),
                    Err(part) => assert!(got.as_ref().is_err_and(|error| error.contains(part)), "{got:?}"),
                }
            };
        check(json!({}), json!({}), "", Ok(None));
        check(json!({"runAsUser": 5}), json!({}), "", Ok(Some(5)));
        check(json!({"runAsUser": 5}), json!({"runAsUser": 6}), "", Ok(Some(6)));
        check(json!({"runAsNonRoot": true}), json!({}), "", Err("will run as root"));
        check(json!({"runAsNonRoot": true}), json!({}), "web", Err("non-numeric user (web)"));
        check(json!({"runAsNonRoot": true}), json!({}), "1000:0", Ok(None));
        check(json!({"runAsNonRoot": true}), json!({"runAsUser": 0}), "", Err("breaks non-root"));
        check(json!({"runAsUser": -1}), json!({}), "", Err("out of range"));
    }

    #[test]
    fn mounts_in_order() {
        let container = json!({"volumeMounts": [{"name": "v", "mountPath": "/a/b", "subPathExpr": "$(A)"}, {"name": "v", "mountPath": "/a", "readOnly": true}]});
        let got = spec(json!({}), container, "").unwrap().mounts;
        let targets: Vec<_> = got.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/a/b", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"]);
        assert_eq!((got[0].read_only, got[1].sub_path.as_str()), (true, "own"));
        assert!(spec(json!({}), json!({"volumeMounts": [{"name": "no", "mountPath": "/a"}]}), "").is_err());
        assert!(
            spec(json!({}), json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "../x"}]}), "")
                .is_err()
        );
    }

    #[test]
    fn signals() {
        for (text, expect) in [("", 15), ("SIGUSR1", 10), ("usr1", 10), ("9", 9), ("0", 15), ("junk", 15)] {
            assert_eq!(signal_number(text), expect, "{text}");
        }
    }
}
