//! From `clone` to `exec`: what a new process does to itself before it becomes the container's program.
//!
//! It runs in the helper's child, alone, and tells its parent over a packet socket: `T` with a terminal's master, `E` with
//! the reason of a failure. The socket closes by itself when the program starts. The order matters: control groups
//! before the root is left, mounts before rights are dropped, the filter before the user changes (unless no_new_privs
//! lets it come last), and the death signal after, since a change of user clears it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::sys::stat::Mode;

use super::identity;
use super::{mounts, seccomp};
use crate::spec::{ContainerSpec, ExecSpec, PodSpec, Rlimit, Security};
use crate::sys;
use crate::wire::{self, StartRequest};

/// The file mode creation mask with which programs begin, as with other runtimes (OCI runtime specification, `user.umask`).
const UMASK: libc::mode_t = 0o022;

/// A process's own ends of its three pipes; none when it gets a terminal.
pub type Stdio = Option<[OwnedFd; 3]>;

/// Becomes the first process of a container. `host`: the host's mount namespace.
pub fn container(
    request: &StartRequest,
    pod: &PodSpec,
    pod_dir: &Path,
    host: &OwnedFd,
    stdio: Stdio,
    channel: &OwnedFd,
) -> Result<Infallible, String> {
    let spec = &request.spec;
    nix::sys::stat::umask(Mode::from_bits_truncate(UMASK));
    nix::unistd::setsid().map_err(|error| format!("start a session: {error}"))?;
    request.cgroup.enter().map_err(|error| error.to_string())?;
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|error| format!("make a control group namespace: {error}"))?;
    // Lowering it below the host's own takes a capability that a nested host may lack; that only changes who is killed first.
    let _ = fs::write("/proc/self/oom_score_adj", spec.oom_score_adj.to_string());
    spec.rlimits.iter().try_for_each(set_rlimit)?;
    mounts::enter_root(request, pod, pod_dir, host)?;
    let joined = ExecSpec { args: spec.args.clone(), cwd: spec.cwd.clone(), tty: spec.tty, ..ExecSpec::default() };
    become_program(spec, &joined, &pod.hostname, stdio, channel)
}

/// The second half, also for a program that joins a container: terminal, directory, environment, rights, `exec`.
pub fn become_program(
    spec: &ContainerSpec,
    program: &ExecSpec,
    hostname: &str,
    stdio: Stdio,
    channel: &OwnedFd,
) -> Result<Infallible, String> {
    nix::sys::stat::umask(Mode::from_bits_truncate(UMASK));
    let security = &spec.security;
    let user = identity::resolve_here(security)?;
    match stdio {
        Some(ends) => {
            for (end, target) in ends.iter().zip(0..) {
                own(end.as_raw_fd(), &user);
                onto(end.as_raw_fd(), target)?;
            }
        }
        None => terminal(&user, program.window, channel)?,
    }
    let cwd = if program.cwd.is_empty() { "/" } else { program.cwd.as_str() };
    fs::create_dir_all(cwd).map_err(|error| format!("make the working directory {cwd}: {error}"))?;
    std::env::set_current_dir(cwd).map_err(|error| format!("change to the working directory {cwd}: {error}"))?;
    let env = environment(spec, program, &user, hostname);
    restore_signals()?;
    drop_rights(security, &user)?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| format!("set the death signal: {error}"))?;
    // SAFETY: close_range only marks descriptors; 0, 1 and 2 stay.
    sys::check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map_err(|error| format!("mark descriptors: {error}"))?;
    execute(&program.args, &env)
}

fn drop_rights(security: &Security, user: &identity::User) -> Result<(), String> {
    let set = identity::capabilities(security)?;
    let filtered = !security.privileged && !security.seccomp_unconfined;
    identity::bound(&set)?;
    if filtered && !security.no_new_privileges {
        seccomp::apply(&set)?;
    }
    identity::become_user(user, &set)?;
    if security.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(|error| format!("set no_new_privs: {error}"))?;
        if filtered {
            seccomp::apply(&set)?;
        }
    }
    Ok(())
}

fn environment(
    spec: &ContainerSpec,
    program: &ExecSpec,
    user: &identity::User,
    hostname: &str,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut defaults = vec![("PATH", path), ("HOME", user.home.as_str())];
    if !hostname.is_empty() {
        defaults.push(("HOSTNAME", hostname));
    }
    if program.tty {
        defaults.push(("TERM", "xterm"));
    }
    let defaults = defaults.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (name, value) in defaults.chain(spec.env.iter().cloned()).chain(program.env.iter().cloned()) {
        match env.iter_mut().find(|(have, _)| *have == name) {
            Some(entry) => entry.1 = value,
            None => env.push((name, value)),
        }
    }
    env
}

/// So that a program of another user can open `/dev/stdout`, as images that log there do.
fn own(fd: RawFd, user: &identity::User) {
    // SAFETY: plain fchown on a descriptor that the caller holds; refused for files that are not ours, which is fine.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let pipe =
            libc::fstat(fd, &mut stat) == 0 && matches!(stat.st_mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK);
        if pipe && user.uid != 0 {
            libc::fchown(fd, user.uid, user.gid);
        }
    }
}

fn onto(fd: RawFd, target: RawFd) -> Result<(), String> {
    // SAFETY: dup2 onto the standard descriptors of a process that is about to exec.
    sys::check(unsafe { libc::dup2(fd, target) } as libc::c_long)
        .map(drop)
        .map_err(|error| format!("set descriptor {target}: {error}"))
}

/// Opens a terminal of the container's own devpts, hands its master to the parent and makes it the controlling one.
fn terminal(user: &identity::User, window: Option<(u16, u16)>, channel: &OwnedFd) -> Result<(), String> {
    use nix::fcntl::OFlag;
    let fail = |error: nix::Error| format!("open a terminal: {error}");
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::fcntl::open("/dev/ptmx", flags, nix::sys::stat::Mode::empty()).map_err(fail)?;
    let (mut number, unlock): (libc::c_uint, libc::c_int) = (0, 0);
    // SAFETY: both ioctls take a pointer to an int that outlives the call.
    let result = unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock)
            | libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &mut number)
    };
    sys::check(result as libc::c_long).map_err(|error| format!("unlock a terminal: {error}"))?;
    let slave =
        nix::fcntl::open(format!("/dev/pts/{number}").as_str(), flags, nix::sys::stat::Mode::empty()).map_err(fail)?;
    if let Some((columns, rows)) = window {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size outlives the call and has the type that TIOCSWINSZ takes.
        sys::check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size) } as libc::c_long)
            .map_err(|error| format!("set the size of a terminal: {error}"))?;
    }
    // SAFETY: as above, on the slave; the process leads a session without a terminal.
    sys::check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) } as libc::c_long)
        .map_err(|error| format!("take the terminal: {error}"))?;
    // SAFETY: plain fchown; failing leaves root as the owner.
    unsafe { libc::fchown(slave.as_raw_fd(), user.uid, 5) };
    (0..3).try_for_each(|target| onto(slave.as_raw_fd(), target))?;
    wire::send(channel.as_raw_fd(), b"T", &[master.as_raw_fd()])
        .map(drop)
        .map_err(|error| format!("hand over the terminal: {error}"))
}

fn set_rlimit(limit: &Rlimit) -> Result<(), String> {
    use nix::sys::resource::{Resource, setrlimit};
    let resource = match limit.name.as_str() {
        "nofile" => Resource::RLIMIT_NOFILE,
        "nproc" => Resource::RLIMIT_NPROC,
        "core" => Resource::RLIMIT_CORE,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        "stack" => Resource::RLIMIT_STACK,
        "fsize" => Resource::RLIMIT_FSIZE,
        other => {
            return Err(format!("there is no limit {other:?}; known are nofile, nproc, core, memlock, stack, fsize"));
        }
    };
    setrlimit(resource, limit.soft, limit.hard).map_err(|error| format!("set the limit {}: {error}", limit.name))
}

/// The helper blocks and ignores signals that a program expects to find at their defaults.
fn restore_signals() -> Result<(), String> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action is no code of ours.
    unsafe { sigaction(Signal::SIGPIPE, &default) }.map_err(|error| format!("restore signals: {error}"))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(|error| format!("restore signals: {error}"))
}

fn execute(args: &[String], env: &[(String, String)]) -> Result<Infallible, String> {
    let Some(program) = args.first().filter(|program| !program.is_empty()) else {
        return Err("there is no command: give one, or use an image that has an entry point".into());
    };
    let text = |text: &str| sys::cstring(text).map_err(|error| format!("{text:?}: {error}"));
    let argv: Vec<CString> = args.iter().map(|arg| text(arg)).collect::<Result<_, _>>()?;
    let envp: Vec<CString> =
        env.iter().map(|(name, value)| text(&format!("{name}={value}"))).collect::<Result<_, _>>()?;
    if program.contains('/') {
        return match nix::unistd::execve(&text(program)?, &argv, &envp) {
            Ok(never) => match never {},
            Err(error) => Err(format!("exec: {program:?}: {}", words(error))),
        };
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path.as_str());
    let mut worst = nix::Error::ENOENT;
    for dir in path.split(':') {
        let candidate = format!("{}/{program}", if dir.is_empty() { "." } else { dir });
        match nix::unistd::execve(&text(&candidate)?, &argv, &envp) {
            Ok(never) => match never {},
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => {}
            Err(error) => worst = error,
        }
    }
    match worst {
        nix::Error::ENOENT => Err(format!("exec: {program:?}: executable file not found in $PATH")),
        error => Err(format!("exec: {program:?}: {}", words(error))),
    }
}

fn words(error: nix::Error) -> String {
    match error {
        nix::Error::ENOENT => "no such file or directory (or its loader is missing from the image)".into(),
        nix::Error::EACCES => "permission denied".into(),
        nix::Error::ENOEXEC => "exec format error: it was built for another machine, or lacks a #! line".into(),
        error => error.desc().to_lowercase(),
    }
}

/// Joins an existing container: its control groups, then its namespaces.
pub fn join(request: &StartRequest, container_pid: i32) -> Result<(), String> {
    nix::unistd::setsid().map_err(|error| format!("start a session: {error}"))?;
    let open = |name: &str| {
        fs::File::open(format!("/proc/{container_pid}/ns/{name}"))
            .map_err(|error| format!("open its {name} namespace: {error}"))
    };
    let (mnt, cgroup) = (open("mnt")?, open("cgroup")?);
    request.cgroup.enter().map_err(|error| error.to_string())?;
    for (name, namespace) in [("cgroup", &cgroup), ("mnt", &mnt)] {
        nix::sched::setns(namespace.as_fd(), CloneFlags::empty())
            .map_err(|error| format!("enter its {name} namespace: {error}"))?;
    }
    Ok(())
}

/// Reports a failure to the parent and ends, without running anything of the parent's.
pub fn fail(channel: &OwnedFd, error: &str) -> ! {
    let text = &error.as_bytes()[..error.len().min(4000)];
    let _: io::Result<usize> = wire::send(channel.as_raw_fd(), &[b"E", text].concat(), &[]);
    // SAFETY: ends this process at once; destructors and buffers belong to the parent.
    unsafe { libc::_exit(128) }
}
