//! The helper process of a pod: parent and subreaper of its containers, alive as long as the pod.
//!
//! It is this binary under the name `skiff-pod`, run from a sealed memory file, so that all helpers share their text
//! and an upgrade of the file on disk touches none. It has one thread: between `clone` and `exec` a child may do
//! anything. It outlives whoever started it: a session and a control group of its own, and no pipe to lose.

mod attached;
mod channel;
mod container;
mod exec;
mod identity;
mod init;
mod logs;
mod mounts;
mod seccomp;
mod server;

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::{Context, Result, on};
use crate::spec::PodSpec;
use crate::{sys, sysctl};

/// The name under which the binary is a helper.
pub const PROGRAM: &str = "skiff-pod";
/// The pod's specification and places, written before the helper starts.
pub const CONFIG_FILE: &str = "pod.json";
/// The helper's identity, written by itself.
pub const RECORD_FILE: &str = "helper.json";
/// The pod's `/dev/shm`, mounted in the helper's namespace only.
pub const SHM_DIR: &str = "shm";

/// In a pod's own network namespace any user may serve any port and send echo requests, as with other runtimes: who is in
/// there owns all of it. A pod's own parameters are set after these.
const OPEN_NETWORK: [(&str, &str); 2] = [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")];

/// What a helper is told on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HelperConfig {
    pub spec: PodSpec,
    /// The pod's group: parent of one a container.
    pub cgroup: Cgroup,
    /// Where helpers live.
    pub helper_cgroup: Cgroup,
}

/// What identifies a helper, beyond its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelperRecord {
    pub pid: i32,
    /// Clock ticks after boot.
    pub start_time: u64,
    pub boot_id: String,
}

impl HelperRecord {
    fn of_self() -> HelperRecord {
        let pid = std::process::id() as i32;
        HelperRecord { pid, start_time: sys::start_time(pid).unwrap_or(0), boot_id: sys::boot_id() }
    }

    /// The process is still that one.
    pub fn alive(&self) -> bool {
        self.boot_id == sys::boot_id() && sys::start_time(self.pid) == Some(self.start_time)
    }
}

/// Becomes a pod's helper when the program was started as one; returns at once otherwise. Call it first in `main`,
/// before any thread exists.
pub fn maybe_run_helper() {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == PROGRAM) {
        helper_main();
    }
}

/// The helper's life. `argv[1]` is the pod's directory; descriptor 0 is where it says that it is ready, or why not.
pub fn helper_main() -> ! {
    // SAFETY: descriptor 0 was given to this process for this purpose, and nothing has taken it.
    let ready = unsafe { OwnedFd::from_raw_fd(0) };
    let dir = PathBuf::from(std::env::args_os().nth(1).unwrap_or_default());
    let code = match prepare(&dir) {
        Ok(server) => {
            say(ready, "");
            server.run()
        }
        Err(error) => {
            eprintln!("{error}");
            say(ready, &error.to_string());
            1
        }
    };
    std::process::exit(code)
}

/// `R` or `E` and the reason on the channel, which then becomes /dev/null.
fn say(ready: OwnedFd, error: &str) {
    let mut channel = fs::File::from(ready);
    let word = if error.is_empty() { "R".to_owned() } else { format!("E{error}") };
    let _ = channel.write_all(word.as_bytes());
    if let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        // SAFETY: dup2 onto the descriptor that `channel` owns; it closes the socket in the same step.
        unsafe { libc::dup2(null.as_raw_fd(), channel.as_raw_fd()) };
    }
    std::mem::forget(channel);
}

fn prepare(dir: &Path) -> Result<server::Server> {
    let file = dir.join(CONFIG_FILE);
    let text = fs::read(&file).context(on("read", &file))?;
    let config: HelperConfig = serde_json::from_slice(&text).map_err(io::Error::from).context(on("read", &file))?;
    let spec = &config.spec;
    // What is forked here enters containers before it runs their programs: until then nobody in there may look into it, by
    // ptrace or through /proc/PID/fd (PR_SET_DUMPABLE in prctl(2); the program that is run is ordinary again).
    nix::sys::prctl::set_dumpable(false).context(|| "hide the helper from its containers".into())?;
    // What the helper itself writes (logs) is for root and its group; its containers begin with the usual mask again.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
    nix::unistd::setsid().context(|| "start a session for the helper".into())?;
    nix::sys::prctl::set_name(c"skiff-pod").context(|| "name the helper".into())?;
    nix::sys::prctl::set_child_subreaper(true).context(|| "become a subreaper".into())?;
    // Losing the helper loses the pod; where the host permits it, the kernel takes others first.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    config.helper_cgroup.enter()?;

    let host_mounts = fs::File::open("/proc/self/ns/mnt").context(|| "open the host's mount namespace".into())?.into();
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    flags.set(CloneFlags::CLONE_NEWNET, !spec.host_network);
    flags.set(CloneFlags::CLONE_NEWIPC, !spec.host_ipc);
    unshare(flags).context(|| format!("make the namespaces of pod {} (this needs root)", spec.id))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .context(|| "detach the helper's mounts".into())?;
    if !spec.host_network {
        loopback_up().context(|| "bring up the pod's loopback interface".into())?;
        // Best effort: a kernel that lacks one of them gives programs without rights a little less.
        for (name, value) in OPEN_NETWORK {
            let _ = fs::write(Path::new("/proc/sys/net/ipv4").join(name), value);
        }
    }
    if !spec.hostname.is_empty() {
        nix::unistd::sethostname(&spec.hostname).context(|| format!("set the host name {:?}", spec.hostname))?;
    }
    for (name, value) in &spec.sysctls {
        let refused = |why| crate::Error::Invalid { what: "kernel parameter", value: name.clone(), why };
        let file = sysctl::file(name, spec.host_network, spec.host_ipc).map_err(refused)?;
        fs::write(&file, value).context(|| format!("set the kernel parameter {name} to {value:?}"))?;
    }
    if !spec.host_ipc {
        let bytes = if spec.shm_bytes == 0 { 64 << 20 } else { spec.shm_bytes };
        tmpfs(&dir.join(SHM_DIR), bytes, 0o1777)?;
    }
    for volume in &spec.tmpfs {
        tmpfs(&volume.path, volume.size_bytes, volume.mode)?;
    }
    server::Server::new(dir, config, host_mounts)
}

fn tmpfs(dir: &Path, size_bytes: u64, mode: u32) -> Result<()> {
    fs::create_dir_all(dir).context(on("make", dir))?;
    let size = if size_bytes == 0 { String::new() } else { format!(",size={size_bytes}") };
    let options = format!("mode={mode:o}{size}");
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))
        .context(|| format!("mount a memory file system on {}", dir.display()))
}

fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data for which zeros are valid; name and flags are set before the call.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request outlives the call and has the type that SIOCSIFFLAGS takes.
    sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } as libc::c_long).map(drop)
}
