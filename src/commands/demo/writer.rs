//! A client that writes as fast as it is answered, and remembers what was acknowledged: the witness for "no acknowledged write is lost".

use crate::commands::cluster::Cluster;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A write that the API acknowledged.
#[derive(Clone)]
pub struct Write {
    pub name: String,
    pub begun: Instant,
    pub acknowledged: Instant,
}

/// Writes objects as fast as they are acknowledged, and keeps count.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Write>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    /// Writes ConfigMaps `PREFIX-0`, `PREFIX-1`, ... labelled `writer=PREFIX` into the default namespace, through whichever server answers.
    pub fn start(cluster: &Cluster, prefix: &str) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged: Arc<Mutex<Vec<_>>> = Arc::default();
        let (api, stopped, list, prefix) = (cluster.api.clone(), stop.clone(), acknowledged.clone(), prefix.to_owned());
        let task = tokio::spawn(async move {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                let name = format!("{prefix}-{number}");
                number += 1;
                let begun = Instant::now();
                let object = json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": name, "labels": {"writer": prefix}}, "data": {"n": name},
                });
                let write = api.post("/api/v1/namespaces/default/configmaps", &object);
                match tokio::time::timeout(Duration::from_secs(5), write).await {
                    Ok(Ok(_)) => list.lock().unwrap_or_else(|e| e.into_inner()).push(Write {
                        name,
                        begun,
                        acknowledged: Instant::now(),
                    }),
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        });
        Writer { stop, acknowledged, task }
    }

    pub fn acknowledged(&self) -> Vec<Write> {
        self.acknowledged.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// When the first write that was begun after `moment` was acknowledged: one that was begun before may have been decided before.
    pub async fn next_after(&self, moment: Instant, most: Duration) -> anyhow::Result<Instant> {
        loop {
            if let Some(write) = self.acknowledged().iter().find(|w| w.begun > moment) {
                return Ok(write.acknowledged);
            }
            anyhow::ensure!(moment.elapsed() < most, "no write was acknowledged within {} s", most.as_secs());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Stops, and gives all that was acknowledged.
    pub async fn finish(self) -> anyhow::Result<Vec<Write>> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?;
        Ok(self.acknowledged.lock().unwrap_or_else(|e| e.into_inner()).clone())
    }
}
