//! Images made on the spot, from a list of files: one layer, no network, the same digest for the same content.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::elf;
use super::name::ImageName;
use super::store::{ImageRecord, ImageStore};
use super::{CONFIG_TYPE, ConfigBlob, Descriptor, ImageConfig, LAYER_TYPE, RootFs, architecture};
use crate::error::{Context, Error, Result, on};
use crate::sys;

enum Content {
    Bytes(Vec<u8>, u32),
    HostFile(PathBuf),
    Link(String),
    Dir(u32),
}

/// Collects files and a configuration.
#[derive(Default)]
pub struct ImageBuilder {
    files: std::collections::BTreeMap<PathBuf, Content>,
    config: ImageConfig,
}

impl ImageBuilder {
    /// Nothing in it.
    pub fn new() -> ImageBuilder {
        ImageBuilder::default()
    }

    /// Programs of this host with their loader and libraries: (`path on the host`, `path in the image`).
    pub fn from_host_binaries(programs: &[(&Path, &str)]) -> Result<ImageBuilder> {
        let mut builder = ImageBuilder::new();
        for (host, inside) in programs {
            builder = builder.host_file(host, inside);
            for library in elf::libraries(host)? {
                let inside = library.to_string_lossy().into_owned();
                builder = builder.host_file(&library, &inside);
            }
        }
        Ok(builder)
    }

    /// A file with these bytes and permission bits.
    pub fn file(mut self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> ImageBuilder {
        self.files.insert(sys::clean(Path::new(path)), Content::Bytes(bytes.into(), mode));
        self
    }

    /// A copy of a file of this host (links are followed), with its permission bits.
    pub fn host_file(mut self, host: &Path, path: &str) -> ImageBuilder {
        self.files.insert(sys::clean(Path::new(path)), Content::HostFile(host.to_owned()));
        self
    }

    /// A symbolic link.
    pub fn link(mut self, path: &str, target: &str) -> ImageBuilder {
        self.files.insert(sys::clean(Path::new(path)), Content::Link(target.into()));
        self
    }

    /// An empty directory.
    pub fn dir(mut self, path: &str, mode: u32) -> ImageBuilder {
        self.files.insert(sys::clean(Path::new(path)), Content::Dir(mode));
        self
    }

    /// How to run it.
    pub fn config(mut self, config: ImageConfig) -> ImageBuilder {
        self.config = config;
        self
    }

    /// Puts the image into a store under a name.
    pub fn build(self, store: &ImageStore, name: &str) -> Result<ImageRecord> {
        let name = ImageName::parse(name)?;
        let _writing = store.writing();
        let tar = self.tar()?;
        let (layer, layer_bytes) = store.put_blob(Cursor::new(&tar), None)?;
        let config = ConfigBlob {
            created: String::new(),
            architecture: architecture().into(),
            os: "linux".into(),
            config: self.config,
            rootfs: RootFs { r#type: "layers".into(), diff_ids: vec![layer.to_string()] },
        };
        let text = serde_json::to_vec(&config)
            .map_err(|error| Error::Format { what: "the image configuration".into(), why: error.to_string() })?;
        let (config, config_bytes) = store.put_blob(&text[..], None)?;
        let descriptor = |media_type: &str, digest: String, size| Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            ..Descriptor::default()
        };
        let config = descriptor(CONFIG_TYPE, config.to_string(), config_bytes);
        store.add_parts(config, vec![descriptor(LAYER_TYPE, layer.to_string(), layer_bytes)], &[name])
    }

    fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in &self.files {
            let what = || format!("put {} into the image", path.display());
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            match content {
                Content::Bytes(bytes, mode) => {
                    header.set_mode(*mode);
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, path, &bytes[..]).context(what)?;
                }
                Content::HostFile(host) => {
                    let file = fs::File::open(host).context(on("read", host))?;
                    let metadata = file.metadata().context(on("read", host))?;
                    header.set_mode(metadata.permissions().mode() & 0o777);
                    header.set_size(metadata.len());
                    tar.append_data(&mut header, path, file).context(what)?;
                }
                Content::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, path, target).context(what)?;
                }
                Content::Dir(mode) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    tar.append_data(&mut header, path, std::io::empty()).context(what)?;
                }
            }
        }
        tar.into_inner().context(|| "write the image's layer".into())
    }
}
