//! Netlink messages as bytes: a 16-byte header, a family's fixed part, and attributes in type-length-value form, padded to four bytes
//! (netlink(7), and include/uapi/linux/netlink.h of the kernel).

use std::net::Ipv4Addr;

/// Bytes before a message's payload: length, type, flags, sequence, port.
pub const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

/// A message under construction. Its length and sequence are filled in when it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// An empty message of a type, with flags (`NLM_F_REQUEST` is always added).
    pub fn new(kind: u16, flags: i32) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = flags as u16 | libc::NLM_F_REQUEST as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Message { bytes }
    }

    /// Adds flags to those it has.
    pub fn add_flags(&mut self, flags: i32) {
        let now = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags as u16;
        self.bytes[6..8].copy_from_slice(&now.to_ne_bytes());
    }

    /// A family's fixed part, as it is.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// One attribute. A value longer than 64 KiB cannot be said in netlink; callers split lists before.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        debug_assert!(value.len() + 4 <= usize::from(u16::MAX), "attribute {kind} is {} bytes", value.len());
        self.bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    /// A text, with the NUL that the kernel expects.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// A number in this machine's byte order, as rtnetlink has it.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order, as netfilter has it.
    pub fn number_be(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub fn address(&mut self, kind: u16, value: Ipv4Addr) -> &mut Self {
        self.attr(kind, &value.octets())
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        let length = self.bytes.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "nested attribute {kind} is {length} bytes");
        self.bytes[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        self
    }

    /// The bytes to send under a sequence number.
    pub fn seal(&mut self, sequence: u32) -> &[u8] {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message that the kernel sent: its type, flags and sequence, and what follows the header.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// The messages in a datagram. Ends at the first that is cut short.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = number(bytes)? as usize;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let message = Received {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            flags: u16::from_ne_bytes([bytes[6], bytes[7]]),
            sequence: number(&bytes[8..])?,
            payload: &bytes[HEADER..length],
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`: type without flags, and value. Ends at the first that is cut short.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The leading four bytes as a number of this machine.
pub fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// The leading four bytes as an address.
pub fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

/// A text up to its NUL.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Message::new(7, 0);
        message.raw(&[1, 2, 3, 4]).text(1, "ab").nest(2, |inner| {
            inner.number(3, 9).attr(4, &[5]);
        });
        let bytes = message.seal(11).to_vec();
        let got: Vec<_> = messages(&bytes).collect();
        assert_eq!((got.len(), got[0].kind, got[0].sequence), (1, 7, 11));
        let body = &got[0].payload[4..];
        assert_eq!(text(find(body, 1).unwrap()), "ab");
        let inner = find(body, 2).unwrap();
        assert_eq!(number(find(inner, 3).unwrap()), Some(9));
        assert_eq!(find(inner, 4), Some(&[5][..]));
    }

    #[test]
    fn cut_short_ends_quietly() {
        for bytes in [&[][..], &[3, 0, 1, 0], &[40, 0, 1, 0, 9], &[0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0);
            assert_eq!(messages(bytes).count(), 0);
        }
    }
}
