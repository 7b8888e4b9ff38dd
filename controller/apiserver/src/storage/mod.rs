//! Objects in the store: keys, stored bytes, what lies there sealed, reading, continue tokens.

pub mod continue_token;
pub mod encode;
pub mod forms;
pub mod keys;
pub mod objects;
pub mod peek;
