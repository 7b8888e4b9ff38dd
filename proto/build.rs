//! Compiles the .proto files in pure Rust (protox), so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=store.proto");
    println!("cargo:rerun-if-changed=fleet.proto");
    let files = protox::compile(["store.proto", "fleet.proto"], ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
