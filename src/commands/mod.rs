//! What people type.

/// A line for people on standard output. When nobody reads it any more (`skiff status | head -1`), that is no reason to fail.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

pub mod bench;
pub mod cluster;
pub mod demo;
pub mod kube;
pub mod run;
pub mod store;
pub mod up;

use std::path::PathBuf;

/// Where the local cluster lives when nobody says otherwise.
pub fn default_dir() -> PathBuf {
    PathBuf::from("/var/lib/skiff/local")
}
