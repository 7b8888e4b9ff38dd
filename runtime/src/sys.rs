//! System calls and kernel files that nix has no word for, and paths that are resolved without leaving a root.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// Turns a system call's -1 into its errno.
pub fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A C string; a NUL inside is an error, not a panic.
pub fn cstring(text: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in a path or argument"))
}

/// Forks, with new namespaces for the child. 0 in the child. Only for single-threaded processes.
pub fn clone(flags: libc::c_int) -> io::Result<libc::pid_t> {
    let flags = flags | libc::SIGCHLD;
    // SAFETY: no CLONE_VM, so with a null stack this is fork: the child runs on a copy of this stack. The caller has one
    // thread, so no lock is held by somebody who does not exist in the child.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0usize, 0usize, 0usize, 0usize) };
    check(pid).map(|pid| pid as libc::pid_t)
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

/// Milliseconds since boot, time asleep included: the clock of leases (CLOCK_BOOTTIME).
pub fn boottime_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time outlives the call; this clock exists on every kernel that can run pods.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Identity of this boot: pids and start times mean nothing in another one.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Start time of a process in clock ticks after boot (field 22 of /proc/PID/stat), which tells a reused pid apart.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// `openat2` with every step, symbolic links included, confined to `root`. Needs Linux 5.6.
pub fn open_in_root(root: RawFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let text = path.as_os_str().as_encoded_bytes();
    let path = cstring(if text.is_empty() { b"." } else { text })?;
    // SAFETY: open_how is plain data for which all zeros is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | OFlag::O_CLOEXEC).bits() as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: path and how live for the call and the size is how's own.
    let fd = unsafe { libc::syscall(libc::SYS_openat2, root, path.as_ptr(), &how, size_of::<libc::open_how>()) };
    // SAFETY: on success the descriptor is new and ours.
    check(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// What to make where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    Dir,
    File,
}

/// Opens (`O_PATH`) a path below `root`, making what is missing. A dangling symbolic link is followed within the root.
pub fn make_in_root(root: RawFd, path: &Path, make: Make) -> io::Result<OwnedFd> {
    make_in_root_at(root, path, make, 0)
}

fn make_in_root_at(root: RawFd, path: &Path, make: Make, depth: usize) -> io::Result<OwnedFd> {
    if depth > 16 {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    let path = clean(path);
    match open_in_root(root, &path, OFlag::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let parts: Vec<_> = path.components().collect();
    let mut prefix = PathBuf::new();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        let parent = open_in_root(root, &prefix, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let before = prefix.clone();
        prefix.push(part);
        match open_in_root(root, &prefix, OFlag::O_PATH) {
            Ok(fd) if last => return Ok(fd),
            Ok(_) => continue,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let name = part.as_os_str();
        let made = if last && make == Make::File {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            nix::fcntl::openat(&parent, name, flags, Mode::from_bits_truncate(0o644)).map(drop)
        } else {
            nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(0o755))
        };
        match made {
            Ok(()) => {}
            Err(nix::Error::EEXIST) => {
                let target = nix::fcntl::readlinkat(&parent, name)?;
                let mut next = if Path::new(&target).is_absolute() { PathBuf::new() } else { before };
                next.push(Path::new(&target).strip_prefix("/").unwrap_or(Path::new(&target)));
                parts[index + 1..].iter().for_each(|part| next.push(part));
                return make_in_root_at(root, &next, make, depth + 1);
            }
            Err(error) => return Err(error.into()),
        }
    }
    open_in_root(root, &path, OFlag::O_PATH)
}

/// A relative path without `.`, `..` and empty parts; `..` takes the part before it.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// A path to an open descriptor, for calls that take only paths.
pub fn fd_path(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Changes flags (and propagation) of a mount and, if wanted, of all below it. Needs Linux 5.12.
pub fn mount_setattr(mount: &impl AsRawFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the pointers live for the call and the size is attr's own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &attr,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop).map_err(|error| too_old(error, "mount_setattr", "5.12"))
}

/// A copy of the mount at `source` (its subtree from there on, with all mounts below), not attached anywhere. It goes
/// away with its descriptor. Needs Linux 5.2.
pub fn clone_tree(source: &impl AsRawFd) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | libc::AT_EMPTY_PATH as libc::c_uint
        | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: the path lives for the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, source.as_raw_fd(), EMPTY.as_ptr(), flags) };
    // SAFETY: on success the descriptor is new and ours.
    let tree = check(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
    tree.map_err(|error| too_old(error, "open_tree", "5.2"))
}

/// Attaches a tree of [`clone_tree`] where `target` is. No path is resolved. Needs Linux 5.2.
pub fn attach_tree(tree: &impl AsRawFd, target: &impl AsRawFd) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the paths live for the call.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), EMPTY.as_ptr(), target.as_raw_fd(), EMPTY.as_ptr(), flags)
    };
    check(result).map(drop).map_err(|error| too_old(error, "move_mount", "5.2"))
}

const EMPTY: &CStr = c"";

/// Says what a kernel without a call lacks.
fn too_old(error: io::Error, call: &str, since: &str) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            let text =
                format!("the kernel has no {call}: containers need Linux 5.12 or newer (this call came with {since})");
            io::Error::new(io::ErrorKind::Unsupported, text)
        }
        _ => error,
    }
}

/// Whether the mount that `fd` is on passes on what is mounted below it (`shared` in mount_namespaces(7)), by the
/// caller's mount namespace. Needs Linux 5.8.
pub fn is_shared(fd: &impl AsRawFd) -> io::Result<bool> {
    // SAFETY: statx is plain data for which zeros are valid; path and result live for the call.
    let number = unsafe {
        let mut stat: libc::statx = std::mem::zeroed();
        let result = libc::statx(fd.as_raw_fd(), EMPTY.as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_MNT_ID, &mut stat);
        check(result as libc::c_long)?;
        stat.stx_mnt_id
    };
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    // proc_pid_mountinfo(5): number, parent, device, root, place, options, then optional fields up to a dash.
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(&number.to_string()));
    Ok(line.is_some_and(|line| {
        line.split(' ').skip(6).take_while(|field| *field != "-").any(|f| f.starts_with("shared:"))
    }))
}

/// Whether a descriptor is of the proc file system.
pub fn is_proc(fd: &impl AsRawFd) -> io::Result<bool> {
    // SAFETY: statfs is plain data for which zeros are valid, and it lives for the call.
    let kind = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        check(libc::fstatfs(fd.as_raw_fd(), &mut stat) as libc::c_long)?;
        stat.f_type
    };
    Ok(kind == libc::PROC_SUPER_MAGIC)
}

/// A memory file with the running program in it, which nobody can change any more.
pub fn sealed_self() -> io::Result<OwnedFd> {
    let mut source = fs::File::open("/proc/self/exe")?;
    // SAFETY: the name is a C string; the result is checked.
    let fd =
        check(unsafe { libc::memfd_create(c"skiff".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) }
            as libc::c_long)?;
    // SAFETY: the descriptor is new and ours.
    let mut file = unsafe { fs::File::from_raw_fd(fd as RawFd) };
    io::copy(&mut source, &mut file)?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: plain fcntl on our own descriptor.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } as libc::c_long)?;
    Ok(file.into())
}

/// Descriptor flags for a poll loop.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain fcntl; the caller owns the descriptor for the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leaves_the_root() {
        let dir = std::env::temp_dir().join(format!("skiff-sys-{}", std::process::id()));
        fs::create_dir_all(dir.join("root/etc")).unwrap();
        symlink("/outside", dir.join("root/abs")).unwrap();
        symlink("../../../up", dir.join("root/etc/rel")).unwrap();
        symlink("loop", dir.join("root/loop")).unwrap();
        let root = fs::File::open(dir.join("root")).unwrap();
        let check = |path: &str, make: Make, expect: &str| {
            make_in_root(root.as_raw_fd(), Path::new(path), make).unwrap();
            assert!(dir.join("root").join(expect).exists(), "{path} should make {expect}");
        };
        check("/a/b/c", Make::Dir, "a/b/c");
        check("a/b/file", Make::File, "a/b/file");
        check("/abs/x", Make::Dir, "outside/x");
        check("/etc/rel", Make::File, "up");
        check("../../etc/../y", Make::Dir, "y");
        assert!(make_in_root(root.as_raw_fd(), Path::new("/loop/x"), Make::Dir).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_process_has_a_start_time() {
        let pid = std::process::id() as i32;
        assert_eq!(start_time(pid), start_time(pid));
        assert!(start_time(pid).is_some());
        assert!(!boot_id().is_empty());
    }
}
