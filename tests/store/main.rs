//! The store as its operators use it: whole processes of `skiff store`, its commands, and etcd's own client beside them.
//!
//! `SKIFF_ETCDCTL` names the client (the first, where it names several). Without one, what needs it is ignored, with the reason; with
//! `CI=true` it fails.

mod certificates;
mod keys;
mod lost_quorum;
mod members;
mod probes;
mod serving;
mod snapshots;
mod support;
mod tls;
mod verify;

use libtest_mimic::{Arguments, Trial};
use support::Test;

fn main() {
    skiff_identity::install_crypto();
    let arguments = Arguments::from_args();
    let there = support::etcdctl_version();
    match &there {
        Some(version) => eprintln!("with {version}"),
        None => eprintln!("ignored: there is no etcdctl here (Debian's package etcd-client has it)"),
    }
    let ignored = there.is_none() && std::env::var_os("CI").is_none();
    let tables: [&[Test]; 8] = [
        snapshots::TESTS,
        verify::TESTS,
        lost_quorum::TESTS,
        members::TESTS,
        tls::TESTS,
        keys::TESTS,
        serving::TESTS,
        probes::TESTS,
    ];
    let trials = tables.into_iter().flatten().map(|(name, test)| {
        let test = *test;
        Trial::test(*name, move || support::run(test)).with_ignored_flag(ignored)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
