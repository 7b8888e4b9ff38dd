//! `skiff token create`: what a machine shows in order to join.

use super::output::say;
use super::target::Cluster;
use anyhow::{Context as _, bail};
use jiff::SignedDuration;
use skiff_identity::Role;
use std::process::ExitCode;

/// Make tokens with which machines join
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Make a token, and print it
    Create {
        /// For a server, which receives the authority's key: keep it as you would keep that key
        #[arg(long)]
        server: bool,
        /// How long it can be used: 30m, 24h; 0 for ever
        #[arg(long, default_value = "24h")]
        ttl: String,
        #[command(flatten)]
        cluster: Cluster,
    },
}

/// A length of time; None for ever.
fn lifetime(text: &str) -> anyhow::Result<Option<SignedDuration>> {
    if text == "0" {
        return Ok(None);
    }
    let length: SignedDuration =
        text.parse().with_context(|| format!("--ttl {text:?} is not a time such as 30m or 24h"))?;
    if length.is_negative() || length.is_zero() {
        bail!("--ttl {text:?} must be longer than nothing (0 alone means for ever)");
    }
    Ok(Some(length))
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let Verb::Create { server, ttl, cluster } = options.verb;
    let lifetime = lifetime(&ttl)?;
    let api = cluster.api()?;
    let role = if server { Role::Server } else { Role::Agent };
    let token = crate::server::write_token(&api, &api.ca, role, lifetime).await?;
    say(&format!("{token}\n"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        let check = |text: &str, expect: Option<Option<i64>>| {
            assert_eq!(lifetime(text).ok().map(|l| l.map(|l| l.as_secs())), expect, "{text}");
        };
        check("0", Some(None));
        check("30m", Some(Some(1800)));
        check("24h", Some(Some(86400)));
        for bad in ["", "-1h", "0s", "soon"] {
            check(bad, None);
        }
    }
}
