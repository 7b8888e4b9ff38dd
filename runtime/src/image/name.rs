//! Image names and the short forms that people write: `nginx` is `docker.io/library/nginx:latest`.
//!
//! The first part is a registry when it has a dot, a colon, or is `localhost`; the grammar is the one of the OCI
//! distribution specification ("Pulling manifests").

use std::fmt;

use super::digest::Digest;
use crate::error::{Error, Result};

const DEFAULT_REGISTRY: &str = "docker.io";

/// A full image name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageName {
    /// `docker.io`, `localhost:5000`.
    pub registry: String,
    /// `library/nginx`.
    pub repository: String,
    /// `latest` when neither tag nor digest was given.
    pub tag: Option<String>,
    /// Counts before the tag.
    pub digest: Option<Digest>,
}

impl ImageName {
    /// Reads a name in long or short form.
    pub fn parse(text: &str) -> Result<ImageName> {
        let bad = |why: &str| Error::Invalid { what: "image name", value: text.into(), why: why.into() };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let last_slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match rest[last_slash..].find(':') {
            Some(at) => (&rest[..last_slash + at], Some(&rest[last_slash + at + 1..])),
            None => (rest, None),
        };
        let (registry, repository) = match path.split_once('/') {
            Some((first, repository)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, repository.to_owned())
            }
            Some(_) => (DEFAULT_REGISTRY, path.to_owned()),
            None => (DEFAULT_REGISTRY, format!("library/{path}")),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let part_ok = |part: &str| {
            let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            let inner =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
            edge(part.bytes().next()) && edge(part.bytes().last()) && part.bytes().all(inner)
        };
        if path.is_empty() || !repository.split('/').all(part_ok) || repository.len() > 255 {
            return Err(bad("a repository is made of lower-case letters, digits and . _ - in parts separated by /"));
        }
        if !registry
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']'))
        {
            return Err(bad("a registry is a host name, perhaps with a port"));
        }
        let tag_ok = |tag: &str| {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            (1..=128).contains(&tag.len())
                && tag.bytes().next().is_some_and(word)
                && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
        };
        if tag.is_some_and(|tag| !tag_ok(tag)) {
            return Err(bad("a tag is 1 to 128 letters, digits and _ . - and begins with a letter, a digit or _"));
        }
        let tag = tag.or(if digest.is_none() { Some("latest") } else { None }).map(str::to_owned);
        Ok(ImageName { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Registry and repository.
    pub fn family(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |text: &str, expect: &str| {
            let got = ImageName::parse(text).map(|name| name.to_string()).unwrap_or_default();
            assert_eq!(got, expect, "{text}");
        };
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27");
        check("a/b", "docker.io/a/b:latest");
        check("localhost/b", "localhost/b:latest");
        check("localhost:5000/a/b:v1", "localhost:5000/a/b:v1");
        check("quay.io/x/y", "quay.io/x/y:latest");
        check(&format!("nginx@{digest}"), &format!("docker.io/library/nginx@{digest}"));
        check(&format!("nginx:1@{digest}"), &format!("docker.io/library/nginx:1@{digest}"));
        check("index.docker.io/library/nginx", "docker.io/library/nginx:latest");
        check("Nginx", "");
        check("", "");
        check("a//b", "");
        check("nginx:", "");
        check("nginx:-x", "");
        check("nginx@sha256:12", "");
        check("a b", "");
    }
}
