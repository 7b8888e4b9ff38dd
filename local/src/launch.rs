//! Starting the supervisor: this same program again, as the first process of a new PID namespace and in a new mount namespace.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2};

/// The supervisor's descriptor that reaches its end when the parent is gone.
pub const LIFELINE_FD: RawFd = 3;
/// The supervisor's descriptor on which it says that it is ready, or why not.
pub const READY_FD: RawFd = 4;

/// A supervisor just started.
pub struct Launched {
    /// In the root PID namespace.
    pub pid: Pid,
    /// Closing it ends a supervisor that is tied to this process.
    pub lifeline: OwnedFd,
    pub ready: OwnedFd,
}

/// Starts the supervisor; `argv` are the arguments after the program's name. Its output goes to `log`.
pub fn launch(argv: &[String], log: &Path) -> Result<Launched> {
    let text = |text: &str| CString::new(text).with_context(|| format!("a NUL in the argument {text:?}"));
    let program = text("/proc/self/exe")?;
    let mut words = vec![text("skiff")?];
    for word in argv {
        words.push(text(word)?);
    }
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(key, value)| CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect();
    let mut argv: Vec<*const libc::c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    let mut envp: Vec<*const libc::c_char> = environment.iter().map(|entry| entry.as_ptr()).collect();
    envp.push(std::ptr::null());

    let nothing = File::open("/dev/null").context("open /dev/null")?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open the log {}", log.display()))?;
    let (lifeline_end, lifeline) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    let (ready, ready_end) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    // Copies far above the numbers they shall get, so that putting one in place never overwrites another.
    let places = [
        (high(&nothing)?, 0),
        (high(&log)?, 1),
        (high(&log)?, 2),
        (high(&lifeline_end)?, LIFELINE_FD),
        (high(&ready_end)?, READY_FD),
    ];

    let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: as fork(2): the child shares no memory that is written, and until execve it makes only system calls, on values prepared above.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: dup2, setsid, sigprocmask, execve and _exit are async-signal-safe; the pointers live in this frame.
        unsafe {
            for (from, to) in &places {
                if libc::dup2(from.as_raw_fd(), *to) < 0 {
                    libc::_exit(126);
                }
            }
            libc::setsid();
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
            libc::_exit(127);
        }
    }
    if pid < 0 {
        return Err(std::io::Error::last_os_error())
            .context("make a PID and mount namespace for the local cluster (this needs root)");
    }
    Ok(Launched { pid: Pid::from_raw(pid as i32), lifeline, ready })
}

fn high(fd: &impl AsRawFd) -> Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor, which from here on belongs to the OwnedFd alone.
    unsafe {
        let copy = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100);
        if copy < 0 {
            return Err(std::io::Error::last_os_error()).context("copy a file descriptor");
        }
        Ok(OwnedFd::from_raw_fd(copy))
    }
}
