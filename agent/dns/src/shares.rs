//! How much of something each client has, so that none takes all of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts by client. Holds an entry only for clients that have something now.
#[derive(Clone)]
pub struct Shares {
    most: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One of a client's; given back when dropped.
pub struct Share {
    client: IpAddr,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Shares {
    /// Each client has at most so many.
    pub fn new(most: usize) -> Shares {
        Shares { most, taken: Arc::default() }
    }

    /// One more for a client, if it may have it.
    pub fn take(&self, client: IpAddr) -> Option<Share> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(client).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { client, taken: self.taken.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_does_not_take_all() {
        let shares = Shares::new(2);
        let (a, b) = (IpAddr::from([10, 42, 0, 1]), IpAddr::from([10, 42, 0, 2]));
        let mut held = vec![shares.take(a).unwrap(), shares.take(a).unwrap()];
        assert!(shares.take(a).is_none());
        assert!(shares.take(b).is_some(), "another has its own");
        held.pop();
        assert!(shares.take(a).is_some());
        drop(held);
        assert!(shares.taken.lock().unwrap().is_empty(), "nothing is kept of who has nothing");
    }
}
