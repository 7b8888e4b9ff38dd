//! What the two client pods saw: their logs, a line for each tenth of a second.

use super::world::World;
use serde_json::Value;
use std::collections::BTreeMap;

pub const CLIENTS: [&str; 2] = ["client-1", "client-2"];

/// Requests of a span of time: those that ended well in it, and those that were begun in it and failed.
#[derive(Debug, Default, Clone)]
pub struct Traffic {
    pub ok: u64,
    pub failed: u64,
    /// When the first and the last request that failed were begun, milliseconds after the span's begin.
    pub failed_ms: Option<(u64, u64)>,
    pub slowest_ms: u64,
    /// By `node/version` of who answered.
    pub by: BTreeMap<String, u64>,
    pub errors: BTreeMap<String, u64>,
}

impl Traffic {
    pub fn nodes(&self) -> Vec<String> {
        let mut nodes: Vec<_> = self.by.keys().filter_map(|k| k.split_once('/')).map(|(n, _)| n.to_owned()).collect();
        nodes.dedup();
        nodes
    }

    pub fn describe_errors(&self) -> String {
        let errors = self.errors.iter().map(|(e, n)| format!("{n} x {e}")).collect::<Vec<_>>().join(", ");
        let (first, last) = self.failed_ms.unwrap_or_default();
        format!("{errors}; begun {first} to {last} ms after this began")
    }
}

/// What came of the requests between two times (milliseconds since 1970). A failure counts for the moment in which its request was begun: a
/// time-out that began before something was mended says nothing about the time after.
pub async fn between(world: &World<'_>, from_ms: u64, to_ms: u64) -> anyhow::Result<Traffic> {
    let mut sum = Traffic::default();
    for client in CLIENTS {
        for line in world.log(client).await?.lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let within = |at: u64| (from_ms..=to_ms).contains(&at);
            let failed = line["failed_begun_ms"].as_array().into_iter().flatten().filter_map(Value::as_u64);
            let failed: Vec<_> = failed.filter(|begun| within(*begun)).map(|begun| begun - from_ms).collect();
            sum.failed += failed.len() as u64;
            for at in &failed {
                sum.failed_ms = Some(sum.failed_ms.map_or((*at, *at), |(first, last)| (first.min(*at), last.max(*at))));
            }
            if !failed.is_empty() {
                add(&mut sum.errors, &line["errors"]);
            }
            if within(line["at_ms"].as_u64().unwrap_or(0)) {
                sum.ok += line["ok"].as_u64().unwrap_or(0);
                sum.slowest_ms = sum.slowest_ms.max(line["slowest_ms"].as_u64().unwrap_or(0));
                add(&mut sum.by, &line["by"]);
            }
        }
    }
    Ok(sum)
}

fn add(sum: &mut BTreeMap<String, u64>, counts: &Value) {
    for (key, count) in counts.as_object().into_iter().flatten() {
        *sum.entry(key.clone()).or_default() += count.as_u64().unwrap_or(0);
    }
}
