//! Real pods, driven by a level as the agent drives them: needs root, and removes whatever it makes.

mod fixture;
mod idle;
mod life;
mod refused;
mod streams;

use fixture::Test;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    skiff_runtime::maybe_run_helper();
    fixture::maybe_echo();
    let arguments = Arguments::from_args();
    let missing = !nix::unistd::Uid::effective().is_root() && std::env::var_os("CI").is_none();
    let tables: [&[Test]; 4] = [life::TESTS, idle::TESTS, refused::TESTS, streams::TESTS];
    let trials =
        tables.into_iter().flatten().map(|(name, test)| Trial::test(*name, test).with_ignored_flag(missing)).collect();
    if missing {
        eprintln!("ignored: pods need root");
    }
    let images = fixture::image_dir();
    if !missing
        && let Err(failed) = skiff_runtime::ImageStore::open(&images, &[])
            .map_err(Failed::from)
            .and_then(|store| fixture::shell_image(&store))
    {
        eprintln!("the tests' image: {}", failed.message().unwrap_or_default());
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let _ = std::fs::remove_dir_all(images);
    conclusion.exit();
}
