//! How much of a server its clients may hold: connections, handshakes, time, memory. Whoever reaches the port can ask for all of these before anybody knows who
//! it is, so each has an end.

use std::time::Duration;

/// The bounds of one server's API port.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Open connections, in whole; a quarter of them only for those who showed a certificate. Descriptors are left for the store and for what runs beside.
    pub connections: usize,
    /// Open connections from one source: a pod, a machine, a network behind one address.
    pub connections_per_source: usize,
    /// TLS handshakes under way, in whole.
    pub handshakes: usize,
    /// TLS handshakes under way from one source.
    pub handshakes_per_source: usize,
    /// How long a client may take over its TLS handshake.
    pub handshake: Duration,
    /// How long a client may take until its first request has come, and for the head of each later one.
    pub first_request: Duration,
    /// How long a client without a certificate may keep a connection on which nothing is under way.
    pub idle: Duration,
    /// How long a client may take over the body of a request.
    pub body: Duration,
    /// Bytes that requests' bodies and long answers may hold together.
    pub memory_bytes: usize,
    /// How long a request waits for its part of that memory before it is told to come again.
    pub memory_wait: Duration,
    /// How long a client may take to read a long answer; [`Bounds::read_rate`] adds to it.
    pub read: Duration,
    /// Bytes of a long answer that a client must read in a second, beyond [`Bounds::read`].
    pub read_rate: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            connections: 32768,
            connections_per_source: 2048,
            handshakes: 4096,
            handshakes_per_source: 1024,
            handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            body: Duration::from_secs(60),
            memory_bytes: 512 << 20,
            memory_wait: Duration::from_secs(10),
            read: Duration::from_secs(60),
            read_rate: 64 << 10,
        }
    }
}

impl Bounds {
    /// As many connections as leave half of the descriptors that the process may have, and no more handshakes than leave a part of those to whoever has shown a
    /// certificate.
    #[must_use]
    pub fn with_descriptors(self, descriptors: u64) -> Self {
        let half = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
        let connections = self.connections.min(half);
        let handshakes = self.handshakes.min(connections / 8);
        Bounds {
            connections,
            connections_per_source: self.connections_per_source.min(connections / 2),
            handshakes,
            handshakes_per_source: self.handshakes_per_source.min(handshakes / 2),
            ..self
        }
    }

    /// Open connections without a certificate, in whole.
    pub fn strangers(&self) -> usize {
        self.connections - self.connections / 4
    }

    /// How long a client may take to read an answer of this size.
    pub fn read_within(&self, bytes: usize) -> Duration {
        self.read + Duration::from_secs(bytes as u64 / u64::from(self.read_rate.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_bound_connections() {
        let check = |descriptors: u64, connections: (usize, usize, usize), handshakes: (usize, usize)| {
            let bounds = Bounds::default().with_descriptors(descriptors);
            let given = (bounds.connections, bounds.connections_per_source, bounds.strangers());
            assert_eq!(given, connections, "{descriptors}");
            assert_eq!((bounds.handshakes, bounds.handshakes_per_source), handshakes, "{descriptors}");
            assert!(bounds.strangers() + bounds.handshakes < bounds.connections, "some are left to those we know");
        };
        check(1024, (512, 256, 384), (64, 32));
        check(65536, (32768, 2048, 24576), (4096, 1024));
        check(u64::MAX, (32768, 2048, 24576), (4096, 1024));
        assert_eq!(Bounds::default().read_within(64 << 20), Duration::from_secs(60 + 1024));
    }
}
