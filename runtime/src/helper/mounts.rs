//! A container's file system, made inside its own mount namespace: overlay, kernel file systems, devices, volumes.
//!
//! Everything that is mounted here vanishes with the namespace, so nothing can leak on the host. Paths inside the root
//! are resolved without leaving it, because an image may contain any symbolic link, and once only: what is mounted gets all
//! its attributes before it is attached, to a descriptor, so that no rename in between leads elsewhere. Device files are inert everywhere
//! but in `/dev`, whose few nodes are the host's, bound one by one: that holds on every cgroup version, without a device filter.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};

use crate::cgroup::Cgroup;
use crate::spec::{Mount, PodSpec};
use crate::sys::{self, Make};
use crate::wire::StartRequest;

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
///
/// `host`: the host's mount namespace, for volumes whose mounts show up there.
pub fn enter_root(request: &StartRequest, pod: &PodSpec, pod_dir: &Path, host: &OwnedFd) -> Result<(), String> {
    let dir = Path::new(&request.dir);
    let root_path = dir.join("root");
    overlay(request, &root_path)?;
    let root = Root::open(&root_path)?;
    kernel(&root, request, pod, pod_dir)?;
    let security = &request.spec.security;
    // Before the volumes, in which a neighbour may be renaming things at this moment.
    if !security.privileged && !security.unmasked_proc {
        protect(&root)?;
    }
    for volume in &request.spec.mounts {
        root.volume(volume, host)?;
    }
    nix::unistd::fchdir(&root.fd).map_err(|error| format!("enter the root file system: {error}"))?;
    nix::unistd::pivot_root(".", ".").map_err(|error| format!("pivot into the root file system: {error}"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|error| format!("leave the host's file systems: {error}"))?;
    std::env::set_current_dir("/").map_err(|error| format!("change to /: {error}"))?;
    if security.read_only_root {
        let here = fs::File::open("/").map_err(|error| format!("open /: {error}"))?;
        sys::mount_setattr(&here, libc::MOUNT_ATTR_RDONLY, 0, false)
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
        root.bind(Path::new("/dev"), "/dev", Make::Dir, 0)?;
    } else {
        root.filesystem("tmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755,size=65536k")?;
        for name in DEVICES {
            let path = format!("/dev/{name}");
            root.bind(Path::new(&path), &path, Make::File, 0)?;
        }
        for (target, link) in LINKS {
            root.link(target, link)?;
        }
    }
    let pts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    root.filesystem("devpts", "/dev/pts", pts, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    let quiet_shm = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if pod.host_ipc {
        root.bind(Path::new("/dev/shm"), "/dev/shm", Make::Dir, quiet_shm)?;
    } else {
        root.bind(&pod_dir.join(super::SHM_DIR), "/dev/shm", Make::Dir, quiet_shm)?;
    }
    root.filesystem("mqueue", "/dev/mqueue", quiet, "")?;
    let sys_flags = if privileged { quiet } else { quiet | MsFlags::MS_RDONLY };
    root.filesystem("sysfs", "/sys", sys_flags, "")?;
    cgroups(root, &request.cgroup, privileged)
}

/// The container's own groups, so that programs can read their limits.
fn cgroups(root: &Root, cgroup: &Cgroup, writable: bool) -> Result<(), String> {
    let bind = |dir: &Path, target: &str| -> Result<(), String> {
        let flags = if writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
        root.bind(dir, target, Make::Dir, flags | libc::MOUNT_ATTR_NODEV)
    };
    if cgroup.unified {
        return cgroup.dirs.iter().try_for_each(|(_, dir)| bind(dir, "/sys/fs/cgroup"));
    }
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    root.filesystem("tmpfs", "/sys/fs/cgroup", quiet, "mode=755")?;
    cgroup.dirs.iter().try_for_each(|(controller, dir)| bind(dir, &format!("/sys/fs/cgroup/{controller}")))?;
    if writable {
        return Ok(());
    }
    // What holds the groups' places is no place for files: it has no limit, and would be one also where the root file system is read-only.
    let Some((places, _)) = root.find("/sys/fs/cgroup") else { return Ok(()) };
    sys::mount_setattr(&places, libc::MOUNT_ATTR_RDONLY, 0, false)
        .map_err(|error| format!("make /sys/fs/cgroup read-only: {error}"))
}

fn protect(root: &Root) -> Result<(), String> {
    for path in MASKED {
        let Some((_, dir)) = root.find(path) else { continue };
        if dir {
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
            root.filesystem("tmpfs", path, flags, "size=0,nr_inodes=1")?;
        } else {
            root.bind(Path::new("/dev/null"), path, Make::File, 0)?;
        }
    }
    for path in READ_ONLY {
        let Some((fd, _)) = root.find(path) else { continue };
        let protect = || {
            let tree = sys::clone_tree(&fd)?;
            sys::mount_setattr(&tree, libc::MOUNT_ATTR_RDONLY, 0, true)?;
            sys::attach_tree(&tree, &fd)
        };
        protect().map_err(|error| format!("protect {path}: {error}"))?;
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

    /// Binds what is at `source`, with attributes that hold before anybody can reach it.
    fn bind(&self, source: &Path, path: &str, make: Make, attributes: u64) -> Result<(), String> {
        let fail = |error: io::Error| format!("mount {} on {path}: {error}", source.display());
        let source = open(source).map_err(fail)?;
        let tree = sys::clone_tree(&source).map_err(fail)?;
        if attributes != 0 {
            sys::mount_setattr(&tree, attributes, 0, false).map_err(fail)?;
        }
        sys::attach_tree(&tree, &self.target(path, make)?).map_err(fail)
    }

    fn link(&self, target: &str, path: &str) -> Result<(), String> {
        let path = Path::new(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let parent = self.target(&parent.to_string_lossy(), Make::Dir)?;
        nix::unistd::symlinkat(target, &parent, name).map_err(|error| format!("link {}: {error}", path.display()))
    }

    fn volume(&self, volume: &Mount, host: &OwnedFd) -> Result<(), String> {
        let fail = |error: io::Error| format!("the volume {} for {}: {error}", volume.source.display(), volume.target);
        let (tree, make) = tree(volume, host).map_err(fail)?;
        let target = self.target(&volume.target, make)?;
        // Files of the kernel are not for images or neighbours to replace: what masks and protects them goes by name.
        if sys::is_proc(&target).map_err(fail)? {
            return Err(format!("the volume for {} cannot be mounted: its place is in /proc", volume.target));
        }
        sys::attach_tree(&tree, &target).map_err(fail)
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?)
}

/// A volume as a tree that is not attached yet, with all its attributes, and what it goes on.
fn tree(volume: &Mount, host: &OwnedFd) -> io::Result<(OwnedFd, Make)> {
    let (tree, make) = if volume.bidirectional { in_namespace(host, || shared_copy(volume))? } else { copy(volume)? };
    let mut attributes = 0;
    if !volume.devices {
        attributes |= libc::MOUNT_ATTR_NODEV;
    }
    if volume.read_only && volume.recursive_read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    let propagation = if volume.host_to_container || volume.bidirectional { 0 } else { libc::MS_PRIVATE };
    sys::mount_setattr(&tree, attributes, propagation, true)?;
    if volume.read_only {
        sys::mount_setattr(&tree, libc::MOUNT_ATTR_RDONLY, 0, false)?;
    }
    Ok((tree, make))
}

fn copy(volume: &Mount) -> io::Result<(OwnedFd, Make)> {
    let mut source = open(&volume.source)?;
    if !volume.sub_path.is_empty() {
        source = sys::make_in_root(source.as_raw_fd(), Path::new(&volume.sub_path), Make::Dir)?;
    }
    let make = if is_dir(&source).unwrap_or(true) { Make::Dir } else { Make::File };
    Ok((sys::clone_tree(&source)?, make))
}

/// The same, of a mount that passes on what is mounted below it.
fn shared_copy(volume: &Mount) -> io::Result<(OwnedFd, Make)> {
    if !sys::is_shared(&open(&volume.source)?)? {
        let why = "its mount on the host is not shared, so nothing mounted in the container could show up there (mount --make-shared it, or use HostToContainer)";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    copy(volume)
}

/// Does something in another mount namespace. The descriptors that it opens stay good here.
fn in_namespace<T>(namespace: &OwnedFd, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = fs::File::open("/proc/self/ns/mnt")?;
    let cwd = open(Path::new("."))?;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
    let result = work();
    setns(own.as_fd(), CloneFlags::CLONE_NEWNS)?;
    nix::unistd::fchdir(&cwd)?;
    result
}

fn is_dir(fd: &OwnedFd) -> Option<bool> {
    let stat = nix::sys::stat::fstat(fd).ok()?;
    Some(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const NONE: Option<&str> = None;

    /// A neighbour renames a directory between the look at a mount's place and the mounting.
    #[test]
    fn a_place_is_looked_up_once() {
        if !nix::unistd::Uid::effective().is_root() {
            assert!(std::env::var_os("CI").is_none(), "needs root");
            eprintln!("ignored: needs root to mount");
            return;
        }
        let dir = std::env::temp_dir().join(format!("skiff-mounts-{}", std::process::id()));
        for name in ["root/a/m", "root/decoy/m", "source"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let work = {
            let dir = dir.clone();
            move || {
                // This thread alone gets a mount namespace, which ends with it.
                nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
                mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
                let volume = Mount { source: dir.join("source"), read_only: true, ..Mount::default() };
                let here = fs::File::open("/proc/thread-self/ns/mnt").unwrap().into();
                let (tree, make) = tree(&volume, &here).unwrap();
                let root = Root::open(&dir.join("root")).unwrap();
                let target = root.target("/a/m", make).unwrap();
                fs::rename(dir.join("root/a"), dir.join("root/b")).unwrap();
                symlink("decoy", dir.join("root/a")).unwrap();
                sys::attach_tree(&tree, &target).unwrap();
                let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                let made: Vec<&str> = mounts.lines().filter(|line| line.contains("skiff-mounts-")).collect();
                assert_eq!(made.len(), 1, "{made:?}");
                let fields: Vec<&str> = made[0].split(' ').collect();
                assert_eq!(fields[4], dir.join("root/b/m").to_string_lossy());
                assert!(fields[5].split(',').any(|option| option == "ro"), "{}", fields[5]);
                assert!(fields[5].split(',').any(|option| option == "nodev"), "{}", fields[5]);
            }
        };
        let result = std::thread::spawn(work).join();
        fs::remove_dir_all(dir).unwrap();
        assert!(result.is_ok());
    }
}
