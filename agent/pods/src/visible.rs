//! What readers of logs and users of exec may see of the pods, kept by each pod's own task.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use skiff_runtime::Pod as RuntimePod;

use crate::desired::Key;

/// One pod, as far as streams are concerned.
#[derive(Clone, Default)]
pub struct VisiblePod {
    /// Which pod of its name.
    pub uid: String,
    /// Its sandbox, while it has one.
    pub made: Option<RuntimePod>,
    /// It has a network namespace of its own.
    pub own_network: bool,
    /// By name, in the pod's order, main containers first.
    pub containers: Vec<(String, VisibleContainer)>,
}

/// One container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VisibleContainer {
    /// The runtime's id, while it runs.
    pub running: Option<String>,
    /// The newest instance's log, once there was one.
    pub log: Option<PathBuf>,
    /// The log of the one before.
    pub previous: Option<PathBuf>,
    /// It has a terminal.
    pub tty: bool,
    /// It runs, or will run again: a log may go on.
    pub lives: bool,
}

/// All pods by namespace and name.
#[derive(Clone, Default)]
pub struct Directory(Arc<Mutex<BTreeMap<Key, VisiblePod>>>);

impl Directory {
    /// Shows a pod.
    pub fn set(&self, key: &Key, pod: VisiblePod) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), pod);
    }

    /// Hides it again, unless another of its name took its place.
    pub fn remove(&self, key: &Key, uid: &str) {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pods.get(key).is_some_and(|pod| pod.uid == uid) {
            pods.remove(key);
        }
    }

    /// A pod by namespace and name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<VisiblePod> {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}
