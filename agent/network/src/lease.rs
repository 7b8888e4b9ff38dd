//! Which pod has which address of the node's range. In memory only: at start it is filled again from the pods' devices, so nothing can leak.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use skiff_netlink::Cidr;

/// Addresses kept back at the start of the range: the range's own (the overlay device has it) and the next, for the node.
const RESERVED: u64 = 2;

/// The addresses of one node's pods.
#[derive(Debug, Clone)]
pub struct Pool {
    range: Cidr,
    taken: BTreeSet<Ipv4Addr>,
    next: u64,
}

impl Pool {
    pub fn new(range: Cidr) -> Pool {
        Pool { range, taken: BTreeSet::new(), next: RESERVED }
    }

    /// How many pods there can be.
    pub fn capacity(&self) -> u64 {
        self.range.size().saturating_sub(RESERVED + 1)
    }

    /// The next free address, the most recently freed last: what still talks to a stopped pod should not meet another in its place.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let last = self.range.size().saturating_sub(1);
        let span = last.checked_sub(RESERVED).filter(|span| *span > 0)?;
        if self.taken.len() as u64 >= span {
            return None;
        }
        for step in 0..span {
            let n = RESERVED + (self.next - RESERVED + step) % span;
            let address = self.range.nth(n)?;
            if self.taken.insert(address) {
                self.next = RESERVED + (n - RESERVED + 1) % span;
                return Some(address);
            }
        }
        None
    }

    /// Marks an address found in use; false when it is outside the range or taken.
    pub fn adopt(&mut self, address: Ipv4Addr) -> bool {
        self.range.contains(address) && self.taken.insert(address)
    }

    pub fn free(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_used_in_a_ring() {
        let mut pool = Pool::new("10.42.1.0/29".parse().unwrap());
        let at = |n| Ipv4Addr::new(10, 42, 1, n);
        assert_eq!(pool.capacity(), 5);
        assert!(pool.adopt(at(3)) && !pool.adopt(at(3)) && !pool.adopt(Ipv4Addr::new(10, 42, 2, 3)));
        assert_eq!([pool.take(), pool.take()], [Some(at(2)), Some(at(4))]);
        pool.free(at(2));
        assert_eq!([pool.take(), pool.take(), pool.take(), pool.take()], [Some(at(5)), Some(at(6)), Some(at(2)), None]);
        pool.free(at(6));
        assert_eq!(pool.take(), Some(at(6)));
    }

    #[test]
    fn tiny_ranges_hold_nothing_and_do_not_panic() {
        for range in ["10.42.1.0/30", "10.42.1.0/31", "10.42.1.1/32"] {
            let mut pool = Pool::new(range.parse().unwrap());
            let got: Vec<_> = std::iter::from_fn(|| pool.take()).take(9).collect();
            assert!(got.len() <= 1, "{range}: {got:?}");
        }
    }
}
