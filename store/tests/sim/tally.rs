//! How often each thing went wrong, over all seeds: a fault that never happens proves nothing.

use std::collections::BTreeMap;
use std::sync::Mutex;

static COUNTS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// It happened once more.
pub fn count(what: &'static str) {
    *COUNTS.lock().unwrap_or_else(|e| e.into_inner()).entry(what).or_default() += 1;
}

/// Prints the table.
pub fn print() {
    println!("| what happened | times |\n|---|---|");
    for (what, times) in &*COUNTS.lock().unwrap_or_else(|e| e.into_inner()) {
        println!("| {what} | {times} |");
    }
}
