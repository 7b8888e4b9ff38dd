//! The control plane's view: typed objects, an ordered prefix of what the store holds.
//!
//! One stream of changes feeds it; everything that decides (controllers, scheduler, what a node should know) reads it and nothing else. It
//! keeps the few indexes that those decisions walk: pods by node and by owner, and for every object who owns it.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Namespace (empty for what has none) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Which table of the API an object stands in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    pub group: String,
    pub version: String,
    /// Plural, lower case.
    pub plural: String,
}

impl Resource {
    pub fn new(group: &str, version: &str, plural: &str) -> Resource {
        Resource { group: group.into(), version: version.into(), plural: plural.into() }
    }
}

/// One kind's objects, in order of key.
#[derive(Clone, Debug)]
pub struct Table<T>(BTreeMap<Key, Arc<T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(BTreeMap::new())
    }
}

impl<T> Table<T> {
    pub fn get(&self, key: &Key) -> Option<&Arc<T>> {
        self.0.get(key)
    }
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<T>)> {
        self.0.iter()
    }
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.values()
    }
    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The objects of one namespace.
    pub fn namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a Key, &'a Arc<T>)> {
        self.0.range(Key::new(namespace, "")..).take_while(move |(k, _)| k.namespace == namespace)
    }
    fn set(&mut self, key: &Key, new: Option<T>) -> Option<Arc<T>> {
        match new {
            Some(new) => self.0.insert(key.clone(), Arc::new(new)),
            None => self.0.remove(key),
        }
    }
}

/// What garbage collection and namespace deletion need to know of any object, whatever its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    pub resource: Resource,
    pub key: Key,
    pub uid: String,
    /// As it was when this was read: a write that names it fails if somebody was faster.
    pub resource_version: String,
    /// The uids of its owners.
    pub owners: Vec<Owner>,
    pub finalizers: Vec<String>,
    pub deleting: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: bool,
    pub blocks_deletion: bool,
}

/// What a change touched.
#[derive(Clone, Debug)]
pub struct Change {
    pub resource: Resource,
    pub key: Key,
    /// The object went away.
    pub gone: bool,
    /// The identity before and after (the same for an ordinary change).
    pub before: Option<Arc<Identity>>,
    pub after: Option<Arc<Identity>>,
    /// For pods: the nodes before and after.
    pub nodes: [Option<String>; 2],
    /// For pods: the labels before, which say which Services cared.
    pub labels_before: Option<BTreeMap<String, String>>,
}

/// The tables.
#[derive(Default)]
pub struct View {
    /// Everything up to this revision of the store is in here.
    pub revision: u64,
    pub namespaces: Table<Namespace>,
    pub nodes: Table<Node>,
    pub pods: Table<Pod>,
    pub services: Table<Service>,
    pub endpoints: Table<Endpoints>,
    pub endpoint_slices: Table<EndpointSlice>,
    pub config_maps: Table<ConfigMap>,
    pub secrets: Table<Secret>,
    pub service_accounts: Table<ServiceAccount>,
    pub replica_sets: Table<ReplicaSet>,
    pub deployments: Table<Deployment>,
    pub cluster_roles: Table<ClusterRole>,
    pub resource_quotas: Table<ResourceQuota>,
    pub disruption_budgets: Table<PodDisruptionBudget>,
    pub events: Table<EventAge>,
    /// All objects of all kinds by uid.
    identities: BTreeMap<String, Arc<Identity>>,
    uids: BTreeMap<(Resource, Key), String>,
    dependents: BTreeMap<String, BTreeSet<String>>,
    pods_by_node: BTreeMap<String, BTreeSet<Key>>,
}

/// Of an event only its age matters here.
#[derive(Clone, Debug, Deserialize)]
pub struct EventAge {
    pub metadata: ObjectMeta,
    #[serde(rename = "lastTimestamp")]
    pub last_timestamp: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
}

/// The name of the full event type, for those who make them.
pub type FullEvent = Event;

#[derive(Deserialize)]
struct JustMeta {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl View {
    /// Takes in one change: the object's JSON, or None where it went away. Objects of kinds without a table are known by their identity
    /// only.
    ///
    /// # Errors
    /// JSON that is not an object of that kind. The view stays as it was.
    pub fn apply(&mut self, resource: &Resource, key: &Key, json: Option<&[u8]>) -> Result<Change, serde_json::Error> {
        let after = json.map(|json| identity(resource, key, json)).transpose()?.map(Arc::new);
        let mut change = Change {
            resource: resource.clone(),
            key: key.clone(),
            gone: json.is_none(),
            before: None,
            after: after.clone(),
            nodes: [None, None],
            labels_before: None,
        };
        self.set_typed(resource, key, json, &mut change)?;
        change.before = self.set_identity(resource, key, after);
        Ok(change)
    }

    fn set_typed(
        &mut self,
        resource: &Resource,
        key: &Key,
        json: Option<&[u8]>,
        change: &mut Change,
    ) -> Result<(), serde_json::Error> {
        fn set<T: for<'a> Deserialize<'a>>(
            table: &mut Table<T>,
            key: &Key,
            json: Option<&[u8]>,
        ) -> Result<Option<Arc<T>>, serde_json::Error> {
            let new = json.map(serde_json::from_slice).transpose()?;
            Ok(table.set(key, new))
        }
        match (resource.group.as_str(), resource.plural.as_str()) {
            ("", "pods") => {
                let old = set(&mut self.pods, key, json)?;
                let node = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.node_name.clone());
                let new = self.pods.get(key).and_then(|p| node(p));
                let before = old.as_ref().and_then(|p| node(p));
                if before != new {
                    if let Some(node) = &before
                        && let Some(pods) = self.pods_by_node.get_mut(node)
                    {
                        pods.remove(key);
                    }
                    if let Some(node) = &new {
                        self.pods_by_node.entry(node.clone()).or_default().insert(key.clone());
                    }
                }
                change.nodes = [before, new];
                change.labels_before = old.and_then(|p| p.metadata.labels.clone());
            }
            ("", "nodes") => drop(set(&mut self.nodes, key, json)?),
            ("", "namespaces") => drop(set(&mut self.namespaces, key, json)?),
            ("", "services") => drop(set(&mut self.services, key, json)?),
            ("", "endpoints") => drop(set(&mut self.endpoints, key, json)?),
            ("discovery.k8s.io", "endpointslices") => drop(set(&mut self.endpoint_slices, key, json)?),
            ("", "configmaps") => drop(set(&mut self.config_maps, key, json)?),
            ("", "secrets") => drop(set(&mut self.secrets, key, json)?),
            ("", "serviceaccounts") => drop(set(&mut self.service_accounts, key, json)?),
            ("apps", "replicasets") => drop(set(&mut self.replica_sets, key, json)?),
            ("apps", "deployments") => drop(set(&mut self.deployments, key, json)?),
            ("rbac.authorization.k8s.io", "clusterroles") => drop(set(&mut self.cluster_roles, key, json)?),
            ("", "resourcequotas") => drop(set(&mut self.resource_quotas, key, json)?),
            ("policy", "poddisruptionbudgets") => drop(set(&mut self.disruption_budgets, key, json)?),
            ("", "events") => drop(set(&mut self.events, key, json)?),
            _ => {}
        }
        Ok(())
    }

    fn set_identity(&mut self, resource: &Resource, key: &Key, new: Option<Arc<Identity>>) -> Option<Arc<Identity>> {
        let place = (resource.clone(), key.clone());
        let before = self.uids.get(&place).and_then(|uid| self.identities.get(uid)).cloned();
        if let Some(before) = &before {
            self.identities.remove(&before.uid);
            self.uids.remove(&place);
            for owner in &before.owners {
                if let Some(of) = self.dependents.get_mut(&owner.uid) {
                    of.remove(&before.uid);
                    if of.is_empty() {
                        self.dependents.remove(&owner.uid);
                    }
                }
            }
        }
        if let Some(new) = new {
            self.uids.insert(place, new.uid.clone());
            for owner in &new.owners {
                self.dependents.entry(owner.uid.clone()).or_default().insert(new.uid.clone());
            }
            self.identities.insert(new.uid.clone(), new);
        }
        before
    }

    /// The object with this uid, whatever its kind.
    pub fn identity(&self, uid: &str) -> Option<&Arc<Identity>> {
        self.identities.get(uid)
    }

    /// The object in this place.
    pub fn identity_at(&self, resource: &Resource, key: &Key) -> Option<&Arc<Identity>> {
        self.identities.get(self.uids.get(&(resource.clone(), key.clone()))?)
    }

    /// The objects that name this uid as an owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Arc<Identity>> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.identities.get(uid))
    }

    /// Every object there is.
    pub fn identities(&self) -> impl Iterator<Item = &Arc<Identity>> {
        self.identities.values()
    }

    /// The pods that are bound to a node.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        self.pods_by_node.get(node).into_iter().flatten().filter_map(|key| self.pods.0.get_key_value(key))
    }
}

fn identity(resource: &Resource, key: &Key, json: &[u8]) -> Result<Identity, serde_json::Error> {
    let meta = serde_json::from_slice::<JustMeta>(json)?.metadata;
    Ok(Identity {
        resource: resource.clone(),
        key: key.clone(),
        uid: meta.uid.unwrap_or_default(),
        resource_version: meta.resource_version.unwrap_or_default(),
        owners: meta
            .owner_references
            .unwrap_or_default()
            .into_iter()
            .map(|o| Owner {
                api_version: o.api_version,
                kind: o.kind,
                name: o.name,
                uid: o.uid,
                controller: o.controller == Some(true),
                blocks_deletion: o.block_owner_deletion == Some(true),
            })
            .collect(),
        finalizers: meta.finalizers.unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: Option<&str>, owner: Option<&str>) -> Vec<u8> {
        let mut pod =
            serde_json::json!({"metadata": {"name": "p", "namespace": "d", "uid": "u1"}, "spec": {"containers": []}});
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        if let Some(owner) = owner {
            pod["metadata"]["ownerReferences"] = serde_json::json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": owner, "controller": true}]);
        }
        serde_json::to_vec(&pod).unwrap()
    }

    #[test]
    fn the_indexes_follow_the_objects() {
        let (mut view, pods, key) = (View::default(), Resource::new("", "v1", "pods"), Key::new("d", "p"));
        view.apply(&pods, &key, Some(&pod(None, Some("rs")))).unwrap();
        assert_eq!((view.dependents("rs").count(), view.pods_on("n1").count()), (1, 0));
        let change = view.apply(&pods, &key, Some(&pod(Some("n1"), Some("rs")))).unwrap();
        assert_eq!(change.nodes, [None, Some("n1".to_owned())]);
        assert_eq!(view.pods_on("n1").count(), 1);
        view.apply(&pods, &key, None).unwrap();
        assert_eq!((view.dependents("rs").count(), view.pods_on("n1").count(), view.identities().count()), (0, 0, 0));
    }

    #[test]
    fn what_is_not_an_object_changes_nothing() {
        let (mut view, pods, key) = (View::default(), Resource::new("", "v1", "pods"), Key::new("d", "p"));
        assert!(view.apply(&pods, &key, Some(b"{\"spec\": 7}")).is_err());
        assert!(view.pods.is_empty());
    }
}
