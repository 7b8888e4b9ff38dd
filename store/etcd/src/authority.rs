//! Lets in clients that call us by a URL where a name belongs.
//!
//! etcd's 3.4 client, told of an endpoint as `http://host:port`, sends all of that as its `:authority`. etcd's server does not mind; the
//! HTTP/2 library here rightly does and refuses the stream. Header fields are compressed with a memory that both sides keep in step, so
//! it is enough to take the scheme out of the one literal that the first request of a connection carries: later ones refer to it by
//! number. (RFC 9113 for frames, RFC 7541 for the fields.)

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const FRAME_HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// A first request whose fields are longer than this passes as it is.
const HOLD_MAX: usize = 32 << 10;
/// The number of `:authority` in the static table.
const AUTHORITY: u64 = 1;
/// The part of the code of RFC 7541, appendix B, that addresses are written in: for each length in bits, the first code and the
/// characters that follow each other from there.
const CODE: [(u32, u32, &[u8]); 6] = [
    (5, 0b00000, b"012aceiost"),
    (6, 0b010100, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0b1011100, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0b11111000, b"&*,;XZ"),
    (13, 0x1ffb, b"["),
    (14, 0x3ffc, b"]"),
];

/// A connection whose first request is looked at on its way in.
pub struct Lenient<S> {
    inner: S,
    /// Bytes that were read and not yet handed on; up to `ready` they may go.
    held: Vec<u8>,
    ready: usize,
    /// The preface is behind us.
    begun: bool,
    done: bool,
}

impl<S> Lenient<S> {
    pub fn new(inner: S) -> Self {
        Lenient { inner, held: Vec::new(), ready: 0, begun: false, done: false }
    }

    /// Looks at what is held: whole frames may go on, the first with header fields after they were seen to.
    fn look(&mut self) {
        if !self.begun {
            if self.held.first().is_some_and(|b| *b != b'P') {
                // HTTP/1, then.
                self.done = true;
            } else if self.held.len() >= PREFACE {
                (self.begun, self.ready) = (true, PREFACE);
            }
        }
        while self.begun && !self.done {
            let Some(frame) = self.held.get(self.ready..).filter(|f| f.len() >= FRAME_HEADER) else { break };
            let len = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
            if frame[3] == FRAME_HEADERS {
                if frame.len() < FRAME_HEADER + len && len <= HOLD_MAX {
                    break;
                }
                if let Some(fixed) = frame.get(..FRAME_HEADER + len).and_then(without_scheme) {
                    self.held.splice(self.ready..self.ready + FRAME_HEADER + len, fixed);
                }
                self.done = true;
            } else if frame.len() >= FRAME_HEADER + len {
                self.ready += FRAME_HEADER + len;
            } else {
                break;
            }
        }
        if self.done || self.held.len() > 2 * HOLD_MAX {
            (self.done, self.ready) = (true, self.held.len());
        }
    }
}

/// A HEADERS frame without the scheme in its authority; None if there is nothing to take out.
fn without_scheme(frame: &[u8]) -> Option<Vec<u8>> {
    let flags = frame[4];
    let mut at = FRAME_HEADER;
    if flags & FLAG_PADDED != 0 {
        return None;
    }
    if flags & FLAG_PRIORITY != 0 {
        at += 5;
    }
    while at < frame.len() {
        let first = frame[at];
        // Indexed; a change of the table's size; literals that are remembered; those that are not.
        let (name, next, literal) = match first {
            b if b & 0x80 != 0 => (number(frame, at, 7)?, false, false),
            b if b & 0xe0 == 0x20 => (number(frame, at, 5)?, false, false),
            b if b & 0xc0 == 0x40 => (number(frame, at, 6)?, true, true),
            _ => (number(frame, at, 4)?, true, true),
        };
        let (index, after) = name;
        at = after;
        if !(next && literal) {
            continue;
        }
        if index == 0 {
            at = string(frame, at)?.2;
        }
        let (begin, coded, end) = string(frame, at)?;
        if index == AUTHORITY {
            let value = frame.get(begin..end)?;
            let value = if coded { cut_scheme(&decode(value)?)? } else { cut_scheme(value)? };
            let mut fixed = frame[..at].to_vec();
            push_string(&mut fixed, false, &value);
            fixed.extend_from_slice(&frame[end..]);
            let len = (fixed.len() - FRAME_HEADER) as u32;
            fixed[..3].copy_from_slice(&len.to_be_bytes()[1..]);
            return Some(fixed);
        }
        at = end;
    }
    None
}

/// A number with a prefix of so many bits, and where it ends.
fn number(frame: &[u8], mut at: usize, bits: u32) -> Option<(u64, usize)> {
    let mask = (1u64 << bits) - 1;
    let mut value = u64::from(*frame.get(at)?) & mask;
    at += 1;
    if value < mask {
        return Some((value, at));
    }
    for shift in (0..28).step_by(7) {
        let byte = u64::from(*frame.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// Where a string's bytes begin, whether they are in the code, and where they end.
fn string(frame: &[u8], at: usize) -> Option<(usize, bool, usize)> {
    let coded = frame.get(at)? & 0x80 != 0;
    let (len, begin) = number(frame, at, 7)?;
    let end = begin + len as usize;
    (end <= frame.len()).then_some((begin, coded, end))
}

fn push_string(to: &mut Vec<u8>, coded: bool, value: &[u8]) {
    let flag = if coded { 0x80 } else { 0 };
    if value.len() < 0x7f {
        to.push(flag | value.len() as u8);
    } else {
        to.push(flag | 0x7f);
        let mut rest = value.len() - 0x7f;
        while rest >= 0x80 {
            to.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        to.push(rest as u8);
    }
    to.extend_from_slice(value);
}

fn cut_scheme(value: &[u8]) -> Option<Vec<u8>> {
    let rest = value.strip_prefix(b"http://").or_else(|| value.strip_prefix(b"https://"))?;
    Some(rest.strip_suffix(b"/").unwrap_or(rest).to_vec())
}

/// Decodes a string that holds nothing but what addresses hold; None for any other.
fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let (mut text, mut bits, mut count) = (Vec::new(), 0u32, 0u32);
    let next = |bits: u32, count: u32| {
        CODE.iter().filter(|(len, ..)| *len <= count).find_map(|(len, first, characters)| {
            let at = (bits >> (count - len)).checked_sub(*first)?;
            characters.get(at as usize).map(|character| (*len, *character))
        })
    };
    for byte in coded {
        (bits, count) = (bits << 8 | u32::from(*byte), count + 8);
        while let Some((len, character)) = next(bits, count) {
            text.push(character);
            count -= len;
            bits &= (1 << count) - 1;
        }
        if count > 14 {
            return None;
        }
    }
    // Less than a byte of ones is padding.
    (count < 8 && bits == (1 << count) - 1).then_some(text)
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.ready > 0 {
                let count = this.ready.min(buffer.remaining());
                buffer.put_slice(&this.held[..count]);
                this.held.drain(..count);
                this.ready -= count;
                return Poll::Ready(Ok(()));
            }
            if this.done {
                return Pin::new(&mut this.inner).poll_read(context, buffer);
            }
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                this.done = true;
                this.ready = this.held.len();
                if this.ready == 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            this.held.extend_from_slice(read.filled());
            this.look();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, parts)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, 4, 0, 0, 0, 1]);
        frame.extend_from_slice(payload);
        frame
    }

    /// A request's fields with this authority: POST, http, a path by literal, the authority, one more literal.
    fn fields(coded: bool, authority: &[u8]) -> Vec<u8> {
        let mut fields = vec![0x83, 0x86, 0x44];
        push_string(&mut fields, false, b"/a.B/C");
        fields.push(0x41);
        push_string(&mut fields, coded, authority);
        fields.push(0x5f);
        push_string(&mut fields, false, b"application/grpc");
        fields
    }

    async fn check(coded: bool, authority: &[u8], expect: &[u8]) {
        let connection = |fields: Vec<u8>| {
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            [preface, frame(4, &[0; 6]), frame(8, &[0; 4]), frame(1, &fields), frame(0, b"body")].concat()
        };
        let (from, to) = (connection(fields(coded, authority)), connection(fields(coded, expect)));
        // In pieces of every size, as a network has them.
        for size in [1, 7, 24, 50, 4096] {
            let mut pieces = pieces_of(&from, size);
            let mut seen = Vec::new();
            Lenient::new(&mut pieces).read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, to, "{authority:x?} in pieces of {size}");
        }
    }

    /// Hands out bytes in pieces.
    struct Pieces(Vec<Vec<u8>>);

    fn pieces_of(bytes: &[u8], size: usize) -> Pieces {
        Pieces(bytes.chunks(size).rev().map(<[u8]>::to_vec).collect())
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if let Some(piece) = self.0.pop() {
                buffer.put_slice(&piece);
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn the_scheme_is_taken_out_of_the_first_authority() {
        check(false, b"http://127.0.0.1:2379", b"127.0.0.1:2379").await;
        check(false, b"https://db/", b"db").await;
        check(false, b"127.0.0.1:2379", b"127.0.0.1:2379").await;
        // From RFC 7541, C.4.1: "www.example.com" in the code.
        let name = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&name).unwrap(), b"www.example.com");
        for (authority, expect) in
            [("http://127.0.0.1:2379", "127.0.0.1:2379"), ("https://[fd00::a]:80", "[fd00::a]:80")]
        {
            assert_eq!(decode(&encode(authority.as_bytes())).unwrap(), authority.as_bytes());
            let (from, to) = (fields(true, &encode(authority.as_bytes())), fields(false, expect.as_bytes()));
            assert_eq!(without_scheme(&frame(1, &from)).unwrap(), frame(1, &to));
        }
        assert!(without_scheme(&frame(1, &fields(true, &name))).is_none());
    }

    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for character in text {
            let (len, code) = CODE
                .iter()
                .find_map(|(len, first, characters)| {
                    let at = characters.iter().position(|c| c == character)?;
                    Some((*len, first + at as u32))
                })
                .unwrap();
            bits.extend((0..len).rev().map(|i| code >> i & 1));
        }
        bits.resize(bits.len().next_multiple_of(8), 1);
        bits.chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | *bit as u8)).collect()
    }
}
