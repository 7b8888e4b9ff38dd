//! A program that joins a running container, and the connection that asked for it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::channel::{channel, fork_into};
use super::container::Container;
use super::init;
use crate::spec::{ExecSpec, PodSpec};
use crate::sys;

/// How often a session is looked through for processes that were forked meanwhile.
const KILL_ROUNDS_MAX: usize = 16;

/// One joined program.
pub struct Exec {
    pub pid: i32,
    /// The container that it joined.
    pub container: String,
    pub connection: u64,
    pub channel: Option<OwnedFd>,
    pub master: Option<OwnedFd>,
    pub answered: bool,
}

impl Exec {
    /// Forks the program into the container's namespaces; `stdio` is none when it gets a terminal.
    pub fn start(
        spec: &ExecSpec,
        container: &Container,
        pod: &PodSpec,
        stdio: init::Stdio,
        connection: u64,
    ) -> io::Result<Exec> {
        let (ours, theirs) = channel()?;
        let own_pids = !pod.host_pid;
        let pid = fork_into(own_pids.then_some(container.state.pid), 0)?;
        if pid == 0 {
            // The mount namespace is entered by the container's number in the helper's /proc, which is still here.
            let request = &container.request;
            let mut program = spec.clone();
            if program.cwd.is_empty() {
                program.cwd.clone_from(&request.spec.cwd);
            }
            let error = match init::join(request, container.state.pid) {
                Ok(()) => {
                    let Err(error) = init::become_program(&request.spec, &program, &pod.hostname, stdio, &theirs);
                    error
                }
                Err(error) => error,
            };
            init::fail(&theirs, &error);
        }
        sys::set_nonblocking(ours.as_raw_fd())?;
        Ok(Exec {
            pid,
            container: spec.container.clone(),
            connection,
            channel: Some(ours),
            master: None,
            answered: false,
        })
    }

    /// Kills the program and everything in its session: what it started ends with it, unless it began a session of its own as daemons do.
    pub fn kill(&self, container: Option<&Container>) {
        // SAFETY: our own child, not reaped yet, so the number is still its.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        let Some(container) = container else { return };
        // A process may fork between the look and the kill; its child is found in the next round.
        for _ in 0..KILL_ROUNDS_MAX {
            let pids = container.request.cgroup.pids().into_iter();
            let members: Vec<i32> = pids.filter(|pid| *pid != self.pid && session_of(*pid) == Some(self.pid)).collect();
            if members.is_empty() {
                return;
            }
            for pid in members {
                // SAFETY: kill takes no pointers; the process was in the container's group and this session a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}

/// The session of a process that has not ended (proc(5), the sixth field of `stat`, counted after the name, which may hold anything).
fn session_of(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    (!ended).then(|| fields.nth(2)?.parse().ok()).flatten()
}
