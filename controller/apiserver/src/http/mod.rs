//! What HTTP says: paths to requests, media types, answers.

pub mod media;
pub mod protobuf;
pub mod request;
pub mod respond;
pub mod yaml;
