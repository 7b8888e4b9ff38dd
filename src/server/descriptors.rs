//! How many descriptors the process may have: every connection takes one, and so do the store's files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a server asks for, where the machine's bound lets it.
const WANTED: u64 = 65536;

/// Raises the soft limit towards [`WANTED`]; gives what holds now.
pub fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let wanted = WANTED.min(hard);
    if soft >= wanted {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, soft, wanted, "the limit of open files could not be raised: fewer connections are taken");
            soft
        }
    }
}
