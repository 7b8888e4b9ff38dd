//! The recorded scenarios as data: which requests were sent, and what a real API server answered.
//!
//! A field that the format grows later must not pass unseen, so unknown fields are refused.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    pub topic: String,
    pub scenarios: Vec<Scenario>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// `api`: the server alone; `controllers`: with scheduler and controllers.
    pub profile: String,
    pub steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    pub name: String,
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub accept: Option<String>,
    #[serde(default)]
    pub content_type: Option<String>,
    #[serde(default)]
    pub headers: Map<String, Value>,
    #[serde(default)]
    pub body: Option<Value>,
    #[serde(default)]
    pub capture: Map<String, Value>,
    #[serde(default)]
    pub delay: Option<f64>,
    #[serde(default)]
    pub until: Option<Map<String, Value>>,
    #[serde(default)]
    pub within: Option<f64>,
    #[serde(default)]
    pub watch: Option<Watch>,
    #[serde(default)]
    pub setup: bool,
    #[serde(default)]
    pub compare: Option<String>,
    #[serde(default)]
    pub fork: bool,
    #[serde(default)]
    pub go_text: bool,
    #[serde(default)]
    #[allow(dead_code, reason = "for whoever reads the corpus")]
    pub note: Option<String>,
    pub response: Expected,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Watch {
    pub events: usize,
    pub seconds: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Expected {
    pub status: u16,
    #[serde(default)]
    pub content_type: Option<String>,
    #[serde(default)]
    pub warnings: Vec<String>,
    #[serde(default)]
    pub headers: Map<String, Value>,
    #[serde(default)]
    pub body: Option<Value>,
    #[serde(default)]
    pub body_text: Option<String>,
    #[serde(default)]
    pub body_prefix: Option<String>,
    #[serde(default)]
    pub events: Option<Vec<Value>>,
    #[serde(default)]
    pub closed: bool,
}

/// Every topic in `folder`, by name.
pub fn read(folder: &Path) -> Vec<Topic> {
    let mut topics = Vec::new();
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|e| panic!("reading the corpus in {}: {e}", folder.display()));
    for entry in entries {
        let path = entry.expect("an entry of the corpus folder").path();
        if path.extension().is_some_and(|e| e == "json") {
            let text = std::fs::read(&path).unwrap_or_else(|e| panic!("reading {}: {e}", path.display()));
            topics.push(serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
        }
    }
    topics.sort_by(|a: &Topic, b: &Topic| a.topic.cmp(&b.topic));
    topics
}
