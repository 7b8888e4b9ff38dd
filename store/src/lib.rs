//! store
mod command; mod disk; mod driver; mod hub; mod error; mod kv; mod log; mod machine; mod raftlog; mod record; mod replica; mod snapshot; mod types;
pub use error::*; pub use types::*;
