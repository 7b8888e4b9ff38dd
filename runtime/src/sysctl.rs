//! Kernel parameters that belong to namespaces (sysctl(8)), and where they are.
//!
//! Everything else below `/proc/sys` is the host's, whoever writes it: a pod never sets it, whatever its caller allows.

use std::path::PathBuf;

/// What a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// System V IPC and POSIX message queues.
    Ipc,
    /// The network.
    Network,
}

/// The name with dots between its parts. Like sysctl(8), the first separator tells which form a name has; in the other
/// one, `/` and `.` change places (`net/ipv4/conf/eth0.100/mtu` is `net.ipv4.conf.eth0/100.mtu`).
pub fn dotted(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => swapped(name),
        _ => name.to_owned(),
    }
}

fn swapped(name: &str) -> String {
    let swap = |letter: char| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

/// The namespace of a parameter (dotted name); none for one of the whole machine (ipc_namespaces(7),
/// network_namespaces(7)).
pub fn namespace(name: &str) -> Option<Namespace> {
    let ipc = name == "kernel.sem" || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p));
    if ipc {
        return Some(Namespace::Ipc);
    }
    name.starts_with("net.").then_some(Namespace::Network)
}

/// The file of a parameter, if it is one of the pod's own namespaces.
pub fn file(name: &str, host_network: bool, host_ipc: bool) -> Result<PathBuf, String> {
    let name = dotted(name);
    let shared = match namespace(&name) {
        None => return Err(format!("the kernel parameter {name} is of the whole machine, not of a pod's namespaces")),
        Some(Namespace::Network) => host_network,
        Some(Namespace::Ipc) => host_ipc,
    };
    if shared {
        return Err(format!("the kernel parameter {name} would be the host's: the pod shares that namespace"));
    }
    let path = swapped(&name);
    if path.contains('\0') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{name:?} is not the name of a kernel parameter"));
    }
    Ok(PathBuf::from("/proc/sys").join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_pods_own() {
        let check = |name: &str, host: (bool, bool), expect: Option<&str>| {
            assert_eq!(file(name, host.0, host.1).ok(), expect.map(PathBuf::from), "{name}");
        };
        let own = (false, false);
        check("net.ipv4.ip_forward", own, Some("/proc/sys/net/ipv4/ip_forward"));
        check("net/ipv4/ip_forward", own, Some("/proc/sys/net/ipv4/ip_forward"));
        check("net.ipv4.conf.eth0/100.rp_filter", own, Some("/proc/sys/net/ipv4/conf/eth0.100/rp_filter"));
        check("net/ipv4/conf/eth0.100/rp_filter", own, Some("/proc/sys/net/ipv4/conf/eth0.100/rp_filter"));
        check("kernel.shmmax", own, Some("/proc/sys/kernel/shmmax"));
        check("kernel.sem", own, Some("/proc/sys/kernel/sem"));
        check("fs.mqueue.msg_max", own, Some("/proc/sys/fs/mqueue/msg_max"));
        for name in
            ["kernel.printk_ratelimit_burst", "kernel.core_pattern", "vm.overcommit_memory", "fs.file-max", "net", ""]
        {
            check(name, own, None);
        }
        for name in
            ["net.//.kernel.core_pattern", "net/../kernel/core_pattern", "net..x", "kernel.shm/../x", "net.x\0y"]
        {
            let path = file(name, false, false).ok();
            assert!(path.as_ref().is_none_or(|path| !path.to_string_lossy().contains("..")), "{name}: {path:?}");
        }
        check("net.//.kernel.core_pattern", own, None);
        check("net/../kernel/core_pattern", own, None);
        check("net.ipv4.ip_forward", (true, false), None);
        check("kernel.shmmax", (true, false), Some("/proc/sys/kernel/shmmax"));
        check("kernel.shmmax", (false, true), None);
    }
}
