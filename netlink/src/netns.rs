//! Work inside another network namespace, done by a thread of its own so that no other work of the process is moved there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Error, Result};

/// Opens a namespace file such as `/proc/PID/ns/net`.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| Error::new(format!("open the network namespace {}", path.display()), error))
}

/// The network namespace of the calling thread.
pub fn current() -> Result<File> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// A new network namespace, which lives as long as the file (or a process or mount) holds it. Its loopback is down.
pub fn create() -> Result<File> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| Error::new("make a network namespace (this needs root)", error))?;
        current()
    })
}

/// Runs `work` in a namespace and hands back its answer. Sockets that it opens stay in that namespace.
pub fn inside<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T> {
    on_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| Error::new("enter a network namespace", error))?;
        Ok(work())
    })
}

/// [`inside`], for a namespace file.
pub fn inside_file<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> Result<T> {
    inside(namespace.as_fd(), work)
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(answer) => answer,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Writes a kernel parameter of the calling thread's namespace, `net/ipv4/ip_forward` for example.
pub fn set_parameter(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    let fail = |error: io::Error| Error::new(format!("write {value} to {path}"), error);
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(fail)
}
