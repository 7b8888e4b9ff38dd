//! Containers and images on one Linux host, without a daemon.
//!
//! A pod is a small helper process: this very binary, run again under another name (`skiff-pod`) from a sealed memory
//! file. It makes the pod's namespaces, is the parent and subreaper of its containers, writes their logs, keeps their exit
//! codes, and listens on a socket in the pod's directory. The process that asked for it may die and come back: the
//! helper goes on, and [`Runtime::recover`] finds it again.
//!
//! ```text
//! Runtime (async, any number of threads)          helper (one thread, no async, one a pod)
//!   create_pod  --- spawn, pod.json ------------->  namespaces, socket
//!   start_container --- Start ------------------->  clone -> overlay, mounts, pivot, rights -> exec
//!   exec, attach --- descriptors beside a frame ->  the program's own input and output
//!   watch       <-- whole state after a change ---  SIGCHLD
//! ```
//!
//! Every program that uses the crate calls [`maybe_run_helper`] first thing in its `main`.
//!
//! Deliberately absent: Kubernetes types, networks (a pod's network namespace has a path; who wires it is not known
//! here), user namespaces, and any program that is run to do what a system call can do.

pub mod cgroup;
mod client;
mod error;
mod helper;
pub mod image;
pub mod private;
pub mod spec;
mod sys;
pub mod sysctl;
mod wire;

pub use client::{Attached, ExecIo, ExecSession, Pod, Recovered, Runtime, RuntimeConfig, Terminal};
pub use error::{Error, Result};
pub use helper::{helper_main, maybe_run_helper};
pub use image::{ImageBuilder, ImageConfig, ImageRecord, ImageStore};
pub use spec::{
    ContainerSpec, ContainerState, ExecSpec, LogSpec, Mount, Phase, PodSpec, PodState, Resources, Rlimit, Security,
    Stats, Tmpfs,
};
pub use sys::boottime_ms;
