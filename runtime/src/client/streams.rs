//! Input and output of programs in containers: pipes or a terminal, straight from the kernel, past the helper.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use super::connection::Connection;
use crate::error::{Error, Result};
use crate::sys;
use crate::wire::Reply;

/// Bytes out of a program.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// Bytes into a program.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The streams of one program. Dropping `stdin` is the end of its input.
pub struct ExecIo {
    /// None when the program has no input.
    pub stdin: Option<Writer>,
    /// Output; with a terminal, errors too.
    pub stdout: Option<Reader>,
    /// Errors; none with a terminal.
    pub stderr: Option<Reader>,
    /// Changes the size of the terminal, if there is one.
    pub terminal: Option<Terminal>,
}

/// A program that joined a container. Dropping it kills the program, if it still runs, and everything in its session.
pub struct ExecSession {
    /// Its streams, to be taken.
    pub io: ExecIo,
    pub(super) connection: Connection,
}

impl ExecSession {
    /// Its streams; none are left.
    pub fn take_io(&mut self) -> ExecIo {
        std::mem::replace(&mut self.io, ExecIo { stdin: None, stdout: None, stderr: None, terminal: None })
    }

    /// Its exit code: 0 to 255, or 128 + the number of the signal that ended it.
    pub async fn wait(&mut self) -> Result<i32> {
        loop {
            if let (Reply::Exited { code }, _) = self.connection.reply().await? {
                return Ok(code);
            }
        }
    }
}

/// A container's own streams, from the moment of attaching on.
pub struct Attached {
    /// As for a joined program.
    pub io: ExecIo,
}

/// The master side of a terminal.
#[derive(Clone)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    pub(super) fn new(master: OwnedFd) -> io::Result<Terminal> {
        sys::set_nonblocking(master.as_raw_fd())?;
        // SAFETY: the descriptor is owned by the registration and always answers with the same number, so it cannot be closed
        // or exchanged while it is registered.
        let registered = unsafe { AsyncFd::register(master) }?;
        Ok(Terminal(Arc::new(registered)))
    }

    /// Tells the program how many characters its window has.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size outlives the call and has the type that TIOCSWINSZ takes.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        sys::check(result as libc::c_long)
            .map(drop)
            .map_err(|source| Error::Io { what: "resize a terminal".into(), source })
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let attempt = guard.try_io(|inner| Ok(nix::unistd::read(inner.get_ref(), buffer.initialize_unfilled())?));
            match attempt {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // What a terminal says when its last user went away.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|inner| Ok(nix::unistd::write(inner.get_ref(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl ExecIo {
    pub(super) fn of_terminal(master: OwnedFd) -> io::Result<ExecIo> {
        let terminal = Terminal::new(master)?;
        Ok(ExecIo {
            stdin: Some(Box::new(terminal.clone())),
            stdout: Some(Box::new(terminal.clone())),
            stderr: None,
            terminal: Some(terminal),
        })
    }
}

/// A pipe out of which the agent reads; the other end is for the helper.
pub(super) fn output() -> io::Result<(OwnedFd, Reader)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((write, Box::new(pipe::Receiver::from_owned_fd(read)?)))
}

/// A pipe into which the agent writes.
pub(super) fn input() -> io::Result<(OwnedFd, Writer)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((read, writer(write)?))
}

/// The agent's end of a pipe into a program.
pub(super) fn writer(write: OwnedFd) -> io::Result<Writer> {
    Ok(Box::new(pipe::Sender::from_owned_fd(write)?))
}

/// The descriptor is a terminal's master.
pub(super) fn is_terminal(fd: Option<&OwnedFd>) -> bool {
    // SAFETY: isatty only looks at the descriptor, which is open.
    fd.is_some_and(|fd| unsafe { libc::isatty(fd.as_raw_fd()) } == 1)
}
