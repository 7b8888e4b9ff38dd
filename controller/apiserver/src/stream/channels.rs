//! Channels in the messages of a WebSocket: which protocols there are, and how a channel's number and data become a message.
//!
//! Source: `channel.k8s.io` and its kin. In the binary ones a message is the channel's number as a byte, then data; in the
//! base64 ones, made for browsers, it is text: the number as a digit, then the data in base64. Without a protocol it is binary.

use axum::extract::ws::Message;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};

/// What a protocol's name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    base64: bool,
    /// Channel 255 closes another (version 5).
    pub closes: bool,
    /// The end is told as a `Status` (version 4 and 5); before, only a failure was told, by its message.
    pub status: bool,
}

impl Dialect {
    pub fn of(protocol: &str) -> Dialect {
        let version = protocol.split('.').next().unwrap_or_default();
        Dialect {
            base64: protocol.contains("base64."),
            closes: version == "v5",
            status: matches!(version, "v4" | "v5"),
        }
    }

    pub fn encode(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let digit = char::from(b'0'.saturating_add(channel));
            return Message::Text(format!("{digit}{}", BASE64_STANDARD.encode(data)).into());
        }
        let mut bytes = BytesMut::with_capacity(1 + data.len());
        bytes.put_u8(channel);
        bytes.put_slice(data);
        Message::Binary(bytes.freeze())
    }

    /// A channel's number and data; None for a message that holds neither.
    pub fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let mut data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => return None,
        };
        if data.is_empty() {
            return None;
        }
        let number = data.split_to(1)[0];
        if !self.base64 {
            return Some((number, data));
        }
        Some((number.checked_sub(b'0')?, BASE64_STANDARD.decode(&data).ok()?.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let check = |protocol: &str, message: Message| {
            let dialect = Dialect::of(protocol);
            assert_eq!(dialect.encode(1, b"hi"), message, "{protocol:?}");
            assert_eq!(dialect.decode(message), Some((1, Bytes::from_static(b"hi"))), "{protocol:?}");
        };
        for binary in ["", "channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"] {
            check(binary, Message::Binary(Bytes::from_static(b"\x01hi")));
        }
        for base64 in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
            check(base64, Message::Text("1aGk=".into()));
            for bad in ["", "/aGk=", "1%%%"] {
                assert_eq!(Dialect::of(base64).decode(Message::Text(bad.into())), None, "{bad:?}");
            }
        }
        assert_eq!(Dialect::of("").decode(Message::Binary(Bytes::new())), None);
        assert!(Dialect::of("v5.channel.k8s.io").closes && !Dialect::of("v4.channel.k8s.io").closes);
        assert!(Dialect::of("v4.base64.channel.k8s.io").status && !Dialect::of("channel.k8s.io").status);
    }
}
