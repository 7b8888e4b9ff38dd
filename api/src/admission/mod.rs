//! What a namespace's owners allow in it: limits of single objects, quotas of all together, security levels of pods.
//!
//! Everything here judges values. Who reads the limits and writes down what is used is the server's business.

pub mod limits;
pub mod pod_security;
pub mod quota;
