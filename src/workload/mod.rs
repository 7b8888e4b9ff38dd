//! Small programs that the demo and the tests run in pods, so that they need no image from elsewhere: a web server, and a client that counts.

pub mod image;
pub mod load;
pub mod web;
