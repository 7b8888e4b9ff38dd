//! The gRPC services between Skiff's parts, generated from the .proto files beside this crate's Cargo.toml.
//! Knows none of the other crates.

/// Between the members of the store: `store.proto`.
pub mod store {
    #![allow(clippy::all)]
    tonic::include_proto!("skiff.store.v1");
}

/// Between the control plane and the agents: `fleet.proto`.
pub mod fleet {
    #![allow(clippy::all)]
    tonic::include_proto!("skiff.fleet.v1");
}
