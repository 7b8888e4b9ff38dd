//! The kernel's network, spoken to by netlink.
//!
//! A node's pod network and the local cluster's switch both make links, routes and nftables rules, and neither may need `ip` or `nft`. They share
//! this small synchronous client: a request is one system call and one answer, well under a millisecond, and a socket stays in the network namespace
//! in which it was opened, so that one process can hold a socket for each of many namespaces ([`netns::inside`] opens them there).
//!
//! - [`wire`]: messages and attributes as bytes. Pure.
//! - [`socket`]: requests, dumps and atomic batches, and errors that carry the kernel's own words.
//! - [`route`]: links, addresses, routes, neighbours (rtnetlink(7)).
//! - [`nft`]: nftables objects, expressions and batches.
//! - [`conntrack`]: finding and deleting tracked flows.
//! - [`cidr`]: an IPv4 range.

pub mod cidr;
pub mod conntrack;
pub mod netns;
pub mod nft;
pub mod route;
pub mod socket;
pub mod wire;

pub use cidr::Cidr;
pub use socket::{Error, Result};
