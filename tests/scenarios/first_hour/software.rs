//! Images of the software that people deploy first, made of Debian's packages: one large layer that all share, and a small one of each image's own.
//!
//! They go to the cluster in one archive, as OCI tools write it, and so they are also a large import and a large layer on every node.

use crate::local::Local;
use anyhow::{Context as _, ensure};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// What makes an image of the shared layer.
struct Software {
    name: &'static str,
    /// The configuration's `config`.
    config: fn() -> Value,
    /// Path in the image, content and permission bits.
    files: &'static [(&'static str, &'static str, u32)],
    folders: &'static [&'static str],
}

const ALL: &[Software] = &[
    Software {
        name: "scenarios.local/nginx:1",
        config: || json!({"Cmd": ["nginx", "-g", "daemon off;"], "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}}}),
        files: &[
            ("etc/nginx/sites-enabled/default", include_str!("nginx-default.conf"), 0o644),
            ("etc/nginx/modules-enabled/none.conf", "", 0o644),
        ],
        folders: &["var/log/nginx", "var/lib/nginx", "var/cache"],
    },
    Software {
        name: "scenarios.local/redis:1",
        config: || json!({"Entrypoint": ["redis-server"], "Cmd": ["--bind", "*"], "User": "redis", "WorkingDir": "/data"}),
        files: &[],
        folders: &["data"],
    },
    Software {
        name: "scenarios.local/mariadb:1",
        config: || json!({"Entrypoint": ["/entrypoint.sh"], "Volumes": {"/var/lib/mysql": {}}}),
        files: &[("entrypoint.sh", include_str!("mariadb.sh"), 0o755)],
        folders: &["run/mysqld"],
    },
    Software {
        name: "scenarios.local/postgres:1",
        config: || json!({"Entrypoint": ["/entrypoint.sh"]}),
        files: &[("entrypoint.sh", include_str!("postgres.sh"), 0o755)],
        folders: &["run/postgresql"],
    },
    Software {
        name: "scenarios.local/php-fpm:1",
        config: || json!({"Cmd": ["sh", "-c", "exec /usr/sbin/php-fpm* --nodaemonize"], "WorkingDir": "/var/www/html"}),
        files: &[],
        folders: &["run/php", "var/www/html"],
    },
];

/// The layer that `.ci/first-hour-root` makes, if it is here. A run that must be complete fails without it.
pub fn layer() -> Option<PathBuf> {
    let layer = std::env::var_os("SKIFF_FIRST_HOUR").map(|folder| Path::new(&folder).join("layer.tar.gz"));
    let layer = layer.filter(|layer| layer.exists());
    if layer.is_none() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "the scenarios need real software; run .ci/first-hour-root FOLDER and set SKIFF_FIRST_HOUR=FOLDER"
        );
        eprintln!(
            "ignored: scenarios with real software need SKIFF_FIRST_HOUR, the folder that .ci/first-hour-root fills"
        );
    }
    layer
}

/// Sees to it that the cluster has the images.
pub fn images(local: &Local) -> anyhow::Result<()> {
    if local.run(&["image", "ls"])?.contains("scenarios.local/nginx") {
        return Ok(());
    }
    let path = local.dir.join("software.tar");
    archive(&path)?;
    let said = local.run(&["image", "import", path.to_str().context("a plain path")?])?;
    std::fs::remove_file(&path)?;
    for software in ALL {
        ensure!(said.contains(software.name), "{} was not taken in:\n{said}", software.name);
    }
    Ok(())
}

/// A blob's digest and size as a descriptor of this type.
fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": size})
}

struct Archive(tar::Builder<File>);

impl Archive {
    fn put(&mut self, name: &str, size: u64, content: impl Read) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        Ok(self.0.append_data(&mut header, name, content)?)
    }

    fn blob(&mut self, kind: &str, data: &[u8]) -> anyhow::Result<Value> {
        let digest = hash(data)?;
        self.put(&format!("blobs/sha256/{digest}"), data.len() as u64, data)?;
        Ok(descriptor(kind, &digest, data.len() as u64))
    }
}

fn hash(mut from: impl Read) -> anyhow::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// The layer of an image's own, as a plain tar.
fn own_layer(software: &Software) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, size: usize, mode| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(mode);
        header
    };
    for folder in software.folders {
        tar.append_data(&mut header(tar::EntryType::Directory, 0, 0o777), folder, std::io::empty())?;
    }
    for (path, content, mode) in software.files {
        let content = content.as_bytes();
        tar.append_data(&mut header(tar::EntryType::Regular, content.len(), *mode), path, content)?;
    }
    Ok(tar.into_inner()?)
}

/// Writes the archive of all images.
fn archive(path: &Path) -> anyhow::Result<()> {
    let layer = layer().context("there is no layer")?;
    let open = || File::open(&layer).with_context(|| format!("reading {}", layer.display()));
    let size = open()?.metadata()?.len();
    let (digest, plain) = (hash(open()?)?, hash(GzDecoder::new(open()?))?);
    let mut archive = Archive(tar::Builder::new(File::create(path)?));
    archive.put(&format!("blobs/sha256/{digest}"), size, open()?)?;
    let shared = descriptor("layer.v1.tar+gzip", &digest, size);
    let mut entries = Vec::new();
    for software in ALL {
        let own = own_layer(software)?;
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&own)?;
        let layer = archive.blob("layer.v1.tar+gzip", &packed.finish()?)?;
        let mut inside = (software.config)();
        inside["Env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": inside,
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{plain}"), format!("sha256:{}", hash(&own[..])?)]},
        });
        let config = archive.blob("config.v1+json", config.to_string().as_bytes())?;
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [shared, layer]});
        let mut entry = archive.blob("manifest.v1+json", manifest.to_string().as_bytes())?;
        entry["annotations"] = json!({"io.containerd.image.name": software.name});
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    archive.put("index.json", index.len() as u64, index.as_bytes())?;
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    archive.put("oci-layout", layout.len() as u64, &layout[..])?;
    Ok(archive.0.into_inner()?.sync_all()?)
}
