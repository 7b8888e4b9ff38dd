//! Header blocks of SPDY/3.1: names and values, compressed by one zlib stream in each direction of a connection.

use super::dictionary::dictionary;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// The most that a header block may come to: what clients of this API send is below 1 KiB.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// Names (lower case) and values, in order.
pub type Headers = Vec<(String, String)>;

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum HeaderError {
    #[error("a header block cannot be decompressed: {0}; the connection is broken")]
    Inflate(String),
    #[error("a header block is larger than {BLOCK_BYTES_MAX} bytes")]
    TooLarge,
    #[error("a header block ends in the middle of a name or value")]
    Truncated,
}

/// The receiving half of header compression.
pub struct Inflater {
    stream: Decompress,
}

impl Default for Inflater {
    fn default() -> Self {
        Inflater { stream: Decompress::new(true) }
    }
}

impl Inflater {
    pub fn read(&mut self, mut input: &[u8]) -> Result<Headers, HeaderError> {
        let mut block = Vec::new();
        let mut chunk = [0u8; 4096];
        loop {
            let (read, written) = (self.stream.total_in(), self.stream.total_out());
            match self.stream.decompress(input, &mut chunk, FlushDecompress::Sync) {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.stream.set_dictionary(&dictionary()).map_err(|e| HeaderError::Inflate(e.to_string()))?;
                }
                Err(error) => return Err(HeaderError::Inflate(error.to_string())),
                Ok(_) => {}
            }
            let read = (self.stream.total_in() - read) as usize;
            let written = (self.stream.total_out() - written) as usize;
            input = &input[read..];
            block.extend(&chunk[..written]);
            if block.len() > BLOCK_BYTES_MAX {
                return Err(HeaderError::TooLarge);
            }
            if input.is_empty() && written < chunk.len() {
                return parse(&block);
            }
            if read == 0 && written == 0 && !input.is_empty() {
                return Err(HeaderError::Inflate("no progress".into()));
            }
        }
    }
}

/// The sending half of header compression.
pub struct Deflater {
    stream: Compress,
    primed: bool,
}

impl Default for Deflater {
    fn default() -> Self {
        Deflater { stream: Compress::new(Compression::default(), true), primed: false }
    }
}

impl Deflater {
    pub fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, HeaderError> {
        if !self.primed {
            self.stream.set_dictionary(&dictionary()).map_err(|e| HeaderError::Inflate(e.to_string()))?;
            self.primed = true;
        }
        let block = render(headers);
        let mut out = Vec::with_capacity(block.len() + 64);
        let mut input = block.as_slice();
        loop {
            let before = self.stream.total_in();
            out.reserve(256);
            let result = self.stream.compress_vec(input, &mut out, FlushCompress::Sync);
            result.map_err(|e| HeaderError::Inflate(e.to_string()))?;
            input = &input[(self.stream.total_in() - before) as usize..];
            // Room that is left over says that the flush is complete.
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

fn render(headers: &Headers) -> Vec<u8> {
    let mut out = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        out.extend((text.len() as u32).to_be_bytes());
        out.extend(text.as_bytes());
    }
    out
}

fn parse(mut block: &[u8]) -> Result<Headers, HeaderError> {
    fn number(block: &mut &[u8]) -> Result<usize, HeaderError> {
        let (head, rest) = block.split_first_chunk::<4>().ok_or(HeaderError::Truncated)?;
        *block = rest;
        Ok(u32::from_be_bytes(*head) as usize)
    }
    fn text(block: &mut &[u8]) -> Result<String, HeaderError> {
        let len = number(block)?;
        let (head, rest) = block.split_at_checked(len).ok_or(HeaderError::Truncated)?;
        *block = rest;
        Ok(String::from_utf8_lossy(head).into_owned())
    }
    let count = number(&mut block)?;
    let mut out = Headers::new();
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        out.push((name, text(&mut block)?));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_survive_the_way() {
        let (mut out, mut back) = (Deflater::default(), Inflater::default());
        for count in [0usize, 1, 3, 30] {
            let headers: Headers = (0..count).map(|i| (format!("name-{i}"), "v".repeat(i * 97))).collect();
            assert_eq!(back.read(&out.write(&headers).unwrap()).unwrap(), headers);
        }
    }

    #[test]
    fn broken_blocks_are_told() {
        assert!(matches!(Inflater::default().read(b"nothing"), Err(HeaderError::Inflate(_))));
        assert_eq!(parse(&[0, 0, 0, 1, 0, 0, 0, 9, b'x']), Err(HeaderError::Truncated));
        let bomb = Deflater::default().write(&vec![("a".into(), "x".repeat(BLOCK_BYTES_MAX))]).unwrap();
        assert_eq!(Inflater::default().read(&bomb), Err(HeaderError::TooLarge));
    }
}
