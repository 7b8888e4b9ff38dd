//! What each node's pods use: which node may therefore read what, without looking at a pod when it asks.
//!
//! Source of the edges: Kubernetes documentation, "Using Node Authorization". A mirror pod names nothing: its node made it.

use super::follow::{Followed, Index};
use crate::storage::keys;
use crate::storage::objects::Objects;
use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;
use std::collections::{BTreeSet, HashMap};

const MIRROR: &str = "kubernetes.io/config.mirror";

/// Resource, namespace, name.
type Object = (&'static str, String, String);

#[derive(Default)]
pub struct PodGraph {
    /// By `namespace/name`: the pod's node and what it uses, itself included.
    pods: HashMap<String, (String, BTreeSet<Object>)>,
    /// By node: how many of its pods use an object.
    nodes: HashMap<String, HashMap<Object, usize>>,
}

impl PodGraph {
    pub fn uses(&self, node: &str, resource: &'static str, namespace: &str, name: &str) -> bool {
        let object = (resource, namespace.to_string(), name.to_string());
        self.nodes.get(node).is_some_and(|used| used.contains_key(&object))
    }

    fn forget(&mut self, key: &str) {
        let Some((node, objects)) = self.pods.remove(key) else { return };
        let Some(used) = self.nodes.get_mut(&node) else { return };
        for object in objects {
            if let Some(count) = used.get_mut(&object) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    used.remove(&object);
                }
            }
        }
        if used.is_empty() {
            self.nodes.remove(&node);
        }
    }
}

impl Index for PodGraph {
    fn take(&mut self, key: &str, object: Option<&[u8]>) {
        let pod: Option<Value> = object.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let node = pod.as_ref().map(|pod| meta::str_at(pod, &["spec", "nodeName"]).to_string()).unwrap_or_default();
        self.forget(key);
        let (Some(pod), Some((namespace, _))) = (pod, key.split_once('/')) else { return };
        if node.is_empty() {
            return;
        }
        let objects: BTreeSet<Object> = used_by(namespace, &pod).into_iter().collect();
        let used = self.nodes.entry(node.clone()).or_default();
        for object in &objects {
            *used.entry(object.clone()).or_default() += 1;
        }
        self.pods.insert(key.to_string(), (node, objects));
    }
}

/// Everything that a pod names, and the pod.
pub fn used_by(namespace: &str, pod: &Value) -> Vec<Object> {
    let mut all = vec![("pods", namespace.to_string(), meta::name(pod).to_string())];
    if meta::annotation(pod, MIRROR).is_some() {
        return all;
    }
    let mut add = |resource: &'static str, at: &Value, path: &[&str]| {
        let name = meta::str_at(at, path);
        if !name.is_empty() {
            all.push((resource, namespace.to_string(), name.to_string()));
        }
    };
    add("serviceaccounts", pod, &["spec", "serviceAccountName"]);
    for secret in meta::list_at(pod, &["spec", "imagePullSecrets"]) {
        add("secrets", secret, &["name"]);
    }
    for volume in meta::list_at(pod, &["spec", "volumes"]) {
        add("configmaps", volume, &["configMap", "name"]);
        add("secrets", volume, &["secret", "secretName"]);
        add("persistentvolumeclaims", volume, &["persistentVolumeClaim", "claimName"]);
        for source in meta::list_at(volume, &["projected", "sources"]) {
            add("configmaps", source, &["configMap", "name"]);
            add("secrets", source, &["secret", "name"]);
        }
        if volume.get("ephemeral").is_some_and(Value::is_object) {
            let name = format!("{}-{}", meta::name(pod), meta::str_at(volume, &["name"]));
            add("persistentvolumeclaims", &Value::String(name), &[]);
        }
        for (driver, path) in [
            ("azureFile", ["secretName"].as_slice()),
            ("cephfs", &["secretRef", "name"]),
            ("cinder", &["secretRef", "name"]),
            ("flexVolume", &["secretRef", "name"]),
            ("rbd", &["secretRef", "name"]),
            ("scaleIO", &["secretRef", "name"]),
            ("iscsi", &["secretRef", "name"]),
            ("storageos", &["secretRef", "name"]),
            ("csi", &["nodePublishSecretRef", "name"]),
        ] {
            add("secrets", volume.get(driver).unwrap_or(&Value::Null), path);
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in meta::list_at(pod, &["spec", list]) {
            for from in meta::list_at(container, &["envFrom"]) {
                add("configmaps", from, &["configMapRef", "name"]);
                add("secrets", from, &["secretRef", "name"]);
            }
            for env in meta::list_at(container, &["env"]) {
                add("configmaps", env, &["valueFrom", "configMapKeyRef", "name"]);
                add("secrets", env, &["valueFrom", "secretKeyRef", "name"]);
            }
        }
    }
    for claim in meta::list_at(pod, &["spec", "resourceClaims"]) {
        add("resourceclaims", claim, &["resourceClaimName"]);
    }
    for claim in meta::list_at(pod, &["status", "resourceClaimStatuses"]) {
        add("resourceclaims", claim, &["resourceClaimName"]);
    }
    all
}

/// The graph, kept by the store's watch.
#[derive(Clone, Default)]
pub struct PodGraphCache(Followed<PodGraph>);

impl PodGraphCache {
    pub async fn follow(self, store: Objects) {
        self.0.follow(store, keys::prefix_of("", "pods")).await;
    }

    /// Whether a pod on the node uses the object, with every acknowledged write counted before a no.
    pub async fn uses(
        &self,
        store: &Objects,
        node: &str,
        resource: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<bool, Status> {
        if self.0.with(|graph| graph.uses(node, resource, namespace, name)) {
            return Ok(true);
        }
        self.0.reach(store).await?;
        Ok(self.0.with(|graph| graph.uses(node, resource, namespace, name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_reaches_what_its_pods_name() {
        let mut graph = PodGraph::default();
        let pod = |node: &str, secret: &str| {
            json!({"metadata": {"name": "p"}, "spec": {
                "nodeName": node, "serviceAccountName": "app",
                "volumes": [
                    {"name": "v", "secret": {"secretName": secret}}, {"projected": {"sources": [{"configMap": {"name": "c1"}}]}},
                    {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}}, {"persistentVolumeClaim": {"claimName": "d"}},
                ],
                "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s2"}}}], "envFrom": [{"configMapRef": {"name": "c2"}}]}],
            }})
        };
        let put = |graph: &mut PodGraph, key: &str, pod: Option<Value>| {
            graph.take(key, pod.map(|p| p.to_string().into_bytes()).as_deref());
        };
        put(&mut graph, "a/p", Some(pod("n1", "s1")));
        put(&mut graph, "a/q", Some(pod("n1", "s3")));
        let check = |graph: &PodGraph, resource, name, expect| {
            assert_eq!(graph.uses("n1", resource, "a", name), expect, "{resource} {name}");
        };
        for (resource, name) in [
            ("pods", "p"),
            ("secrets", "s1"),
            ("secrets", "s2"),
            ("secrets", "s3"),
            ("configmaps", "c1"),
            ("configmaps", "c2"),
            ("serviceaccounts", "app"),
            ("persistentvolumeclaims", "d"),
            ("persistentvolumeclaims", "p-e"),
        ] {
            check(&graph, resource, name, true);
            assert!(
                !graph.uses("n2", resource, "a", name) && !graph.uses("n1", resource, "b", name),
                "{resource} {name}"
            );
        }
        check(&graph, "secrets", "c1", false);
        put(&mut graph, "a/p", Some(pod("n1", "other")));
        check(&graph, "secrets", "s1", false);
        put(&mut graph, "a/p", None);
        check(&graph, "secrets", "s2", true);
        put(&mut graph, "a/q", None);
        check(&graph, "secrets", "s2", false);
        assert!(graph.nodes.is_empty() && graph.pods.is_empty());
        let mut mirror = pod("n1", "s1");
        meta::set_annotation(&mut mirror, MIRROR, "x");
        put(&mut graph, "a/m", Some(mirror));
        check(&graph, "pods", "p", true);
        check(&graph, "secrets", "s1", false);
    }
}
