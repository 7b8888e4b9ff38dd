//! Bounds for archives, before the tar library sees them.
//!
//! The library keeps long names, long links and extended headers (GNU `L` and `K`, PAX `x` and `g`) in memory, however
//! long the archive says they are. This reader follows the same blocks as they go by and ends the stream with an error
//! before such a record, or their number, passes a bound. It measures entries by the library's own rules, so the two
//! never disagree on where a header is.

use std::io::{self, Read};

/// Bytes of one extended record: names, and extended attributes all together (a file system takes 64 KiB of those).
pub const RECORD_BYTES_MAX: u64 = 1 << 20;
/// Entries of one archive.
pub const ENTRIES_MAX: u64 = 4_000_000;
/// Bytes of one path or link (PATH_MAX of Linux).
pub const PATH_BYTES_MAX: usize = 4096;
/// Bytes of the files that one archive comes to, holes included.
pub const CONTENT_BYTES_MAX: u64 = 128 << 30;

const BLOCK: usize = 512;

/// What the next bytes are.
enum Expect {
    /// A header, of which so much is there.
    Header,
    /// A continuation of a sparse file's map (GNU), then content of that length.
    SparseMap { then: u64 },
    /// An extended record that is being read; `kept` for a PAX record, whose `size` counts for the next entry.
    Record { left: u64, padding: u64, kept: bool },
    /// Content and padding.
    Content { left: u64 },
    /// The end mark went by: the rest is nobody's.
    End,
}

/// A reader that passes an archive on until a bound is reached.
pub struct Guard<R> {
    inner: R,
    expect: Expect,
    block: Vec<u8>,
    record: Vec<u8>,
    /// The size that a PAX record gave to the next entry.
    size: Option<u64>,
    entries: u64,
}

impl<R: Read> Guard<R> {
    pub fn new(inner: R) -> Guard<R> {
        Guard { inner, expect: Expect::Header, block: Vec::new(), record: Vec::new(), size: None, entries: 0 }
    }

    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = match &mut self.expect {
                Expect::End => bytes.len(),
                Expect::Content { left } => {
                    let taken = length(bytes, *left);
                    *left -= taken as u64;
                    if *left == 0 {
                        self.expect = Expect::Header;
                    }
                    taken
                }
                Expect::Record { left, padding, kept } if *left > 0 => {
                    let taken = length(bytes, *left);
                    *left -= taken as u64;
                    if *kept {
                        self.record.extend_from_slice(&bytes[..taken]);
                    }
                    if *left == 0 {
                        let padding = *padding;
                        self.end_record();
                        self.expect = content(padding);
                    }
                    taken
                }
                Expect::Record { padding, .. } => {
                    let padding = *padding;
                    self.expect = content(padding);
                    0
                }
                Expect::Header | Expect::SparseMap { .. } => {
                    let taken = bytes.len().min(BLOCK - self.block.len());
                    self.block.extend_from_slice(&bytes[..taken]);
                    if self.block.len() == BLOCK {
                        let block = std::mem::take(&mut self.block);
                        self.read_block(&block)?;
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn read_block(&mut self, block: &[u8]) -> io::Result<()> {
        if let Expect::SparseMap { then } = self.expect {
            // The last byte that is used says whether another one follows (GNU tar manual, "Basic Tar Format").
            self.expect = if block[504] == 0 { content(then) } else { Expect::SparseMap { then } };
            return self.count();
        }
        if block.iter().all(|byte| *byte == 0) {
            self.expect = Expect::End;
            return Ok(());
        }
        self.count()?;
        let header = tar::Header::from_byte_slice(block);
        let kind = header.entry_type();
        let size = header.entry_size()?;
        let extended = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if extended {
            if size > RECORD_BYTES_MAX {
                return Err(beyond(&format!("an extended header of {size} bytes, more than {RECORD_BYTES_MAX}")));
            }
            self.record.clear();
            let kept = kind.is_pax_local_extensions();
            self.expect = Expect::Record { left: size, padding: padded(size)? - size, kept };
            return Ok(());
        }
        let size = self.size.take().unwrap_or(size);
        let then = padded(size)?;
        let more = kind.is_gnu_sparse() && header.as_gnu().is_some_and(|gnu| gnu.is_extended());
        self.expect = if more { Expect::SparseMap { then } } else { content(then) };
        Ok(())
    }

    fn end_record(&mut self) {
        let record = std::mem::take(&mut self.record);
        let size = tar::PaxExtensions::new(&record).flatten().find(|extension| extension.key() == Ok("size"));
        let size = size.and_then(|extension| extension.value().ok()?.parse().ok());
        self.size = size.or(self.size);
    }

    fn count(&mut self) -> io::Result<()> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(beyond(&format!("more than {ENTRIES_MAX} entries")));
        }
        Ok(())
    }
}

fn content(left: u64) -> Expect {
    if left == 0 { Expect::Header } else { Expect::Content { left } }
}

fn length(bytes: &[u8], left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len())
}

fn padded(size: u64) -> io::Result<u64> {
    size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| beyond(&format!("an entry of {size} bytes")))
}

/// The error for whatever passes a bound.
pub fn beyond(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive is beyond what is taken: it has {what}"))
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.follow(&buffer[..count])?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::EntryType;

    fn header(kind: EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.as_old_mut().name[0] = b'x';
        header.set_cksum();
        header
    }

    fn block(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn read(bytes: &[u8]) -> io::Result<u64> {
        // Odd pieces, as a network gives them.
        struct Pieces<'a>(&'a [u8]);
        impl Read for Pieces<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = buffer.len().min(self.0.len()).min(97);
                buffer[..count].copy_from_slice(&self.0[..count]);
                self.0 = &self.0[count..];
                Ok(count)
            }
        }
        io::copy(&mut Guard::new(Pieces(bytes)), &mut io::sink())
    }

    #[test]
    fn records_have_a_bound_wherever_they_hide() {
        let huge = header(EntryType::GNULongName, RECORD_BYTES_MAX + 1).as_bytes().to_vec();
        let pax = b"19 size=1024\n20 a=b\n".to_vec();
        let pax_size = [header(EntryType::XHeader, 13).as_bytes().to_vec(), block(b"13 size=1024\n")].concat();
        let check = |parts: &[&[u8]], fits: bool| {
            let bytes = parts.concat();
            assert_eq!(read(&bytes).is_ok(), fits, "{:?}", read(&bytes));
        };
        let file = |size: u64| header(EntryType::Regular, size).as_bytes().to_vec();
        check(&[&huge], false);
        for kind in [EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader] {
            check(&[header(kind, u64::from(u32::MAX)).as_bytes()], false);
        }
        check(&[&file(3), &block(b"abc"), &huge], false);
        check(&[&file(0), &huge], false);
        // Content that looks like a header is content.
        check(&[&file(512), &huge, &[0; 1024]], true);
        // A size that a PAX record gives counts, in place of the header's own.
        check(&[&pax_size, &file(0), &huge, &huge, &[0; 1024]], true);
        check(&[&pax_size, &file(0), &[0; 1024], &huge], false);
        check(&[&header(EntryType::XHeader, pax.len() as u64).as_bytes()[..], &block(&pax), &file(0), &huge], false);
        // After the end mark nothing is read.
        check(&[&file(0), &[0; 512], &huge], true);
        let longest = vec![b'n'; RECORD_BYTES_MAX as usize];
        check(&[header(EntryType::GNULongName, RECORD_BYTES_MAX).as_bytes(), &longest, &file(0)], true);
    }

    #[test]
    fn it_agrees_with_the_library() {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, size) in
            [("a", 0), (&"long/".repeat(60)[..], 511), ("b", 512), ("c", 513), (&"d".repeat(300), 9_999)]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            builder.append_data(&mut header, format!("{name}x"), io::repeat(b'z').take(size)).unwrap();
        }
        let bytes = builder.into_inner().unwrap();
        let mut archive = tar::Archive::new(Guard::new(&bytes[..]));
        assert_eq!(archive.entries().unwrap().map(|entry| entry.unwrap().size()).sum::<u64>(), 511 + 512 + 513 + 9_999);
    }
}
