//! `skiff sealing`: the keys with which Secrets are encrypted in the store.

use super::output::say;
use super::target::Cluster;
use crate::client::Api;
use crate::server::sealing::orders::{DROP, FORGET, PATH, ROTATE, Report};
use anyhow::{Context as _, ensure};
use serde_json::json;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

/// How often it is looked whether an order is carried out.
const LOOK: Duration = Duration::from_millis(500);

/// Show and exchange the keys with which Secrets are encrypted in the store
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Show which server has which key, and what is sealed with which
    Status {
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Make a new key, seal everything with it, and wait until that is done
    ///
    /// The old key stays on the servers, so that old snapshots of the store can be read. A server that is away holds the exchange up until it is back or was
    /// removed.
    Rotate {
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Let every server forget a key that is no longer in use
    ///
    /// What is sealed with it can be read no more: snapshots of the store from before the exchange, and revisions that are not compacted yet.
    Forget {
        /// The key's id, as `status` shows it
        key: String,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Delete what is sealed with a key and does not open, because no server has the key any more or the value is damaged
    Drop {
        /// The key's id, as the error names it
        key: String,
        #[command(flatten)]
        cluster: Cluster,
    },
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let report = match options.verb {
        Verb::Status { cluster } => ask(&cluster.api()?).await?,
        Verb::Rotate { no_wait, cluster } => {
            let api = cluster.api()?;
            let begun = read(api.post(ROTATE, &json!({})).await?)?;
            if no_wait { begun } else { wait(&api, |report| report.complete).await? }
        }
        Verb::Forget { key, cluster } => {
            let api = cluster.api()?;
            read(api.post(&format!("{FORGET}{}", super::target::encode(&key)), &json!({})).await?)?;
            let forgotten = |report: &Report| {
                report.servers.iter().all(|server| server.keys.iter().all(|id| id.to_string() != key))
            };
            wait(&api, forgotten).await?
        }
        Verb::Drop { key, cluster } => {
            read(cluster.api()?.post(&format!("{DROP}{}", super::target::encode(&key)), &json!({})).await?)?
        }
    };
    say(&shown(&report))?;
    Ok(ExitCode::SUCCESS)
}

fn read(report: serde_json::Value) -> anyhow::Result<Report> {
    serde_json::from_value(report).context("the server's answer is of another version")
}

async fn ask(api: &Api) -> anyhow::Result<Report> {
    read(api.get(PATH).await?)
}

/// Waits until it is `done`; whoever it waits for is told once.
async fn wait(api: &Api, done: impl Fn(&Report) -> bool) -> anyhow::Result<Report> {
    let mut told = String::new();
    loop {
        let report = ask(api).await?;
        if done(&report) {
            return Ok(report);
        }
        let sealing: Vec<_> = report.servers.iter().filter(|server| server.seals_with.is_some()).collect();
        ensure!(
            sealing.windows(2).all(|pair| pair[0].prefixes == pair[1].prefixes),
            "the servers are started with different --seal: what one seals another writes in the clear; give all of them the same"
        );
        let late: Vec<_> =
            report.servers.iter().filter(|s| s.seals_with != report.key).map(|s| s.name.as_str()).collect();
        let late = late.join(", ");
        if !late.is_empty() && late != told {
            eprintln!("waiting for {late}");
            told = late;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn shown(report: &Report) -> String {
    let mut text = String::new();
    let key = report.key.map_or_else(|| "none yet".to_owned(), |id| id.to_string());
    let state = if report.complete {
        "every server seals with it, and everything is sealed with it"
    } else {
        "not everywhere yet"
    };
    let _ = writeln!(text, "key: {key} ({state})");
    let width = report.servers.iter().map(|s| s.name.len()).max().unwrap_or(0).max(6);
    let _ = writeln!(text, "{:<width$}  SEALS WITH        KEYS", "SERVER");
    for server in &report.servers {
        let seals = server.seals_with.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let keys: Vec<_> = server.keys.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "{:<width$}  {seals:<16}  {}", server.name, keys.join(","));
    }
    for (id, count) in &report.sealed {
        let _ = writeln!(text, "objects sealed with {id}: {count}");
    }
    let _ = writeln!(text, "objects in the clear: {}", report.clear);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_a_table() {
        let report = read(json!({
            "key": "0011223344556677", "complete": false, "clear": 1, "sealed": {"0011223344556677": 3},
            "servers": [
                {"name": "s1", "keys": ["0011223344556677"], "sealsWith": "0011223344556677"},
                {"name": "server-2", "keys": []},
            ],
        }));
        let expect = "key: 0011223344556677 (not everywhere yet)\n\
                      SERVER    SEALS WITH        KEYS\n\
                      s1        0011223344556677  0011223344556677\n\
                      server-2  -                 \n\
                      objects sealed with 0011223344556677: 3\n\
                      objects in the clear: 1\n";
        assert_eq!(shown(&report.unwrap()), expect);
    }
}
