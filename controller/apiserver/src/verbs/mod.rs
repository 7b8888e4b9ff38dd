//! The verbs that work on every kind alike; what is special to a kind is in its row, its rules and its subresources.

pub mod commit;
pub mod create;
pub mod delete;
pub mod options;
pub mod patch;
pub mod read;
pub mod selection;
pub mod update;
pub mod watch;
