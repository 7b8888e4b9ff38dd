//! An image's archive on its way over gRPC: a thread's writer becomes chunks, and chunks become a thread's reader.
//!
//! Agents take images from servers with it, and servers from each other.

use crate::agent::wire;
use anyhow::Context as _;
use skiff_proto::fleet as pb;
use skiff_runtime::{ImageRecord, ImageStore};
use std::io::{Read, Write};
use tokio::sync::mpsc;
use tonic::transport::Channel;

const CHUNK_BYTES: usize = 1 << 20;
/// Chunks under way at once: what a slow disk or a slow network may hold in memory.
const CHUNKS: usize = 4;

/// The archive of an image that `store` holds, in chunks; it ends early if the reader goes.
pub fn send(store: &ImageStore, reference: String) -> mpsc::Receiver<pb::ImageChunk> {
    let (send, receive) = mpsc::channel(CHUNKS);
    let store = store.clone();
    tokio::task::spawn_blocking(move || {
        let writer = std::io::BufWriter::with_capacity(CHUNK_BYTES, ChunkWriter { send });
        if let Err(e) = store.export(&reference, writer) {
            tracing::warn!("sending image {reference}: {e}");
        }
    });
    receive
}

/// Takes an archive that comes in chunks into `store`.
pub async fn take(store: &ImageStore, chunks: mpsc::Receiver<pb::ImageChunk>) -> anyhow::Result<Vec<ImageRecord>> {
    let store = store.clone();
    let reader = ChunkReader { chunks, current: bytes::Bytes::new() };
    Ok(tokio::task::spawn_blocking(move || store.import(reader)).await??)
}

/// Copies an image from the server behind `channel` into `store`.
pub async fn fetch(store: &ImageStore, channel: Channel, reference: &str) -> anyhow::Result<Vec<ImageRecord>> {
    let request = pb::ImageRequest { reference: reference.to_owned() };
    let mut stream = wire::client(channel).image(request).await?.into_inner();
    let (send, receive) = mpsc::channel(CHUNKS);
    let copy = async move {
        while let Some(chunk) = stream.message().await? {
            if send.send(chunk).await.is_err() {
                break;
            }
        }
        Ok::<_, tonic::Status>(())
    };
    let (copied, taken) = tokio::join!(copy, take(store, receive));
    copied.with_context(|| format!("receiving the image {reference}"))?;
    taken
}

/// Chunks as a reader, for a thread.
struct ChunkReader {
    chunks: mpsc::Receiver<pb::ImageChunk>,
    current: bytes::Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk.data,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

struct ChunkWriter {
    send: mpsc::Sender<pb::ImageChunk>,
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let part = &data[..data.len().min(CHUNK_BYTES)];
        let chunk = pb::ImageChunk { data: bytes::Bytes::copy_from_slice(part) };
        self.send.blocking_send(chunk).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(part.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
