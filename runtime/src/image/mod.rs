//! Images on one host: names, a content store with reference counts, archives, registries, and images made on the spot.
//!
//! An image is a configuration and a list of layers. Blobs are kept under their digest as they came; each layer is also
//! unpacked once, under the digest of its tar, to a directory that overlays of any number of containers share.

mod archive;
mod build;
mod digest;
mod distribution;
mod elf;
mod guard;
mod name;
mod registry;
mod store;
mod unpack;

pub use build::ImageBuilder;
pub use digest::Digest;
pub use name::ImageName;
pub use registry::Credentials;
pub use store::{Access, Collected, ImageRecord, ImageStore, Pin};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What an image says about running it. Field names are those of the OCI image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `user[:group]`.
    pub user: String,
    /// `NAME=value` each.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// First words of the command line.
    #[serde(deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// The words after them, unless others are given.
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// Where the program starts; empty is `/`.
    pub working_dir: String,
    /// Signal that asks for an orderly end: `SIGQUIT`, or a number; empty is SIGTERM.
    pub stop_signal: String,
    /// Free for people.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// Paths that want a volume.
    #[serde(deserialize_with = "nullable")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// `80/tcp` and so on.
    #[serde(deserialize_with = "nullable")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
}

impl ImageConfig {
    /// Environment as pairs; entries without `=` are left out.
    pub fn env_pairs(&self) -> Vec<(String, String)> {
        let pairs = self.env.iter().filter_map(|entry| entry.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// Builders write `null` for what is empty.
fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

/// The parts of an image's configuration blob that we read (OCI image specification, config.md).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct ConfigBlob {
    #[serde(skip_serializing_if = "String::is_empty")]
    created: String,
    architecture: String,
    os: String,
    #[serde(deserialize_with = "nullable")]
    config: ImageConfig,
    rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct RootFs {
    r#type: String,
    #[serde(deserialize_with = "nullable")]
    diff_ids: Vec<String>,
}

/// A pointer to a blob (OCI image specification, descriptor.md).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Platform {
    architecture: String,
    os: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
}

/// A manifest or an index: which one shows in what is filled in.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Manifest {
    schema_version: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    media_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<Descriptor>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Descriptor>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    manifests: Vec<Descriptor>,
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// This machine's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The entry of an index that this machine can run.
fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let fits = |entry: &&Descriptor| {
        entry
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture())
    };
    let plain = |entry: &&Descriptor| entry.platform.is_none();
    manifests.iter().find(fits).or_else(|| manifests.iter().find(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_of_real_builders() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":null,"Entrypoint":["/a"],
            "Labels":null,"Volumes":{"/data":{}},"ArgsEscaped":true},"rootfs":{"type":"layers","diff_ids":["sha256:0"]}}"#;
        let blob: ConfigBlob = serde_json::from_str(text).unwrap();
        assert_eq!(blob.config.env_pairs(), [("PATH".to_owned(), "/bin".to_owned())]);
        assert!(blob.config.cmd.is_empty());
        assert_eq!(blob.config.volumes.len(), 1);
    }
}
