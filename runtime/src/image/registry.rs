//! Pulling from a registry (OCI distribution specification), with what a Docker configuration says about passwords.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::digest::Digest;
use super::distribution::{Fault, Repository};
use super::name::ImageName;
use super::store::{Access, DOCUMENT_BYTES_MAX, ImageRecord, ImageStore};
use super::{Manifest, architecture, choose};
use crate::error::{Context, Error, Result, on};

/// Blobs that are fetched at the same time.
const FETCHES_MAX: usize = 3;
/// Bytes of a packed layer.
const BLOB_BYTES_MAX: u64 = 64 << 30;
/// Bytes of a file with authorities' certificates.
const AUTHORITIES_BYTES_MAX: u64 = 1 << 20;
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// How to sign in to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, ...)", self.username)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
}

impl Credentials {
    /// The best match for an image in a Docker configuration: the content of a `kubernetes.io/dockerconfigjson` secret
    /// (`{"auths": {...}}`) or of the older `dockercfg` form (the inner object alone).
    pub fn from_docker_config(text: &[u8], image: &ImageName) -> Option<Credentials> {
        let value: serde_json::Value = serde_json::from_slice(text).ok()?;
        let auths = value.get("auths").unwrap_or(&value).as_object()?;
        let full = image.family();
        let mut best: Option<(usize, Credentials)> = None;
        for (key, entry) in auths {
            let Some(length) = fits(key, &image.registry, &full) else { continue };
            let Some(credentials) = serde_json::from_value::<Entry>(entry.clone()).ok().and_then(Entry::credentials)
            else {
                continue;
            };
            if best.as_ref().is_none_or(|(have, _)| length > *have) {
                best = Some((length, credentials));
            }
        }
        best.map(|(_, credentials)| credentials)
    }
}

impl Credentials {
    /// Tells credentials apart without keeping them.
    pub(super) fn digest(&self) -> String {
        let parts = [self.username.as_bytes(), &[0], self.password.as_bytes()];
        Digest::of(&parts.concat()).to_string()
    }
}

impl Entry {
    fn credentials(self) -> Option<Credentials> {
        if !self.username.is_empty() {
            return Some(Credentials { username: self.username, password: self.password });
        }
        let text = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Credentials { username: username.into(), password: password.into() })
    }
}

/// How much of an image's name a key of a Docker configuration covers, if any.
fn fits(key: &str, registry: &str, full: &str) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.trim_end_matches("/v1").trim_end_matches("/v2");
    let key = match key.strip_prefix("index.docker.io") {
        Some(rest) => format!("docker.io{rest}"),
        None => key.to_owned(),
    };
    if let Some(domain) = key.strip_prefix("*.") {
        let (_, rest) = registry.split_once('.')?;
        return (rest == domain).then_some(domain.len());
    }
    let covers = full.strip_prefix(key.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    covers.then_some(key.len())
}

impl ImageStore {
    /// Fetches an image for this machine's architecture and takes it in. Blobs that are here are not fetched again.
    pub async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<ImageRecord> {
        let name = ImageName::parse(image)?;
        let _writing = self.writing();
        // Another provider may be installed already; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = self.plain(&name).contains(&name.registry);
        let authorities = self.authorities(&name)?;
        let repository = Repository::new(&name.registry, &name.repository, plain, &authorities, credentials.cloned())
            .map_err(|error| failed(&name, &error))?;
        repository.sign_in().await.map_err(|error| failed(&name, &error))?;
        let reference = match (&name.digest, &name.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".into()),
        };
        let (mut digest, mut manifest) =
            self.fetch_manifest(&repository, &reference, &name, name.digest.as_ref()).await?;
        if !manifest.manifests.is_empty() {
            let chosen = choose(&manifest.manifests).ok_or_else(|| Error::Pull {
                image: name.to_string(),
                why: format!("the registry has no variant for linux/{}", architecture()),
                not_found: true,
            })?;
            let expected = Digest::parse(&chosen.digest)?;
            let reference = expected.to_string();
            (digest, manifest) = self.fetch_manifest(&repository, &reference, &name, Some(&expected)).await?;
        }
        let repository = Arc::new(repository);
        let slots = Arc::new(tokio::sync::Semaphore::new(FETCHES_MAX));
        let mut tasks = tokio::task::JoinSet::new();
        for descriptor in manifest.config.iter().chain(&manifest.layers) {
            let blob = Digest::parse(&descriptor.digest)?;
            if self.has_blob(&blob) {
                continue;
            }
            let size = descriptor.size;
            let most = if Some(&descriptor.digest) == manifest.config.as_ref().map(|config| &config.digest) {
                DOCUMENT_BYTES_MAX
            } else {
                BLOB_BYTES_MAX
            };
            if size > most {
                let why = format!("its manifest names a blob of {size} bytes, more than the {most} that are taken");
                return Err(Error::Pull { image: name.to_string(), why, not_found: false });
            }
            let (store, repository, name, slots) = (self.clone(), repository.clone(), name.clone(), slots.clone());
            tasks.spawn(async move {
                let _slot = slots.acquire().await;
                store.fetch_blob(&repository, &name, &blob, size).await
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|error| Error::Helper(format!("a fetch ended: {error}")))??;
        }
        let store = self.clone();
        let access = Access {
            public: credentials.is_none(),
            credentials: credentials.iter().map(|credentials| credentials.digest()).collect(),
        };
        let added = tokio::task::spawn_blocking(move || {
            let pulled = [(name.family(), access)].into();
            store.add_pulled(&digest, &[name], pulled)
        })
        .await;
        added.map_err(|error| Error::Helper(format!("unpacking ended: {error}")))?
    }

    /// Authorities that sign for this registry, beside those that everybody trusts.
    fn authorities(&self, name: &ImageName) -> Result<Vec<String>> {
        const MARK: &str = "-----BEGIN CERTIFICATE-----";
        let Some(dir) = self.registries_dir().filter(|_| !name.registry.starts_with('.')) else {
            return Ok(Vec::new());
        };
        let path = dir.join(&name.registry).join("ca.crt");
        let mut text = String::new();
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(on("read", &path)),
        };
        file.take(AUTHORITIES_BYTES_MAX).read_to_string(&mut text).context(on("read", &path))?;
        let found: Vec<String> = text.split(MARK).skip(1).map(|rest| format!("{MARK}{rest}")).collect();
        if found.is_empty() {
            let why = "it has no certificate in PEM form".into();
            return Err(Error::Format { what: path.display().to_string(), why });
        }
        Ok(found)
    }

    /// Registries without TLS: those that were named, and this machine.
    fn plain(&self, name: &ImageName) -> Vec<String> {
        let mut plain = self.insecure().to_vec();
        let host = name.registry.split(':').next().unwrap_or_default();
        if host == "localhost" || host.starts_with("127.") {
            plain.push(name.registry.clone());
        }
        plain
    }

    async fn fetch_manifest(
        &self,
        repository: &Repository,
        reference: &str,
        name: &ImageName,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Manifest)> {
        let most = usize::try_from(DOCUMENT_BYTES_MAX).unwrap_or(usize::MAX);
        let bytes = repository.manifest(reference, &ACCEPTED, most).await.map_err(|error| failed(name, &error))?;
        let (digest, _) = self.put_blob(&bytes[..], expected)?;
        let manifest = self.document(&digest)?;
        Ok((digest, manifest))
    }

    async fn fetch_blob(&self, repository: &Repository, name: &ImageName, blob: &Digest, size: u64) -> Result<()> {
        let path = self.temporary();
        let file = tokio::fs::File::create(&path).await.context(on("write", &path))?;
        let mut file = AtMost { inner: file, left: size };
        let pulled = repository.blob(&blob.to_string(), &mut file).await;
        let flushed = file.flush().await;
        if let Err(error) = pulled {
            let _ = tokio::fs::remove_file(&path).await;
            return Err(failed(name, &error));
        }
        flushed.context(on("write", &path))?;
        let (store, blob) = (self.clone(), blob.clone());
        let kept = tokio::task::spawn_blocking(move || store.keep_file(&path, &blob)).await;
        kept.map_err(|error| Error::Helper(format!("checking a blob ended: {error}")))?
    }
}

/// A file that takes no more than was announced: a registry that goes on sending ends in an error, not in a full disk.
struct AtMost<W> {
    inner: W,
    left: u64,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for AtMost<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.len() as u64 > self.left {
            let text = "the registry sends more bytes of a blob than its manifest says";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        let written = std::task::ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.left -= written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A registry's answer in words, with whether it means "no such image".
fn failed(name: &ImageName, error: &Fault) -> Error {
    let not_found = error.is_not_found();
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        why = format!("{why}: {cause}");
        source = cause.source();
    }
    if let Some(advice) = advice(&why, &name.registry) {
        why = format!("{why}; {advice}");
    }
    Error::Pull { image: name.to_string(), why, not_found }
}

/// What to do about a connection that could not be made secure.
fn advice(why: &str, registry: &str) -> Option<String> {
    if why.contains("InvalidContentType") {
        let text = "it seems to speak plain HTTP: start servers and agents with --insecure-registry";
        return Some(format!("{text} {registry} if it shall be trusted without encryption"));
    }
    if why.contains("CaUsedAsEndEntity") {
        return Some(format!(
            "its certificate is that of an authority itself: give it a server's certificate that the authority signed, and put the authority's own (PEM) at registries/{registry}/ca.crt in the data directory"
        ));
    }
    let distrusted = ["UnknownIssuer", "invalid peer certificate"];
    distrusted.iter().any(|word| why.contains(word)).then(|| {
        format!(
            "its certificate is not signed by an authority that is trusted here: put the authority's certificate (PEM) at registries/{registry}/ca.crt in the data directory"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_is_taken_than_was_announced() {
        let mut file = AtMost { inner: Vec::new(), left: 5 };
        file.write_all(b"abc").await.unwrap();
        assert!(file.write_all(b"def").await.is_err());
        file.write_all(b"de").await.unwrap();
        assert!(file.write_all(b"f").await.is_err());
        assert_eq!(file.inner, b"abcde");
    }

    #[test]
    fn what_to_do_about_a_connection() {
        let check = |why: &str, part: &str| {
            let got = advice(why, "reg.example:5000").unwrap_or_default();
            assert!(if part.is_empty() { got.is_empty() } else { got.contains(part) }, "{why}: {got}");
        };
        check("received corrupt message of type InvalidContentType", "--insecure-registry reg.example:5000");
        check("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))", "registries/reg.example:5000/ca.crt");
        check("invalid peer certificate: UnknownIssuer", "registries/reg.example:5000/ca.crt");
        check("connection refused", "");
    }

    #[test]
    fn docker_configurations() {
        let config =
            br#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOnB3"},"quay.io":{"username":"q","password":"1"},
            "quay.io/team":{"username":"t","password":"2"},"*.example.com":{"username":"e","password":"3"}}}"#;
        let check = |image: &str, expect: Option<&str>| {
            let name = ImageName::parse(image).unwrap();
            let got = Credentials::from_docker_config(config, &name)
                .map(|found| format!("{}:{}", found.username, found.password));
            assert_eq!(got.as_deref(), expect, "{image}");
        };
        check("nginx", Some("hub:pw"));
        check("quay.io/a/b", Some("q:1"));
        check("quay.io/team/b", Some("t:2"));
        check("quay.io/teams/b", Some("q:1"));
        check("registry.example.com/x", Some("e:3"));
        check("ghcr.io/x/y", None);
    }
}
