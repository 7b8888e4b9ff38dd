//! A program that joins a running container, and the connection that asked for it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::channel::{channel, fork_into};
use super::container::Container;
use super::init;
use crate::spec::{ExecSpec, PodSpec};
use crate::sys;

/// One joined program.
pub struct Exec {
    pub pid: i32,
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
            let cwd = if spec.cwd.is_empty() { &request.spec.cwd } else { &spec.cwd };
            let mut program = request.spec.clone();
            program.tty = spec.tty;
            let error = match init::join(request, container.state.pid) {
                Ok(()) => {
                    let Err(error) =
                        init::become_program(&program, &spec.args, &spec.env, cwd, &pod.hostname, stdio, &theirs);
                    error
                }
                Err(error) => error,
            };
            init::fail(&theirs, &error);
        }
        sys::set_nonblocking(ours.as_raw_fd())?;
        Ok(Exec { pid, connection, channel: Some(ours), master: None, answered: false })
    }
}
