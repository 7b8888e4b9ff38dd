//! All other names: which resolvers this machine uses, and asking them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// For one resolver; a stub resolver in a pod gives up after five seconds, and should hear of the second one before that.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const DNS_PORT: u16 = 53;
/// systemd-resolved keeps the real resolvers here when `/etc/resolv.conf` names only its own stub.
const BEHIND_THE_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// The resolvers of this machine, never `own` (the cluster's address) and never a loopback stub: to a pod's network, and to this server, that would
/// lead back here. Empty when there are none.
pub fn host_upstreams(own: Option<Ipv4Addr>) -> Vec<SocketAddr> {
    [Path::new("/etc/resolv.conf"), Path::new(BEHIND_THE_STUB)]
        .into_iter()
        .map(|path| nameservers(&fs::read_to_string(path).unwrap_or_default(), own))
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// The usable `nameserver` lines of a resolv.conf(5).
pub fn nameservers(text: &str, own: Option<Ipv4Addr>) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else { continue };
        let Ok(ip) = address.parse::<IpAddr>() else { continue };
        let usable = !ip.is_loopback() && !ip.is_unspecified() && Some(ip) != own.map(IpAddr::V4);
        if usable && !found.contains(&SocketAddr::new(ip, DNS_PORT)) {
            found.push(SocketAddr::new(ip, DNS_PORT));
        }
    }
    found
}

/// Asks the resolvers in turn until one answers. The answer carries the question's own id.
pub async fn ask(upstreams: &[SocketAddr], question: &[u8], tcp: bool) -> io::Result<Vec<u8>> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "this machine has no DNS server to ask");
    for upstream in upstreams {
        let asked = if tcp {
            timeout(ANSWER_WITHIN, over_tcp(*upstream, question)).await
        } else {
            timeout(ANSWER_WITHIN, over_udp(*upstream, question)).await
        };
        match asked {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{upstream} does not answer")),
        }
    }
    Err(last)
}

/// A question under an id that only this exchange knows, so that a stranger's answer is not believed.
struct Disguised {
    bytes: Vec<u8>,
    id: [u8; 2],
    own: [u8; 2],
    asked: Message,
}

fn disguise(question: &[u8]) -> io::Result<Disguised> {
    let asked = Message::from_vec(question).map_err(io::Error::other)?;
    let (id, own) = ([question[0], question[1]], rand::random::<u16>().to_be_bytes());
    let mut bytes = question.to_vec();
    bytes[..2].copy_from_slice(&own);
    Ok(Disguised { bytes, id, own, asked })
}

impl Disguised {
    /// The answer for who asked, if it is one.
    fn accept(&self, answer: &[u8]) -> Option<Vec<u8>> {
        let message = Message::from_vec(answer).ok()?;
        let same = message.metadata.message_type == MessageType::Response && answer[..2] == self.own;
        if !same
            || message.queries.iter().map(|query| query.name()).ne(self.asked.queries.iter().map(|query| query.name()))
        {
            return None;
        }
        let mut bytes = answer.to_vec();
        bytes[..2].copy_from_slice(&self.id);
        Some(bytes)
    }
}

async fn over_udp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let sent = disguise(question)?;
    let any: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(&sent.bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = sent.accept(&buffer[..length]) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let sent = disguise(question)?;
    let mut stream = TcpStream::connect(upstream).await?;
    write_framed(&mut stream, &sent.bytes).await?;
    let answer = read_framed(&mut stream).await?;
    sent.accept(&answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{upstream} answered something else")))
}

/// A message on a stream is preceded by its length in two bytes (RFC 1035, 4.2.2).
pub(crate) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a DNS message longer than 65535 bytes"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}

pub(crate) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_are_never_upstream() {
        fn check(text: &str, expect: &[&str]) {
            let expect: Vec<SocketAddr> = expect.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(nameservers(text, Some(Ipv4Addr::new(10, 43, 0, 10))), expect, "{text}");
        }
        check("nameserver 127.0.0.53\noptions edns0\n", &[]);
        check(
            "# nameserver 9.9.9.9\nnameserver\t192.0.2.1 # first\nsearch x\nnameserver 192.0.2.1\nnameserver 2001:db8::1",
            &["192.0.2.1:53", "[2001:db8::1]:53"],
        );
        check("nameserver 10.43.0.10\nnameserver ::1\nnameserver nonsense\nnameserver", &[]);
        check("", &[]);
    }
}
