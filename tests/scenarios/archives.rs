//! Archives of images, written here byte by byte as other tools write them: what `docker save` makes, and what `skopeo copy oci-archive:` makes.
//!
//! The image holds this machine's shell, the skiff binary, and a program `httpd` that stands in for the web servers of images that only a registry has.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sha2::Digest as _;
use skiff_runtime::{ImageBuilder, ImageConfig, ImageStore};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

/// The parts that every archive of an image has.
pub struct Parts {
    pub config: Vec<u8>,
    /// The layers as plain tars.
    pub layers: Vec<Vec<u8>>,
}

/// Makes the image in a folder of its own, which goes again.
pub fn make(folder: &Path, entrypoint: &[&str]) -> anyhow::Result<Parts> {
    std::fs::create_dir_all(folder)?;
    let made = make_in(folder, entrypoint);
    std::fs::remove_dir_all(folder)?;
    made
}

fn make_in(folder: &Path, entrypoint: &[&str]) -> anyhow::Result<Parts> {
    let skiff = folder.join("skiff");
    // Debug information would be most of the image.
    let stripped = Command::new("strip").arg("-o").arg(&skiff).arg(crate::local::SKIFF).status();
    if !stripped.is_ok_and(|s| s.success()) {
        std::fs::copy(crate::local::SKIFF, &skiff)?;
    }
    let store = ImageStore::open(&folder.join("store"), &[])?;
    let config = ImageConfig { entrypoint: entrypoint.iter().map(|w| (*w).to_owned()).collect(), ..Default::default() };
    let shell = std::fs::canonicalize("/bin/sh").context("finding the shell")?;
    ImageBuilder::from_host_binaries(&[(&skiff, "/skiff"), (&shell, "/bin/sh")])?
        .file("/bin/httpd", "#!/bin/sh\nexec /skiff web --listen 0.0.0.0:8080\n", 0o755)
        .dir("/tmp", 0o1777)
        .config(config)
        .build(&store, "scenarios.local/made:1")?;
    let mut archive = Vec::new();
    store.export("scenarios.local/made:1", &mut archive)?;
    read(&archive)
}

/// Takes an OCI archive apart.
fn read(archive: &[u8]) -> anyhow::Result<Parts> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        let mut data = Vec::new();
        entry.read_to_end(&mut data)?;
        files.insert(name, data);
    }
    let blob = |descriptor: &Value| -> anyhow::Result<&Vec<u8>> {
        let digest = descriptor["digest"].as_str().and_then(|d| d.strip_prefix("sha256:")).context("a digest")?;
        files.get(&format!("blobs/sha256/{digest}")).with_context(|| format!("the blob {digest}"))
    };
    let index: Value = serde_json::from_slice(files.get("index.json").context("an index")?)?;
    let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])?)?;
    let mut layers = Vec::new();
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let data = blob(layer)?;
        let mut plain = Vec::new();
        if data.starts_with(&[0x1f, 0x8b]) {
            flate2::read::GzDecoder::new(data.as_slice()).read_to_end(&mut plain)?;
        } else {
            plain.clone_from(data);
        }
        layers.push(plain);
    }
    ensure!(!layers.is_empty(), "an image without layers");
    Ok(Parts { config: blob(&manifest["config"])?.clone(), layers })
}

fn hex(data: &[u8]) -> String {
    sha2::Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pack(files: &[(String, Vec<u8>)]) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, data.as_slice())?;
    }
    Ok(archive.into_inner()?)
}

/// As `docker save NAME` writes it: `manifest.json`, the configuration by its digest, a folder a layer.
pub fn docker_save(parts: &Parts, name: &str) -> anyhow::Result<Vec<u8>> {
    let config = format!("{}.json", hex(&parts.config));
    let layers: Vec<_> = parts.layers.iter().map(|l| (format!("{}/layer.tar", hex(l)), l.clone())).collect();
    let names: Vec<_> = layers.iter().map(|(name, _)| name).collect();
    let manifest = json!([{"Config": config, "RepoTags": [name], "Layers": names}]);
    let mut files = layers.clone();
    files.push((config, parts.config.clone()));
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    pack(&files)
}

/// An OCI image layout in a tar, its layers gzipped, the name in the annotation that containerd and buildx write.
pub fn oci(parts: &Parts, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut put = |kind: &str, data: Vec<u8>| {
        let digest = hex(&data);
        let media_type = format!("application/vnd.oci.image.{kind}");
        let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": data.len()});
        files.push((format!("blobs/sha256/{digest}"), data));
        descriptor
    };
    let config = put("config.v1+json", parts.config.clone());
    let mut layers = Vec::new();
    for layer in &parts.layers {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(layer)?;
        layers.push(put("layer.v1.tar+gzip", gzip.finish()?));
    }
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers});
    let mut entry = put("manifest.v1+json", manifest.to_string().into_bytes());
    entry["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    files.push(("index.json".into(), index.to_string().into_bytes()));
    pack(&files)
}
