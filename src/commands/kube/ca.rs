//! `skiff ca`: the cluster's authority, and the exchange of it for a new one.

use super::output::say;
use super::target::Cluster;
use anyhow::{bail, ensure};
use skiff_identity::{each, issuer_hash};
use skiff_proto::fleet as pb;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The cluster's authority, which signs every certificate
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Put a new authority in the place of the old one, in three steps: without a flag, the new one is made and trusted beside the old one
    Rotate {
        /// Second step: every server and node gets a certificate of the new one
        #[arg(long)]
        issue: bool,
        /// Last step: the old one is trusted no longer
        #[arg(long, conflicts_with = "issue")]
        finish: bool,
        /// How long to wait until every server and node has taken the step up, seconds; the step goes on without this command
        #[arg(long, default_value_t = 120)]
        timeout: u64,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Say where an exchange stands
    Status {
        #[command(flatten)]
        cluster: Cluster,
    },
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    match options.verb {
        Verb::Status { cluster } => say(&describe(&cluster.api()?.rotation("").await?))?,
        Verb::Rotate { issue, finish, timeout, cluster } => {
            let step = if issue {
                "issue"
            } else if finish {
                "finish"
            } else {
                "trust"
            };
            rotate(step, Duration::from_secs(timeout), &cluster).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn rotate(step: &str, timeout: Duration, cluster: &Cluster) -> anyhow::Result<()> {
    let api = cluster.api()?;
    let there = api.rotation("").await?;
    // What would leave whoever asks outside.
    if step != "trust" {
        let trusted = each(&api.ca);
        ensure!(
            each(&there.bundle).iter().all(|authority| trusted.contains(authority)),
            "the kubeconfig in use does not trust both authorities yet, and would be shut out: take admin.kubeconfig from a server anew"
        );
    }
    if step == "finish" && there.step == "issue" {
        let (issuer, new) = (api.certificate().and_then(issuer_hash), each(&there.bundle));
        let new = new.first().and_then(|pem| skiff_identity::hash(pem).ok());
        ensure!(
            issuer.is_none() || issuer == new,
            "the certificate in the kubeconfig in use is of the old authority, and would be shut out: take admin.kubeconfig from a server anew"
        );
    }
    let mut now = api.rotation(step).await?;
    let begun = Instant::now();
    let mut told = Vec::new();
    while !now.waiting.is_empty() {
        if told != now.waiting {
            say(&format!("waiting for {}\n", now.waiting.join(", ")))?;
            told.clone_from(&now.waiting);
        }
        if begun.elapsed() > timeout {
            bail!(
                "the step {step:?} was begun, but after {} s it is still waited for {}. Everything goes on working meanwhile; give the same command again",
                timeout.as_secs(),
                now.waiting.join(", ")
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
        now = match api.rotation("").await {
            Ok(now) => now,
            // Servers are reached anew at this step.
            Err(e) if begun.elapsed() > timeout => return Err(e),
            Err(_) => continue,
        };
    }
    say(&describe(&now))
}

fn describe(now: &pb::Rotation) -> String {
    let next = match now.step.as_str() {
        _ if !now.waiting.is_empty() => format!("waiting for {}\n", now.waiting.join(", ")),
        "trust" => "next: replace kubeconfigs that were handed out (server/admin.kubeconfig is made anew), and restart pods that read their ca.crt only when they start; \
                    then skiff ca rotate --issue\n"
            .to_owned(),
        "issue" => "next: replace kubeconfigs with certificates of the old one; then skiff ca rotate --finish\n".to_owned(),
        _ => String::new(),
    };
    let (old, new) = (&now.old, &now.new);
    match now.step.as_str() {
        "" => "no exchange of the authority was begun\n".to_owned(),
        "trust" => format!("{new} is trusted beside {old}, which issues\n{next}"),
        "issue" => format!("{new} issues, and {old} is trusted still\n{next}"),
        _ => format!("{new} has taken the place of {old}, which is trusted no longer\n{next}"),
    }
}
