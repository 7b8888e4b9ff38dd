//! A node that was removed from the cluster: its Node is gone, so that its certificate is nobody's. What it does about that is decided here.
//!
//! It says so, and goes on asking, because a server that is a moment behind may only not know it yet. It joins again by itself only with a token that it was started
//! with, and only if it was refused before it was ever taken in since: a node that an administrator removes while it runs stays removed.

use skiff_identity::Token;
use std::fmt;
use std::time::{Duration, Instant};

/// A server that has not caught up knows a node by then.
const CATCHES_UP: Duration = Duration::from_secs(2);

/// The answer of a server that does not know this node.
#[derive(Debug)]
pub struct Removed(pub String);

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Removed {}

/// What is to be done after an answer.
#[derive(Debug, PartialEq)]
pub enum Step {
    Nothing,
    /// Say that this node was removed; once.
    Tell,
    /// Join again with the token.
    Join(Token),
}

/// Follows the answers of servers.
pub struct Refusals {
    token: Option<Token>,
    since: Option<Instant>,
    told: bool,
}

impl Refusals {
    pub fn new(token: Option<Token>) -> Refusals {
        Refusals { token, since: None, told: false }
    }

    /// A server took the node in: from now on, a refusal means that somebody removed it.
    pub fn taken_in(&mut self) {
        *self = Refusals::new(None);
    }

    /// A server refused the node.
    pub fn refused(&mut self, now: Instant) -> Step {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < CATCHES_UP {
            return Step::Nothing;
        }
        match self.token.take() {
            Some(token) => {
                self.since = None;
                Step::Join(token)
            }
            None if !std::mem::replace(&mut self.told, true) => Step::Tell,
            None => Step::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_identity::Role;

    #[test]
    fn a_node_joins_again_at_its_start_only() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let token = Token::generate("0".repeat(64), Role::Agent);

        let mut with_token = Refusals::new(Some(token.clone()));
        assert_eq!(with_token.refused(at(0)), Step::Nothing, "the server may be behind");
        assert_eq!(with_token.refused(at(1)), Step::Nothing);
        assert_eq!(with_token.refused(at(3)), Step::Join(token.clone()));
        assert_eq!(with_token.refused(at(4)), Step::Nothing, "the new Node may not have arrived yet");
        assert_eq!(with_token.refused(at(7)), Step::Tell, "it was not taken in even so");
        assert_eq!(with_token.refused(at(9)), Step::Nothing, "once is enough");

        let mut removed = Refusals::new(Some(token));
        removed.taken_in();
        assert_eq!(removed.refused(at(0)), Step::Nothing);
        assert_eq!(removed.refused(at(3)), Step::Tell, "somebody removed it: the token does not bring it back");
    }
}
