//! What survives the agent: a pod's object, what was known of it, and its last status, in one small file.

use std::fs;
use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::{Deserialize, Serialize};
use skiff_runtime::private;

use crate::observed::Observed;

const FILE: &str = "record.json";

/// One pod's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// As last wanted.
    pub pod: Pod,
    /// As last known.
    pub observed: Observed,
    /// As last reported.
    pub status: PodStatus,
}

impl Record {
    /// Writes it whole or not at all. No sync: after a power cut the pods are gone anyway.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        private::dir(dir)?;
        let fresh = dir.join("record.json.new");
        private::write(&fresh, &serde_json::to_vec(self)?)?;
        fs::rename(fresh, dir.join(FILE))
    }

    /// The record in a pod's directory, if there is a readable one.
    pub fn load(dir: &Path) -> Option<Record> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }
}
