//! Children before they run their program: how they are forked, and how they speak with the helper.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::sys;

/// A pair of connected packet sockets, parent's end first.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Forks a child into the PID namespace of `of` (or the helper's own). 0 in the child.
pub fn fork_into(pid_namespace: Option<i32>, flags: libc::c_int) -> io::Result<libc::pid_t> {
    let Some(of) = pid_namespace else { return sys::clone(flags) };
    let theirs = fs::File::open(format!("/proc/{of}/ns/pid"))?;
    let ours = fs::File::open("/proc/self/ns/pid")?;
    setns(theirs.as_fd(), CloneFlags::CLONE_NEWPID)?;
    let result = sys::clone(flags);
    if !matches!(result, Ok(0)) {
        setns(ours.as_fd(), CloneFlags::CLONE_NEWPID)?;
    }
    result
}

/// What a child said on its channel.
#[derive(Default)]
pub struct Packet {
    /// A terminal's master.
    pub fd: Option<OwnedFd>,
    /// Why the program does not run.
    pub error: Option<String>,
}

impl Packet {
    /// False when nothing is there yet. The end of the channel is an empty packet.
    pub fn read(&mut self, channel: &OwnedFd) -> bool {
        let mut bytes = [0u8; 4096];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let mut slices = [io::IoSliceMut::new(&mut bytes)];
        let message =
            match recvmsg::<()>(channel.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                Ok(message) => message,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => return false,
                Err(_) => return true,
            };
        let count = message.bytes;
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel just made the descriptor for us.
                self.fd = fds.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
            }
        }
        if count > 0 && bytes[0] == b'E' {
            self.error = Some(String::from_utf8_lossy(&bytes[1..count]).into_owned());
        }
        true
    }
}

/// The first process of a shared PID namespace: it adopts and reaps, and does nothing else.
pub fn pause() -> io::Result<i32> {
    let pid = fork_into(None, libc::CLONE_NEWPID)?;
    if pid == 0 {
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        let _ = nix::sys::prctl::set_name(c"skiff-pause");
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        loop {
            let _ = children.wait();
            while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
        }
    }
    Ok(pid)
}
