//! Who may come in at the API's port at all: so many connections and handshakes in whole, and so many from one source, so that nobody can take all of them. A part
//! is kept for those who showed a certificate: agents, servers and administrators come in when the rest is taken.

use crate::bounds::Bounds;
use crate::server::PeerSource;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often it is told that somebody was turned away: the log is no place for a flood either.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// An IPv4 address, or the 64 bits of an IPv6 address that name a network: its holder has all the others.
type Source = IpAddr;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    open: usize,
    handshakes: usize,
    /// Those open that showed no certificate.
    strangers: usize,
}

impl Count {
    fn enter(&mut self) {
        self.open += 1;
        self.handshakes += 1;
    }
}

#[derive(Debug, Default)]
struct Counts {
    all: Count,
    sources: HashMap<Source, Count>,
    told: Option<Instant>,
}

impl Counts {
    /// Says in the log, now and then, that somebody was turned away.
    fn tell(&mut self, source: Source) {
        if self.told.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        self.told = Some(Instant::now());
        let (all, theirs) = (self.all, self.sources.get(&source).copied().unwrap_or_default());
        tracing::warn!(
            %source, open = all.open, handshakes = all.handshakes, without_certificate = all.strangers,
            open_from_source = theirs.open, handshakes_from_source = theirs.handshakes,
            "connections are turned away: too many are open, or begin at once"
        );
    }
}

/// The counts of one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate {
    counts: Arc<Mutex<Counts>>,
    all: Count,
    each: Count,
}

/// A connection that was let in; it leaves when this is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    source: Source,
    shaking: bool,
    stranger: bool,
}

impl Gate {
    pub fn new(bounds: &Bounds) -> Gate {
        Gate {
            counts: Arc::default(),
            all: Count { open: bounds.connections, handshakes: bounds.handshakes, strangers: bounds.strangers() },
            each: Count {
                open: bounds.connections_per_source,
                handshakes: bounds.handshakes_per_source,
                strangers: bounds.connections_per_source,
            },
        }
    }

    /// Lets a connection in, or says in its log that it did not.
    pub fn enter(&self, from: IpAddr) -> Option<Pass> {
        let source = source_of(from);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = counts.sources.get(&source).copied().unwrap_or_default();
        let full = |count: Count, most: Count| count.open >= most.open || count.handshakes >= most.handshakes;
        if full(counts.all, self.all) || full(theirs, self.each) {
            counts.tell(source);
            return None;
        }
        counts.all.enter();
        counts.sources.entry(source).or_default().enter();
        Some(Pass { gate: self.clone(), source, shaking: true, stranger: false })
    }
}

impl Pass {
    /// Where the connection comes from.
    pub fn source(&self) -> PeerSource {
        PeerSource(self.source)
    }

    /// The handshake is over; whether there is a place for who came without a certificate, or with one.
    pub fn shaken(&mut self, certified: bool) -> bool {
        self.shook();
        if certified || self.stranger {
            return true;
        }
        let mut counts = self.gate.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.all.strangers >= self.gate.all.strangers {
            counts.tell(self.source);
            return false;
        }
        counts.all.strangers += 1;
        counts.sources.entry(self.source).or_default().strangers += 1;
        self.stranger = true;
        true
    }

    fn shook(&mut self) {
        if std::mem::take(&mut self.shaking) {
            self.change(|count| count.handshakes = count.handshakes.saturating_sub(1));
        }
    }

    fn change(&self, change: impl Fn(&mut Count)) {
        let mut counts = self.gate.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts.all);
        if let Some(theirs) = counts.sources.get_mut(&self.source) {
            change(theirs);
            if *theirs == Count::default() {
                counts.sources.remove(&self.source);
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.shook();
        let strangers = usize::from(self.stranger);
        self.change(|count| {
            count.open = count.open.saturating_sub(1);
            count.strangers = count.strangers.saturating_sub(strangers);
        });
    }
}

/// A connection with its pass: whoever has it last, after an upgrade too, lets the pass go with it.
#[derive(Debug)]
pub struct Counted<S> {
    stream: S,
    _pass: Pass,
}

impl<S> Counted<S> {
    pub fn new(stream: S, pass: Pass) -> Self {
        Counted { stream, _pass: pass }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn source_of(from: IpAddr) -> Source {
    match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::from((u128::from(address) & !u128::from(u64::MAX)).to_be_bytes()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        let few = Bounds {
            connections: 5,
            connections_per_source: 3,
            handshakes: 4,
            handshakes_per_source: 2,
            ..Bounds::default()
        };
        Gate::new(&few)
    }

    #[test]
    fn nobody_takes_all() {
        let gate = gate();
        let from = |text: &str| gate.enter(text.parse().unwrap());
        let mut first = from("192.0.2.1").unwrap();
        let mut second = from("::ffff:192.0.2.1").unwrap();
        assert!(from("192.0.2.1").is_none(), "two handshakes are under way");
        assert!(first.shaken(true) && first.shaken(true) && second.shaken(true));
        let mut third = from("192.0.2.1").unwrap();
        assert!(third.shaken(true));
        assert!(from("192.0.2.1").is_none(), "three are open");
        let other = (from("2001:db8::1").unwrap(), from("2001:db8::2").unwrap());
        assert!(from("2001:db8::3").is_none(), "a network is one source");
        assert!(from("192.0.2.2").is_none(), "five are open in whole");
        drop((first, second, third, other));
        let counts = gate.counts.lock().unwrap();
        assert_eq!((counts.all, counts.sources.len()), (Count::default(), 0), "all have left");
    }

    #[test]
    fn some_places_are_for_those_who_showed_a_certificate() {
        let gate = Gate::new(&Bounds { connections: 8, ..Bounds::default() });
        let come = |certified: bool| {
            let mut pass = gate.enter("192.0.2.1".parse().unwrap())?;
            pass.shaken(certified).then_some(pass)
        };
        let mut strangers: Vec<Pass> = (0..6).map_while(|_| come(false)).collect();
        assert!(strangers.len() == 6 && come(false).is_none());
        let known = (come(true).unwrap(), come(true).unwrap());
        assert!(come(true).is_none(), "eight are open");
        strangers.pop();
        strangers.push(come(false).unwrap());
        drop((strangers, known));
        let counts = gate.counts.lock().unwrap();
        assert_eq!((counts.all, counts.sources.len()), (Count::default(), 0), "all have left");
    }
}
