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

/// The etcd v3 API, in the packages that its clients know: `etcd/*.proto`. Generated code refers from one package to another
/// by relative path, so they stay side by side.
pub mod etcd {
    #![allow(clippy::all)]
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
}

/// gRPC's health protocol: `etcd/health.proto`.
pub mod health {
    #![allow(clippy::all)]
    tonic::include_proto!("grpc.health.v1");
}
