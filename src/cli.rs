//! The commands and how each is run.

use crate::commands::{bench, demo, kube, run, store, up};
use crate::workload::{load, web};
use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A container orchestrator that speaks the Kubernetes API, in one binary.
#[derive(Parser)]
#[command(name = "skiff", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Demo(demo::DemoArgs),
    Up(up::UpArgs),
    Down(up::DownArgs),
    Status(up::StatusArgs),
    Server(run::ServerArgs),
    Agent(run::AgentArgs),
    Store(store::StoreArgs),
    /// The local cluster's first process
    #[command(hide = true)]
    LocalSupervisor {
        spec: std::path::PathBuf,
    },
    /// Hand the demo's image to the cluster of the current kubeconfig
    #[command(hide = true)]
    DemoImage,
    #[command(hide = true)]
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    Web(web::WebArgs),
    #[command(hide = true)]
    Load(load::LoadArgs),
    #[command(flatten)]
    Kube(kube::Verb),
}

/// Reads the command line and runs the command.
pub fn run() -> anyhow::Result<ExitCode> {
    crate::secrets::leave_the_arguments().context("beginning again, with the token in the environment")?;
    let cli = Cli::parse();
    crate::secrets::leave_the_environment();
    match cli.command {
        Command::Server(args) => {
            // Whatever a server writes is its own: keys, every object, images.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
            log_to_stderr();
            crate::memory::few_arenas();
            block_on(2, crate::server::run(args.options()?))?;
        }
        Command::Agent(args) => {
            // What containers share with their host has the modes that are asked for; what the agent keeps for itself says so.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
            log_to_stderr();
            crate::memory::few_arenas();
            block_on(2, crate::agent::run(args.options()?))?;
        }
        // Before any thread exists: it makes namespaces for itself.
        Command::LocalSupervisor { spec } => skiff_local::supervisor_main(&spec)?,
        Command::Store(args) => return store::run(args),
        Command::Demo(args) => return block_on(2, demo::run(args)),
        Command::Bench(args) => return block_on(2, bench::run(args)),
        Command::Up(args) => return block_on(1, up::up(args)),
        Command::Down(args) => return block_on(1, up::down(args)),
        Command::Status(args) => return block_on(1, up::status(args)),
        Command::DemoImage => block_on(1, crate::workload::image::hand_in(&crate::client::Api::from_environment()?))?,
        Command::Web(args) => block_on(1, web::run(args))?,
        Command::Load(args) => block_on(1, load::run(args))?,
        Command::Kube(verb) => return block_on(1, kube::run(verb)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The runtime of a command: as many threads as it needs, no more memory than that.
pub fn block_on<T>(threads: usize, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(16)
        .thread_stack_size(2 << 20)
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result
}

/// Messages of a process that serves go to stderr; `SKIFF_LOG` chooses which.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SKIFF_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
