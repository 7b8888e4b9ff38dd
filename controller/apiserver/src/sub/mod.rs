//! What lives below objects, or is answered without being stored: scale, binding, eviction, tokens, reviews, logs, exec.

pub mod binding;
pub mod components;
pub mod connect;
pub mod eviction;
pub mod finalize;
pub mod reviews;
pub mod scale;
mod scale_managers;
pub mod token;
