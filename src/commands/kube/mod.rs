//! Skiff's own verbs with kubectl's words and flags, for those who have no kubectl.
//!
//! ```text
//!   words    -> names      which kinds and objects are meant        (discovery of the server)
//!   files    -> documents  YAML with its file and line              (all are read before anything is sent)
//!   objects  -> output     tables, YAML, JSON, names, JSONPath
//! ```
//!
//! Each verb is a file with its `Options` and a `run`. What is wrong is said on stderr in kubectl's form; the exit code is 1.

pub mod apply;
pub mod ca;
pub mod delete;
pub mod describe;
mod discovery;
mod documents;
pub mod exec;
pub mod get;
pub mod image;
mod jsonpath;
mod locate;
pub mod logs;
pub mod member;
mod names;
mod output;
pub mod scale;
pub mod sealing;
mod target;
mod terminal;
pub mod token;

use crate::client::ApiError;
use std::process::ExitCode;

/// The verbs.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    Apply(apply::Options),
    Get(get::Options),
    Describe(describe::Options),
    Delete(delete::Options),
    Logs(logs::Options),
    Exec(exec::Options),
    Scale(scale::Options),
    Image(image::Options),
    Member(member::Options),
    Token(token::Options),
    Sealing(sealing::Options),
    Ca(ca::Options),
}

/// Runs a verb; its failure is told here, so that scripts see kubectl's words.
pub async fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    let result = match verb {
        Verb::Apply(options) => apply::run(options).await,
        Verb::Get(options) => get::run(options).await,
        Verb::Describe(options) => describe::run(options).await,
        Verb::Delete(options) => delete::run(options).await,
        Verb::Logs(options) => logs::run(options).await,
        Verb::Exec(options) => exec::run(options).await,
        Verb::Scale(options) => scale::run(options).await,
        Verb::Image(options) => image::run(options).await,
        Verb::Member(options) => member::run(options).await,
        Verb::Token(options) => token::run(options).await,
        Verb::Sealing(options) => sealing::run(options).await,
        Verb::Ca(options) => ca::run(options).await,
    };
    Ok(result.unwrap_or_else(|error| {
        if output::reader_is_gone(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("{}", explain(&error));
        ExitCode::FAILURE
    }))
}

/// A failure as kubectl words it: what the server refused, or what went wrong before it was asked.
fn explain(error: &anyhow::Error) -> String {
    let Some(refusal) = error.downcast_ref::<ApiError>() else { return format!("error: {error:#}") };
    let message = refusal.status["message"].as_str().map_or_else(|| refusal.status.to_string(), String::from);
    match refusal.status["reason"].as_str().filter(|r| !r.is_empty()) {
        Some(reason) => format!("Error from server ({reason}): {message}"),
        None => format!("Error from server: {message}"),
    }
}

/// Whether the server said that there is no such thing.
fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(|e| e.code == 404)
}
