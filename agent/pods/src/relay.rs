//! Between a program's descriptors and a client's channels, each direction in a task of its own.
//!
//! Every queue is bounded and a full one is waited for, so that a slow client slows the program down and loses nothing. All
//! tasks end with the client's interest, also those that wait for a program that neither reads nor writes.

use bytes::Bytes;
use skiff_runtime::{ExecIo, Terminal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::streams::{ExecStream, Output};

/// Chunks on their way; with their size the most that a slow client holds in each direction.
const QUEUE_MAX: usize = 8;
const CHUNK_BYTES: usize = 32 * 1024;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Starts the tasks; `gone` is cancelled when the stream is dropped.
pub fn connect(
    io: ExecIo,
    stdin: bool,
    exit: oneshot::Receiver<Result<i32, String>>,
    gone: CancellationToken,
) -> ExecStream {
    let (sender, output) = mpsc::channel(QUEUE_MAX);
    if let Some(stdout) = io.stdout {
        tokio::spawn(gone.clone().run_until_cancelled_owned(pump(stdout, sender.clone(), Output::Stdout)));
    }
    if let Some(stderr) = io.stderr {
        tokio::spawn(gone.clone().run_until_cancelled_owned(pump(stderr, sender, Output::Stderr)));
    }
    let input = io.stdin.filter(|_| stdin).map(|writer| {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(gone.clone().run_until_cancelled_owned(feed(writer, receiver)));
        sender
    });
    let (resize, sizes) = mpsc::channel(QUEUE_MAX);
    if let Some(terminal) = io.terminal {
        tokio::spawn(gone.clone().run_until_cancelled_owned(follow_window(terminal, sizes)));
    }
    ExecStream { stdin: input, output, resize, exit, interest: gone.drop_guard() }
}

async fn pump(mut reader: Reader, sender: mpsc::Sender<Output>, wrap: fn(Bytes) -> Output) {
    let mut chunk = vec![0u8; CHUNK_BYTES];
    loop {
        let count = reader.read(&mut chunk).await.unwrap_or(0);
        if count == 0 || sender.send(wrap(Bytes::copy_from_slice(&chunk[..count]))).await.is_err() {
            return;
        }
    }
}

/// The program's input; it ends when the channel does, or when the program reads no more.
async fn feed(mut writer: Writer, mut receiver: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = receiver.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn follow_window(terminal: Terminal, mut sizes: mpsc::Receiver<(u16, u16)>) {
    while let Some((columns, rows)) = sizes.recv().await {
        let _ = terminal.resize(columns, rows);
    }
}
