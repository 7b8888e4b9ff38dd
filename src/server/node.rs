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
    let Options { name, data_dir, listen, advertise, .. } = &shared.options;
    let own = std::env::current_exe().context("finding this binary")?;
    let mut command = Command::new(own);
    command.arg("agent").arg("--server").arg(format!("127.0.0.1:{}", listen.port()));
    // Other users of this machine may read a command line, not an environment.
    command.env("SKIFF_TOKEN", token.to_string()).arg("--node-name").arg(name);
    command.arg("--node-ip").arg(advertise.to_string()).arg("--data-dir").arg(data_dir);
    for registry in &shared.options.insecure_registries {
        command.arg("--insecure-registry").arg(registry);
    }
    // SAFETY: between fork and exec only one system call is made, which allocates nothing.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).map_err(std::io::Error::from)
        });
    }
    command.spawn().context("starting this machine's agent")
}
