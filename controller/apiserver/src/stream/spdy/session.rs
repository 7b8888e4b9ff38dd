//! A SPDY/3.1 connection: one task reads, one writes, and streams that the client opens come out of [`Session::accept`].
//!
//! Clients of the Kubernetes API keep no flow control windows in SPDY, so neither do we: a stream whose reader is slow holds up the
//! connection, which the client's TCP then feels.

use super::frame::{self, Frame, FrameError, HEAD_BYTES, Head};
use super::headers::{Deflater, Headers, Inflater};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

/// Pieces of data that wait on a stream, or frames that wait to be written.
const QUEUE: usize = 16;
/// Data frames are handed on in pieces of at most this size.
const PIECE_BYTES_MAX: usize = 32 << 10;
/// Streams that may be open at the same time on one connection.
const STREAMS_MAX: usize = 1024;
/// What may wait on all streams of a connection together. Beyond it the connection is not read until something was taken, as when one stream is full.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// What a piece counts at least: the smallest has its place in a queue, too.
const PIECE_BYTES_MIN: usize = 256;
/// How long a client may take to close its half when ours is done.
pub const CLOSE_WAIT_MAX: Duration = Duration::from_secs(60);
/// RST_STREAM: no room for the stream.
const REFUSED: u32 = 3;
/// RST_STREAM: the stream is not wanted any more.
const CANCEL: u32 = 5;

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the connection is being given up")]
    Closed,
}

/// What comes on a stream. The end of the queue is the end of the client's half.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    Data(Bytes),
    /// The client wants nothing more of this stream.
    Reset,
}

/// What waits for a stream's reader, with its part of [`WAITING_BYTES_MAX`].
type Waiting = (Incoming, Option<OwnedSemaphorePermit>);

/// Where the pieces of a stream are taken.
pub struct Inbox(mpsc::Receiver<Waiting>);

impl Inbox {
    /// The next piece; None at the end of the client's half. Cancel safe.
    pub async fn recv(&mut self) -> Option<Incoming> {
        self.0.recv().await.map(|(piece, _)| piece)
    }
}

/// A stream that the client opened.
pub struct Stream {
    headers: Headers,
    pub receive: Inbox,
    pub send: Sender,
}

impl Stream {
    /// The value of a header (lower case name), or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).unwrap_or_default()
    }
}

/// Our half of a stream.
pub struct Sender {
    stream: u32,
    out: mpsc::Sender<Frame>,
    open: bool,
}

impl Sender {
    /// Gives the data to the connection; an error says that the connection is gone.
    pub async fn data(&self, data: Bytes) -> Result<(), mpsc::error::SendError<()>> {
        let frame = Frame::Data { stream: self.stream, fin: false, data };
        self.out.send(frame).await.map_err(|_| mpsc::error::SendError(()))
    }

    /// Ends our half.
    pub async fn finish(mut self) {
        self.open = false;
        let _ = self.out.send(Frame::Data { stream: self.stream, fin: true, data: Bytes::new() }).await;
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.open {
            let _ = self.out.try_send(Frame::Reset { stream: self.stream, status: CANCEL });
        }
    }
}

/// The server's end of a connection. Dropping it ends the connection once the streams' senders are dropped too.
pub struct Session {
    accepted: mpsc::Receiver<Stream>,
    /// Ends when the client's half does; what still comes when nobody wants it is thrown away.
    reader: AbortOnDropHandle<()>,
    writer: tokio::task::JoinHandle<()>,
    out: mpsc::Sender<Frame>,
    pings: u32,
}

impl Session {
    pub fn start<R, W>(reader: R, writer: W) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (out, frames) = mpsc::channel(QUEUE);
        let (accept, accepted) = mpsc::channel(QUEUE);
        let writer = tokio::spawn(write(writer, frames));
        // The reader must not keep the writer from its end.
        let weak = out.downgrade();
        let reader = tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(WAITING_BYTES_MAX));
            let mut side =
                Reader { reader, accept, out: weak, streams: HashMap::new(), room, inflater: Inflater::default() };
            if let Err(error) = side.run().await {
                tracing::debug!(%error, "a SPDY connection ended");
            }
        });
        Session { accepted, reader: AbortOnDropHandle::new(reader), writer, out, pings: 0 }
    }

    /// Asks the client for a sign of life. The answer does not matter: to a client that is gone nothing can be written, which
    /// ends the connection also while a full stream keeps us from reading that it went. A full queue is sign enough that we write.
    pub fn ping(&mut self) {
        self.pings = self.pings.wrapping_add(2);
        let _ = self.out.try_send(Frame::Ping { id: self.pings });
    }

    /// The connection cannot be written to any more.
    pub fn is_broken(&self) -> bool {
        self.writer.is_finished()
    }

    /// The next stream that the client opens; None when the connection is over. Cancel safe.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.accepted.recv().await
    }

    /// Waits until everything that was given has been written and the client has closed its half, so that nothing is lost to a
    /// reset. Call it when all streams are done; what the client still sends is dropped.
    pub async fn close(self) {
        let Session { accepted, reader, writer, out, .. } = self;
        drop((accepted, out));
        let _ = writer.await;
        let _ = tokio::time::timeout(CLOSE_WAIT_MAX, reader).await;
    }
}

struct Reader<R> {
    reader: R,
    accept: mpsc::Sender<Stream>,
    out: mpsc::WeakSender<Frame>,
    streams: HashMap<u32, mpsc::Sender<Waiting>>,
    room: Arc<Semaphore>,
    inflater: Inflater,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(&mut self) -> Result<(), ReadError> {
        loop {
            let mut first = [0u8; HEAD_BYTES];
            match self.reader.read_exact(&mut first).await {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                result => result?,
            };
            match frame::head(&first)? {
                Head::Data { stream, fin, len } => self.data(stream, fin, len).await?,
                Head::Control { kind, fin, len } => {
                    let mut body = vec![0; len];
                    self.reader.read_exact(&mut body).await?;
                    let frame = frame::control(kind, fin, &body, &mut self.inflater)?;
                    self.control(frame).await?;
                }
            }
        }
    }

    async fn data(&mut self, stream: u32, fin: bool, len: usize) -> Result<(), ReadError> {
        let mut left = len;
        while left > 0 {
            let mut piece = vec![0; left.min(PIECE_BYTES_MAX)];
            self.reader.read_exact(&mut piece).await?;
            left -= piece.len();
            // Data for a stream that nobody reads (any more) is dropped.
            if let Some(queue) = self.streams.get(&stream) {
                let bytes = piece.len().max(PIECE_BYTES_MIN) as u32;
                // Who stops reading a stream without taking what waits there drops it, and its part with it.
                let room = self.room.clone().acquire_many_owned(bytes).await.ok();
                let _ = queue.send((Incoming::Data(piece.into()), room)).await;
            }
        }
        if fin {
            self.streams.remove(&stream);
        }
        Ok(())
    }

    async fn control(&mut self, frame: Frame) -> Result<(), ReadError> {
        match frame {
            Frame::SynStream { stream, fin, headers } => self.open(stream, fin, headers).await,
            Frame::Reset { stream, .. } => {
                if let Some(queue) = self.streams.remove(&stream) {
                    let _ = queue.send((Incoming::Reset, None)).await;
                }
                Ok(())
            }
            // The client counts in odd numbers; an even one would be the answer to a ping of ours.
            Frame::Ping { id } if id % 2 == 1 => match self.out.upgrade() {
                Some(out) => out.send(Frame::Ping { id }).await.map_err(|_| ReadError::Closed),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> Result<(), ReadError> {
        self.streams.retain(|_, queue| !queue.is_closed());
        let out = self.out.upgrade().ok_or(ReadError::Closed)?;
        if self.streams.len() >= STREAMS_MAX {
            let refusal = Frame::Reset { stream, status: REFUSED };
            return out.send(refusal).await.map_err(|_| ReadError::Closed);
        }
        let reply = Frame::SynReply { stream, headers: Headers::new() };
        out.send(reply).await.map_err(|_| ReadError::Closed)?;
        let (queue, receive) = mpsc::channel(QUEUE);
        if !fin {
            self.streams.insert(stream, queue);
        }
        let send = Sender { stream, out, open: true };
        let receive = Inbox(receive);
        self.accept.send(Stream { headers, receive, send }).await.map_err(|_| ReadError::Closed)
    }
}

async fn write<W: AsyncWrite + Unpin>(mut writer: W, mut frames: mpsc::Receiver<Frame>) {
    let mut deflater = Deflater::default();
    let result: std::io::Result<()> = async {
        while let Some(frame) = frames.recv().await {
            let bytes = frame::encode(&frame, &mut deflater).map_err(std::io::Error::other)?;
            writer.write_all(&bytes).await?;
            if frames.is_empty() {
                writer.flush().await?;
            }
        }
        writer.flush().await?;
        writer.shutdown().await
    }
    .await;
    if let Err(error) = result {
        tracing::debug!(%error, "writing to a SPDY connection failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    /// All streams of a connection, none of which is read: no more than the bound is taken from the client, and all of it arrives once they are read.
    #[tokio::test]
    async fn what_waits_on_all_streams_is_bounded() {
        const STREAMS: u32 = 64;
        const EACH: usize = 8 * PIECE_BYTES_MAX;
        let (ours, mut client) = duplex(PIECE_BYTES_MAX);
        let (reader, writer) = tokio::io::split(ours);
        let mut session = Session::start(reader, writer);
        let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = taken.clone();
        let sending = tokio::spawn(async move {
            let mut deflater = Deflater::default();
            for n in 0..STREAMS {
                let stream = 2 * n + 1;
                let open = Frame::SynStream { stream, fin: false, headers: Headers::new() };
                client.write_all(&frame::encode(&open, &mut deflater).unwrap()).await.unwrap();
                let data = Frame::Data { stream, fin: true, data: vec![7; EACH].into() };
                let bytes = frame::encode(&data, &mut deflater).unwrap();
                for piece in bytes.chunks(4096) {
                    client.write_all(piece).await.unwrap();
                    count.fetch_add(piece.len(), std::sync::atomic::Ordering::Relaxed);
                }
            }
            client
        });
        let mut streams = Vec::new();
        // All that can be taken has been when nothing more comes.
        while let Ok(Some(stream)) = tokio::time::timeout(Duration::from_millis(300), session.accept()).await {
            streams.push(stream);
        }
        let waiting = taken.load(std::sync::atomic::Ordering::Relaxed);
        assert!(waiting <= WAITING_BYTES_MAX + 3 * PIECE_BYTES_MAX, "{waiting} bytes were taken");
        // Side by side: nothing says which stream's data stands before which other's.
        let mut reading = tokio::task::JoinSet::new();
        while reading.len() < STREAMS as usize {
            let mut stream = match streams.pop() {
                Some(stream) => stream,
                None => session.accept().await.unwrap(),
            };
            reading.spawn(async move {
                let mut received = 0;
                while let Some(Incoming::Data(data)) = stream.receive.recv().await {
                    received += data.len();
                }
                received
            });
        }
        let received: usize = reading.join_all().await.into_iter().sum();
        assert_eq!(received, STREAMS as usize * EACH);
        drop(sending.await.unwrap());
    }
}
