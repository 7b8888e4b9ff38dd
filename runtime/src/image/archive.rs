//! Images as files: what `docker save` and OCI tools write comes in, an OCI archive goes out.
//!
//! An archive's parts come in any order, so all of them first go beside the store; then `index.json` (OCI image
//! layout) or else `manifest.json` (the older Docker form) says what they are.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::digest::{Digest, Hashing};
use super::guard::{CONTENT_BYTES_MAX, Guard};
use super::name::ImageName;
use super::store::{ImageRecord, ImageStore};
use super::unpack::decompress;
use super::{CONFIG_TYPE, ConfigBlob, Descriptor, INDEX_TYPE, LAYER_TYPE, MANIFEST_TYPE, Manifest};
use crate::error::{Context, Error, Result, on};
use crate::sys;

/// Files of an archive: an image has 127 layers at most, and an archive holds a few images.
const PARTS_MAX: usize = 100_000;

/// One image of an older Docker archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Takes in every image of an archive (tar, or gzip or zstd of one), for this machine's architecture.
    pub fn import(&self, source: impl Read) -> Result<Vec<ImageRecord>> {
        let _writing = self.writing();
        let dir = self.temporary();
        fs::create_dir_all(&dir).context(on("make", &dir))?;
        let result = self.import_through(source, &dir);
        let _ = fs::remove_dir_all(&dir);
        result
    }

    fn import_through(&self, source: impl Read, dir: &Path) -> Result<Vec<ImageRecord>> {
        let parts = Parts::read(source, dir)?;
        if let Some(index) = parts.document::<Manifest>("index.json")? {
            for (name, _) in parts.files.iter().filter(|(name, _)| name.starts_with("blobs/sha256")) {
                let digest = Digest::parse(&format!("sha256:{}", file_name(name)))?;
                self.put_blob(parts.open(name)?, Some(&digest))?;
            }
            return self.import_layout(&index);
        }
        if let Some(images) = parts.document::<Vec<SavedImage>>("manifest.json")? {
            return images.iter().map(|image| self.import_saved(&parts, image)).collect();
        }
        Err(format_error(
            "it has neither index.json nor manifest.json; write it with `docker save` or as an OCI archive",
        ))
    }

    fn import_layout(&self, index: &Manifest) -> Result<Vec<ImageRecord>> {
        let mut images: Vec<ImageRecord> = Vec::new();
        for entry in &index.manifests {
            let digest = Digest::parse(&entry.digest)?;
            if !self.has_blob(&digest) {
                continue;
            }
            let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
                .iter()
                .filter_map(|key| entry.annotations.get(*key))
                .find_map(|name| ImageName::parse(name).ok().filter(|_| name.contains(['/', ':'])));
            let image = self.add(&digest, name.as_slice())?;
            images.retain(|have| have.id != image.id);
            images.push(image);
        }
        if images.is_empty() {
            return Err(format_error("its index names no image that is in it"));
        }
        Ok(images)
    }

    fn import_saved(&self, parts: &Parts, image: &SavedImage) -> Result<ImageRecord> {
        let (config, config_bytes) = self.put_blob(parts.open(&image.config)?, None)?;
        let blob: ConfigBlob = self.document(&config)?;
        let mut layers = Vec::new();
        for (index, name) in image.layers.iter().enumerate() {
            let (digest, size) = self.put_blob(parts.open(name)?, None)?;
            let plain = blob.rootfs.diff_ids.get(index).is_some_and(|diff_id| diff_id == digest.as_str());
            let media_type = if plain { LAYER_TYPE.to_owned() } else { format!("{LAYER_TYPE}+gzip") };
            layers.push(Descriptor { media_type, digest: digest.to_string(), size, ..Descriptor::default() });
        }
        let config = Descriptor {
            media_type: CONFIG_TYPE.into(),
            digest: config.to_string(),
            size: config_bytes,
            ..Descriptor::default()
        };
        let names = image.repo_tags.iter().flatten().map(|name| ImageName::parse(name)).collect::<Result<Vec<_>>>()?;
        self.add_parts(config, layers, &names)
    }

    /// Writes a manifest for stored blobs and takes the image in.
    pub(super) fn add_parts(
        &self,
        config: Descriptor,
        layers: Vec<Descriptor>,
        names: &[ImageName],
    ) -> Result<ImageRecord> {
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE.into(),
            config: Some(config),
            layers,
            manifests: Vec::new(),
        };
        let text = serde_json::to_vec(&manifest).map_err(|error| format_error(&error.to_string()))?;
        let (digest, _) = self.put_blob(&text[..], None)?;
        self.add(&digest, names)
    }

    /// Writes an image (by name or id) as an OCI archive, which [`ImageStore::import`] of another node takes.
    pub fn export(&self, image: &str, target: impl Write) -> Result<()> {
        let pin = self.pin(image)?;
        let record = self.resolve(image).ok_or_else(|| Error::NotFound { kind: "image", name: image.into() })?;
        let manifest_bytes = fs::metadata(self.blob_path(&record.manifest)).map(|file| file.len()).unwrap_or(0);
        let mut entry = Descriptor {
            media_type: MANIFEST_TYPE.into(),
            digest: record.manifest.to_string(),
            size: manifest_bytes,
            ..Descriptor::default()
        };
        let mut entries = Vec::new();
        for name in &record.names {
            entry.annotations = BTreeMap::from([("io.containerd.image.name".to_owned(), name.clone())]);
            entries.push(entry.clone());
        }
        if entries.is_empty() {
            entries.push(entry);
        }
        let index =
            Manifest { schema_version: 2, media_type: INDEX_TYPE.into(), manifests: entries, ..Manifest::default() };
        let index = serde_json::to_vec(&index).map_err(|error| format_error(&error.to_string()))?;
        let what = || format!("write the archive of {image}");
        let mut tar = tar::Builder::new(target);
        let mut put = |name: &str, size: u64, content: &mut dyn Read| {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            header.set_mtime(0);
            tar.append_data(&mut header, name, content).context(what)
        };
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        put("oci-layout", layout.len() as u64, &mut &layout[..])?;
        put("index.json", index.len() as u64, &mut &index[..])?;
        let mut blobs = vec![&record.manifest, &record.id];
        blobs.extend(record.layers.iter().map(|layer| &layer.blob));
        blobs.dedup();
        for digest in blobs {
            let path = self.blob_path(digest);
            let file = fs::File::open(&path).context(on("read", &path))?;
            let size = file.metadata().context(on("read", &path))?.len();
            put(&format!("blobs/sha256/{}", digest.hex()), size, &mut io::BufReader::new(file))?;
        }
        tar.into_inner().and_then(|mut target| target.flush()).context(what)?;
        drop(pin);
        Ok(())
    }

    /// Takes in a blob that a registry or another node sent into a file, checking it once more.
    pub(super) fn keep_file(&self, file: &Path, expected: &Digest) -> Result<()> {
        let mut hashing = Hashing::new(fs::File::open(file).context(on("read", file))?);
        io::copy(&mut hashing, &mut io::sink()).context(on("read", file))?;
        let (_, actual, _) = hashing.finish();
        if actual != *expected {
            let _ = fs::remove_file(file);
            return Err(Error::Digest {
                what: "a blob".into(),
                expected: expected.to_string(),
                actual: actual.to_string(),
            });
        }
        let path = self.blob_path(expected);
        fs::rename(file, &path).context(on("store", &path))
    }
}

fn format_error(why: &str) -> Error {
    Error::Format { what: "the image archive".into(), why: why.into() }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn no_archive() -> Error {
    Error::Format {
        what: "the file".into(),
        why: "it is no image archive: neither what `docker save` writes nor an OCI layout in a tar".into(),
    }
}

/// An archive's regular files, under numbers; links in it are names for the same file.
struct Parts {
    files: BTreeMap<PathBuf, PathBuf>,
}

impl Parts {
    fn read(source: impl Read, dir: &Path) -> Result<Parts> {
        let what = || "read the image archive".to_owned();
        let mut files = BTreeMap::new();
        let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
        let mut room_bytes = CONTENT_BYTES_MAX;
        let mut archive = tar::Archive::new(Guard::new(decompress(source).context(what)?));
        for (number, entry) in archive.entries().context(what)?.enumerate() {
            if number >= PARTS_MAX {
                return Err(format_error(&format!("it has more than {PARTS_MAX} entries")));
            }
            let mut entry = match entry {
                // The library's words quote what it found; the bytes of some other file help nobody.
                Err(_) if number == 0 => return Err(no_archive()),
                entry => entry.context(what)?,
            };
            let name = sys::clean(&entry.path().context(what)?);
            let link = entry.link_name().context(what)?.map(|link| link.into_owned());
            match (entry.header().entry_type(), link) {
                (tar::EntryType::Regular, _) => {
                    let place = dir.join(number.to_string());
                    let mut file = fs::File::create(&place).context(on("write", &place))?;
                    let most = room_bytes.saturating_add(1);
                    let written = io::copy(&mut (&mut entry).take(most), &mut file).context(on("write", &place))?;
                    room_bytes = room_bytes
                        .checked_sub(written)
                        .ok_or_else(|| format_error(&format!("it has more than {CONTENT_BYTES_MAX} bytes")))?;
                    files.insert(name, place);
                }
                (tar::EntryType::Symlink, Some(link)) => {
                    let target = sys::clean(&name.parent().unwrap_or(Path::new("")).join(link));
                    links.push((name, target));
                }
                (tar::EntryType::Link, Some(link)) => links.push((name, sys::clean(&link))),
                _ => {}
            }
        }
        for (name, target) in links {
            if let Some(place) = files.get(&target).cloned() {
                files.insert(name, place);
            }
        }
        Ok(Parts { files })
    }

    fn open(&self, name: impl AsRef<Path>) -> Result<fs::File> {
        let name = name.as_ref();
        let place = self.files.get(&sys::clean(name));
        let place = place.ok_or_else(|| format_error(&format!("{} is named but not in it", name.display())))?;
        fs::File::open(place).context(on("read", place))
    }

    fn document<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        if !self.files.contains_key(Path::new(name)) {
            return Ok(None);
        }
        let document = serde_json::from_reader(io::BufReader::new(self.open(name)?.take(8 << 20)));
        document.map(Some).map_err(|error| format_error(&format!("{name}: {error}")))
    }
}
