//! Who is asking (authentication) and whether they may (authorization).

pub mod authenticate;
pub mod authorize;
pub mod bootstrap;
pub mod follow;
pub mod impersonate;
pub mod jwt;
pub mod node_rules;
pub mod pod_graph;
pub mod policy;
pub mod rbac;
pub mod token_file;
pub mod user;
