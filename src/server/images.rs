//! The cluster's images: what was handed in by `skiff image import` is kept by every server, and nodes take it from any of them.

use super::Shared;
use crate::agent::wire;
use skiff_proto::fleet as pb;
use skiff_runtime::ImageStore;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;

const CHUNK_BYTES: usize = 1 << 20;

/// A server's store of images.
#[derive(Clone)]
pub struct Images {
    store: ImageStore,
}

impl Images {
    pub fn open(dir: &Path) -> anyhow::Result<Images> {
        Ok(Images { store: ImageStore::open(dir, &[])? })
    }

    /// The archive of an image, in chunks.
    pub fn send(&self, reference: String) -> Result<mpsc::Receiver<pb::ImageChunk>, String> {
        if self.store.resolve(&reference).is_none() {
            return Err(format!("the cluster keeps no image {reference:?}; `skiff image import` hands one in"));
        }
        let (send, receive) = mpsc::channel(4);
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            let writer = std::io::BufWriter::with_capacity(CHUNK_BYTES, ChunkWriter { send });
            if let Err(e) = store.export(&reference, writer) {
                tracing::warn!("sending image {reference}: {e}");
            }
        });
        Ok(receive)
    }
}

/// Takes an archive in, and hands it on to the other servers.
pub async fn take(shared: &Arc<Shared>, chunks: mpsc::Receiver<pb::ImageChunk>) -> Result<pb::ImageRecord, String> {
    let store = shared.images.store.clone();
    let reader = ChunkReader { chunks, current: bytes::Bytes::new(), hand_on: true };
    let imported = tokio::task::spawn_blocking(move || {
        let mut reader = reader;
        let records = store.import(&mut reader).map_err(|e| e.to_string())?;
        Ok::<_, String>((records, reader.hand_on))
    });
    let (records, hand_on) = imported.await.map_err(|e| e.to_string())??;
    let record = records.into_iter().next().ok_or("the archive holds no image")?;
    let reference = record.names.first().cloned().unwrap_or_else(|| record.id.to_string());
    if hand_on {
        hand_to_peers(shared, &reference).await?;
    }
    Ok(pb::ImageRecord { reference, digest: record.id.to_string(), size: record.size_bytes })
}

async fn hand_to_peers(shared: &Arc<Shared>, reference: &str) -> Result<(), String> {
    let others = shared.store.members().into_iter().filter(|m| m.id != shared.store.id());
    for member in others {
        let channel = wire::channel(&member.client_addr, shared.ca.certificate(), Some(&shared.own))
            .map_err(|e| e.to_string())?;
        let chunks = shared.images.send(reference.to_owned())?;
        // A reference in the first chunk says that this copy need not be handed on.
        let marked = pb::ImageChunk { reference: reference.to_owned(), data: bytes::Bytes::new() };
        let stream = tokio_stream::StreamExt::chain(
            tokio_stream::once(marked),
            tokio_stream::wrappers::ReceiverStream::new(chunks),
        );
        if let Err(status) = wire::client(channel).put_image(stream).await {
            tracing::warn!(server = member.name, "handing an image to another server: {}", status.message());
        }
    }
    Ok(())
}

/// Chunks as a reader, for a thread.
pub struct ChunkReader {
    chunks: mpsc::Receiver<pb::ImageChunk>,
    current: bytes::Bytes,
    hand_on: bool,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => {
                    self.hand_on &= chunk.reference.is_empty();
                    self.current = chunk.data;
                }
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
        let chunk = pb::ImageChunk { reference: String::new(), data: bytes::Bytes::copy_from_slice(part) };
        self.send.blocking_send(chunk).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(part.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
