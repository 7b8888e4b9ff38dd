//! The parts of Skiff, tied together: a file for each command, and the two long-running processes.
//!
//! | module | is |
//! |---|---|
//! | [`cli`] | the commands and their options |
//! | [`server`] | `skiff server`: store, API, controllers, scheduler, fleet in one process |
//! | [`agent`] | `skiff agent`: pods, network, DNS of one node |
//! | [`workload`] | what the demo's pods run |
//! | [`commands`] | what people type: `up`, `demo`, `apply`, `get`, ... |

#![allow(clippy::result_large_err, reason = "a Status is the API's answer; it is made on failures only")]

pub mod agent;
pub mod cli;
pub mod client;
pub mod commands;
mod memory;
mod secrets;
pub mod server;
mod supervise;
mod transfer;
pub mod workload;

/// Runs the command line; the exit code says how it went.
pub fn run() -> std::process::ExitCode {
    skiff_identity::install_crypto();
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("skiff: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
