//! The machine under the node: its size, its address, and the Node object that says so.

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_pods::NodeCapacity;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;

/// What is known of the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    node: String,
    address: Ipv4Addr,
    labels: Vec<(String, String)>,
    cpu_millis: i64,
    memory_bytes: i64,
    disk_bytes: i64,
    kernel: String,
    os: String,
    boot_id: String,
    machine_id: String,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

impl Machine {
    pub fn read(node: &str, address: Ipv4Addr, labels: &[(String, String)]) -> Machine {
        let memory = read("/proc/meminfo");
        let kib =
            memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<i64>().ok());
        let release = read("/etc/os-release");
        let os = release
            .lines()
            .find_map(|l| l.strip_prefix("PRETTY_NAME="))
            .unwrap_or("Linux")
            .trim_matches('"')
            .to_owned();
        let disk = nix::sys::statvfs::statvfs("/var").map_or(0, |s| s.blocks() as i64 * s.fragment_size() as i64);
        Machine {
            node: node.to_owned(),
            address,
            labels: labels.to_vec(),
            cpu_millis: std::thread::available_parallelism().map_or(1, |n| n.get() as i64) * 1000,
            memory_bytes: kib.unwrap_or(0) * 1024,
            disk_bytes: disk,
            kernel: read("/proc/sys/kernel/osrelease"),
            os,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            machine_id: read("/etc/machine-id"),
        }
    }

    pub fn capacity(&self) -> NodeCapacity {
        NodeCapacity {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_bytes,
            ephemeral_storage_bytes: self.disk_bytes,
        }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.node
    }

    /// The Node object. `ready`: None while the node is not wired up yet.
    pub fn object(&self, ready: bool) -> Value {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let mut labels = json!({
            "kubernetes.io/hostname": self.node, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch,
            "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": arch,
        });
        for (key, value) in &self.labels {
            labels[key] = json!(value);
        }
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node, "labels": labels}, "spec": {}, "status": self.status(ready)})
    }

    /// The status that the agent vouches for.
    pub fn status(&self, ready: bool) -> Value {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let now = skiff_api::meta::format_time(Timestamp::now());
        let condition = |type_: &str, status: bool, reason: &str, message: &str| {
            json!({"type": type_, "status": if status { "True" } else { "False" }, "reason": reason, "message": message,
                "lastHeartbeatTime": now, "lastTransitionTime": now})
        };
        let ready = match ready {
            true => condition("Ready", true, "KubeletReady", "the agent runs and the node's network is up"),
            false => condition("Ready", false, "KubeletNotReady", "the agent is starting"),
        };
        let amounts = json!({
            "cpu": (self.cpu_millis / 1000).to_string(), "memory": format!("{}Ki", self.memory_bytes / 1024),
            "ephemeral-storage": format!("{}Ki", self.disk_bytes / 1024), "pods": "110",
            "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        });
        json!({
            "capacity": amounts, "allocatable": amounts,
            "addresses": [{"type": "InternalIP", "address": self.address.to_string()}, {"type": "Hostname", "address": self.node}],
            "conditions": [
                condition("MemoryPressure", false, "KubeletHasSufficientMemory", "the agent has enough memory"),
                condition("DiskPressure", false, "KubeletHasNoDiskPressure", "the agent has enough disk"),
                condition("PIDPressure", false, "KubeletHasSufficientPID", "the agent has enough process ids"),
                ready,
            ],
            "nodeInfo": {
                "architecture": arch, "operatingSystem": "linux", "osImage": self.os, "kernelVersion": self.kernel,
                "bootID": self.boot_id, "machineID": self.machine_id, "systemUUID": self.machine_id,
                "containerRuntimeVersion": format!("skiff://{}", env!("CARGO_PKG_VERSION")),
                "kubeletVersion": format!("v1.36.0+skiff-{}", env!("CARGO_PKG_VERSION")), "kubeProxyVersion": "",
            },
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
        })
    }
}

/// The address from which this machine reaches `server`. Nothing is sent: a UDP socket that is connected knows its route.
pub fn address_towards(server: &str) -> anyhow::Result<Ipv4Addr> {
    let find = || -> std::io::Result<SocketAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        socket.local_addr()
    };
    match find().with_context(|| format!("finding the address towards {server}; give --node-ip"))? {
        SocketAddr::V4(address) => Ok(*address.ip()),
        SocketAddr::V6(address) => anyhow::bail!("the way to {server} is IPv6 ({address}); give an IPv4 --node-ip"),
    }
}

/// One agent a directory: a second one would fight over the pods.
pub fn lock(dir: &Path) -> anyhow::Result<nix::fcntl::Flock<File>> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow::anyhow!("another agent runs with the data directory {}", dir.display()))
}

pub async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
