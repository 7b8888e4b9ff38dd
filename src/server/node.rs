//! The node on a server's own machine: its agent, as a child process that is started again when it ends.

use super::{Options, Shared, join};
use anyhow::Context as _;
use jiff::SignedDuration;
use skiff_apiserver::Client;
use skiff_identity::{Role, Token};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// How long the token is good with which the agent enrols.
const TOKEN_LIFE: SignedDuration = SignedDuration::from_mins(10);
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Keeps the agent running until `stop`; then asks it to end. Its pods go on either way.
pub async fn run(shared: Arc<Shared>, client: Client, stop: CancellationToken) {
    loop {
        match start(&shared, &client).await {
            Ok(mut agent) => tokio::select! {
                ended = agent.wait() => tracing::warn!(?ended, "this machine's agent ended; it is started again"),
                () = stop.cancelled() => {
                    if let Some(pid) = agent.id() {
                        let pid = nix::unistd::Pid::from_raw(pid as i32);
                        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
                    }
                    let _ = tokio::time::timeout(Duration::from_secs(2), agent.wait()).await;
                    return;
                }
            },
            Err(e) => tracing::warn!("this machine's agent was not started, trying again: {e:#}"),
        }
        tokio::select! {
            () = tokio::time::sleep(RESTART_AFTER) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn start(shared: &Shared, client: &Client) -> anyhow::Result<tokio::process::Child> {
    let token = Token::generate(shared.authority.ca().hash()?, Role::Agent);
    join::accept_token(client, &token, Some(TOKEN_LIFE)).await?;
    let own = std::env::current_exe().context("finding this binary")?;
    let mut command = Command::new(own);
    // Other users of this machine may read a command line, not an environment.
    command.args(arguments(&shared.options)).env("SKIFF_TOKEN", token.to_string());
    // SAFETY: between fork and exec only one system call is made, which allocates nothing.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).map_err(std::io::Error::from)
        });
    }
    command.spawn().context("starting this machine's agent")
}

/// The agent's command line: what the server was told about its own machine. Authorities of registries are found in the data directory, which is the same one.
fn arguments(options: &Options) -> Vec<std::ffi::OsString> {
    let Options { name, data_dir, listen, advertise, .. } = options;
    let server = format!("127.0.0.1:{}", listen.port());
    let advertise = advertise.to_string();
    let words = ["agent", "--server", &server, "--node-name", name, "--node-ip", &advertise, "--data-dir"];
    let mut arguments: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
    arguments.push(data_dir.into());
    let pids = format!("--pod-pids-limit={}", options.pod_pids_limit);
    let registries = options.insecure_registries.iter().map(|registry| format!("--insecure-registry={registry}"));
    let sysctls = options.allowed_unsafe_sysctls.iter().map(|name| format!("--allowed-unsafe-sysctls={name}"));
    arguments.extend([pids].into_iter().chain(registries).chain(sysctls).map(Into::into));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser as _;

    #[test]
    fn the_agent_is_told_what_the_server_was_told() {
        let typed = "skiff server --name m --advertise 192.0.2.1 --listen 0.0.0.0:7443 --data-dir /d --pod-pids-limit 77 \
            --allowed-unsafe-sysctls kernel.msg*,net.core.somaxconn --insecure-registry a:1 --insecure-registry b:2";
        let Cli { command: crate::cli::Command::Server(args), .. } = Cli::parse_from(typed.split_whitespace()) else {
            panic!()
        };
        let words = std::iter::once("skiff".into()).chain(arguments(&args.options().unwrap()));
        let Cli { command: crate::cli::Command::Agent(args), .. } = Cli::parse_from(words) else { panic!() };
        let agent = args.options().unwrap();
        assert_eq!((agent.node.as_str(), agent.server.as_str(), agent.pod_pids_limit), ("m", "127.0.0.1:7443", 77));
        assert_eq!((agent.node_ip, agent.data_dir), ("192.0.2.1".parse().ok(), "/d".into()));
        assert_eq!(agent.allowed_unsafe_sysctls, ["kernel.msg*", "net.core.somaxconn"]);
        assert_eq!(agent.insecure_registries, ["a:1", "b:2"]);
    }
}
