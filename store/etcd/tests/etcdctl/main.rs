//! etcd's own client against the store: every call that it has, on one member and on three.
//!
//! `SKIFF_ETCDCTL` names other binaries, with colons between them; the tests run with each. Without one they are ignored, with the reason;
//! with `CI=true` they fail.

mod cluster;
mod data;
mod members;
mod options;
mod support;

use libtest_mimic::{Arguments, Trial};
use support::Test;

fn main() {
    let arguments = Arguments::from_args();
    let mut failed = false;
    for binary in support::binaries() {
        support::choose(&binary);
        let there = support::version();
        match &there {
            Some(version) => eprintln!("with {version}"),
            None => eprintln!("ignored: there is no {binary} here (Debian's package etcd-client has etcdctl)"),
        }
        let ignored = there.is_none() && std::env::var_os("CI").is_none();
        let tables: [&[Test]; 4] = [data::TESTS, members::TESTS, cluster::TESTS, options::TESTS];
        let trials = tables
            .into_iter()
            .flatten()
            .map(|(name, test)| {
                let test = *test;
                Trial::test(*name, move || support::run(test)).with_ignored_flag(ignored)
            })
            .collect();
        failed |= libtest_mimic::run(&arguments, trials).has_failed();
    }
    if failed {
        std::process::exit(101);
    }
}
