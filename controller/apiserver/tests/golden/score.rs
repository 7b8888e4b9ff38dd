//! The score: every scenario of a profile replayed, and what came of it printed by topic.

use crate::{corpus, replay};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

/// Steps that were answered as recorded, and all that were judged.
pub type Steps = (usize, usize);
/// Scenarios that passed, and all that were replayed.
pub type Passed = (BTreeSet<String>, BTreeSet<String>);

/// Replays all scenarios of a profile and prints how they went, by topic.
pub async fn score(address: SocketAddr, folder: &Path, profile: &str) -> anyhow::Result<(Steps, Passed)> {
    let only = std::env::var("SKIFF_GOLDEN_ONLY").unwrap_or_default();
    let verbose = std::env::var_os("SKIFF_GOLDEN_VERBOSE").is_some();
    let (mut good, mut all, mut managed) = (0, 0, 0);
    let mut passed: Passed = Default::default();
    for topic in corpus::read(folder) {
        let (mut topic_good, mut topic_all) = (0, 0);
        for scenario in topic.scenarios.iter().filter(|s| s.profile == profile) {
            let id = format!("{}/{}", topic.topic, scenario.name);
            if !id.starts_with(&only) {
                continue;
            }
            let outcomes = replay::scenario(address, &topic.topic, scenario).await;
            let ok = outcomes.iter().filter(|o| o.problem.is_none()).count();
            managed += outcomes.iter().filter(|o| o.managed_fields_differ.is_some()).count();
            println!("  {id}: {ok}/{}", outcomes.len());
            if verbose {
                for outcome in &outcomes {
                    if let Some(problem) = &outcome.problem {
                        println!("      {}: {problem}", outcome.name);
                    } else if let Some(how) = &outcome.managed_fields_differ {
                        println!("      {}: managed fields differ: {how}", outcome.name);
                    }
                }
            }
            if ok == outcomes.len() {
                passed.0.insert(id.clone());
            }
            passed.1.insert(id);
            topic_good += ok;
            topic_all += outcomes.len();
        }
        if topic_all > 0 {
            println!("{}: {topic_good}/{topic_all}", topic.topic);
        }
        good += topic_good;
        all += topic_all;
    }
    println!(
        "all: {good}/{all} steps, {}/{} scenarios; managed fields differ in {managed} more",
        passed.0.len(),
        passed.1.len()
    );
    Ok(((good, all), passed))
}
