//! Compiles the .proto files in pure Rust (protox), so that no protoc is needed.

const FILES: [&str; 7] = [
    "store.proto",
    "fleet.proto",
    "etcd/kv.proto",
    "etcd/rpc.proto",
    "etcd/lock.proto",
    "etcd/election.proto",
    "etcd/health.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let files = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
