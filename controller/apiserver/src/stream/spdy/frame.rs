//! Frames of SPDY/3.1, as far as clients of the Kubernetes API use them: bytes to values and back.
//!
//! Source: SPDY Protocol, Draft 3.1, section 2.2. Every frame begins with 8 bytes; the last three of them say how many follow.

use super::headers::{Deflater, HeaderError, Headers, Inflater};
use bytes::Bytes;

pub const HEAD_BYTES: usize = 8;
/// The largest control frame that we take; data frames come in pieces and have no limit of their own.
pub const CONTROL_BYTES_MAX: usize = 64 << 10;

const CONTROL: u32 = 1 << 31;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const STREAM_ID: u32 = CONTROL - 1;

/// The first bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    Data { stream: u32, fin: bool, len: usize },
    Control { kind: u16, fin: bool, len: usize },
}

/// A frame that is taken in or given out.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        headers: Headers,
    },
    Data {
        stream: u32,
        fin: bool,
        data: Bytes,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last: u32,
    },
    /// Settings, windows, priorities: nothing that these streams need.
    Other,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum FrameError {
    #[error("the peer speaks version {0} of SPDY; version 3 is needed")]
    Version(u16),
    #[error("a control frame of {0} bytes is larger than {CONTROL_BYTES_MAX}")]
    TooLarge(usize),
    #[error("a control frame of type {0} is too short")]
    Truncated(u16),
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

pub fn head(bytes: &[u8; HEAD_BYTES]) -> Result<Head, FrameError> {
    let first = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let fin = bytes[4] & FLAG_FIN != 0;
    let len = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
    if first & CONTROL == 0 {
        return Ok(Head::Data { stream: first, fin, len });
    }
    let version = (first >> 16) as u16 & 0x7fff;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if len > CONTROL_BYTES_MAX {
        return Err(FrameError::TooLarge(len));
    }
    Ok(Head::Control { kind: first as u16, fin, len })
}

/// Reads the rest of a control frame.
pub fn control(kind: u16, fin: bool, body: &[u8], inflater: &mut Inflater) -> Result<Frame, FrameError> {
    let number = |at: usize| {
        let bytes = body.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or(FrameError::Truncated(kind))?;
        Ok::<u32, FrameError>(u32::from_be_bytes(bytes))
    };
    let mut block = |at: usize| {
        let bytes = body.get(at..).ok_or(FrameError::Truncated(kind))?;
        Ok::<Headers, FrameError>(inflater.read(bytes)?)
    };
    Ok(match kind {
        1 => Frame::SynStream { stream: number(0)? & STREAM_ID, fin, headers: block(10)? },
        2 => Frame::SynReply { stream: number(0)? & STREAM_ID, headers: block(4)? },
        3 => Frame::Reset { stream: number(0)? & STREAM_ID, status: number(4)? },
        6 => Frame::Ping { id: number(0)? },
        7 => Frame::GoAway { last: number(0)? & STREAM_ID },
        // Headers share the compression, so they are read although nobody needs them.
        8 => {
            block(4)?;
            Frame::Other
        }
        _ => Frame::Other,
    })
}

/// Writes a frame.
pub fn encode(frame: &Frame, deflater: &mut Deflater) -> Result<Vec<u8>, FrameError> {
    let control = |kind: u16, fin: bool, body: &[&[u8]]| {
        let len = body.iter().map(|b| b.len()).sum::<usize>();
        let mut out = Vec::with_capacity(HEAD_BYTES + len);
        out.extend((CONTROL | u32::from(VERSION) << 16 | u32::from(kind)).to_be_bytes());
        out.extend(((u32::from(fin) * u32::from(FLAG_FIN)) << 24 | len as u32).to_be_bytes());
        body.iter().for_each(|b| out.extend(*b));
        out
    };
    Ok(match frame {
        Frame::SynStream { stream, fin, headers } => {
            control(1, *fin, &[&stream.to_be_bytes(), &[0; 6], &deflater.write(headers)?])
        }
        Frame::SynReply { stream, headers } => control(2, false, &[&stream.to_be_bytes(), &deflater.write(headers)?]),
        Frame::Reset { stream, status } => control(3, false, &[&stream.to_be_bytes(), &status.to_be_bytes()]),
        Frame::Ping { id } => control(6, false, &[&id.to_be_bytes()]),
        Frame::GoAway { last } => control(7, false, &[&last.to_be_bytes(), &[0; 4]]),
        Frame::Data { stream, fin, data } => {
            let mut out = Vec::with_capacity(HEAD_BYTES + data.len());
            out.extend(stream.to_be_bytes());
            out.extend((u32::from(*fin) << 24 | data.len() as u32).to_be_bytes());
            out.extend(data);
            out
        }
        Frame::Other => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        let headers = vec![("streamtype".to_string(), "data".to_string())];
        let mut check = |frame: Frame| {
            let bytes = encode(&frame, &mut deflater).unwrap();
            let (first, body) = bytes.split_first_chunk::<HEAD_BYTES>().unwrap();
            let back = match head(first).unwrap() {
                Head::Data { stream, fin, len } => {
                    assert_eq!(len, body.len());
                    Frame::Data { stream, fin, data: body.to_vec().into() }
                }
                Head::Control { kind, fin, len } => {
                    assert_eq!(len, body.len());
                    control(kind, fin, body, &mut inflater).unwrap()
                }
            };
            assert_eq!(back, frame);
        };
        check(Frame::SynStream { stream: 1, fin: true, headers: headers.clone() });
        check(Frame::SynReply { stream: 1, headers });
        check(Frame::Data { stream: 3, fin: true, data: Bytes::from_static(b"hello") });
        check(Frame::Reset { stream: 3, status: 5 });
        check(Frame::Ping { id: 7 });
        check(Frame::GoAway { last: 9 });
    }

    #[test]
    fn bad_frames_are_told() {
        assert_eq!(head(&[0x80, 2, 0, 1, 0, 0, 0, 0]), Err(FrameError::Version(2)));
        assert_eq!(head(&[0x80, 3, 0, 1, 0, 0xff, 0, 0]), Err(FrameError::TooLarge(0xff0000)));
        assert_eq!(control(3, false, &[0, 0], &mut Inflater::default()), Err(FrameError::Truncated(3)));
    }
}
