//! The helper's loop: one poll over its socket, its children's ends, their output, and the lease.
//!
//! One owner, no threads, no waiting anywhere but in `poll`. What a connection asks changes containers; what a container
//! does is told to the connections that watch, always as the whole state.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::channel::{Packet, pause};
use super::container::Container;
use super::exec::Exec;
use super::{HelperConfig, HelperRecord, RECORD_FILE};
use crate::error::{Context, Result, on};
use crate::spec::{Phase, PodState};
use crate::sys;
use crate::wire::{self, Decoder, Reply, Request, StartRequest};

/// One client.
struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    /// Bytes that the socket did not take yet, and descriptors that go with their first.
    out: Vec<u8>,
    out_fds: Vec<OwnedFd>,
    watches: bool,
    over: bool,
}

/// What a ready descriptor is.
#[derive(Clone, Copy)]
enum Token {
    Listener,
    Signals,
    Lease,
    Connection(u64),
    Setup(usize),
    ExecSetup(i32),
    Output(usize, usize),
    /// A client of a container that is owed something.
    Attached,
}

/// Everything that the helper knows.
pub struct Server {
    dir: PathBuf,
    config: HelperConfig,
    /// The host's mount namespace.
    host_mounts: OwnedFd,
    listener: UnixListener,
    signals: SignalFd,
    lease: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    containers: Vec<Container>,
    execs: BTreeMap<i32, Exec>,
    /// First process of the PID namespace that the containers share.
    pause: Option<i32>,
    fenced: bool,
    stopping: Option<u64>,
}

impl Server {
    /// Listens and leaves the record by which a restarted agent knows the helper.
    pub fn new(dir: &Path, config: HelperConfig, host_mounts: OwnedFd) -> Result<Server> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().context(|| "block signals".into())?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&set, flags).context(|| "open a signal descriptor".into())?;
        let timer_flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: no pointers; on success the descriptor is new and ours.
        let lease = sys::check(unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, timer_flags) } as libc::c_long)
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
            .context(|| "open a timer".into())?;
        let pause = match config.spec.share_process_namespace && !config.spec.host_pid {
            true => Some(pause().context(|| "start the pod's first process".into())?),
            false => None,
        };
        let listener = wire::listen(dir).context(on("listen in", dir))?;
        listener.set_nonblocking(true).context(on("listen in", dir))?;
        let record = serde_json::to_vec(&HelperRecord::of_self())
            .map_err(io::Error::from)
            .context(|| "write the record".into())?;
        let file = dir.join(RECORD_FILE);
        crate::private::write(&file, &record).context(on("write", &file))?;
        Ok(Server {
            dir: dir.to_owned(),
            config,
            host_mounts,
            listener,
            signals,
            lease,
            connections: BTreeMap::new(),
            next_connection: 0,
            containers: Vec::new(),
            execs: BTreeMap::new(),
            pause,
            fenced: false,
            stopping: None,
        })
    }

    /// Serves until the pod is stopped; the result is the exit code.
    pub fn run(mut self) -> i32 {
        loop {
            let (mut fds, tokens) = self.interest();
            // A client that is owed something and takes nothing makes no event: it is looked at.
            let owing = tokens.iter().any(|token| matches!(token, Token::Attached));
            let patience = if owing { 1000 } else { -1 };
            // SAFETY: the array outlives the call and its length is its own.
            let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, patience) };
            if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                eprintln!("poll: {}", io::Error::last_os_error());
                return 1;
            }
            // Output first, so that it is logged before an exit is told; requests, which may remove containers, last.
            let ready: Vec<(i16, Token)> = fds
                .iter()
                .zip(tokens)
                .filter(|(fd, _)| fd.revents != 0)
                .map(|(fd, token)| (fd.revents, token))
                .collect();
            let (outputs, others): (Vec<_>, Vec<_>) =
                ready.into_iter().partition(|(_, token)| matches!(token, Token::Output(..)));
            for (events, token) in outputs.into_iter().chain(others.into_iter().rev()) {
                self.handle(token, events);
            }
            if owing {
                self.containers.iter_mut().for_each(Container::pay);
            }
            self.connections.retain(|_, connection| !connection.over || !connection.out.is_empty());
            if self.finished() {
                return 0;
            }
        }
    }

    fn interest(&self) -> (Vec<libc::pollfd>, Vec<Token>) {
        let mut fds = Vec::new();
        let mut tokens = Vec::new();
        let mut add = |fd: RawFd, events: i16, token: Token| {
            fds.push(libc::pollfd { fd, events, revents: 0 });
            tokens.push(token);
        };
        add(self.listener.as_raw_fd(), libc::POLLIN, Token::Listener);
        add(self.signals.as_raw_fd(), libc::POLLIN, Token::Signals);
        add(self.lease.as_raw_fd(), libc::POLLIN, Token::Lease);
        for (id, connection) in &self.connections {
            let writing = if connection.out.is_empty() { 0 } else { libc::POLLOUT };
            add(connection.socket.as_raw_fd(), libc::POLLIN | writing, Token::Connection(*id));
        }
        for exec in self.execs.values() {
            if let Some(channel) = &exec.channel {
                add(channel.as_raw_fd(), libc::POLLIN, Token::ExecSetup(exec.pid));
            }
        }
        for (index, container) in self.containers.iter().enumerate() {
            if let Some(channel) = &container.channel {
                add(channel.as_raw_fd(), libc::POLLIN, Token::Setup(index));
            }
            for (output, stream) in container.outputs.iter().enumerate() {
                if let Some(raw) = stream.raw().filter(|_| !container.is_held(output)) {
                    add(raw, libc::POLLIN, Token::Output(index, output));
                }
            }
            for raw in container.owing() {
                add(raw, libc::POLLOUT, Token::Attached);
            }
        }
        (fds, tokens)
    }

    fn handle(&mut self, token: Token, events: i16) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Token::Lease => {
                self.fenced = true;
                let mut count = [0u8; 8];
                let _ = nix::unistd::read(&self.lease, &mut count);
                self.kill_all();
                self.publish();
            }
            // All of them are seen to below, after each round.
            Token::Attached => {}
            Token::Connection(id) => self.serve(id, events),
            Token::Setup(index) => self.setup(index),
            Token::ExecSetup(pid) => self.exec_setup(pid),
            Token::Output(index, output) => {
                if let Some(container) = self.containers.get_mut(index) {
                    container.pump(output, false);
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if socket.set_nonblocking(true).is_err() {
                continue;
            }
            self.next_connection += 1;
            let connection = Connection {
                socket: socket.into(),
                decoder: Decoder::default(),
                out: Vec::new(),
                out_fds: Vec::new(),
                watches: false,
                over: false,
            };
            self.connections.insert(self.next_connection, connection);
        }
    }

    fn serve(&mut self, id: u64, events: i16) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if events & libc::POLLOUT != 0 {
            connection.flush();
        }
        let mut requests = Vec::new();
        if events & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
            let raw = connection.socket.as_raw_fd();
            loop {
                match connection.decoder.receive(raw) {
                    Ok(0) => connection.over = true,
                    Ok(_) => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => connection.over = true,
                }
                break;
            }
            loop {
                match connection.decoder.take::<Request>() {
                    Ok(Some(request)) => requests.push((request, std::mem::take(&mut connection.decoder.fds))),
                    Ok(None) => break,
                    Err(error) => {
                        eprintln!("a request that is none: {error}");
                        connection.over = true;
                        break;
                    }
                }
            }
        }
        let over = connection.over;
        for (request, fds) in requests {
            if let Err(error) = self.perform(id, request, fds) {
                self.reply(id, Reply::Failed(error), Vec::new());
            }
        }
        if over {
            for exec in self.execs.values().filter(|exec| exec.connection == id) {
                exec.kill(self.containers.iter().find(|have| have.state.id == exec.container));
            }
        }
    }

    fn perform(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) -> std::result::Result<(), String> {
        match request {
            Request::Start(request) => self.start(id, *request),
            Request::Exec(spec) => {
                self.running(&spec.container)?;
                let stdio = match (spec.tty, <[OwnedFd; 3]>::try_from(fds)) {
                    (true, _) => None,
                    (false, Ok(ends)) => Some(ends),
                    (false, Err(_)) => return Err("exec without a terminal takes three descriptors".into()),
                };
                let container = self.containers.iter().find(|have| have.state.id == spec.container);
                if let Some(container) = container {
                    let exec = Exec::start(&spec, container, &self.config.spec, stdio, id)
                        .map_err(|error| format!("exec: {error}"))?;
                    self.execs.insert(exec.pid, exec);
                }
                Ok(())
            }
            Request::Attach { container } => {
                let container = self.find(&container)?;
                let ends = fds.try_into().map_err(|_| "attach takes two descriptors".to_owned())?;
                let input = container.attach(ends).map_err(|error| format!("attach: {error}"))?;
                self.reply(id, Reply::Done, input.into_iter().collect());
                Ok(())
            }
            Request::Signal { container, signal, all } => {
                let container = self.running(&container)?;
                let pids = if all { container.request.cgroup.pids() } else { vec![container.state.pid] };
                for pid in pids {
                    // SAFETY: kill takes no pointers; the processes are this pod's.
                    unsafe { libc::kill(pid, signal) };
                }
                self.reply(id, Reply::Done, Vec::new());
                Ok(())
            }
            Request::Watch => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.watches = true;
                }
                let state = self.state();
                self.reply(id, Reply::State(state), Vec::new());
                Ok(())
            }
            Request::Remove { container } => {
                let at = self.containers.iter().position(|have| have.state.id == container);
                if let Some(at) = at {
                    if self.containers[at].state.phase != Phase::Exited {
                        return Err(format!("container {container} still runs; kill it first"));
                    }
                    self.containers.remove(at);
                    self.publish();
                }
                self.reply(id, Reply::Done, Vec::new());
                Ok(())
            }
            Request::Stop => {
                self.stopping = Some(id);
                self.kill_all();
                if let Some(pause) = self.pause {
                    // SAFETY: our own child.
                    unsafe { libc::kill(pause, libc::SIGKILL) };
                }
                self.reap();
                Ok(())
            }
            Request::Lease { deadline_boottime_ms } => {
                self.set_lease(deadline_boottime_ms).map_err(|error| format!("set the lease: {error}"))?;
                self.reply(id, Reply::Done, Vec::new());
                Ok(())
            }
        }
    }

    fn start(&mut self, id: u64, request: StartRequest) -> std::result::Result<(), String> {
        if self.fenced {
            return Err(
                "the pod's lease has passed: it may run elsewhere by now, so nothing starts here any more".into()
            );
        }
        if self.stopping.is_some() {
            return Err("the pod is being stopped".into());
        }
        if self.containers.iter().any(|have| have.state.id == request.spec.id) {
            return Err(format!("there is a container {} already", request.spec.id));
        }
        let mut container = Container::start(request, &self.config.spec, &self.dir, self.pause, &self.host_mounts)
            .map_err(|error| format!("start the container's process: {error}"))?;
        container.waiter = Some(id);
        self.containers.push(container);
        Ok(())
    }

    fn find(&mut self, id: &str) -> std::result::Result<&mut Container, String> {
        self.containers.iter_mut().find(|have| have.state.id == id).ok_or_else(|| format!("there is no container {id}"))
    }

    fn running(&mut self, id: &str) -> std::result::Result<&mut Container, String> {
        let container = self.find(id)?;
        match container.state.phase {
            Phase::Exited => Err(format!("container {id} has ended")),
            _ => Ok(container),
        }
    }

    /// News from a starting container: its terminal, its failure, or (the channel closed) its program.
    fn setup(&mut self, index: usize) {
        let Some(container) = self.containers.get_mut(index) else { return };
        let Some(channel) = &container.channel else { return };
        let mut packet = Packet::default();
        if !packet.read(channel) {
            return;
        }
        if let Some(master) = packet.fd {
            if let Err(error) = container.set_master(master) {
                eprintln!("terminal of {}: {error}", container.state.id);
            }
            return;
        }
        container.channel = None;
        let waiter = container.waiter.take();
        let reply = match packet.error {
            Some(error) => {
                container.state.error = error.clone();
                Reply::Failed(error)
            }
            None => {
                container.state.phase = Phase::Running;
                container.state.started_ms = sys::now_ms();
                Reply::Started { pid: container.state.pid }
            }
        };
        if let Some(waiter) = waiter {
            self.reply(waiter, reply, Vec::new());
        }
        self.publish();
    }

    fn exec_setup(&mut self, pid: i32) {
        let Some(exec) = self.execs.get_mut(&pid) else { return };
        let Some(channel) = &exec.channel else { return };
        let mut packet = Packet::default();
        if !packet.read(channel) {
            return;
        }
        if packet.fd.is_some() {
            exec.master = packet.fd;
            return;
        }
        exec.channel = None;
        exec.answered = packet.error.is_some();
        let connection = exec.connection;
        match packet.error {
            Some(error) => self.reply(connection, Reply::Failed(error), Vec::new()),
            None => {
                let master = exec.master.take();
                self.reply(connection, Reply::Started { pid }, master.into_iter().collect());
            }
        }
    }

    /// Takes every ended child. A container's own process ends the container; strays are just reaped.
    fn reap(&mut self) {
        let mut changed = false;
        loop {
            let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code, 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32, signal as i32),
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => break,
                Ok(_) | Err(nix::Error::EINTR) => continue,
                Err(error) => {
                    eprintln!("wait for children: {error}");
                    break;
                }
            };
            if self.pause == Some(pid) {
                self.pause = None;
            }
            if self.execs.contains_key(&pid) {
                // Its last words may still be in the channel.
                for _ in 0..4 {
                    self.exec_setup(pid);
                }
                if let Some(exec) = self.execs.remove(&pid)
                    && !exec.answered
                {
                    self.reply(exec.connection, Reply::Exited { code }, Vec::new());
                }
                continue;
            }
            if let Some(index) =
                self.containers.iter().position(|have| have.state.pid == pid && have.state.phase != Phase::Exited)
            {
                self.last_words(index);
                self.ended(index, code, signal);
                changed = true;
            }
        }
        if changed {
            self.publish();
        }
    }

    /// What an ended child left in its channel; a channel that somebody still holds is given up.
    fn last_words(&mut self, index: usize) {
        for _ in 0..4 {
            self.setup(index);
        }
        let container = &mut self.containers[index];
        container.channel = None;
        if let Some(waiter) = container.waiter.take() {
            self.reply(
                waiter,
                Reply::Failed("the container's process ended before its program ran".into()),
                Vec::new(),
            );
        }
    }

    fn ended(&mut self, index: usize, code: i32, signal: i32) {
        let container = &mut self.containers[index];
        // In a PID namespace of its own the kernel has killed the rest; in a shared one that is our duty.
        if self.config.spec.host_pid || self.config.spec.share_process_namespace {
            container.request.cgroup.kill();
        }
        container.drain_outputs();
        container.close();
        container.state.phase = Phase::Exited;
        container.state.exit_code = code;
        container.state.signal = signal;
        container.state.oom_killed = container.request.cgroup.oom_kills() > 0;
        container.state.finished_ms = sys::now_ms();
        eprintln!("container {} ended with {code} (signal {signal})", container.state.id);
    }

    fn kill_all(&mut self) {
        for container in self.containers.iter().filter(|container| container.state.phase != Phase::Exited) {
            container.request.cgroup.kill();
            // SAFETY: our own child, not reaped yet.
            unsafe { libc::kill(container.state.pid, libc::SIGKILL) };
        }
        for exec in self.execs.values() {
            // SAFETY: as above.
            unsafe { libc::kill(exec.pid, libc::SIGKILL) };
        }
    }

    fn set_lease(&self, deadline_ms: u64) -> io::Result<()> {
        let value = libc::timespec {
            tv_sec: (deadline_ms / 1000) as libc::time_t,
            tv_nsec: ((deadline_ms % 1000) * 1_000_000) as libc::c_long,
        };
        let interval = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = libc::itimerspec { it_interval: interval, it_value: value };
        // SAFETY: the timer value outlives the call; the old one is not asked for.
        let result = unsafe {
            libc::timerfd_settime(self.lease.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &timer, std::ptr::null_mut())
        };
        sys::check(result as libc::c_long).map(drop)
    }

    fn state(&self) -> PodState {
        PodState {
            containers: self.containers.iter().map(|container| container.state.clone()).collect(),
            fenced: self.fenced,
            ..PodState::default()
        }
    }

    fn publish(&mut self) {
        let watching: Vec<u64> = self.connections.iter().filter(|(_, c)| c.watches).map(|(id, _)| *id).collect();
        for id in watching {
            let state = self.state();
            self.reply(id, Reply::State(state), Vec::new());
        }
    }

    fn reply(&mut self, id: u64, reply: Reply, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match wire::encode(&reply) {
            Ok(frame) => connection.out.extend_from_slice(&frame),
            Err(error) => eprintln!("encode a reply: {error}"),
        }
        connection.out_fds.extend(fds);
        connection.flush();
    }

    /// The pod was stopped and its last process is gone.
    fn finished(&mut self) -> bool {
        let Some(id) = self.stopping else { return false };
        let alive = self.pause.is_some()
            || !self.execs.is_empty()
            || self.containers.iter().any(|container| container.state.phase != Phase::Exited);
        if alive {
            return false;
        }
        self.reply(id, Reply::Done, Vec::new());
        true
    }
}

impl Connection {
    fn flush(&mut self) {
        while !self.out.is_empty() {
            let fds: Vec<RawFd> = self.out_fds.iter().map(AsRawFd::as_raw_fd).collect();
            match wire::send(self.socket.as_raw_fd(), &self.out, &fds) {
                Ok(count) => {
                    self.out.drain(..count);
                    self.out_fds.clear();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.out.clear();
                    self.over = true;
                }
            }
        }
        self.out = Vec::new();
    }
}
