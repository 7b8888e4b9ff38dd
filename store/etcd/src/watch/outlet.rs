//! The way out of a watch stream: messages are put together into pieces of a useful size, and a few pieces wait for the connection.
//!
//! A gRPC message is a byte that says "not compressed", four of length, and itself; how messages are cut into the pieces of the
//! HTTP body means nothing.

use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::body::{Body, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use tonic::Status;

/// Bytes of a piece, about: some frames' worth.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that may wait for a client before its watches wait too.
const PIECES_MAX: usize = 16;
/// Bytes before a message: one that says that it is not compressed, and its length.
const HEAD: usize = 5;

pub struct Outlet {
    pieces: mpsc::Sender<Result<Bytes, Status>>,
    buffer: BytesMut,
}

/// The other end: the body of the HTTP response.
pub struct Pieces {
    pieces: mpsc::Receiver<Result<Bytes, Status>>,
    ended: bool,
}

pub fn outlet() -> (Outlet, Pieces) {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    (Outlet { pieces: sender, buffer: BytesMut::new() }, Pieces { pieces, ended: false })
}

impl Outlet {
    /// Adds a message that consists of these parts.
    pub fn message(&mut self, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.buffer.reserve(len + HEAD);
        self.buffer.put_u8(0);
        self.buffer.put_u32(len as u32);
        parts.iter().for_each(|part| self.buffer.put_slice(part));
    }

    /// Sends what there is once it is a piece's worth, and waits if the client is behind; false if the client is gone.
    pub async fn make_room(&mut self) -> bool {
        self.buffer.len() < PIECE_BYTES || self.flush().await
    }

    /// Sends what there is; false if the client is gone.
    pub async fn flush(&mut self) -> bool {
        if self.buffer.is_empty() {
            return true;
        }
        let piece = self.buffer.split().freeze();
        self.buffer.reserve(PIECE_BYTES + (PIECE_BYTES >> 3));
        self.pieces.send(Ok(piece)).await.is_ok()
    }

    /// Ends the stream with an error.
    pub async fn fail(mut self, status: Status) {
        if self.flush().await {
            let _ = self.pieces.send(Err(status)).await;
        }
    }

    /// Whoever reads the other end, to find out when it is gone.
    pub fn client(&self) -> mpsc::Sender<Result<Bytes, Status>> {
        self.pieces.clone()
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.pieces.poll_recv(cx)) {
            Some(Ok(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        // It fails for texts that no header may hold; ours are plain.
        let _ = status.add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
