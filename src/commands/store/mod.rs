//! `skiff store`: the key-value store on its own, as an etcd v3 server, and the tools for its data.

mod bench;
mod member;
mod members;
mod peer_files;
mod recover;
mod serve;
mod snapshot;

use anyhow::Context as _;
use clap::Subcommand;
use skiff_store::Peer;
use std::process::ExitCode;

/// The replicated key-value store on its own: an etcd v3 server, and tools for its data
#[derive(clap::Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Subcommand)]
enum StoreCommand {
    Serve(Box<serve::ServeArgs>),
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    Members(members::MembersArgs),
    Verify(recover::VerifyArgs),
    Recover(recover::RecoverArgs),
    Bench(bench::BenchArgs),
}

/// Runs one of them.
pub fn run(args: StoreArgs) -> anyhow::Result<ExitCode> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    match args.command {
        StoreCommand::Serve(args) => {
            crate::cli::log_to_stderr();
            crate::cli::block_on(threads, serve::run(*args))?;
        }
        StoreCommand::Snapshot(command) => crate::cli::block_on(1, snapshot::run(command))?,
        StoreCommand::Members(args) => crate::cli::block_on(1, members::run(args))?,
        StoreCommand::Verify(args) => recover::verify(&args)?,
        StoreCommand::Recover(args) => recover::recover(&args)?,
        StoreCommand::Bench(args) => crate::cli::block_on(threads, bench::run(args))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `host:port` from an address or a URL, as etcd's flags have them.
fn address(text: &str) -> anyhow::Result<String> {
    let bare = text.trim().trim_start_matches("http://").trim_start_matches("https://").trim_end_matches('/');
    let port = bare.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
    let port = port.with_context(|| format!("{text:?} is no address: write host:port"))?;
    port.parse::<u16>().with_context(|| format!("the port of {text:?}"))?;
    Ok(bare.to_owned())
}

/// The members of a new cluster: `name=host:port,...`.
fn peers(text: &str) -> anyhow::Result<Vec<Peer>> {
    text.split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let (name, addr) = part
                .split_once('=')
                .with_context(|| format!("{part:?} in the initial cluster: write name=host:port for each member"))?;
            Ok(Peer { name: name.trim().to_owned(), addr: address(addr)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_clusters() {
        let check = |text: &str, expect: Option<&[(&str, &str)]>| {
            let found = peers(text).ok();
            let found: Option<Vec<_>> =
                found.as_ref().map(|f| f.iter().map(|p| (p.name.as_str(), p.addr.as_str())).collect());
            assert_eq!(found.as_deref(), expect, "{text}");
        };
        check("a=10.0.0.1:2380,b=http://10.0.0.2:2380/", Some(&[("a", "10.0.0.1:2380"), ("b", "10.0.0.2:2380")]));
        check("a=10.0.0.1", None);
        check("10.0.0.1:2380", None);
        check("", Some(&[]));
    }
}
