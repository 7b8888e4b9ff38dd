//! What a caller asks for: plain values that travel to the helper process as JSON.
//!
//! These types are the runtime's own. They know nothing of Kubernetes; whoever drives the runtime
//! translates. Paths are absolute, times are milliseconds since the Unix epoch unless a name says otherwise.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A sandbox: the namespaces and the helper process that containers of one pod share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSpec {
    /// Unique on this machine, and a safe file name (a Kubernetes pod UID, for instance).
    pub id: String,
    /// For people: shows up in records and error messages, never parsed. `namespace/name` by habit.
    pub name: String,
    /// Host name inside the pod; empty leaves the host's.
    pub hostname: String,
    /// Use the host's network namespace (the one of the process that owns the `Runtime`).
    pub host_network: bool,
    /// Containers see the host's processes.
    pub host_pid: bool,
    /// Use the host's System V IPC and POSIX message queues.
    pub host_ipc: bool,
    /// One PID namespace for all containers of the pod instead of one each.
    pub share_process_namespace: bool,
    /// Kernel parameters of the pod's own namespaces (`net.ipv4.ip_forward`, `1`); names with dots or slashes. Others are
    /// refused, whoever asks.
    pub sysctls: Vec<(String, String)>,
    /// Memory file systems mounted in the helper's own mount namespace, for volumes that must not touch a disk.
    /// They vanish with the pod. Containers refer to them by `path` as the source of a [`Mount`].
    pub tmpfs: Vec<Tmpfs>,
    /// Size of the pod's `/dev/shm`; 0 means 64 MiB.
    pub shm_bytes: u64,
    /// Limits of the whole pod.
    pub resources: Resources,
    /// Free for the caller; given back by `recover`.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// A memory file system at `path` (a directory of the host, made when absent).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Upper bound in bytes; 0 leaves the kernel's default, half of the memory.
    pub size_bytes: u64,
    /// Permission bits of its root.
    pub mode: u32,
}

/// One container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Unique within the pod for its whole life, and a safe file name: `web-0`, `web-1` for a restart.
    pub id: String,
    /// For people.
    pub name: String,
    /// The image's id (`sha256:...`, the digest of its configuration): what the root file system is made of.
    pub image: String,
    /// Program and arguments. The program is looked up in the `PATH` of `env` when it has no slash.
    pub args: Vec<String>,
    /// `NAME`, value. Nothing is added but `HOME`, `PATH`, `HOSTNAME` and (for a terminal) `TERM` when absent.
    pub env: Vec<(String, String)>,
    /// Working directory; empty means `/`. Made when absent.
    pub cwd: String,
    /// Volumes, in the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// CPU, memory and process limits.
    pub resources: Resources,
    /// Who the process is and what it may do.
    pub security: Security,
    /// A terminal instead of three pipes.
    pub tty: bool,
    /// Keep standard input open for `attach`; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Close standard input after the first attached client went away.
    pub stdin_once: bool,
    /// Where output goes, in the CRI log format; none discards it.
    pub log: Option<LogSpec>,
    /// Added to the process's OOM score, -1000 to 1000 (a negative one needs CAP_SYS_RESOURCE on the host, else it is skipped).
    pub oom_score_adj: i32,
    /// Limits on open files and the like; unlisted ones are inherited.
    pub rlimits: Vec<Rlimit>,
    /// Signal that asks for an orderly end (`SIGTERM` when 0); kept for the caller.
    pub stop_signal: i32,
    /// Free for the caller; given back by `recover`.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// A directory, file or device of the host inside a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Path on the host (or in the helper's namespace, for [`Tmpfs`]).
    pub source: PathBuf,
    /// A path below `source`, resolved without ever leaving it, also through symbolic links; made as a directory when absent.
    pub sub_path: String,
    /// Absolute path in the container; made when absent.
    pub target: String,
    /// Refuse writes.
    pub read_only: bool,
    /// ... in every mount below too.
    pub recursive_read_only: bool,
    /// Mounts that the host makes later below `source` show up in the container.
    pub host_to_container: bool,
    /// That, and mounts that the container makes show up on the host (and in other containers that have
    /// `host_to_container`). The source's mount must be shared (mount_namespaces(7)).
    pub bidirectional: bool,
    /// Permit device files to be opened (off: they are inert).
    pub devices: bool,
}

/// Limits; 0 means none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Relative weight in the unit of cgroup v1 (1024 = one CPU), translated for v2.
    pub cpu_shares: u64,
    /// CPU time in microseconds per `cpu_period_us`.
    pub cpu_quota_us: i64,
    /// Length of a period; 0 means 100,000.
    pub cpu_period_us: u64,
    /// Hard memory limit in bytes; crossing it ends with an OOM kill.
    pub memory_bytes: u64,
    /// Number of processes and threads.
    pub pids: u64,
}

/// A limit of `setrlimit`: `nofile`, `nproc`, `core`, `memlock`, `stack`, `fsize`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Lower-case name.
    pub name: String,
    /// What counts now.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// Identity and rights of a container's processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// `user[:group]` by name or number, looked up in the image's files; empty is root. Usually the image's own.
    pub user: String,
    /// Overrides the user id of `user`.
    pub uid: Option<u32>,
    /// Overrides the group id of `user`.
    pub gid: Option<u32>,
    /// Supplemental groups, beside those that the image's group file gives to the user.
    pub groups: Vec<u32>,
    /// No others than `groups`: what the image's group file says counts for nothing.
    pub strict_groups: bool,
    /// Everything: all capabilities, the host's devices, no masks, no seccomp filter.
    pub privileged: bool,
    /// A set-user-ID program gains nothing.
    pub no_new_privileges: bool,
    /// The root file system refuses writes.
    pub read_only_root: bool,
    /// Added to the default set; `ALL` for every one. With or without `CAP_`.
    pub add_capabilities: Vec<String>,
    /// Taken from the default set; `ALL` for every one. Applied before additions when it is `ALL`.
    pub drop_capabilities: Vec<String>,
    /// No system call filter.
    pub seccomp_unconfined: bool,
    /// Leave `/proc` and `/sys` unmasked.
    pub unmasked_proc: bool,
}

/// A container's log on the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogSpec {
    /// The live file; older ones get `.1`, `.2` and so on.
    pub path: PathBuf,
    /// Size at which a new file starts.
    pub max_bytes: u64,
    /// Files kept, the live one included.
    pub max_files: u32,
}

impl LogSpec {
    /// The usual bounds: 10 MiB a file, 5 files.
    pub fn at(path: impl Into<PathBuf>) -> LogSpec {
        LogSpec { path: path.into(), max_bytes: 10 << 20, max_files: 5 }
    }
}

/// A program to run beside a container's own, in all its namespaces.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecSpec {
    /// The container.
    pub container: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Added to (and overriding) the container's own environment.
    pub env: Vec<(String, String)>,
    /// Working directory; empty means the container's.
    pub cwd: String,
    /// A terminal instead of pipes.
    pub tty: bool,
    /// Columns and rows that the terminal has from the start; unknown means 0 of each.
    pub window: Option<(u16, u16)>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Being made: its process has not reached the program yet.
    Starting,
    /// The program runs.
    Running,
    /// It ended, or never came to run (see `error`).
    Exited,
}

/// What the helper knows of one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    /// As in the specification.
    pub id: String,
    /// Where it is.
    pub phase: Phase,
    /// Process id as the helper sees it.
    pub pid: i32,
    /// 0 to 255; 128 + the signal's number when a signal ended it; 128 when it could not be started.
    pub exit_code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// The kernel killed a process of it for lack of memory.
    pub oom_killed: bool,
    /// Why it could not be started; empty otherwise.
    pub error: String,
    /// When its program was started.
    pub started_ms: u64,
    /// When it ended; 0 while it lives.
    pub finished_ms: u64,
}

/// What the helper knows of its pod: always complete, never a difference.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodState {
    /// In the order in which they were started.
    pub containers: Vec<ContainerState>,
    /// The helper stopped everything because its lease passed.
    pub fenced: bool,
    /// The helper does not answer any more: the pod is over.
    #[serde(default)]
    pub gone: bool,
    /// The helper has spoken at least once.
    #[serde(default)]
    pub synced: bool,
}

/// CPU and memory of a container or pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// CPU time used since the start.
    pub cpu_usage_us: u64,
    /// Memory charged, page cache included.
    pub memory_bytes: u64,
    /// Memory charged less the page cache that can go at once.
    pub working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}
