//! One request to a helper, and its answers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::error::{Error, Result};
use crate::wire::{self, Decoder, Reply, Request};

/// A connection that carries one request.
pub struct Connection {
    pod: String,
    stream: UnixStream,
    decoder: Decoder,
}

impl Connection {
    /// Connects and sends. Descriptors are copied to the helper; the caller keeps its own.
    pub async fn request(pod: &str, dir: &Path, request: &Request, fds: &[RawFd]) -> Result<Connection> {
        let gone = |cause: io::Error| Error::HelperGone { pod: pod.to_owned(), cause: cause.to_string() };
        let stream = wire::connect(dir).and_then(|stream| {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        });
        let stream = stream.map_err(gone)?;
        let frame = wire::encode(request).map_err(|error| Error::Helper(format!("encode the request: {error}")))?;
        let mut sent = 0;
        while sent < frame.len() {
            let fds = if sent == 0 { fds } else { &[] };
            let step = stream.async_io(Interest::WRITABLE, || wire::send(stream.as_raw_fd(), &frame[sent..], fds));
            sent += step.await.map_err(gone)?;
        }
        Ok(Connection { pod: pod.to_owned(), stream, decoder: Decoder::default() })
    }

    /// The next answer and the descriptors that came with it.
    pub async fn reply(&mut self) -> Result<(Reply, Vec<OwnedFd>)> {
        let pod = self.pod.clone();
        let gone = move |cause: io::Error| Error::HelperGone { pod: pod.clone(), cause: cause.to_string() };
        loop {
            if let Some(reply) = self.decoder.take::<Reply>().map_err(&gone)? {
                let fds = std::mem::take(&mut self.decoder.fds);
                return match reply {
                    Reply::Failed(why) => Err(Error::Helper(why)),
                    reply => Ok((reply, fds)),
                };
            }
            let (stream, decoder) = (&self.stream, &mut self.decoder);
            let count =
                stream.async_io(Interest::READABLE, || decoder.receive(stream.as_raw_fd())).await.map_err(&gone)?;
            if count == 0 {
                return Err(gone(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}
