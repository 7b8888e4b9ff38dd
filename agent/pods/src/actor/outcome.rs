//! What happened to a pod, folded into what is known of it: exits, results of tasks, words of probes.

use std::time::Duration;

use skiff_runtime::Phase;

use super::{Actor, CONFIG_RETRY_MS, Event, SETUP_FIRST_MS, SETUP_LONGEST_MS};
use crate::backoff::Backoff;
use crate::context::now_ms;
use crate::logs::last_words;
use crate::observed::{End, Exit, Sandbox, Stage, Volumes, container_id};
use crate::plan::{is_sidecar, restarts};
use crate::probe::{Kind, News};
use crate::start::{StartError, Started};
use crate::translate::identity;

impl Actor {
    /// Folds the runtime's state into what is known: exits, and the loss of the whole sandbox.
    pub(super) async fn observe(&mut self) {
        let Some(made) = self.made.clone() else { return };
        let state = made.state();
        let running: Vec<(String, u32)> = self
            .observed
            .containers
            .iter()
            .filter(|(_, seen)| matches!(seen.stage, Stage::Running { .. }))
            .map(|(name, seen)| (name.clone(), seen.attempt))
            .collect();
        for (name, attempt) in running {
            let id = container_id(&name, attempt);
            let found = state.containers.iter().find(|container| container.id == id);
            let exit = match found {
                Some(ended) if ended.phase == Phase::Exited => Some(self.exit_of(&name, attempt, ended)),
                Some(_) if !state.gone => None,
                None if !state.gone && !state.synced => None,
                _ => Some(Exit {
                    id: id.clone(),
                    code: 137,
                    reason: "ContainerStatusUnknown".into(),
                    message: "The container ended together with the pod's helper process".into(),
                    started_ms: now_ms(),
                    finished_ms: now_ms(),
                    ..Exit::default()
                }),
            };
            if let Some(exit) = exit {
                self.ended(&name, exit).await;
                if !state.gone {
                    let made = made.clone();
                    tokio::spawn(async move { made.remove_container(&id).await });
                }
            }
        }
        if state.gone && matches!(self.observed.sandbox, Sandbox::Ready { .. }) {
            self.observed.sandbox = Sandbox::Lost;
            self.event(None, false, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.".into())
                .await;
        }
        if state.fenced && self.observed.end.is_none() {
            let message = "The node lost its lease on the pod, which may run elsewhere by now".into();
            self.observed.end = Some(End { failed: true, reason: "NodeLost".into(), message });
        }
    }

    fn exit_of(&self, name: &str, attempt: u32, ended: &skiff_runtime::ContainerState) -> Exit {
        let reason = match (ended.oom_killed, ended.exit_code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            _ => "Error",
        };
        let fallback = self
            .container(name)
            .is_some_and(|c| c.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"));
        let log = (fallback && ended.exit_code != 0).then(|| self.paths.log(name, attempt));
        Exit {
            id: ended.id.clone(),
            code: ended.exit_code,
            signal: ended.signal,
            reason: reason.into(),
            message: last_words(&self.paths.termination(name, attempt), log.as_deref()),
            started_ms: ended.started_ms,
            finished_ms: ended.finished_ms,
        }
    }

    pub(super) async fn ended(&mut self, name: &str, exit: Exit) {
        self.live.remove(name);
        let code = exit.code;
        let seen = self.seen(name);
        seen.stage = Stage::Exited(exit);
        (seen.started, seen.ready) = (false, false);
        let waits = seen.backoff.wait_ms > 0;
        let container = self.container(name);
        let again = self.pod().spec.as_ref().is_some_and(|spec| restarts(spec, code))
            || container.as_ref().is_some_and(is_sidecar);
        if waits && again && self.pod().metadata.deletion_timestamp.is_none() && self.observed.end.is_none() {
            let id = identity(self.pod());
            let message =
                format!("Back-off restarting failed container {name} in pod {}_{}({})", id.name, id.namespace, id.uid);
            self.event(Some(name), true, "BackOff", message).await;
        }
    }

    pub(super) async fn handle(&mut self, event: Event) {
        let now = now_ms();
        match event {
            Event::Sandbox(Ok((made, ip))) => {
                self.set_made(made);
                self.sandbox_backoff = Backoff::default();
                let ip = ip.map(|ip| ip.to_string());
                self.observed.sandbox = Sandbox::Ready { ip: ip.clone() };
                let host = self.ctx.config.host_ips.first().cloned();
                self.observed.ip = ip;
                self.observed.shown_ip = self.observed.ip.clone().or(host);
            }
            Event::Sandbox(Err((reason, message))) => {
                self.sandbox_backoff.attempt_within(now, SETUP_FIRST_MS, SETUP_LONGEST_MS);
                let retry_ms = now + self.sandbox_backoff.wait_ms;
                self.observed.sandbox = Sandbox::Failed { message: message.clone(), retry_ms };
                self.event(None, true, reason, message).await;
            }
            Event::TornDown => self.torn_down(),
            Event::Files { first, result } => self.files_written(first, result, now).await,
            Event::Started { name, attempt, result } => self.started(&name, attempt, result, now).await,
            Event::Probe { name, attempt, news } => self.probed(&name, attempt, news).await,
        }
    }

    /// Nothing of the sandbox is left. If the pod goes on, everything that ran in it starts over.
    fn torn_down(&mut self) {
        self.observed.sandbox = Sandbox::None;
        self.observed.volumes = Volumes::None;
        self.renew_ms = u64::MAX;
        self.observed.ip = None;
        if self.observed.end.is_some() || self.pod().metadata.deletion_timestamp.is_some() {
            return;
        }
        let spec = self.pod().spec.clone().unwrap_or_default();
        let init: Vec<&str> = spec.init_containers.iter().flatten().map(|container| container.name.as_str()).collect();
        for (name, seen) in &mut self.observed.containers {
            if let Stage::Exited(exit) = &seen.stage
                && (init.contains(&name.as_str()) || restarts(&spec, exit.code))
            {
                seen.last = Some(exit.clone());
                seen.attempt += 1;
                seen.restarts += 1;
                seen.stage = Stage::default();
            }
        }
    }

    async fn files_written(&mut self, first: bool, result: Result<u64, String>, now: u64) {
        self.refreshing = false;
        match result {
            // The sandbox went meanwhile, and the files with it.
            _ if self.made.is_none() || (first && self.observed.volumes != Volumes::Preparing) => {}
            Ok(renew_ms) => {
                self.renew_ms = renew_ms;
                self.files_backoff = Backoff::default();
                if first {
                    self.observed.volumes = Volumes::Ready;
                }
            }
            Err(why) => {
                self.event(None, true, "FailedMount", why.clone()).await;
                self.files_backoff.attempt_within(now, SETUP_FIRST_MS, SETUP_LONGEST_MS);
                let retry_ms = now + self.files_backoff.wait_ms;
                self.renew_ms = if first { u64::MAX } else { retry_ms };
                if first {
                    self.observed.volumes = Volumes::Failed { message: why, retry_ms };
                }
            }
        }
    }

    async fn started(&mut self, name: &str, attempt: u32, result: Result<Started, StartError>, now: u64) {
        let seen = self.seen(name);
        if seen.attempt != attempt || !matches!(seen.stage, Stage::Starting) {
            return;
        }
        let waiting = |reason: &str, message: String, retry_ms: u64| Stage::Waiting {
            reason: reason.into(),
            message,
            retry_ms,
            since_ms: now,
        };
        match result {
            Ok(started) => {
                seen.image_ref = started.image_ref;
                seen.image_backoff = Default::default();
                seen.stage = Stage::Running { started_ms: now, killing: false };
                self.start_probes(name, Duration::ZERO);
                if let Some(why) = started.hook_failure {
                    let grace =
                        self.pod().spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
                    let message = format!("FailedPostStartHook: {why}");
                    self.kill(name, grace.max(0) as u64, Some(message)).await;
                }
            }
            Err(StartError::Image { reason, message }) => {
                seen.image_backoff.attempt(now);
                let retry_ms = now + seen.image_backoff.wait_ms;
                seen.stage = waiting(reason, message, retry_ms);
            }
            Err(StartError::Config(message)) => {
                seen.stage = waiting("CreateContainerConfigError", message, now + CONFIG_RETRY_MS)
            }
            Err(StartError::Unsupported(message)) => {
                seen.image_backoff.attempt(now);
                let retry_ms = now + seen.image_backoff.wait_ms;
                seen.stage = waiting("CreateContainerError", message, retry_ms);
            }
            Err(StartError::Run { image_ref, message }) => {
                seen.image_ref = image_ref;
                let exit = Exit {
                    id: container_id(name, attempt),
                    code: 128,
                    reason: "StartError".into(),
                    message,
                    started_ms: now,
                    finished_ms: now,
                    ..Exit::default()
                };
                self.ended(name, exit).await;
            }
            Err(StartError::Cancelled) => seen.stage = Stage::default(),
        }
    }

    async fn probed(&mut self, name: &str, attempt: u32, news: News) {
        let seen = self.seen(name);
        if seen.attempt != attempt || !matches!(seen.stage, Stage::Running { .. }) {
            return;
        }
        match news {
            News::Started => seen.started = true,
            News::Ready(ready) => seen.ready = ready,
            News::Failed(kind, why) => {
                let message = format!("{} probe failed: {why}", kind.word());
                self.event(Some(name), true, "Unhealthy", message).await;
            }
            News::Dead(kind, grace) => {
                let own = self.pod().spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
                let grace = grace.unwrap_or_else(|| own.unwrap_or(30).max(0) as u64);
                let word = if kind == Kind::Startup { "startup" } else { "liveness" };
                let message = format!("Container {name} failed {word} probe, will be restarted");
                self.kill(name, grace, Some(message)).await;
            }
        }
    }
}
