//! Connections from inside a pod's network namespace, made by a process that stays outside.
//!
//! A socket belongs to the namespace in which it was made, wherever it is used later. So a short-lived thread of its own
//! enters the namespace, makes the socket and ends; no thread of the async executor ever changes namespace.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpSocket, TcpStream};

/// Enough for two system calls.
const STACK_BYTES: usize = 64 * 1024;

/// Connects from inside the namespace at `netns`; from here when there is none.
pub async fn connect(netns: Option<&Path>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match netns {
        Some(netns) => {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let netns: PathBuf = netns.to_owned();
            std::thread::Builder::new().stack_size(STACK_BYTES).name("netns".into()).spawn(move || {
                let _ = sender.send(inside(&netns, address));
            })?;
            receiver.await.map_err(io::Error::other)??
        }
        None => socket(address)?,
    };
    TcpSocket::from_std_stream(socket).connect(address).await
}

fn inside(netns: &Path, address: SocketAddr) -> io::Result<std::net::TcpStream> {
    let file = File::open(netns)?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
    socket(address)
}

/// A fresh TCP socket, not connected yet, in the calling thread's namespace.
fn socket(address: SocketAddr) -> io::Result<std::net::TcpStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(std::net::TcpStream::from(socket(family, SockType::Stream, flags, None)?))
}
