//! The `skiff` binary: everything is a subcommand of it, the pods' helper process too.

fn main() -> std::process::ExitCode {
    // First of all, while this process has one thread: as a pod's helper it never returns.
    skiff_runtime::maybe_run_helper();
    skiff::run()
}
