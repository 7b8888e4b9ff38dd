//! Who is attached to a container, and what each is still owed.
//!
//! A client reads at its own speed and loses nothing: while one is owed bytes of a stream, that stream is not read, and the container waits as it does on any pipe that
//! is full. A client that takes nothing at all for [`STALL`] is no longer there for the container's sake, and is let go.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// How long a client may take nothing while it is owed something.
pub const STALL: Duration = Duration::from_secs(30);

/// One attached client.
pub struct Attached {
    /// Copies of the container's output and errors go in here.
    ends: [OwnedFd; 2],
    owed: [Vec<u8>; 2],
    /// When it last took something, or was owed nothing.
    moved: Instant,
}

impl Attached {
    /// `ends` do not block.
    pub fn new(ends: [OwnedFd; 2]) -> Attached {
        Attached { ends, owed: Default::default(), moved: Instant::now() }
    }

    /// Whether bytes of this side (0 output, 1 errors) wait for the client.
    pub fn is_owed(&self, side: usize) -> bool {
        !self.owed[side].is_empty()
    }

    /// The descriptors that should be waited for until they take more.
    pub fn waiting(&self) -> impl Iterator<Item = RawFd> {
        (0..2).filter(|side| self.is_owed(*side)).map(|side| self.ends[side].as_raw_fd())
    }

    /// Gives bytes of a side. False: the client is gone.
    pub fn give(&mut self, side: usize, bytes: &[u8]) -> bool {
        if self.owed.iter().all(Vec::is_empty) {
            self.moved = Instant::now();
        }
        self.owed[side].extend_from_slice(bytes);
        self.pay(side)
    }

    /// Gives what is owed, as far as the client takes it. False: the client is gone, or has taken nothing for too long.
    pub fn pay_all(&mut self) -> bool {
        self.pay(0) && self.pay(1) && (self.owed.iter().all(Vec::is_empty) || self.moved.elapsed() < STALL)
    }

    fn pay(&mut self, side: usize) -> bool {
        while self.is_owed(side) {
            match nix::unistd::write(&self.ends[side], &self.owed[side]) {
                Ok(0) => return false,
                Ok(count) => {
                    self.owed[side].drain(..count);
                    self.moved = Instant::now();
                }
                Err(nix::errno::Errno::EAGAIN) => return true,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use std::io::Read as _;

    fn pair() -> (std::fs::File, OwnedFd) {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        sys::set_nonblocking(write.as_raw_fd()).unwrap();
        (read.into(), write)
    }

    /// More than a pipe holds, to a client that reads late: all of it arrives, in order.
    #[test]
    fn a_slow_client_loses_nothing() {
        let ((mut out, a), (_err, b)) = (pair(), pair());
        let mut client = Attached::new([a, b]);
        let sent: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        assert!(client.give(0, &sent) && client.is_owed(0) && !client.is_owed(1));
        assert_eq!(client.waiting().count(), 1);
        let mut got = vec![0; sent.len()];
        let mut at = 0;
        while at < got.len() {
            at += out.read(&mut got[at..]).unwrap();
            assert!(client.pay_all());
        }
        assert!(got == sent && !client.is_owed(0));
    }

    #[test]
    fn a_client_that_is_gone_is_let_go() {
        let ((out, a), (_err, b)) = (pair(), pair());
        let mut client = Attached::new([a, b]);
        assert!(client.give(0, b"x"));
        drop(out);
        assert!(!client.give(0, b"x"));
    }
}
