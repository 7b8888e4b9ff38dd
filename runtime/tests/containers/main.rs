//! Real containers, from an image made of the host's shell: needs root, and removes whatever it makes.

mod fixture;
mod guarded;
mod images;
mod life;
mod rights;
mod speed;

use fixture::Test;
use libtest_mimic::{Arguments, Trial};

fn main() {
    skiff_runtime::maybe_run_helper();
    let arguments = Arguments::from_args();
    let root = nix::unistd::Uid::effective().is_root();
    let missing = !root && std::env::var_os("CI").is_none();
    let mut trials = Vec::new();
    let tables: [&[Test]; 5] = [guarded::TESTS, images::TESTS, life::TESTS, rights::TESTS, speed::TESTS];
    for (name, test) in tables.into_iter().flatten() {
        trials.push(Trial::test(*name, test).with_ignored_flag(missing));
    }
    if missing {
        eprintln!("ignored: containers need root");
    }
    libtest_mimic::run(&arguments, trials).exit();
}
