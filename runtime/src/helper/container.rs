//! A container as its helper sees it: the process, its pipes, its log and who is attached.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::attached::Attached;
use super::channel::{channel, fork_into};
use super::init::{self, Stdio};
use super::logs::{LINE_BYTES_MAX, Log, Stream};
use crate::spec::{ContainerState, Phase, PodSpec};
use crate::sys;
use crate::wire::StartRequest;

/// One container.
pub struct Container {
    pub request: StartRequest,
    pub state: ContainerState,
    /// Where the child reports until its program runs.
    pub channel: Option<OwnedFd>,
    /// The connection that waits for the start.
    pub waiter: Option<u64>,
    pub outputs: Vec<Output>,
    /// What keeps the container's input open.
    pub stdin: Option<OwnedFd>,
    pub master: Option<OwnedFd>,
    log: Option<Log>,
    attached: Vec<Attached>,
}

/// One stream that comes out of a container.
pub struct Output {
    /// None once the stream ended; the place stays, so that indices hold.
    fd: Option<fs::File>,
    stream: Stream,
    pending: Vec<u8>,
}

impl Output {
    /// The descriptor to wait for, while the stream lasts.
    pub fn raw(&self) -> Option<RawFd> {
        self.fd.as_ref().map(AsRawFd::as_raw_fd)
    }
}

impl Container {
    /// Clones the container's first process. `init_of` is the pod's shared PID namespace, if it has one; `host` the
    /// host's mount namespace.
    pub fn start(
        request: StartRequest,
        pod: &PodSpec,
        pod_dir: &Path,
        init_of: Option<i32>,
        host: &OwnedFd,
    ) -> io::Result<Container> {
        let spec = &request.spec;
        let log = spec.log.as_ref().map(Log::open).transpose()?;
        let (ours, theirs) = channel()?;
        let mut outputs = Vec::new();
        let mut stdin = None;
        let mut stdio: Stdio = None;
        if !spec.tty {
            let input = if spec.stdin {
                let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                stdin = Some(write);
                read
            } else {
                fs::File::open("/dev/null")?.into()
            };
            let mut ends = vec![input];
            for stream in [Stream::Stdout, Stream::Stderr] {
                let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                sys::set_nonblocking(read.as_raw_fd())?;
                outputs.push(Output { fd: Some(read.into()), stream, pending: Vec::new() });
                ends.push(write);
            }
            stdio = ends.try_into().ok();
        }
        let own_pids = !pod.host_pid && init_of.is_none();
        let flags = libc::CLONE_NEWNS | if own_pids { libc::CLONE_NEWPID } else { 0 };
        let pid = fork_into(init_of, flags)?;
        if pid == 0 {
            let Err(error) = init::container(&request, pod, pod_dir, host, stdio, &theirs);
            init::fail(&theirs, &error);
        }
        sys::set_nonblocking(ours.as_raw_fd())?;
        let state = ContainerState {
            id: spec.id.clone(),
            phase: Phase::Starting,
            pid,
            exit_code: 0,
            signal: 0,
            oom_killed: false,
            error: String::new(),
            started_ms: sys::now_ms(),
            finished_ms: 0,
        };
        Ok(Container {
            request,
            state,
            channel: Some(ours),
            waiter: None,
            outputs,
            stdin,
            master: None,
            log,
            attached: Vec::new(),
        })
    }

    /// The terminal's master arrived: it is input and output at once.
    pub fn set_master(&mut self, master: OwnedFd) -> io::Result<()> {
        sys::set_nonblocking(master.as_raw_fd())?;
        let copy = master.try_clone()?;
        self.outputs.push(Output { fd: Some(copy.into()), stream: Stream::Stdout, pending: Vec::new() });
        self.master = Some(master);
        Ok(())
    }

    /// Whether an output must wait until attached clients have taken what they are owed of it.
    pub fn is_held(&self, index: usize) -> bool {
        let side = self.outputs.get(index).map(|output| usize::from(output.stream == Stream::Stderr));
        side.is_some_and(|side| self.attached.iter().any(|client| client.is_owed(side)))
    }

    /// Descriptors of attached clients that are owed something.
    pub fn owing(&self) -> impl Iterator<Item = RawFd> {
        self.attached.iter().flat_map(Attached::waiting)
    }

    /// Gives attached clients what they are owed; those that are gone, or take nothing, are let go.
    pub fn pay(&mut self) {
        self.attached.retain_mut(Attached::pay_all);
        let over = self.outputs.iter().all(|output| output.fd.is_none());
        if over && self.channel.is_none() {
            self.attached.retain(|client| client.waiting().next().is_some());
        }
    }

    /// Reads what is there, logs and copies it. An output that is held waits, unless the container has ended (`last`): then a pipe holds no more than a little.
    pub fn pump(&mut self, index: usize, last: bool) {
        let mut buffer = [0u8; LINE_BYTES_MAX];
        // Bounded, so that one talkative container does not starve the others.
        for _ in 0..16 {
            if !last && self.is_held(index) {
                return;
            }
            let Some(output) = self.outputs.get_mut(index) else { return };
            let Some(file) = &mut output.fd else { return };
            let (count, end) = match file.read(&mut buffer) {
                Ok(0) => (0, true),
                Ok(count) => (count, false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A terminal whose last user went away answers EIO.
                Err(_) => (0, true),
            };
            let bytes = &buffer[..count];
            let side = usize::from(output.stream == Stream::Stderr);
            self.attached.retain_mut(|client| client.give(side, bytes));
            if let Some(log) = &mut self.log {
                output.pending.extend_from_slice(bytes);
                if let Err(error) = log.drain(output.stream, &mut output.pending, end) {
                    eprintln!("write the log of {}: {error}", self.state.id);
                    output.pending.clear();
                }
            }
            if end {
                output.fd = None;
                if self.outputs.iter().all(|output| output.fd.is_none()) {
                    // Who is owed nothing has heard everything.
                    self.attached.retain(|client| client.waiting().next().is_some());
                }
                return;
            }
        }
    }

    /// Everything that the ended process left in its pipes.
    pub fn drain_outputs(&mut self) {
        (0..self.outputs.len()).for_each(|index| self.pump(index, true));
    }

    /// Adds a client's ends; gives what the client writes to.
    pub fn attach(&mut self, ends: [OwnedFd; 2]) -> io::Result<Option<OwnedFd>> {
        for end in &ends {
            sys::set_nonblocking(end.as_raw_fd())?;
        }
        self.attached.push(Attached::new(ends));
        if let Some(master) = &self.master {
            return master.try_clone().map(Some);
        }
        if self.request.spec.stdin_once {
            return Ok(self.stdin.take());
        }
        self.stdin.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// Forgets input, and attached clients that are owed nothing, once the container ended.
    pub fn close(&mut self) {
        self.attached.retain(|client| client.waiting().next().is_some());
        self.stdin = None;
    }
}
