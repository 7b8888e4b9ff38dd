//! What the two client pods saw: their logs, a line for each tenth of a second.

use super::world::World;
use serde_json::Value;
use std::collections::BTreeMap;

pub const CLIENTS: [&str; 2] = ["client-1", "client-2"];

/// Requests that ended in a span of time.
#[derive(Debug, Default, Clone)]
pub struct Traffic {
    pub ok: u64,
    pub failed: u64,
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
        self.errors.iter().map(|(e, n)| format!("{n} x {e}")).collect::<Vec<_>>().join(", ")
    }
}

/// Everything that ended between two times (milliseconds since 1970).
pub async fn between(world: &World<'_>, from_ms: u64, to_ms: u64) -> anyhow::Result<Traffic> {
    let mut sum = Traffic::default();
    for client in CLIENTS {
        for line in world.log(client).await?.lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let at = line["at_ms"].as_u64().unwrap_or(0);
            if at < from_ms || at > to_ms {
                continue;
            }
            sum.ok += line["ok"].as_u64().unwrap_or(0);
            sum.failed += line["failed"].as_u64().unwrap_or(0);
            sum.slowest_ms = sum.slowest_ms.max(line["slowest_ms"].as_u64().unwrap_or(0));
            for (map, field) in [(&mut sum.by, "by"), (&mut sum.errors, "errors")] {
                for (key, count) in line[field].as_object().into_iter().flatten() {
                    *map.entry(key.clone()).or_default() += count.as_u64().unwrap_or(0);
                }
            }
        }
    }
    Ok(sum)
}
