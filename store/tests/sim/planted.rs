//! The bugs that are planted one at a time, each to be found by some seed.

use crate::checks::Violation;
use std::time::{Duration, Instant};

/// Where each is: `bug!("name")` in the store's code.
pub const BUGS: &[&str] = &[
    "acknowledge_before_write",
    "alone_in_one_half",
    "append_batched_by_raft",
    "append_without_sync",
    "checksum_not_checked",
    "cleaning_loses_a_version",
    "commands_applied_twice",
    "compaction_drops_live_version",
    "delete_without_tombstone",
    "everybody_stands_for_election",
    "failed_txn_partly_applied",
    "fence_ignored",
    "follower_commits_what_it_has",
    "hard_state_lost_on_reset",
    "hard_state_not_in_new_segment",
    "install_keeps_watches",
    "lease_end_leaves_a_key",
    "lease_read_after_transfer",
    "lease_read_without_quorum",
    "log_dropped_too_far",
    "log_gap_under_snapshot_refused",
    "log_suffix_not_replaced",
    "many_changes_without_a_joint_step",
    "membership_not_applied_by_followers",
    "new_leader_counts_leases_from_before",
    "own_proposal_of_another_term",
    "part_not_looked_at_after_a_crash",
    "part_of_a_batch_left_behind",
    "part_of_another_snapshot_continued",
    "read_index_before_apply",
    "read_index_without_quorum",
    "read_numbers_are_not_unique",
    "received_snapshot_not_checked",
    "removed_leader_goes_on",
    "restart_forgets_agreed_changes",
    "restart_forgets_promise",
    "sent_work_called_fenced",
    "snapshot_not_applied_for_raft",
    "snapshot_removed_while_it_is_sent",
    "snapshot_restores_wrong_revision",
    "snapshot_without_sessions",
    "speaks_before_its_term_is_written",
    "torn_tail_kept",
    "vote_not_persisted",
    "watch_skips_a_revision",
];

/// Bounds for one bug.
const SEEDS_MAX: u64 = 20_000;
const TIME_MAX: Duration = Duration::from_secs(180);

type Found = (u64, u64, Option<(u64, Violation)>);

/// Finds each, and prints how.
pub fn find_all(hunt: &dyn Fn(u64, u64, Duration, Option<&'static str>) -> Found) -> bool {
    let (began, mut missed) = (Instant::now(), 0);
    println!("| planted bug | seeds | found by |\n|---|---|---|");
    for bug in BUGS {
        match hunt(1, SEEDS_MAX, TIME_MAX, Some(bug)) {
            (tried, _, Some((_, violation))) => println!("| {bug} | {tried} | {} |", violation.invariant),
            (tried, ..) => {
                missed += 1;
                println!("| {bug} | {tried} | NOT FOUND |");
            }
        }
    }
    println!("{} planted bugs, {missed} not found, {:.1} s", BUGS.len(), began.elapsed().as_secs_f64());
    missed == 0
}
