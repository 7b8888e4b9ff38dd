//! Errors of the runtime: what was attempted, on what, and why it failed.

use std::path::{Path, PathBuf};

/// What the caller can tell apart; everything else is told in words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// The attempt and its object.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The helper refused or failed a request; the text is the helper's.
    #[error("{0}")]
    Helper(String),
    /// The pod's helper is gone, and with it the pod.
    #[error(
        "the helper of pod {pod} does not answer any more ({cause}); the pod has ended and can be deleted and made again"
    )]
    HelperGone {
        /// Id of the pod.
        pod: String,
        /// What the socket said.
        cause: String,
    },
    /// Nothing by that name is here.
    #[error("no {kind} {name:?} here")]
    NotFound {
        /// `image`, `container`, ...
        kind: &'static str,
        /// The name that was asked for.
        name: String,
    },
    /// A name, path or number that cannot be used.
    #[error("{what} {value:?} cannot be used: {why}")]
    Invalid {
        /// Which input.
        what: &'static str,
        /// Its value.
        value: String,
        /// The rule that it breaks, and what to write instead.
        why: String,
    },
    /// Bytes that do not have the digest under which they were named.
    #[error(
        "{what}: its bytes have the digest {actual}, not {expected}; it is damaged or was tampered with, fetch it again"
    )]
    Digest {
        /// Which blob.
        what: String,
        /// The name.
        expected: String,
        /// The truth.
        actual: String,
    },
    /// An archive or document that does not follow its format.
    #[error("{what} is not well formed: {why}")]
    Format {
        /// Which document.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A registry said no, or nothing.
    #[error("pulling {image}: {why}")]
    Pull {
        /// The reference.
        image: String,
        /// The registry's or the network's words.
        why: String,
        /// The registry answered that there is no such image (or that it may not be seen).
        not_found: bool,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Puts words to an I/O error.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Io { what: what(), source: errno.into() })
    }
}

/// `read /a/b`, for the `what` of an error.
pub(crate) fn on(verb: &'static str, path: &Path) -> impl FnOnce() -> String {
    let path: PathBuf = path.to_owned();
    move || format!("{verb} {}", path.display())
}

/// Refuses names that could climb out of a directory or upset a path.
pub(crate) fn check_name(what: &'static str, value: &str) -> Result<()> {
    let ok = !value.is_empty()
        && value.len() <= 200
        && !value.starts_with('.')
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if ok {
        return Ok(());
    }
    let why = "use 1 to 200 of the characters a-z A-Z 0-9 - _ . and no leading dot".into();
    Err(Error::Invalid { what, value: value.into(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |value: &str, expect: bool| assert_eq!(check_name("id", value).is_ok(), expect, "{value}");
        check("web-0", true);
        check("7f0c9b1e-1111-2222-3333-444455556666", true);
        check("", false);
        check("..", false);
        check("a/b", false);
        check(&"a".repeat(201), false);
    }
}
