//! The language between the agent and a pod's helper: JSON in frames of a length and that many bytes, on a
//! Unix socket, with file descriptors beside a frame's first byte where streams are handed over.
//!
//! A connection carries one request. The answer is one [`Reply`]; `Watch` and `Exec` go on with more of them.
//! Output and input never travel through the helper's messages: descriptors do, so bytes flow without a copy.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::spec::{ContainerSpec, ExecSpec, PodState};

/// No frame is longer: a container's whole environment fits many times over.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// Name of the socket in a pod's directory.
pub const SOCKET: &str = "s";

/// What is asked of a helper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make and run a container. Answered once its program runs or has failed to.
    Start(Box<StartRequest>),
    /// Run a program in a container. Three descriptors come with it (input, output, errors) unless a terminal is asked
    /// for, whose master comes back with the answer. `Exited` follows. Closing the connection kills the program.
    Exec(ExecSpec),
    /// Copy a container's output to two descriptors from now on; its input (or terminal) comes back.
    Attach { container: String },
    /// Send a signal to a container's first process, or to all of them.
    Signal { container: String, signal: i32, all: bool },
    /// The pod's state, now and after every change.
    Watch,
    /// Forget an ended container (a living one is killed first).
    Remove { container: String },
    /// Kill everything and end the helper.
    Stop,
    /// Kill everything when CLOCK_BOOTTIME reaches this many milliseconds, unless told a later time before; 0 lifts it.
    Lease { deadline_boottime_ms: u64 },
}

/// Everything needed for a container that is not in its specification.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartRequest {
    pub spec: ContainerSpec,
    /// Directory in which the layer directories are.
    pub layers_dir: String,
    /// Layer directories, the top one first.
    pub layers: Vec<String>,
    /// The container's own directory, with `upper`, `work` and `root` in it.
    pub dir: String,
    /// Control group directories, already made and limited.
    pub cgroup: crate::cgroup::Cgroup,
}

/// What a helper answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Failed(String),
    Started { pid: i32 },
    Exited { code: i32 },
    State(PodState),
}

/// Bytes of a frame.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Collects bytes until a whole frame is there.
#[derive(Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Decoder {
    /// The next message, if its bytes are all there.
    pub fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        if self.bytes.len() < 4 {
            return Ok(None);
        }
        let length = u32::from_be_bytes([self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::other(format!("a frame of {length} bytes, more than {FRAME_BYTES_MAX}")));
        }
        if self.bytes.len() < 4 + length {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.bytes[4..4 + length])?;
        self.bytes.drain(..4 + length);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        Ok(Some(message))
    }

    /// One `recvmsg`. `Ok(0)` is the end of the stream; `WouldBlock` as usual.
    pub fn receive(&mut self, socket: RawFd) -> io::Result<usize> {
        let mut chunk = [0u8; 4096];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let mut slices = [IoSliceMut::new(&mut chunk)];
        let message = recvmsg::<()>(socket, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel just made these descriptors for us; nobody else knows them.
                self.fds.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let count = message.bytes;
        self.bytes.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

/// One `sendmsg` of as much as goes; descriptors ride on the first byte.
pub fn send(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    Ok(sendmsg::<()>(socket, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Connects to a socket in a directory whose path may be longer than a socket address can hold.
pub fn connect(dir: &std::path::Path) -> io::Result<std::os::unix::net::UnixStream> {
    let dir = std::fs::File::open(dir)?;
    std::os::unix::net::UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

/// Listens on a socket in a directory, as [`connect`] finds it.
pub fn listen(dir: &std::path::Path) -> io::Result<std::os::unix::net::UnixListener> {
    let dir = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::net::UnixListener::bind(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_arrives_whole_or_not_at_all() {
        let frame = encode(&Request::Signal { container: "a".into(), signal: 15, all: false }).unwrap();
        let mut decoder = Decoder::default();
        for (index, byte) in frame.iter().enumerate() {
            assert!(decoder.take::<Request>().unwrap().is_none(), "after {index} bytes");
            decoder.bytes.push(*byte);
        }
        assert!(matches!(decoder.take::<Request>().unwrap(), Some(Request::Signal { signal: 15, .. })));
        decoder.bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        assert!(decoder.take::<Request>().is_err());
    }

    #[test]
    fn descriptors_travel() {
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(left.as_raw_fd(), &encode(&Reply::Done).unwrap(), &[file.as_raw_fd()]).unwrap();
        let mut decoder = Decoder::default();
        decoder.receive(right.as_raw_fd()).unwrap();
        assert!(matches!(decoder.take::<Reply>().unwrap(), Some(Reply::Done)));
        assert_eq!(decoder.fds.len(), 1);
    }
}
