//! The processes of an instance. The supervisor is the first process of its PID namespace, so every orphan becomes its child: pods' helpers whose
//! agent was killed live on here, and whatever ends is reaped here.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::spec::NodeSpec;

/// A node's process, running or ended.
#[derive(Debug)]
pub struct Child {
    pub spec: NodeSpec,
    pub pid: Option<Pid>,
    pub ended: Option<String>,
}

/// All nodes' processes, by node. One owner starts and reaps, never at once: a failed start is waited for by the standard library itself.
#[derive(Debug, Default)]
pub struct Children {
    by_name: BTreeMap<String, Child>,
}

impl Children {
    pub fn get(&self, name: &str) -> Option<&Child> {
        self.by_name.get(name)
    }

    pub fn is_running(&self, name: &str) -> bool {
        self.get(name).is_some_and(|child| child.pid.is_some())
    }

    /// Starts a node's process in its network namespace.
    pub fn spawn(&mut self, spec: NodeSpec, namespace: &File) -> Result<Pid> {
        self.reap();
        if self.is_running(&spec.name) {
            bail!("{} is running already", spec.name);
        }
        let (program, arguments) = spec.argv.split_first().context("the command line is empty")?;
        let log = File::options().create(true).append(true).open(&spec.log);
        let log = log.with_context(|| format!("open the log {}", spec.log.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).envs(&spec.env);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let fd = namespace.as_fd().as_raw_fd();
        // SAFETY: setns and setsid are plain system calls, and the descriptor stays open in the child until execve.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(fd, libc::CLONE_NEWNET) != 0 || libc::setsid() < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("start {} ({program})", spec.name))?;
        let pid = Pid::from_raw(child.id() as i32);
        self.by_name.insert(spec.name.clone(), Child { spec, pid: Some(pid), ended: None });
        Ok(pid)
    }

    /// Sends a signal to a node's process; not to its children.
    pub fn kill(&mut self, name: &str, signal: Signal) -> Result<()> {
        self.reap();
        let child = self.by_name.get(name).with_context(|| format!("no node {name} was started"))?;
        let pid = child.pid.with_context(|| format!("{name} is not running"))?;
        kill(pid, signal).with_context(|| format!("send {signal} to {name}"))
    }

    /// Reaps whatever ended; gives the names of the nodes among them.
    pub fn reap(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("killed by {signal}")),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return names,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "waiting for children failed");
                    return names;
                }
            };
            if let Some((name, child)) = self.by_name.iter_mut().find(|(_, child)| child.pid == Some(pid)) {
                child.pid = None;
                child.ended = Some(how);
                names.push(name.clone());
            }
        }
    }
}
