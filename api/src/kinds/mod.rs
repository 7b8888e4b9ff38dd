//! The table of kinds: one row a kind drives everything generic in the API server.
//!
//! A kind is known by group, version and plural (paths) or by group, version and kind (bodies). Rows are shared as
//! `Arc<Kind>` with owned strings, so that a kind that a user defines at run time is the same type as a built-in one.

mod rows;

use base64::Engine;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// One served kind of one version of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kind {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    /// The resource name in paths, for example `pods`.
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// In the order discovery shows them (sorted).
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// Empty for kinds that are not stored.
    pub storage_version_hash: String,
    /// Group and plural under which objects are stored, where they differ from this row's own: `events.k8s.io`
    /// events live with the core ones.
    pub stored_as: Option<(String, String)>,
}

/// A path below an object, for example `status` or `scale`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subresource {
    pub name: String,
    /// Group of the kind that this path speaks; empty when it is the parent's.
    pub group: String,
    /// Version of the kind that this path speaks; empty when it is the parent's.
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

impl Kind {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// The name of the resource in error messages: `pods`, `deployments.apps`.
    pub fn qualified_resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Group and plural under which objects of this kind are stored.
    pub fn store_resource(&self) -> (&str, &str) {
        match &self.stored_as {
            Some((group, plural)) => (group, plural),
            None => (&self.group, &self.plural),
        }
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Whether `status` is a path of its own, so that ordinary writes leave the status alone.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether this is the built-in kind `group`/`kind`.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.group == group && self.kind == kind
    }

    /// Whether objects are kept (reviews, bindings and the like are answered and forgotten).
    pub fn is_stored(&self) -> bool {
        !self.storage_version_hash.is_empty()
    }
}

/// `v1` for the core group, `group/version` otherwise.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

/// Splits `apps/v1` or `v1` into group and version.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The hash that discovery shows for the version objects are stored in: stable for group, version and kind.
pub fn storage_version_hash(group: &str, version: &str, kind: &str) -> String {
    let digest = Sha256::digest(format!("{group}/{version}/{kind}"));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

struct Index {
    all: Vec<Arc<Kind>>,
    by_resource: HashMap<(String, String, String), Arc<Kind>>,
    by_kind: HashMap<(String, String, String), Arc<Kind>>,
    by_store: HashMap<(String, String), Arc<Kind>>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let all: Vec<Arc<Kind>> = rows::rows().into_iter().map(Arc::new).collect();
    let key = |k: &Kind, name: &str| (k.group.clone(), k.version.clone(), name.to_string());
    let by_resource = all.iter().map(|k| (key(k, &k.plural), k.clone())).collect();
    let by_kind = all.iter().map(|k| (key(k, &k.kind), k.clone())).collect();
    let own = all.iter().rev().filter(|k| k.is_stored() && k.stored_as.is_none());
    let by_store = own.map(|k| ((k.group.clone(), k.plural.clone()), k.clone())).collect();
    Index { all, by_resource, by_kind, by_store }
});

/// Every built-in kind, grouped by group and version, resources sorted by name.
pub fn builtin() -> &'static [Arc<Kind>] {
    &INDEX.all
}

pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
    INDEX.by_resource.get(&(group.into(), version.into(), plural.into())).cloned()
}

pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<Arc<Kind>> {
    INDEX.by_kind.get(&(group.into(), version.into(), kind.into())).cloned()
}

/// The kind whose objects are stored under a group and plural, in whichever version is served (the first, where there are several).
pub fn stored(group: &str, plural: &str) -> Option<Arc<Kind>> {
    INDEX.by_store.get(&(group.into(), plural.into())).cloned()
}

/// The kind of an object by its `apiVersion` and `kind`.
pub fn of_object(obj: &serde_json::Value) -> Option<Arc<Kind>> {
    let (group, version) = split_api_version(obj.get("apiVersion")?.as_str()?);
    by_kind(group, version, obj.get("kind")?.as_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_hashes_are_the_published_ones() {
        for (group, version, kind, hash) in [
            ("", "v1", "Pod", "xPOwRZ+Yhw8="),
            ("apps", "v1", "Deployment", "8aSe+NMegvE="),
            ("", "v1", "Event", "r2yiGXH7wu8="),
        ] {
            assert_eq!(storage_version_hash(group, version, kind), hash, "{kind}");
        }
    }

    #[test]
    fn every_row_is_found_both_ways() {
        for kind in builtin() {
            assert_eq!(by_resource(&kind.group, &kind.version, &kind.plural).as_ref(), Some(kind));
            assert!(by_kind(&kind.group, &kind.version, &kind.kind).is_some());
        }
    }
}
