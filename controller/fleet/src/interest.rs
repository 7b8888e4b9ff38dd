//! What concerns a node: its pods, what they read, and the Services, EndpointSlices and nodes that everybody needs to know.

use crate::drain::Drain;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use serde::Serialize;
use skiff_api::view::{Key, View};
use skiff_proto::fleet::Object;
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// What a session has told its agent: (resource, key) to (uid, resourceVersion).
pub type Told = HashMap<(&'static str, Key), (String, String)>;

/// The ConfigMaps and Secrets that a pod names.
fn reads(spec: &PodSpec, maps: &mut BTreeSet<String>, secrets: &mut BTreeSet<String>) {
    let mut map = |name: &str| {
        maps.insert(name.to_owned());
    };
    let mut secret = |name: &str| {
        secrets.insert(name.to_owned());
    };
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for from in container.env_from.iter().flatten() {
            from.config_map_ref.iter().for_each(|r| map(&r.name));
            from.secret_ref.iter().for_each(|r| secret(&r.name));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            source.config_map_key_ref.iter().for_each(|r| map(&r.name));
            source.secret_key_ref.iter().for_each(|r| secret(&r.name));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        volume.config_map.iter().for_each(|v| map(&v.name));
        volume.secret.iter().filter_map(|v| v.secret_name.as_ref()).for_each(|n| secret(n));
        for source in volume.projected.iter().filter_map(|p| p.sources.as_ref()).flatten() {
            source.config_map.iter().for_each(|s| map(&s.name));
            source.secret.iter().for_each(|s| secret(&s.name));
        }
    }
    spec.image_pull_secrets.iter().flatten().for_each(|s| secret(&s.name));
}

/// Whether a pod has ended for good and its node has nothing to do for it.
fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Compares what concerns `node` now with what it was told, and gives the difference; `told` is brought up to date. Deletions of pods wait for
/// `acknowledged` (see [`Drain`]).
pub fn difference(
    view: &View,
    node: &str,
    told: &mut Told,
    drain: &mut Drain,
    now: Instant,
    acknowledged: impl Fn(u64) -> bool,
) -> Vec<Object> {
    let mut new = Difference { told, seen: BTreeSet::new(), objects: Vec::new() };
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for (key, pod) in view.pods_on(node) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let place = ("pods", key.clone());
        let is_told = new.told.get(&place).is_some_and(|(u, _)| *u == uid);
        if pod.metadata.deletion_timestamp.is_some() && !is_finished(pod) && is_told {
            if !drain.may_stop(view, key, pod, now, &acknowledged) {
                // As it was told: not yet deleted.
                new.seen.insert(place);
                collect(pod, key, &mut maps, &mut secrets);
                continue;
            }
            drain.done(&uid);
        }
        collect(pod, key, &mut maps, &mut secrets);
        new.look("pods", key, &pod.metadata.uid, &pod.metadata.resource_version, &**pod);
    }
    for (key, object) in view.services.iter() {
        new.look("services", key, &object.metadata.uid, &object.metadata.resource_version, &**object);
    }
    for (key, object) in view.endpoint_slices.iter() {
        new.look("endpointslices", key, &object.metadata.uid, &object.metadata.resource_version, &**object);
    }
    for (key, object) in view.nodes.iter() {
        new.look("nodes", key, &object.metadata.uid, &object.metadata.resource_version, &**object);
    }
    for key in maps {
        if let Some(object) = view.config_maps.get(&key) {
            new.look("configmaps", &key, &object.metadata.uid, &object.metadata.resource_version, &**object);
        }
    }
    for key in secrets {
        if let Some(object) = view.secrets.get(&key) {
            new.look("secrets", &key, &object.metadata.uid, &object.metadata.resource_version, &**object);
        }
    }
    new.finish(drain)
}

fn collect(pod: &Pod, key: &Key, maps: &mut BTreeSet<Key>, secrets: &mut BTreeSet<Key>) {
    let (mut map_names, mut secret_names) = (BTreeSet::new(), BTreeSet::new());
    if let Some(spec) = &pod.spec {
        reads(spec, &mut map_names, &mut secret_names);
    }
    maps.extend(map_names.into_iter().map(|n| Key::new(&key.namespace, n)));
    secrets.extend(secret_names.into_iter().map(|n| Key::new(&key.namespace, n)));
}

struct Difference<'a> {
    told: &'a mut Told,
    seen: BTreeSet<(&'static str, Key)>,
    objects: Vec<Object>,
}

impl Difference<'_> {
    fn look(
        &mut self,
        resource: &'static str,
        key: &Key,
        uid: &Option<String>,
        version: &Option<String>,
        object: &impl Serialize,
    ) {
        let place = (resource, key.clone());
        let state = (uid.clone().unwrap_or_default(), version.clone().unwrap_or_default());
        self.seen.insert(place.clone());
        if self.told.get(&place) == Some(&state) {
            return;
        }
        self.objects.push(Object {
            resource: resource.into(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: state.0.clone(),
            revision: state.1.parse().unwrap_or(0),
            json: serde_json::to_vec(object).unwrap_or_default().into(),
        });
        self.told.insert(place, state);
    }

    /// What was told and is no longer there.
    fn finish(self, drain: &mut Drain) -> Vec<Object> {
        let mut objects = self.objects;
        self.told.retain(|place, (uid, _)| {
            if self.seen.contains(place) {
                return true;
            }
            drain.done(uid);
            objects.push(Object {
                resource: place.0.into(),
                namespace: place.1.namespace.clone(),
                name: place.1.name.clone(),
                uid: uid.clone(),
                revision: 0,
                json: Default::default(),
            });
            false
        });
        objects
    }
}
