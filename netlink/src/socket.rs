//! A netlink socket: a request and its answer, a dump, an atomic batch of netfilter changes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use crate::wire::{self, HEADER, Message};

/// How long the kernel may take for one answer; a commit of nftables waits for all readers, so tens of milliseconds are ordinary.
const ANSWER_WITHIN_S: i64 = 20;
/// Room for one batch, which is one datagram.
const SEND_BYTES_MAX: usize = 16 << 20;
const RECEIVE_BYTES_MAX: usize = 4 << 20;
/// A dump that the kernel marked as interrupted is read again this often.
const DUMP_TRIES: u32 = 10;

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

pub type Result<T> = std::result::Result<T, Error>;

/// What was asked of the kernel and why it refused, in its own words where it gave any.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}{}", if detail.is_empty() { String::new() } else { format!(" ({detail})") })]
pub struct Error {
    what: String,
    #[source]
    reason: io::Error,
    detail: String,
}

impl Error {
    pub fn new(what: impl Into<String>, reason: impl Into<io::Error>) -> Error {
        Error { what: what.into(), reason: reason.into(), detail: String::new() }
    }

    /// The system's error number; 0 when the failure was not the kernel's.
    pub fn errno(&self) -> i32 {
        self.reason.raw_os_error().unwrap_or(0)
    }

    /// Whether what should be removed is not there.
    pub fn is_gone(&self) -> bool {
        [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL].contains(&self.errno())
    }

    /// Whether what should be made is there.
    pub fn is_there(&self) -> bool {
        self.errno() == libc::EEXIST
    }
}

/// A socket to one netlink family, bound to the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Links, addresses, routes.
    pub fn route() -> Result<Socket> {
        Socket::open(SockProtocol::NetlinkRoute, "open a routing netlink socket")
    }

    /// nftables and conntrack.
    pub fn netfilter() -> Result<Socket> {
        Socket::open(SockProtocol::NetlinkNetFilter, "open a netfilter netlink socket")
    }

    fn open(protocol: SockProtocol, what: &str) -> Result<Socket> {
        let fail = |error: nix::Error| Error::new(what, error);
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map_err(fail)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(fail)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_WITHIN_S, 0)).map_err(fail)?;
        setsockopt(&fd, sockopt::SndBufForce, &SEND_BYTES_MAX).map_err(fail)?;
        setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BYTES_MAX).map_err(fail)?;
        // Without these two an error is only a number, and carries the request back with it. Old kernels lack them; the number is enough then.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            // SAFETY: the option's value is one int, and its length is given.
            unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of_val(&on) as libc::socklen_t,
                );
            }
        }
        Ok(Socket { fd, sequence: 1, buffer: vec![0; 256 << 10] })
    }

    /// Sends one message and waits for the kernel's yes or no. `what` names the attempt in an error.
    pub fn request(&mut self, what: &str, mut message: Message) -> Result<()> {
        message.add_flags(libc::NLM_F_ACK);
        let sequence = self.next();
        self.send(what, message.seal(sequence))?;
        loop {
            let length = self.receive(what)?;
            for got in wire::messages(&self.buffer[..length]) {
                if got.sequence == sequence && got.kind == NLMSG_ERROR {
                    return verdict(what, got);
                }
            }
        }
    }

    /// Asks for all objects of a kind; `each` sees the type and payload of every one.
    pub fn dump(&mut self, what: &str, mut message: Message, mut each: impl FnMut(u16, &[u8])) -> Result<()> {
        message.add_flags(libc::NLM_F_DUMP);
        let mut seen: Vec<(u16, Vec<u8>)> = Vec::new();
        for _ in 0..DUMP_TRIES {
            seen.clear();
            let sequence = self.next();
            self.send(what, message.seal(sequence))?;
            let mut interrupted = false;
            'answer: loop {
                let length = self.receive(what)?;
                for got in wire::messages(&self.buffer[..length]) {
                    if got.sequence != sequence {
                        continue;
                    }
                    interrupted |= got.flags & NLM_F_DUMP_INTR != 0;
                    match got.kind {
                        NLMSG_DONE => break 'answer,
                        NLMSG_ERROR => return verdict(what, got),
                        kind => seen.push((kind, got.payload.to_vec())),
                    }
                }
            }
            if !interrupted {
                for (kind, payload) in &seen {
                    each(*kind, payload);
                }
                return Ok(());
            }
        }
        Err(Error::new(what, io::Error::new(io::ErrorKind::Interrupted, "the kernel's list changed at every reading")))
    }

    /// Sends messages as one datagram in which the first and the last only mark a netfilter transaction: all of it happens, or none.
    ///
    /// Only the last change asks for an acknowledgement, so that the answers of a great batch cannot overflow the receive buffer; a refused change
    /// answers unasked, and a refusal of the whole answers to the opening mark.
    pub fn batch(&mut self, what: &str, begin: Message, changes: Vec<Message>, end: Message) -> Result<()> {
        let Some(count) = changes.len().checked_sub(1) else { return Ok(()) };
        let first = self.next();
        let mut bytes = begin.clone().seal(first).to_vec();
        let mut last = first;
        for (nth, mut message) in changes.into_iter().enumerate() {
            if nth == count {
                message.add_flags(libc::NLM_F_ACK);
            }
            last = self.next();
            bytes.extend_from_slice(message.seal(last));
        }
        let closing = self.next();
        bytes.extend_from_slice(end.clone().seal(closing));
        self.send(what, &bytes)?;
        let mut refusal = None;
        loop {
            let length = self.receive(what)?;
            for got in wire::messages(&self.buffer[..length]) {
                if got.kind != NLMSG_ERROR || got.sequence < first || got.sequence > closing {
                    continue;
                }
                if let Err(error) = verdict(what, got) {
                    let nth = got.sequence - first;
                    refusal.get_or_insert(Error { what: format!("{what}, change {nth}"), ..error });
                }
                if got.sequence == last || (got.sequence == first && refusal.is_some()) {
                    return refusal.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn send(&self, what: &str, bytes: &[u8]) -> Result<()> {
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).map(drop).map_err(|error| Error::new(what, error))
    }

    fn receive(&mut self, what: &str) -> Result<usize> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(length),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(Error::new(what, error)),
            }
        }
    }
}

/// What an NLMSG_ERROR says: an error number (0 is yes) and perhaps the kernel's sentence.
fn verdict(what: &str, got: wire::Received<'_>) -> Result<()> {
    let code = wire::number(got.payload).unwrap_or(0) as i32;
    if code == 0 {
        return Ok(());
    }
    let detail = (got.flags & NLM_F_ACK_TLVS != 0)
        .then(|| got.payload.get(4 + HEADER..).and_then(|rest| wire::find(rest, NLMSGERR_ATTR_MSG)))
        .flatten()
        .map(wire::text)
        .unwrap_or_default();
    Err(Error { what: what.to_owned(), reason: io::Error::from_raw_os_error(-code), detail })
}
