//! `/livez`, `/readyz`, `/healthz`: is this server alive, and can it do its work?

use super::{Asked, not_found_page};
use crate::http::respond;
use crate::state::State;
use axum::response::Response;
use std::fmt::Write;

/// The checks behind each path. Alive asks nothing of others; ready needs a leader.
pub fn checks(root: &str) -> &'static [&'static str] {
    match root {
        "readyz" => &["ping", "log", "informer-sync", "poststarthook/rbac/bootstrap-roles", "shutdown", "store"],
        _ => &["ping", "log", "etcd", "poststarthook/rbac/bootstrap-roles"],
    }
}

fn passes(state: &State, check: &str) -> Result<(), String> {
    match check {
        // A leader is known: writes can be done somewhere.
        "store" => match state.store.store().leadership().borrow().leader {
            Some(_) => Ok(()),
            None => Err("the store has no leader".into()),
        },
        "poststarthook/rbac/bootstrap-roles" => match state.ready.load(std::sync::atomic::Ordering::Acquire) {
            true => Ok(()),
            false => Err("the default roles are not there yet".into()),
        },
        _ => Ok(()),
    }
}

pub fn answer(state: &State, asked: &Asked<'_>, root: &str, below: &str) -> Response {
    let text = |code: u16, body: String| respond::response(code, "text/plain; charset=utf-8", body);
    let all = checks(root);
    // A live server answers; only readiness looks at the store.
    let relevant: &[&str] = if below.is_empty() { all } else { &[below] };
    if !below.is_empty() && !all.contains(&below) {
        return not_found_page();
    }
    let mut report = String::new();
    let mut failed = Vec::new();
    for check in relevant {
        if asked.query.all("exclude").any(|e| e == *check) {
            let _ = writeln!(report, "[+]{check} excluded: ok");
            continue;
        }
        match passes(state, check) {
            Ok(()) => {
                let _ = writeln!(report, "[+]{check} ok");
            }
            Err(why) => {
                let _ = writeln!(report, "[-]{check} failed: {why}");
                failed.push(*check);
            }
        }
    }
    if !failed.is_empty() {
        let _ = writeln!(report, "{root} check failed");
        return text(500, report);
    }
    if below.is_empty() && asked.query.has("verbose") {
        let _ = writeln!(report, "{root} check passed");
        return text(200, report);
    }
    text(200, "ok".into())
}
