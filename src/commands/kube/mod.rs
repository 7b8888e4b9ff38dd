//! placeholder
#[derive(clap::Subcommand)]
pub enum Verb { Noop }
pub async fn run(_: Verb) -> anyhow::Result<std::process::ExitCode> { Ok(std::process::ExitCode::SUCCESS) }
