//! What parent and supervisor say to each other.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a supervisor is to be, in the file named on its command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SupervisorSpec {
    pub instance: String,
    pub dir: PathBuf,
    pub socket: PathBuf,
    /// In CIDR notation, /24.
    pub subnet: String,
    pub uplink: bool,
    /// On 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// Ends when the parent ends.
    pub tied: bool,
}

/// What the supervisor says once, when it can be used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ready {
    Yes { port: u16 },
    No { why: String },
}

/// A node's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// `s1`, `a1`, ...
    pub name: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Added to the supervisor's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Its output is appended here.
    pub log: PathBuf,
}

/// Which of a node's packets a cut drops, as the node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    In,
    Out,
    Both,
}

/// A request to the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Makes the node's namespace and link without a process.
    Prepare {
        name: String,
    },
    Spawn(NodeSpec),
    /// To the node's process alone, never to its children.
    Kill {
        name: String,
        signal: i32,
    },
    /// Kills what runs, waits for its end, and starts the same again.
    Restart {
        name: String,
    },
    Cut {
        name: String,
        direction: Direction,
    },
    Heal {
        name: String,
    },
    Status,
    Shutdown,
}

/// Its answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    /// In the supervisor's PID namespace.
    Pid(i32),
    Status(Status),
    Failed(String),
}

/// An instance as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub instance: String,
    /// The supervisor's, in the root PID namespace.
    pub pid: i32,
    /// 127.0.0.1:`port` leads to the API of a live server.
    pub port: u16,
    pub subnet: String,
    pub uplink: bool,
    /// Seconds.
    pub uptime: u64,
    /// By name.
    pub nodes: Vec<NodeStatus>,
}

/// A node as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    pub address: Ipv4Addr,
    /// In the supervisor's PID namespace; none: not running.
    pub pid: Option<i32>,
    /// How it ended last.
    pub ended: Option<String>,
    pub cut: Option<Direction>,
    pub log: PathBuf,
    /// The supervisor's file descriptor that holds the node's network namespace.
    pub namespace_fd: i32,
}
