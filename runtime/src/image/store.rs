//! The content store: blobs by digest, unpacked layers by the digest of their tar, and an index of images.
//!
//! References are counted from what refers: an image counts for its blobs and layers while it has a name or a container
//! pins it. [`ImageStore::collect`] removes what counts zero; nothing else ever removes content. An image enters the
//! index only after its layers reached the disk, so a power cut leaves a whole image or none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::digest::{Digest, Hashing};
use super::name::ImageName;
use super::registry::Credentials;
use super::unpack::{decompress, unpack};
use super::{ConfigBlob, ImageConfig, Manifest, architecture, choose};
use crate::error::{Context, Error, Result, on};
use crate::private;

/// Digits of a layer's directory name: few, because all lower directories of an overlay must fit into one page, and
/// enough that no two layers meet.
const LAYER_NAME_LEN: usize = 26;
/// Manifests and configurations are read into memory; a larger one is not a document.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// An image in the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of its configuration: the image's identity.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Full names (`docker.io/library/nginx:1.27`), sorted.
    pub names: Vec<String>,
    /// `docker.io/library/nginx@sha256:...` for every repository that it came from.
    pub repo_digests: Vec<String>,
    /// Lowest first.
    pub layers: Vec<LayerRecord>,
    /// All blobs together.
    pub size_bytes: u64,
    /// As the builder wrote it.
    pub created: String,
    /// How to run it.
    pub config: ImageConfig,
    /// Who may use it, by the repository (`docker.io/library/nginx`) that it was pulled from. A repository that is not
    /// here is open to everybody: the image was imported, or an older version pulled it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pulled: BTreeMap<String, Access>,
}

/// With what an image was pulled from a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Without credentials, at least once: it is public.
    pub public: bool,
    /// Digests of the credentials with which the registry gave it.
    pub credentials: BTreeSet<String>,
}

impl ImageRecord {
    /// Whether somebody with these credentials may use what is here under a name without asking the registry again. What
    /// was not pulled (imported, or here before) is everybody's, as Kubernetes' `NeverVerifyPreloadedImages` has it.
    pub fn open_to(&self, name: &ImageName, credentials: &[Credentials]) -> bool {
        self.pulled.get(&name.family()).is_none_or(|access| {
            access.public || credentials.iter().any(|own| access.credentials.contains(&own.digest()))
        })
    }
}

/// A layer as it came, and as it is unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Digest of the blob, perhaps compressed.
    pub blob: Digest,
}

impl LayerRecord {
    fn dir_name(&self) -> String {
        self.diff_id.hex()[..LAYER_NAME_LEN].to_owned()
    }
}

/// What a collection freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that had neither name nor container.
    pub images: usize,
    /// Layers and blobs that no image refers to any more.
    pub objects: usize,
    /// Bytes of the removed blobs.
    pub bytes: u64,
    /// Nothing was done, because an import or pull was going on.
    pub busy: bool,
}

#[derive(Default, Serialize, Deserialize)]
struct Index {
    images: Vec<ImageRecord>,
}

/// Images on this host. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    insecure: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    index: Index,
    /// Containers by image id.
    pins: BTreeMap<Digest, usize>,
    /// Imports and pulls that have put content there which no image refers to yet.
    writers: usize,
    temporary: u64,
    registries_dir: Option<PathBuf>,
}

/// Keeps an image while a container uses it.
pub struct Pin {
    store: ImageStore,
    record: ImageRecord,
}

impl Pin {
    /// Layer directories below [`ImageStore::layers_dir`], the top one first, as overlayfs wants them.
    pub fn layers(&self) -> Vec<String> {
        self.record.layers.iter().rev().map(LayerRecord::dir_name).collect()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.store.state();
        if let Some(count) = state.pins.get_mut(&self.record.id) {
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&self.record.id);
            }
        }
    }
}

/// Holds off collection while content is being added.
pub struct Writing {
    store: ImageStore,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.store.state().writers -= 1;
    }
}

impl ImageStore {
    /// Opens a store, making its directories when absent. One process a directory. `insecure`: registries (`host:port`) without TLS.
    pub fn open(dir: &Path, insecure: &[String]) -> Result<ImageStore> {
        private::dir(dir).context(on("make", dir))?;
        let temporary = dir.join("tmp");
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(on("clean", &temporary));
            }
            _ => {}
        }
        for name in ["blobs/sha256", "layers", "tmp"] {
            let dir = dir.join(name);
            fs::create_dir_all(&dir).context(on("make", &dir))?;
        }
        let file = dir.join("images.json");
        let index = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| Error::Format { what: file.display().to_string(), why: error.to_string() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(error) => return Err(error).context(on("read", &file)),
        };
        let state = Mutex::new(State { index, ..State::default() });
        Ok(ImageStore { inner: Arc::new(Inner { dir: dir.to_owned(), insecure: insecure.to_vec(), state }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insecure(&self) -> &[String] {
        &self.inner.insecure
    }

    /// Where unpacked layers are.
    pub fn layers_dir(&self) -> PathBuf {
        self.inner.dir.join("layers")
    }

    /// Every image, by name.
    pub fn list(&self) -> Vec<ImageRecord> {
        let mut images = self.state().index.images.clone();
        images.sort_by(|a, b| a.names.cmp(&b.names).then_with(|| a.id.cmp(&b.id)));
        images
    }

    /// An image by id, by name in any form, or by `repository@digest`.
    pub fn resolve(&self, text: &str) -> Option<ImageRecord> {
        let state = self.state();
        let images = &state.index.images;
        if let Some(image) = images.iter().find(|image| image.id.as_str() == text) {
            return Some(image.clone());
        }
        let name = ImageName::parse(text).ok()?;
        let found = match &name.digest {
            Some(digest) => {
                let full = format!("{}@{digest}", name.family());
                images.iter().find(|image| image.repo_digests.contains(&full))
            }
            None => {
                let full = name.to_string();
                images.iter().find(|image| image.names.contains(&full))
            }
        };
        found.cloned()
    }

    /// Keeps an image (by id or name) for a container.
    pub fn pin(&self, image: &str) -> Result<Pin> {
        let record = self.resolve(image).ok_or_else(|| Error::NotFound { kind: "image", name: image.into() })?;
        *self.state().pins.entry(record.id.clone()).or_default() += 1;
        Ok(Pin { store: self.clone(), record })
    }

    /// Call before adding content, and keep it until the image is in the index.
    pub fn writing(&self) -> Writing {
        self.state().writers += 1;
        Writing { store: self.clone() }
    }

    pub(super) fn temporary(&self) -> PathBuf {
        let mut state = self.state();
        state.temporary += 1;
        self.inner.dir.join("tmp").join(state.temporary.to_string())
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Stores bytes under their digest, which must be `expected` if that is given.
    pub fn put_blob(&self, source: impl Read, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let temporary = self.temporary();
        let stored = self.write_blob(source, &temporary, expected);
        if stored.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        stored
    }

    fn write_blob(&self, mut source: impl Read, temporary: &Path, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let file = fs::File::create(temporary).context(on("write", temporary))?;
        let mut hashing = Hashing::new(file);
        io::copy(&mut source, &mut hashing).context(on("write", temporary))?;
        let (_, digest, bytes) = hashing.finish();
        self.keep_blob(temporary, digest, expected).map(|digest| (digest, bytes))
    }

    fn keep_blob(&self, temporary: &Path, digest: Digest, expected: Option<&Digest>) -> Result<Digest> {
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(Error::Digest {
                what: "a blob".into(),
                expected: expected.to_string(),
                actual: digest.to_string(),
            });
        }
        let path = self.blob_path(&digest);
        fs::rename(temporary, &path).context(on("store", &path))?;
        Ok(digest)
    }

    /// Reads a manifest or configuration, checking it against its name.
    pub(super) fn document<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<T> {
        let path = self.blob_path(digest);
        let size = fs::metadata(&path).context(on("read", &path))?.len();
        let format = |why: String| Error::Format { what: format!("the document {digest}"), why };
        if size > DOCUMENT_BYTES_MAX {
            return Err(format(format!("it has {size} bytes, more than {DOCUMENT_BYTES_MAX}")));
        }
        let bytes = fs::read(&path).context(on("read", &path))?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(Error::Digest {
                what: path.display().to_string(),
                expected: digest.to_string(),
                actual: actual.to_string(),
            });
        }
        serde_json::from_slice(&bytes).map_err(|error| format(error.to_string()))
    }

    /// Puts an image whose blobs are all stored into the index: layers are unpacked and checked. An index manifest
    /// stands for the image in it that this machine can run.
    pub fn add(&self, manifest: &Digest, names: &[ImageName]) -> Result<ImageRecord> {
        self.add_pulled(manifest, names, BTreeMap::new())
    }

    /// The same for an image that was pulled: with what, by repository.
    pub(super) fn add_pulled(
        &self,
        manifest: &Digest,
        names: &[ImageName],
        pulled: BTreeMap<String, Access>,
    ) -> Result<ImageRecord> {
        let (manifest_digest, manifest) = self.image_manifest(manifest, 0)?;
        let format = |why: &str| Error::Format { what: format!("the manifest {manifest_digest}"), why: why.into() };
        let config = manifest.config.as_ref().ok_or_else(|| format("it names no configuration"))?;
        let id = Digest::parse(&config.digest)?;
        let blob: ConfigBlob = self.document(&id)?;
        if !blob.architecture.is_empty() && (blob.architecture != architecture() || blob.os != "linux") {
            return Err(format(&format!(
                "it is for {}/{}, and this machine is linux/{}",
                blob.os,
                blob.architecture,
                architecture()
            )));
        }
        if blob.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(format("its configuration lists another number of layers"));
        }
        let layers: Vec<LayerRecord> = blob
            .rootfs
            .diff_ids
            .iter()
            .zip(&manifest.layers)
            .map(|(diff_id, layer)| {
                Ok(LayerRecord { diff_id: Digest::parse(diff_id)?, blob: Digest::parse(&layer.digest)? })
            })
            .collect::<Result<_>>()?;
        if layers.is_empty() || layers.len() > 127 {
            return Err(format("an image has 1 to 127 layers"));
        }
        self.unpack_layers(&layers)?;
        let size_bytes = manifest.layers.iter().fold(config.size, |sum, layer| sum.saturating_add(layer.size));
        let record = ImageRecord {
            id,
            manifest: manifest_digest,
            names: Vec::new(),
            repo_digests: Vec::new(),
            layers,
            size_bytes,
            created: blob.created,
            config: blob.config,
            pulled,
        };
        self.enter(record, names)
    }

    /// Where certificates of registries' authorities are: `DIR/HOST/ca.crt`, `DIR/HOST:PORT/ca.crt` (PEM).
    pub fn trust(&self, dir: PathBuf) {
        self.state().registries_dir = Some(dir);
    }

    pub(super) fn registries_dir(&self) -> Option<PathBuf> {
        self.state().registries_dir.clone()
    }

    fn image_manifest(&self, digest: &Digest, depth: usize) -> Result<(Digest, Manifest)> {
        let manifest: Manifest = self.document(digest)?;
        if manifest.manifests.is_empty() || depth > 3 {
            return Ok((digest.clone(), manifest));
        }
        let chosen = choose(&manifest.manifests).ok_or_else(|| Error::Format {
            what: format!("the index {digest}"),
            why: format!("it has no image for linux/{}", architecture()),
        })?;
        self.image_manifest(&Digest::parse(&chosen.digest)?, depth + 1)
    }

    /// Everything that is missing, first beside its place, then (once on the disk) into it.
    fn unpack_layers(&self, layers: &[LayerRecord]) -> Result<()> {
        let mut ready: Vec<(PathBuf, PathBuf)> = Vec::new();
        let mut work = || -> Result<()> {
            for layer in layers {
                let place = self.layers_dir().join(layer.dir_name());
                if place.exists() || ready.iter().any(|(_, have)| *have == place) {
                    continue;
                }
                let temporary = self.temporary();
                fs::create_dir_all(&temporary).context(on("make", &temporary))?;
                ready.push((temporary.clone(), place));
                // A layer without an entry for its root still has an ordinary one.
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                fs::set_permissions(&temporary, mode).context(on("make", &temporary))?;
                self.unpack_layer(layer, &temporary)?;
            }
            if ready.is_empty() {
                return Ok(());
            }
            let dir = self.layers_dir();
            let handle = fs::File::open(&dir).context(on("open", &dir))?;
            // SAFETY: plain syncfs on an open descriptor.
            crate::sys::check(unsafe { libc::syncfs(handle.as_raw_fd()) } as libc::c_long)
                .map(drop)
                .context(on("sync", &dir))?;
            for (temporary, place) in &ready {
                // Another import may have been faster; its layer is the same.
                if fs::rename(temporary, place).is_err() && !place.exists() {
                    fs::rename(temporary, place).context(on("store", place))?;
                }
            }
            Ok(())
        };
        let result = work();
        for (temporary, _) in &ready {
            let _ = fs::remove_dir_all(temporary);
        }
        result
    }

    fn unpack_layer(&self, layer: &LayerRecord, target: &Path) -> Result<()> {
        let path = self.blob_path(&layer.blob);
        let what = || format!("unpack the layer {}", layer.blob);
        let file = fs::File::open(&path).context(on("read", &path))?;
        let mut raw = Hashing::new(io::BufReader::with_capacity(1 << 16, file));
        let mut hashing = Hashing::new(decompress(&mut raw).context(what)?);
        unpack(&mut hashing, target).context(what)?;
        io::copy(&mut hashing, &mut io::sink()).context(what)?;
        let (rest, diff_id, _) = hashing.finish();
        drop(rest);
        io::copy(&mut raw, &mut io::sink()).context(what)?;
        let (_, blob, _) = raw.finish();
        for (what, expected, actual) in
            [("a layer's blob", &layer.blob, blob), ("a layer's content", &layer.diff_id, diff_id)]
        {
            if *expected != actual {
                return Err(Error::Digest {
                    what: what.into(),
                    expected: expected.to_string(),
                    actual: actual.to_string(),
                });
            }
        }
        Ok(())
    }

    fn enter(&self, record: ImageRecord, names: &[ImageName]) -> Result<ImageRecord> {
        let mut state = self.state();
        let images = &mut state.index.images;
        let full: BTreeSet<String> = names
            .iter()
            .filter(|name| name.tag.is_some())
            .map(|name| ImageName { digest: None, ..(*name).clone() }.to_string())
            .collect();
        for image in images.iter_mut().filter(|image| image.id != record.id) {
            // A name points to one image: the newest.
            image.names.retain(|name| !full.contains(name));
        }
        let index = match images.iter().position(|image| image.id == record.id) {
            Some(index) => index,
            None => {
                images.push(record.clone());
                images.len() - 1
            }
        };
        let image = &mut images[index];
        for (family, access) in record.pulled {
            // What was everybody's before stays so.
            let prefix = format!("{family}@");
            let had = image.repo_digests.iter().any(|digest| digest.starts_with(&prefix));
            if !had || image.pulled.contains_key(&family) {
                let own = image.pulled.entry(family).or_default();
                own.public |= access.public;
                own.credentials.extend(access.credentials);
            }
        }
        let mut all: BTreeSet<String> = image.names.iter().cloned().collect();
        all.extend(full);
        image.names = all.into_iter().collect();
        let mut digests: BTreeSet<String> = image.repo_digests.iter().cloned().collect();
        digests.extend(names.iter().map(|name| format!("{}@{}", name.family(), record.manifest)));
        digests.extend(
            names.iter().filter_map(|name| name.digest.as_ref().map(|digest| format!("{}@{digest}", name.family()))),
        );
        image.repo_digests = digests.into_iter().collect();
        let image = image.clone();
        self.save(&state.index)?;
        Ok(image)
    }

    fn save(&self, index: &Index) -> Result<()> {
        let (file, temporary) = (self.inner.dir.join("images.json"), self.inner.dir.join("images.json.new"));
        let text = serde_json::to_vec_pretty(index).map_err(io::Error::from).context(on("write", &file))?;
        let write = || {
            let mut handle = fs::File::create(&temporary)?;
            handle.write_all(&text)?;
            handle.sync_all()?;
            fs::rename(&temporary, &file)
        };
        write().context(on("write", &file))
    }

    /// Gives an image one more name.
    pub fn tag(&self, image: &str, name: &str) -> Result<ImageRecord> {
        let record = self.resolve(image).ok_or_else(|| Error::NotFound { kind: "image", name: image.into() })?;
        self.enter(record, &[ImageName::parse(name)?])
    }

    /// Takes a name (or, by id, all names) away. Content goes with the next collection, when no container uses it.
    pub fn remove(&self, image: &str) -> Result<()> {
        let record = self.resolve(image).ok_or_else(|| Error::NotFound { kind: "image", name: image.into() })?;
        let name = ImageName::parse(image).map(|name| name.to_string()).unwrap_or_default();
        let mut state = self.state();
        for entry in state.index.images.iter_mut().filter(|entry| entry.id == record.id) {
            if entry.names.contains(&name) {
                entry.names.retain(|have| *have != name);
            } else {
                entry.names.clear();
            }
            if entry.names.is_empty() {
                entry.repo_digests.clear();
            }
        }
        self.save(&state.index)
    }

    /// Removes images that have no name, no repository and no container, and then the content that no image refers to.
    pub fn collect(&self) -> Result<Collected> {
        let mut state = self.state();
        let mut freed = Collected::default();
        if state.writers > 0 {
            freed.busy = true;
            return Ok(freed);
        }
        let before = state.index.images.len();
        let State { index, pins, .. } = &mut *state;
        index
            .images
            .retain(|image| !image.names.is_empty() || !image.repo_digests.is_empty() || pins.contains_key(&image.id));
        freed.images = before - index.images.len();
        if freed.images > 0 {
            self.save(index)?;
        }
        let mut blobs: BTreeSet<String> = BTreeSet::new();
        let mut layers: BTreeSet<String> = BTreeSet::new();
        for image in &index.images {
            blobs.extend([image.id.hex().to_owned(), image.manifest.hex().to_owned()]);
            blobs.extend(image.layers.iter().map(|layer| layer.blob.hex().to_owned()));
            layers.extend(image.layers.iter().map(LayerRecord::dir_name));
        }
        for (dir, keep) in [(self.inner.dir.join("blobs/sha256"), blobs), (self.layers_dir(), layers)] {
            for entry in fs::read_dir(&dir).context(on("list", &dir))?.flatten() {
                if keep.contains(&*entry.file_name().to_string_lossy()) {
                    continue;
                }
                let path = entry.path();
                let metadata = entry.metadata().context(on("read", &path))?;
                if metadata.is_dir() {
                    fs::remove_dir_all(&path).context(on("remove", &path))?;
                } else {
                    freed.bytes += metadata.len();
                    fs::remove_file(&path).context(on("remove", &path))?;
                }
                freed.objects += 1;
            }
        }
        Ok(freed)
    }
}
