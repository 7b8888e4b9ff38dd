//! Container logs on disk, in the format that Kubernetes' container runtime interface fixes: one line a line, each with a
//! time, the stream and `F` (a full line) or `P` (a part of one). When a file is full, older ones move up by a number.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use crate::spec::LogSpec;

/// A longer line is cut into parts.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Which pipe a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The files of one container.
pub struct Log {
    spec: LogSpec,
    file: File,
    bytes: u64,
}

impl Log {
    /// Goes on with the file when there is one.
    pub fn open(spec: &LogSpec) -> io::Result<Log> {
        if let Some(dir) = spec.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&spec.path)?;
        let bytes = file.metadata()?.len();
        Ok(Log { spec: spec.clone(), file, bytes })
    }

    /// Takes the whole lines out of `pending` (and all of it at the end of a stream) and writes them with one call.
    pub fn drain(&mut self, stream: Stream, pending: &mut Vec<u8>, end: bool) -> io::Result<()> {
        let time = timestamp(std::time::SystemTime::now());
        let mut out = Vec::with_capacity(pending.len() + 64);
        let mut start = 0;
        while start < pending.len() {
            let rest = &pending[start..];
            let (take, skip, tag) = match rest.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n') {
                Some(at) => (at, at + 1, 'F'),
                None if rest.len() >= LINE_BYTES_MAX => (LINE_BYTES_MAX, LINE_BYTES_MAX, 'P'),
                None if end => (rest.len(), rest.len(), 'F'),
                None => break,
            };
            write!(out, "{time} {} {tag} ", stream.word())?;
            out.extend_from_slice(&rest[..take]);
            out.push(b'\n');
            start += skip;
        }
        pending.drain(..start);
        if pending.is_empty() {
            *pending = Vec::new();
        }
        if out.is_empty() {
            return Ok(());
        }
        if self.bytes > 0 && self.bytes + out.len() as u64 > self.spec.max_bytes {
            self.rotate()?;
        }
        self.bytes += out.len() as u64;
        self.file.write_all(&out)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.spec.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.spec.max_files.max(2) - 1).rev() {
            let _ = fs::rename(numbered(number), numbered(number + 1));
        }
        fs::rename(&self.spec.path, numbered(1))?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.spec.path)?;
        self.bytes = 0;
        Ok(())
    }
}

/// RFC 3339 in UTC with nanoseconds.
pub fn timestamp(time: std::time::SystemTime) -> String {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// The date of a day counted from 1970-01-01, in the proleptic Gregorian calendar: years begin in March, so that the leap day is the last.
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march_month = (5 * of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, of_year - (153 * march_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times() {
        let check = |secs: u64, expect: &str| assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(secs)), expect);
        check(0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_400, "2000-02-29T00:00:00.000000000Z");
        check(1_795_470_142, "2026-11-23T21:42:22.000000000Z");
    }

    #[test]
    fn lines_parts_and_rotation() {
        let dir = std::env::temp_dir().join(format!("skiff-log-{}", std::process::id()));
        let path = dir.join("0.log");
        let spec = LogSpec { path: path.clone(), max_bytes: 200, max_files: 2 };
        let mut log = Log::open(&spec).unwrap();
        let mut pending = b"one\ntwo\nthr".to_vec();
        log.drain(Stream::Stdout, &mut pending, false).unwrap();
        assert_eq!(pending, b"thr");
        log.drain(Stream::Stderr, &mut pending, true).unwrap();
        let lines = |path: &std::path::Path| -> Vec<String> {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
        };
        assert_eq!(lines(&path), ["stdout F one", "stdout F two", "stderr F thr"]);
        let mut long = vec![b'x'; LINE_BYTES_MAX + 1];
        log.drain(Stream::Stdout, &mut long, true).unwrap();
        assert_eq!(lines(&dir.join("0.log.1")).len(), 3);
        let parts: Vec<String> = lines(&path).iter().map(|line| line.chars().take(9).collect()).collect();
        assert_eq!(parts, ["stdout P ", "stdout F "]);
        log.drain(Stream::Stdout, &mut b"again\n".to_vec(), false).unwrap();
        assert!(!dir.join("0.log.2").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
