//! A container's file system, made inside its own mount namespace: overlay, kernel file systems, devices, volumes.
//!
//! Everything that is mounted here vanishes with the namespace, so nothing can leak on the host. Paths inside the root
//! are resolved without leaving it, because an image may contain any symbolic link. Device files are inert everywhere
//! but in `/dev`, whose few nodes are the host's, bound one by one: that holds on every cgroup version, without a device filter.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cgroup::Cgroup;
use crate::spec::{Mount, PodSpec};
use crate::sys::{self, Make};
use crate::wire::StartRequest;

const NONE: Option<&str> = None;
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];
/// Kernel interfaces that tell or change too much of the host; the list is Docker's.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Makes everything and changes into it. The caller is alone in a fresh mount namespace.
pub fn enter_root(request: &StartRequest, pod: &PodSpec, pod_dir: &Path) -> Result<(), String> {
    let dir = Path::new(&request.dir);
    let root_path = dir.join("root");
    overlay(request, &root_path)?;
    let root = Root::open(&root_path)?;
    kernel(&root, request, pod, pod_dir)?;
    for volume in &request.spec.mounts {
        root.volume(volume)?;
    }
    let security = &request.spec.security;
    if !security.privileged && !security.unmasked_proc {
        protect(&root)?;
    }
    nix::unistd::fchdir(&root.fd).map_err(|error| format!("enter the root file system: {error}"))?;
    nix::unistd::pivot_root(".", ".").map_err(|error| format!("pivot into the root file system: {error}"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|error| format!("leave the host's file systems: {error}"))?;
    std::env::set_current_dir("/").map_err(|error| format!("change to /: {error}"))?;
    if security.read_only_root {
        let here = fs::File::open("/").map_err(|error| format!("open /: {error}"))?;
        sys::mount_setattr(here.as_raw_fd(), libc::MOUNT_ATTR_RDONLY, 0, false)
            .map_err(|error| format!("make the root file system read-only: {error}"))?;
    }
    Ok(())
}

fn overlay(request: &StartRequest, root: &Path) -> Result<(), String> {
    let fail = |what: &str, error: io::Error| format!("{what}: {error}");
    for name in ["upper", "work", "root"] {
        let dir = Path::new(&request.dir).join(name);
        fs::create_dir_all(&dir).map_err(|error| fail(&format!("make {}", dir.display()), error))?;
    }
    // Short relative names, because all options together must fit into one page.
    std::env::set_current_dir(&request.layers_dir).map_err(|error| fail("enter the image's layers", error))?;
    let dir = fs::File::open(&request.dir).map_err(|error| fail("open the container's directory", error))?;
    let own = sys::fd_path(&dir);
    let options = format!("lowerdir={},upperdir={own}/upper,workdir={own}/work", request.layers.join(":"));
    let flags = if request.spec.security.privileged { MsFlags::empty() } else { MsFlags::MS_NODEV };
    // Volatile: a container's own layer never outlives the machine, so its end need not wait for a disk (Linux 5.10).
    let volatile = format!("{options},volatile");
    mount(Some("overlay"), root, Some("overlay"), flags, Some(volatile.as_str()))
        .or_else(|_| mount(Some("overlay"), root, Some("overlay"), flags, Some(options.as_str())))
        .map_err(|error| {
            let hint = "the data directory must be on a file system that can carry an overlay's upper layer (ext4, xfs, btrfs, tmpfs)";
            format!("mount the image's {} layers: {error} ({hint})", request.layers.len())
        })
}

fn kernel(root: &Root, request: &StartRequest, pod: &PodSpec, pod_dir: &Path) -> Result<(), String> {
    let privileged = request.spec.security.privileged;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    root.filesystem("proc", "/proc", quiet, "")?;
    if privileged {
        root.bind(Path::new("/dev"), "/dev", Make::Dir)?;
    } else {
        root.filesystem("tmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755,size=65536k")?;
        for name in DEVICES {
            let path = format!("/dev/{name}");
            root.bind(Path::new(&path), &path, Make::File)?;
        }
        for (target, link) in LINKS {
            root.link(target, link)?;
        }
    }
    let pts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    root.filesystem("devpts", "/dev/pts", pts, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    if pod.host_ipc {
        root.bind(Path::new("/dev/shm"), "/dev/shm", Make::Dir)?;
    } else {
        root.bind(&pod_dir.join(super::SHM_DIR), "/dev/shm", Make::Dir)?;
    }
    root.filesystem("mqueue", "/dev/mqueue", quiet, "")?;
    let sys_flags = if privileged { quiet } else { quiet | MsFlags::MS_RDONLY };
    root.filesystem("sysfs", "/sys", sys_flags, "")?;
    cgroups(root, &request.cgroup, privileged)
}

/// The container's own groups, so that programs can read their limits.
fn cgroups(root: &Root, cgroup: &Cgroup, writable: bool) -> Result<(), String> {
    let bind = |dir: &Path, target: &str| -> Result<(), String> {
        let mounted = root.bind(dir, target, Make::Dir)?;
        let flags = if writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
        sys::mount_setattr(mounted.as_raw_fd(), flags | libc::MOUNT_ATTR_NODEV, 0, false)
            .map_err(|error| format!("protect {target}: {error}"))
    };
    if cgroup.unified {
        return cgroup.dirs.iter().try_for_each(|(_, dir)| bind(dir, "/sys/fs/cgroup"));
    }
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    root.filesystem("tmpfs", "/sys/fs/cgroup", quiet, "mode=755")?;
    cgroup.dirs.iter().try_for_each(|(controller, dir)| bind(dir, &format!("/sys/fs/cgroup/{controller}")))
}

fn protect(root: &Root) -> Result<(), String> {
    for path in MASKED {
        let Some((_, dir)) = root.find(path) else { continue };
        if dir {
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
            root.filesystem("tmpfs", path, flags, "size=0,nr_inodes=1")?;
        } else {
            root.bind(Path::new("/dev/null"), path, Make::File)?;
        }
    }
    for path in READ_ONLY {
        let Some((fd, _)) = root.find(path) else { continue };
        let source = sys::fd_path(&fd);
        let mounted = root.bind(Path::new(&source), path, Make::Dir)?;
        sys::mount_setattr(mounted.as_raw_fd(), libc::MOUNT_ATTR_RDONLY, 0, true)
            .map_err(|error| format!("protect {path}: {error}"))?;
    }
    Ok(())
}

/// The new root before it is one.
struct Root {
    fd: OwnedFd,
}

impl Root {
    fn open(path: &Path) -> Result<Root, String> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty());
        fd.map(|fd| Root { fd }).map_err(|error| format!("open {}: {error}", path.display()))
    }

    fn target(&self, path: &str, make: Make) -> Result<OwnedFd, String> {
        sys::make_in_root(self.fd.as_raw_fd(), Path::new(path), make)
            .map_err(|error| format!("make the mount point {path}: {error}"))
    }

    /// An existing path, and whether it is a directory.
    fn find(&self, path: &str) -> Option<(OwnedFd, bool)> {
        let fd = sys::open_in_root(self.fd.as_raw_fd(), Path::new(path), OFlag::O_PATH).ok()?;
        let dir = is_dir(&fd)?;
        Some((fd, dir))
    }

    fn filesystem(&self, kind: &str, path: &str, flags: MsFlags, options: &str) -> Result<(), String> {
        let target = self.target(path, Make::Dir)?;
        mount(Some(kind), sys::fd_path(&target).as_str(), Some(kind), flags, Some(options))
            .map_err(|error| format!("mount {kind} on {path}: {error}"))
    }

    /// Binds and gives the root of the new mount.
    fn bind(&self, source: &Path, path: &str, make: Make) -> Result<OwnedFd, String> {
        let target = self.target(path, make)?;
        mount(Some(source), sys::fd_path(&target).as_str(), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
            .map_err(|error| format!("mount {} on {path}: {error}", source.display()))?;
        sys::open_in_root(self.fd.as_raw_fd(), Path::new(path), OFlag::O_PATH)
            .map_err(|error| format!("open {path}: {error}"))
    }

    fn link(&self, target: &str, path: &str) -> Result<(), String> {
        let path = Path::new(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let parent = self.target(&parent.to_string_lossy(), Make::Dir)?;
        nix::unistd::symlinkat(target, &parent, name).map_err(|error| format!("link {}: {error}", path.display()))
    }

    fn volume(&self, volume: &Mount) -> Result<(), String> {
        let fail = |error: io::Error| format!("the volume {} for {}: {error}", volume.source.display(), volume.target);
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let mut source = nix::fcntl::open(&volume.source, flags, nix::sys::stat::Mode::empty())
            .map_err(|error| fail(error.into()))?;
        if !volume.sub_path.is_empty() {
            source = sys::make_in_root(source.as_raw_fd(), Path::new(&volume.sub_path), Make::Dir).map_err(fail)?;
        }
        let make = if is_dir(&source).unwrap_or(true) { Make::Dir } else { Make::File };
        let mounted = self.bind(Path::new(&sys::fd_path(&source)), &volume.target, make)?;
        let mut attributes = 0;
        if volume.read_only {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        if !volume.devices {
            attributes |= libc::MOUNT_ATTR_NODEV;
        }
        let propagation = if volume.host_to_container { 0 } else { libc::MS_PRIVATE };
        sys::mount_setattr(mounted.as_raw_fd(), attributes, propagation, true).map_err(fail)
    }
}

fn is_dir(fd: &OwnedFd) -> Option<bool> {
    let stat = nix::sys::stat::fstat(fd).ok()?;
    Some(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}
