//! What people type.

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
