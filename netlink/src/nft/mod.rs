//! nftables: tables, chains, sets, rules, and batches that change them all at once (include/uapi/linux/netfilter/nf_tables.h).
//!
//! A [`Batch`] collects changes to one table and is committed by [`Nft::commit`] as one transaction: packets see the rules before or after it,
//! never between.

mod batch;
mod expr;

pub use batch::{Batch, Chain, Data, Family, Hook, Kind, Map, Nft, Verdict};
pub use expr::{Expr, Load, REG, REG_1};
