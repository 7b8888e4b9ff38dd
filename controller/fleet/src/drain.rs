//! When a pod that is being deleted may be stopped: once no live node sends it anything new.
//!
//! A rollout drops requests when an old pod is told to stop while somebody's service rules still lead to it. So the deletion is held back
//! from the pod's own node until every live node has acknowledged a revision in which no EndpointSlice offers the pod.

use k8s_openapi::api::core::v1::Pod;
use skiff_api::view::{Key, View};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A node that neither acknowledges nor falls silent must not hold a deletion for ever.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Pods that wait, for one session.
#[derive(Default)]
pub struct Drain {
    waiting: HashMap<String, Waiting>,
}

struct Waiting {
    since: Instant,
    /// The first revision seen in which nothing offers the pod.
    withdrawn_at: Option<u64>,
}

/// Whether any slice in the pod's namespace offers it for new connections.
fn is_offered(view: &View, key: &Key, pod: &Pod) -> bool {
    let uid = pod.metadata.uid.as_deref();
    view.endpoint_slices.namespace(&key.namespace).any(|(_, slice)| {
        slice.endpoints.iter().flatten().any(|e| {
            e.target_ref.as_ref().and_then(|t| t.uid.as_deref()) == uid
                && e.conditions.as_ref().is_none_or(|c| c.ready != Some(false))
        })
    })
}

/// Whether any slice lists the pod at all: then it served.
fn is_listed(view: &View, key: &Key, pod: &Pod) -> bool {
    let uid = pod.metadata.uid.as_deref();
    let mut slices = view.endpoint_slices.namespace(&key.namespace);
    slices
        .any(|(_, s)| s.endpoints.iter().flatten().any(|e| e.target_ref.as_ref().and_then(|t| t.uid.as_deref()) == uid))
}

impl Drain {
    /// Whether the node may be told now. `acknowledged` says whether every live node has taken in a revision.
    pub fn may_stop(
        &mut self,
        view: &View,
        key: &Key,
        pod: &Pod,
        now: Instant,
        acknowledged: impl Fn(u64) -> bool,
    ) -> bool {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let force = pod.metadata.deletion_grace_period_seconds == Some(0);
        if force || (!is_listed(view, key, pod) && !self.waiting.contains_key(&uid)) {
            return true;
        }
        let waiting = self.waiting.entry(uid).or_insert(Waiting { since: now, withdrawn_at: None });
        if waiting.withdrawn_at.is_none() && !is_offered(view, key, pod) {
            waiting.withdrawn_at = Some(view.revision);
        }
        waiting.withdrawn_at.is_some_and(acknowledged) || now.duration_since(waiting.since) > WAIT_MAX
    }

    /// Whether somebody waits: then acknowledgements matter.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Forgets a pod that was let go or is no more.
    pub fn done(&mut self, uid: &str) {
        self.waiting.remove(uid);
    }
}
