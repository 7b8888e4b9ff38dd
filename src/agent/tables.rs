//! What the servers told this node, as typed objects: the level from which everything on the node is derived.

use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Deserialize;
use skiff_pods::Desired;
use skiff_proto::fleet::Object;
use std::collections::BTreeMap;
use std::sync::Arc;

type Table<T> = BTreeMap<(String, String), Arc<T>>;

/// Everything that concerns this node, as of one revision.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub revision: u64,
    pub synced: bool,
    pub pods: Table<Pod>,
    pub config_maps: Table<ConfigMap>,
    pub secrets: Table<Secret>,
    pub services: Table<Service>,
    pub slices: Table<EndpointSlice>,
    pub nodes: Table<Node>,
}

fn set<T: for<'a> Deserialize<'a>>(table: &mut Table<T>, object: &Object) {
    let key = (object.namespace.clone(), object.name.clone());
    if object.json.is_empty() {
        table.remove(&key);
        return;
    }
    match serde_json::from_slice(&object.json) {
        Ok(typed) => drop(table.insert(key, Arc::new(typed))),
        Err(e) => tracing::error!("{} {}/{} cannot be read: {e}", object.resource, object.namespace, object.name),
    }
}

impl Tables {
    /// Takes a change in. The first of a session is the whole: what it does not name is gone.
    pub fn apply(&mut self, objects: &[Object], revision: u64, whole: bool) {
        if whole {
            *self = Tables::default();
        }
        for object in objects {
            match object.resource.as_str() {
                "pods" => set(&mut self.pods, object),
                "configmaps" => set(&mut self.config_maps, object),
                "secrets" => set(&mut self.secrets, object),
                "services" => set(&mut self.services, object),
                "endpointslices" => set(&mut self.slices, object),
                "nodes" => set(&mut self.nodes, object),
                // From a newer server: not needed by this agent.
                _ => {}
            }
        }
        self.revision = revision;
        self.synced = true;
    }

    /// What the pods need to know.
    pub fn desired(&self) -> Desired {
        Desired {
            pods: self.pods.values().cloned().collect(),
            config_maps: self.config_maps.clone(),
            secrets: self.secrets.clone(),
            services: self.services.values().cloned().collect(),
            hold: Default::default(),
            synced: self.synced,
        }
    }
}
