//! TLS handshakes under way at the peers' port. There are a handful of members, but whoever reaches the port can begin one: so many from one source, and so many
//! in whole, and the rest is turned away at once. Nobody waits for a place: members would wait behind all who are silent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// In whole: each costs a descriptor and some memory.
const ALL_MAX: usize = 512;
/// From one source: a member dials anew a few times at once when it comes back.
const EACH_MAX: usize = 16;
/// How often it is told that somebody was turned away.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The counts of one listener. Clones are the same one.
#[derive(Clone, Default)]
pub struct Handshakes {
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    sources: HashMap<IpAddr, usize>,
    told: Option<Instant>,
}

/// One that is under way until this is dropped.
pub struct Handshake {
    all: Handshakes,
    source: IpAddr,
}

impl Handshakes {
    /// Lets one begin, or says in the log that it was turned away.
    pub fn begin(&self, from: IpAddr) -> Option<Handshake> {
        let source = source_of(from);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, theirs) = (counts.all, counts.sources.get(&source).copied().unwrap_or_default());
        if all >= ALL_MAX || theirs >= EACH_MAX {
            if counts.told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                counts.told = Some(Instant::now());
                tracing::warn!(
                    "peers' connections from {source} are turned away: {theirs} TLS handshakes from there and {all} in whole are under way"
                );
            }
            return None;
        }
        counts.all += 1;
        *counts.sources.entry(source).or_default() += 1;
        Some(Handshake { all: self.clone(), source })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut counts = self.all.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        if let Some(theirs) = counts.sources.get_mut(&self.source) {
            *theirs = theirs.saturating_sub(1);
            if *theirs == 0 {
                counts.sources.remove(&self.source);
            }
        }
    }
}

/// An IPv4 address, or the 64 bits of an IPv6 address that name a network: its holder has all the others.
fn source_of(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::from((u128::from(address) & !u128::from(u64::MAX)).to_be_bytes()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all() {
        let handshakes = Handshakes::default();
        let begin = |text: &str| handshakes.begin(text.parse().unwrap());
        let mut held: Vec<Handshake> = (0..EACH_MAX).map(|_| begin("192.0.2.1").unwrap()).collect();
        assert!(begin("192.0.2.1").is_none() && begin("::ffff:192.0.2.1").is_none(), "one source");
        held.extend((0..EACH_MAX).map(|n| begin(&format!("2001:db8::{n}")).unwrap()));
        assert!(begin("2001:db8::ffff").is_none(), "a network is one source");
        let others = (0..=255).flat_map(|n| std::iter::repeat_n(n, EACH_MAX));
        held.extend(others.map_while(|n| begin(&format!("198.51.100.{n}"))));
        assert_eq!(held.len(), ALL_MAX);
        assert!(begin("203.0.113.1").is_none(), "in whole");
        held.pop();
        held.push(begin("203.0.113.1").unwrap());
        drop(held);
        let counts = handshakes.counts.lock().unwrap();
        assert_eq!((counts.all, counts.sources.len()), (0, 0));
    }
}
