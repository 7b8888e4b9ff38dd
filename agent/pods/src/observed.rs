//! What the agent knows of a pod: the plan's second input, and the record that outlives the agent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;

/// All of a pod's life so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// When the agent first saw it.
    pub start_ms: u64,
    /// Namespaces and network.
    pub sandbox: Sandbox,
    /// Address in the pod network; none without a sandbox or with the host's network.
    pub ip: Option<String>,
    /// Address that the status shows, also after the end.
    pub shown_ip: Option<String>,
    /// Files that are made for it.
    pub volumes: Volumes,
    /// Init and main containers; their names are unique in a pod.
    pub containers: BTreeMap<String, ContainerObserved>,
    /// The pod is over, and this is how.
    pub end: Option<End>,
    /// Everything is removed.
    pub cleaned: bool,
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// `Failed` rather than `Succeeded`.
    pub failed: bool,
    /// `DeadlineExceeded`, or empty.
    pub reason: String,
    /// A sentence, or empty.
    pub message: String,
}

/// The pod's namespaces and address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub enum Sandbox {
    /// Not made yet, or taken down again.
    #[default]
    None,
    /// Being made.
    Creating,
    /// There.
    Ready {
        /// Its address; none when it uses the host's network.
        ip: Option<String>,
    },
    /// Could not be made.
    Failed {
        /// Why.
        message: String,
        /// When to try again.
        retry_ms: u64,
    },
    /// Its helper died: what is left must be removed.
    Lost,
    /// Being removed.
    TearingDown,
}

/// Files in the pod's volumes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub enum Volumes {
    /// Not made yet.
    #[default]
    None,
    /// Being made.
    Preparing,
    /// Made.
    Ready,
    /// Something that they need is missing.
    Failed {
        /// What.
        message: String,
        /// When to try again.
        retry_ms: u64,
    },
}

/// One container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerObserved {
    /// Where it is.
    pub stage: Stage,
    /// Number of the newest instance, from 0.
    pub attempt: u32,
    /// How often a new instance followed an ended one.
    pub restarts: u32,
    /// The instance before the newest.
    pub last: Option<Exit>,
    /// The image that the newest instance was started with, as the object named it.
    pub image: String,
    /// What that image was.
    pub image_ref: String,
    /// Its start-up probe, if any, has succeeded.
    pub started: bool,
    /// Its readiness probe, if any, succeeds.
    pub ready: bool,
    /// Between restarts.
    pub backoff: Backoff,
    /// Between attempts to get its image.
    pub image_backoff: Backoff,
}

/// The newest instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Stage {
    /// None yet; the reason as a status shows it, and when to try (0: at once).
    Waiting {
        /// `ContainerCreating`, `ErrImagePull`, ...
        reason: String,
        /// A sentence, or empty.
        message: String,
        /// Not before then.
        retry_ms: u64,
        /// Since then.
        since_ms: u64,
    },
    /// Image, environment and process are being got.
    Starting,
    /// It runs.
    Running {
        /// Since then.
        started_ms: u64,
        /// It is being stopped.
        killing: bool,
    },
    /// It ended.
    Exited(Exit),
}

impl Default for Stage {
    fn default() -> Stage {
        Stage::Waiting { reason: String::new(), message: String::new(), retry_ms: 0, since_ms: 0 }
    }
}

/// How an instance ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The runtime's id.
    pub id: String,
    /// 0 to 255.
    pub code: i32,
    /// Or 0.
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, ...
    pub reason: String,
    /// The termination message.
    pub message: String,
    /// Its life.
    pub started_ms: u64,
    /// Its end.
    pub finished_ms: u64,
}

impl ContainerObserved {
    /// There is a process, or soon will be.
    pub fn active(&self) -> bool {
        matches!(self.stage, Stage::Starting | Stage::Running { .. })
    }

    /// The newest instance's end, if it has ended.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.stage {
            Stage::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

/// The runtime's id of an instance.
pub fn container_id(name: &str, attempt: u32) -> String {
    format!("{name}-{attempt}")
}
