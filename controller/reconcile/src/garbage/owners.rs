//! What an owner reference leads to. A reference names a place (kind, namespace, name) and a uid: only the object in that place, with that
//! uid, is the owner.

use super::waits_for_dependents;
use skiff_api::kinds::{self, split_api_version};
use skiff_api::view::{Identity, Key, Owner, Resource, View};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There, and staying.
    Solid,
    /// There, being deleted, and waiting for its dependents to go first.
    Waiting,
    /// Not there: no such object, or another one by that name.
    Absent,
    /// Absent where a dependent's owner may be: the object with that uid is in another namespace.
    Elsewhere,
    /// Nobody can say: the kind is not served, or a namespaced owner is named by an object that has no namespace.
    Unknown,
}

/// How the owner that `reference` in `dependent` names stands.
pub fn standing(view: &View, dependent: &Identity, reference: &Owner) -> Standing {
    let (group, version) = split_api_version(&reference.api_version);
    let Some(kind) = kinds::by_kind(group, version, &reference.kind).filter(|k| k.is_stored()) else {
        return Standing::Unknown;
    };
    if kind.namespaced && dependent.key.namespace.is_empty() {
        return Standing::Unknown;
    }
    let namespace = if kind.namespaced { dependent.key.namespace.as_str() } else { "" };
    let (group, plural) = kind.store_resource();
    let Some(stored) = kinds::stored(group, plural) else { return Standing::Unknown };
    let place = Resource::new(group, &stored.version, plural);
    match view.identity_at(&place, &Key::new(namespace, &reference.name)) {
        Some(owner) if owner.uid == reference.uid && waits_for_dependents(owner) => Standing::Waiting,
        Some(owner) if owner.uid == reference.uid => Standing::Solid,
        _ => match view.identity(&reference.uid) {
            Some(other) if other.resource == place && other.key.namespace != namespace => Standing::Elsewhere,
            _ => Standing::Absent,
        },
    }
}

/// The kind of the objects of a resource, for events about them.
pub fn kind_name(resource: &Resource) -> String {
    kinds::stored(&resource.group, &resource.plural).map(|k| k.kind.clone()).unwrap_or_default()
}
