//! Which node a pod runs on: [`Scheduler::place`] reads the view and decides for every pod that waits.
//!
//! A node that cannot take a pod says why, in the words of kube-scheduler (its users grep for them). Of the nodes that can, a strategy picks; a
//! pod names its strategy by `spec.schedulerName`:
//!
//! | name | picks |
//! |---|---|
//! | `default-scheduler` | the least loaded, apart from its siblings |
//! | `skiff-round-robin` | the next one |
//! | `skiff-random` | any one |
//!
//! Decisions of one call see each other: what the first pod takes, the second no longer finds. No tokio, no clock; the randomness is a
//! parameter.

mod affinity;
mod fit;
mod node;
mod score;

use fit::Misfit;
use k8s_openapi::api::core::v1::Pod;
use node::{Load, Nodes};
use skiff_api::view::{Key, View};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

pub const DEFAULT: &str = "default-scheduler";
pub const ROUND_ROBIN: &str = "skiff-round-robin";
pub const RANDOM: &str = "skiff-random";

/// What was decided for one pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    Bind {
        pod: Key,
        uid: String,
        node: String,
    },
    /// No node can take it; the message counts the reasons.
    Unschedulable {
        pod: Key,
        uid: String,
        message: String,
    },
    /// Deciding failed in a way that is a bug; the others were decided all the same.
    Failed {
        pod: Key,
        uid: String,
        message: String,
    },
}

/// What the strategies remember from one call to the next.
#[derive(Debug, Default)]
pub struct Scheduler {
    /// The node that `skiff-round-robin` chose last.
    last: Option<String>,
}

/// Whether a pod waits for us: not bound, not ending, not gated, and one of our strategies is asked for.
pub fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = matches!(spec.scheduler_name.as_deref().unwrap_or(DEFAULT), DEFAULT | ROUND_ROBIN | RANDOM);
    let bound = spec.node_name.as_deref().is_some_and(|n| !n.is_empty());
    let gated = spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    ours && !bound && !gated && pod.metadata.deletion_timestamp.is_none() && phase == "Pending"
}

impl Scheduler {
    /// Decides for every pod that waits, higher priorities first, then the older. `random` gives numbers for `skiff-random`.
    pub fn place(&mut self, view: &View, random: &mut dyn FnMut() -> u64) -> Vec<Decision> {
        let mut waiting: Vec<_> = view.pods.iter().filter(|(_, p)| is_waiting(p)).collect();
        if waiting.is_empty() {
            return Vec::new();
        }
        waiting.sort_by_key(|(key, p)| {
            let priority = p.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            (std::cmp::Reverse(priority), p.metadata.creation_timestamp.as_ref().map(|t| t.0), (*key).clone())
        });
        let mut nodes = Nodes::new(view);
        let mut decided = Vec::with_capacity(waiting.len());
        for (key, pod) in waiting {
            // A node takes a pod as the last step of a decision, so that half a decision leaves nothing behind.
            let one = AssertUnwindSafe(|| self.decide(view, &mut nodes, key, pod, random));
            decided.push(std::panic::catch_unwind(one).unwrap_or_else(|_| {
                Decision::Failed {
                    pod: key.clone(),
                    uid: pod.metadata.uid.clone().unwrap_or_default(),
                    message:
                        "the scheduler failed on this pod; its log says where. This is a bug of Skiff, please report it"
                            .into(),
                }
            }));
        }
        decided
    }

    fn decide(
        &mut self,
        view: &View,
        nodes: &mut Nodes,
        key: &Key,
        pod: &Arc<Pod>,
        random: &mut dyn FnMut() -> u64,
    ) -> Decision {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let load = Load::of(pod);
        let required = affinity::Required::of(view, nodes, pod);
        let mut misfits: BTreeMap<String, usize> = BTreeMap::new();
        let mut helpful = 0;
        let mut fitting = Vec::new();
        for (index, node) in nodes.list.iter().enumerate() {
            match fit::check(node, pod, &load, &required) {
                Ok(()) => fitting.push(index),
                Err(problems) => {
                    helpful += usize::from(problems.iter().all(Misfit::ends_with_other_pods));
                    for problem in problems {
                        *misfits.entry(problem.to_string()).or_default() += 1;
                    }
                }
            }
        }
        let strategy = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or(DEFAULT);
        let chosen = match strategy {
            ROUND_ROBIN => self.next(nodes, &fitting),
            RANDOM => fitting.get((random() % fitting.len().max(1) as u64) as usize).copied(),
            _ => fitting.into_iter().min_by_key(|i| score::score(&nodes.list[*i], pod, &load, view)),
        };
        let Some(index) = chosen else {
            return Decision::Unschedulable {
                pod: key.clone(),
                uid,
                message: message(nodes.list.len(), misfits, helpful),
            };
        };
        nodes.list[index].take(key, pod, &load);
        let node = nodes.list[index].name.clone();
        if strategy == ROUND_ROBIN {
            self.last = Some(node.clone());
        }
        Decision::Bind { pod: key.clone(), uid, node }
    }

    /// The first fitting node after the last one chosen, by name, around the ring.
    fn next(&self, nodes: &Nodes, fitting: &[usize]) -> Option<usize> {
        let after = |i: &&usize| self.last.as_ref().is_none_or(|last| nodes.list[**i].name > *last);
        fitting.iter().find(after).or(fitting.first()).copied()
    }
}

fn message(total: usize, misfits: BTreeMap<String, usize>, helpful: usize) -> String {
    if total == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut reasons: Vec<_> = misfits.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    let mut preemption = Vec::new();
    if total - helpful > 0 {
        preemption.push(format!("{} Preemption is not helpful for scheduling", total - helpful));
    }
    if helpful > 0 {
        preemption.push(format!("{helpful} No preemption victims found for incoming pod"));
    }
    preemption.sort();
    format!(
        "0/{total} nodes are available: {}. no new claims to deallocate, preemption: 0/{total} nodes are available: {}.",
        reasons.join(", "),
        preemption.join(", ")
    )
}

#[cfg(test)]
mod tests;
