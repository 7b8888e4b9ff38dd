//! Reading container logs: the whole, the end, or what comes.
//!
//! A log is a live file and older ones with numbers, in the format that the runtime writes (`TIME STREAM TAG TEXT`). A
//! reader that follows is woken by the kernel when the directory changes; it reads on through rotations and ends with the
//! container.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Bytes of one termination message (Kubernetes documentation, "Determine the Reason for Pod Failure").
const MESSAGE_BYTES_MAX: usize = 4096;
/// What is taken from a log instead: so many lines, so many bytes.
const MESSAGE_LOG_LINES: usize = 80;
const MESSAGE_LOG_BYTES: usize = 2048;
/// So many lines of the greatest length, which is what is read of one file to find those bytes.
const MESSAGE_READ_BYTES_MAX: u64 = 2 << 20;
/// One read.
const CHUNK_BYTES: usize = 32 * 1024;
/// One entry of a log; the runtime cuts lines into parts of 16 KiB, so a longer one is none that it wrote.
const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// Chunks on their way to a slow reader.
const QUEUE_MAX: usize = 8;
/// A follower looks again after this time even if the kernel is silent, because the container's end is no change of a file.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Which part of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRange {
    /// Only the last lines.
    pub tail_lines: Option<usize>,
    /// Only what was written at or after this time (milliseconds since the epoch).
    pub since_ms: Option<u64>,
    /// No more bytes than these.
    pub limit_bytes: Option<u64>,
    /// The time before each line.
    pub timestamps: bool,
    /// Go on until the container ends.
    pub follow: bool,
}

/// Streams a log. `lives`: whether more may come.
pub fn stream(
    path: PathBuf,
    range: LogRange,
    lives: impl Fn() -> bool + Send + Sync + 'static,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(async move {
        let mut reader = Reader { since: range.since_ms.map(rfc3339), range, sent: 0, pending: Vec::new() };
        if let Err(error) = reader.run(&path, &lives, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    receiver
}

fn rfc3339(ms: u64) -> String {
    Timestamp::from_millisecond(ms as i64).map(|time| format!("{time:.9}")).unwrap_or_default()
}

struct Reader {
    range: LogRange,
    since: Option<String>,
    sent: u64,
    pending: Vec<u8>,
}

impl Reader {
    async fn run(
        &mut self,
        path: &Path,
        lives: &(impl Fn() -> bool + Sync),
        sender: &mpsc::Sender<io::Result<Bytes>>,
    ) -> io::Result<()> {
        let watcher = if self.range.follow { path.parent().and_then(|dir| Watcher::new(dir).ok()) } else { None };
        let files = files(path);
        let (first, offset) = match self.range.tail_lines {
            Some(lines) => tail_start(&files, lines)?,
            None => (0, 0),
        };
        let mut live = match files.get(first) {
            Some(file) => Some(File::open(file)?),
            None => None,
        };
        if let Some(open) = &mut live {
            open.seek(SeekFrom::Start(offset))?;
        }
        loop {
            let ended = !self.range.follow || !lives();
            if let Some(open) = &mut live
                && !self.pump(open, sender).await?
            {
                return Ok(());
            }
            if let Some(next) = successor(path, live.as_ref())? {
                // Between the look and the rotation something may have been written.
                if let Some(open) = &mut live
                    && !self.pump(open, sender).await?
                {
                    return Ok(());
                }
                live = Some(next);
                continue;
            }
            if ended {
                return Ok(());
            }
            tokio::select! {
                () = wait(watcher.as_ref()) => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = sender.closed() => return Ok(()),
            }
        }
    }

    /// Sends what a file has from here on. False when nobody wants more.
    async fn pump(&mut self, file: &mut File, sender: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<bool> {
        let mut chunk = vec![0u8; CHUNK_BYTES];
        loop {
            let count = file.read(&mut chunk)?;
            if count == 0 {
                return Ok(true);
            }
            self.pending.extend_from_slice(&chunk[..count]);
            let whole = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let mut out = Vec::new();
            for line in self.pending[..whole].split_inclusive(|byte| *byte == b'\n') {
                entry(line, self.since.as_deref(), self.range.timestamps, &mut out);
            }
            self.pending.drain(..whole);
            if self.pending.len() > ENTRY_BYTES_MAX {
                return Err(io::Error::other(format!("it holds an entry of more than {ENTRY_BYTES_MAX} bytes")));
            }
            let left = self.range.limit_bytes.map_or(u64::MAX, |limit| limit - self.sent.min(limit));
            out.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            self.sent += out.len() as u64;
            if !out.is_empty() && sender.send(Ok(Bytes::from(out))).await.is_err() {
                return Ok(false);
            }
            if self.range.limit_bytes.is_some_and(|limit| self.sent >= limit) {
                return Ok(false);
            }
        }
    }
}

/// One line of the file as the reader wants it.
fn entry(line: &[u8], since: Option<&str>, timestamps: bool, out: &mut Vec<u8>) {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let (Some(time), Some(_), Some(tag), Some(text)) = (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return;
    };
    // All times have the same shape, so their order is that of their text.
    if since.is_some_and(|since| time < since.as_bytes()) {
        return;
    }
    if timestamps {
        out.extend_from_slice(time);
        out.push(b' ');
    }
    out.extend_from_slice(if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text });
}

/// The files of a log, the oldest first.
fn files(path: &Path) -> Vec<PathBuf> {
    let numbered = |number: u32| PathBuf::from(format!("{}.{number}", path.display()));
    let mut files: Vec<PathBuf> = (1..100).map(numbered).take_while(|path| path.exists()).collect();
    files.reverse();
    if path.exists() {
        files.push(path.to_owned());
    }
    files
}

/// The file that goes on where this one ended, however often the log was rotated meanwhile: the next newer one, or the oldest that is
/// left when this one is gone. None while this is the newest.
fn successor(path: &Path, of: Option<&File>) -> io::Result<Option<File>> {
    let inode = of.map(|file| file.metadata().map(|meta| meta.ino())).transpose()?;
    // A rotation between the look and the opening moves the names; then it is looked at again.
    loop {
        let names = files(path);
        let inodes: Vec<Option<u64>> =
            names.iter().map(|name| fs::metadata(name).ok().map(|meta| meta.ino())).collect();
        let next = inode.and_then(|inode| inodes.iter().position(|have| *have == Some(inode))).map_or(0, |at| at + 1);
        let Some(name) = names.get(next) else { return Ok(None) };
        match File::open(name) {
            Ok(file) if inodes.get(next).copied().flatten() == Some(file.metadata()?.ino()) => return Ok(Some(file)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Which file and where in it the last lines begin.
fn tail_start(files: &[PathBuf], lines: usize) -> io::Result<(usize, u64)> {
    let mut left = lines;
    for (index, path) in files.iter().enumerate().rev() {
        let mut file = File::open(path)?;
        let mut end = file.metadata()?.len();
        if left == 0 {
            return Ok((index, end));
        }
        while end > 0 {
            let start = end.saturating_sub(CHUNK_BYTES as u64);
            let mut chunk = vec![0u8; (end - start) as usize];
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut chunk)?;
            for (at, _) in chunk.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                // The newline that ends the line before the wanted ones.
                if left == 0 {
                    return Ok((index, start + at as u64 + 1));
                }
                left -= 1;
            }
            end = start;
        }
        // The first line of a file has no newline before it.
        if left == 0 {
            return Ok((index, 0));
        }
    }
    Ok((0, 0))
}

/// A container's termination message: the end of its file, or the end of a log when that is empty.
pub fn last_words(message: &Path, log: Option<&Path>) -> String {
    let text = end_of(message, MESSAGE_BYTES_MAX as u64).unwrap_or_default();
    if !text.is_empty() {
        return String::from_utf8_lossy(&text).into_owned();
    }
    let Some(log) = log else { return String::new() };
    let files = files(log);
    let Ok((first, offset)) = tail_start(&files, MESSAGE_LOG_LINES) else { return String::new() };
    let mut out = Vec::new();
    for (index, path) in files.iter().enumerate().skip(first) {
        let length = fs::metadata(path).map_or(0, |meta| meta.len());
        let wanted = if index == first { length.saturating_sub(offset) } else { length };
        let bytes = end_of(path, wanted.min(MESSAGE_READ_BYTES_MAX)).unwrap_or_default();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            entry(line, None, false, &mut out);
        }
    }
    let from = out.len().saturating_sub(MESSAGE_LOG_BYTES);
    String::from_utf8_lossy(&out[from..]).into_owned()
}

/// The last bytes of a file that a container may write to while it is read.
fn end_of(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The kernel's word that something in a directory changed (inotify(7)).
struct Watcher {
    fd: AsyncFd<OwnedFd>,
}

impl Watcher {
    fn new(dir: &Path) -> io::Result<Watcher> {
        let path = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes())?;
        // SAFETY: no pointers; on success the descriptor is new and ours.
        let raw = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: the path lives for the call.
        if unsafe {
            libc::inotify_add_watch(
                fd.as_raw_fd(),
                path.as_ptr(),
                libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO,
            )
        } < 0
        {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is owned by the registration and always answers with the same number.
        Ok(Watcher { fd: unsafe { AsyncFd::register(fd) }? })
    }
}

async fn wait(watcher: Option<&Watcher>) {
    let Some(watcher) = watcher else { return std::future::pending().await };
    let Ok(mut guard) = watcher.fd.readable().await else { return };
    let mut events = [0u8; 4096];
    while nix::unistd::read(watcher.fd.get_ref(), &mut events).is_ok_and(|count| count > 0) {}
    guard.clear_ready();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("skiff-logs-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    async fn text(mut receiver: mpsc::Receiver<io::Result<Bytes>>) -> String {
        let mut text = String::new();
        while let Some(chunk) = receiver.recv().await {
            text.push_str(&String::from_utf8_lossy(&chunk.unwrap()));
        }
        text
    }

    #[tokio::test]
    async fn parts_of_a_log() {
        let dir = directory("parts");
        let path = dir.join("0.log");
        fs::write(
            dir.join("0.log.1"),
            "2026-01-01T00:00:00.000000000Z stdout F one\n2026-01-01T00:00:01.000000000Z stderr F two\n",
        )
        .unwrap();
        fs::write(&path, "2026-01-01T00:00:02.000000000Z stdout P thr\n2026-01-01T00:00:02.500000000Z stdout F ee\n2026-01-01T00:00:03.000000000Z stdout F \n").unwrap();
        let check = async |range: LogRange, expect: &str| {
            assert_eq!(text(stream(path.clone(), range.clone(), || false)).await, expect, "{range:?}");
        };
        let all = LogRange::default;
        check(all(), "one\ntwo\nthree\n\n").await;
        check(LogRange { tail_lines: Some(2), ..all() }, "ee\n\n").await;
        check(LogRange { tail_lines: Some(4), ..all() }, "two\nthree\n\n").await;
        check(LogRange { tail_lines: Some(9), ..all() }, "one\ntwo\nthree\n\n").await;
        check(LogRange { tail_lines: Some(0), ..all() }, "").await;
        check(LogRange { limit_bytes: Some(5), ..all() }, "one\nt").await;
        check(LogRange { since_ms: Some(1_767_225_602_000), ..all() }, "three\n\n").await;
        check(LogRange { timestamps: true, tail_lines: Some(1), ..all() }, "2026-01-01T00:00:03.000000000Z \n").await;
        check(LogRange { follow: true, tail_lines: Some(1), ..all() }, "\n").await;
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn following_through_a_rotation() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = directory("follow");
        let path = dir.join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:00.000000000Z stdout F {text}\n");
        fs::write(&path, line("a")).unwrap();
        let lives = std::sync::Arc::new(AtomicBool::new(true));
        let seen = lives.clone();
        let mut receiver = stream(path.clone(), LogRange { follow: true, ..LogRange::default() }, move || {
            seen.load(Ordering::Relaxed)
        });
        assert_eq!(&receiver.recv().await.unwrap().unwrap()[..], b"a\n");
        fs::rename(&path, dir.join("0.log.1")).unwrap();
        fs::write(&path, line("b")).unwrap();
        assert_eq!(&receiver.recv().await.unwrap().unwrap()[..], b"b\n");
        lives.store(false, Ordering::Relaxed);
        assert!(receiver.recv().await.is_none());
        fs::remove_dir_all(dir).unwrap();
    }

    /// A reader that is slower than the writer: the log is rotated again and again before it reads on.
    #[tokio::test]
    async fn following_through_many_rotations() {
        let dir = directory("many");
        let path = dir.join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:00.000000000Z stdout F {text}\n");
        fs::write(&path, line("a")).unwrap();
        let begun = std::time::Instant::now();
        let lives = move || begun.elapsed() < Duration::from_millis(100);
        let mut receiver = stream(path.clone(), LogRange { follow: true, ..LogRange::default() }, lives);
        assert_eq!(&receiver.recv().await.unwrap().unwrap()[..], b"a\n");
        // On one thread the reader does not run before the next await.
        for text in ["b", "c", "d"] {
            for number in (1..4).rev() {
                let _ = fs::rename(dir.join(format!("0.log.{number}")), dir.join(format!("0.log.{}", number + 1)));
            }
            fs::rename(&path, dir.join("0.log.1")).unwrap();
            fs::write(&path, line(text)).unwrap();
        }
        assert_eq!(text(receiver).await, "b\nc\nd\n");
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn an_entry_without_an_end_is_refused() {
        let dir = directory("endless");
        let path = dir.join("0.log");
        fs::write(&path, vec![b'x'; 2 * ENTRY_BYTES_MAX]).unwrap();
        let mut receiver = stream(path, LogRange::default(), || false);
        assert!(receiver.recv().await.unwrap().is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn messages() {
        let dir = directory("messages");
        let (message, log) = (dir.join("m"), dir.join("l"));
        fs::write(&log, "2026-01-01T00:00:00.000000000Z stdout F boom\n").unwrap();
        assert_eq!(last_words(&message, None), "");
        assert_eq!(last_words(&message, Some(&log)), "boom\n");
        fs::write(&message, "x".repeat(5000)).unwrap();
        assert_eq!(last_words(&message, Some(&log)).len(), MESSAGE_BYTES_MAX);
        // As long as a container can make it; only the end is read.
        let large = File::create(&message).unwrap();
        large.set_len(1 << 40).unwrap();
        std::os::unix::fs::FileExt::write_at(&large, b"end", (1 << 40) - 3).unwrap();
        assert!(last_words(&message, None).ends_with("end"));
        fs::remove_dir_all(dir).unwrap();
    }
}
