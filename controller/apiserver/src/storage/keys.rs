//! Where objects live: `/registry/<group or core>/<resource>/<namespace>/<name>`, without the namespace for kinds of the
//! cluster's scope. Everything of a kind, or of a kind in a namespace, is one range.

use skiff_api::Kind;
use skiff_store::KeyRange;

/// The root of all objects.
pub const ROOT: &str = "/registry/";

/// The prefix of all objects of a kind.
pub fn prefix(kind: &Kind) -> String {
    let (group, resource) = kind.store_resource();
    prefix_of(group, resource)
}

/// The same by names.
pub fn prefix_of(group: &str, resource: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    format!("{ROOT}{group}/{resource}/")
}

/// The prefix of the objects of a kind in a namespace; in all namespaces when it is empty.
pub fn scope(kind: &Kind, namespace: &str) -> String {
    match namespace {
        "" => prefix(kind),
        ns => format!("{}{ns}/", prefix(kind)),
    }
}

/// The key of one object; `namespace` is ignored for kinds of the cluster's scope.
pub fn object(kind: &Kind, namespace: &str, name: &str) -> String {
    let (group, resource) = kind.store_resource();
    let namespace = if kind.namespaced { namespace } else { "" };
    object_of(group, resource, namespace, name)
}

/// The same by names; an empty namespace means the cluster's scope.
pub fn object_of(group: &str, resource: &str, namespace: &str, name: &str) -> String {
    let prefix = prefix_of(group, resource);
    match namespace {
        "" => format!("{prefix}{name}"),
        ns => format!("{prefix}{ns}/{name}"),
    }
}

/// Namespace and name from a key below `prefix`.
pub fn split<'k>(prefix: &str, key: &'k [u8]) -> Option<(&'k str, &'k str)> {
    let rest = std::str::from_utf8(key.strip_prefix(prefix.as_bytes())?).ok()?;
    Some(rest.split_once('/').unwrap_or(("", rest)))
}

pub fn range(prefix: &str) -> KeyRange {
    KeyRange::prefix(prefix.as_bytes().to_vec())
}
