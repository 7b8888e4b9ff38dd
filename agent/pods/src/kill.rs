//! Stopping one container: pre-stop hook, signal, patience, kill.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::check::Target;
use crate::context::Context;
use crate::start::run_hook;

/// What a container gets after its hook, however long that took: the kubelet's minimum.
const LEAST_AFTER_HOOK: Duration = Duration::from_secs(2);

/// One stop.
pub struct Killer {
    /// The node.
    pub ctx: Arc<Context>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container.
    pub container: Container,
    /// Where it is.
    pub target: Target,
    /// From now to the kill.
    pub grace: Duration,
    /// Run the pre-stop hook first.
    pub hook: bool,
    /// The signal that asks.
    pub signal: i32,
}

impl Killer {
    /// Stops the container; its end shows in the runtime's state.
    pub async fn kill(self) {
        let begun = Instant::now();
        let id = &self.target.container_id;
        if self.grace.is_zero() {
            let _ = self.target.pod.signal(id, libc::SIGKILL, true).await;
            return;
        }
        let hook = self.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        if let Some(hook) = hook.filter(|_| self.hook)
            && let Err(why) = run_hook(hook, &self.container, &self.target, self.grace).await
        {
            self.ctx
                .event(
                    &self.pod,
                    Some(&self.container.name),
                    true,
                    "FailedPreStopHook",
                    format!("PreStopHook failed: {why}"),
                )
                .await;
        }
        let left = self.grace.saturating_sub(begun.elapsed()).max(LEAST_AFTER_HOOK.min(self.grace));
        // An error says that it has ended already.
        let _ = self.target.pod.signal(id, self.signal, false).await;
        if tokio::time::timeout(left, self.target.pod.wait_exit(id)).await.is_err() {
            let _ = self.target.pod.signal(id, libc::SIGKILL, true).await;
        }
    }
}
