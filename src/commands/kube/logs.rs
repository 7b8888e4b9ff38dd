//! `skiff logs`: what a container has printed, and with `-f` what it prints.

use super::names;
use super::output::say_bytes;
use super::target::{Cluster, encode, flag, query};
use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use std::process::ExitCode;

/// Print a container's output
#[derive(clap::Args, Debug)]
pub struct Options {
    /// POD, or TYPE/NAME for one of its pods
    pod: String,
    /// The container [default: the only one, or the annotated one]
    #[arg(short, long, default_value = "")]
    container: String,
    /// Go on as it prints
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, allow_negative_numbers = true, default_value_t = -1)]
    tail: i64,
    /// Of the container before its last restart
    #[arg(short, long)]
    previous: bool,
    /// The time before each line
    #[arg(long)]
    timestamps: bool,
    /// Only what is newer: 30s, 5m, 2h
    #[arg(long)]
    since: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
}

/// `90s`, `5m`, `2h` or plain seconds, as seconds.
fn seconds(text: &str) -> anyhow::Result<u64> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let factor = if unit == "h" {
        3600
    } else if unit == "m" {
        60
    } else {
        1
    };
    let count: u64 = number.parse().with_context(|| format!("--since {text:?} is not a time such as 30s, 5m or 2h"))?;
    match count.checked_mul(factor) {
        Some(seconds) if seconds > 0 => Ok(seconds),
        _ => bail!("--since {text:?} is out of range"),
    }
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let since = options.since.as_deref().map(seconds).transpose()?.map(|s| s.to_string()).unwrap_or_default();
    let api = options.cluster.api()?;
    let pod = names::pod(&api, &options.pod).await?;
    let tail = if options.tail < 0 { String::new() } else { options.tail.to_string() };
    let pairs = [
        ("container", options.container.as_str()),
        ("follow", flag(options.follow)),
        ("previous", flag(options.previous)),
        ("timestamps", flag(options.timestamps)),
        ("tailLines", &tail),
        ("sinceSeconds", &since),
    ];
    let path = format!("/api/v1/namespaces/{}/pods/{}/log{}", encode(&api.namespace), encode(&pod), query(&pairs));
    let mut body = api.stream(&path, "*/*").await?;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the connection to the server was lost")?.into_data() {
            say_bytes(&data)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(seconds(text).ok(), expect, "{text}");
        check("30s", Some(30));
        check("5m", Some(300));
        check("2h", Some(7200));
        check("7", Some(7));
        for bad in ["", "x", "-1s", "0", "99999999999999999999h"] {
            check(bad, None);
        }
    }
}
