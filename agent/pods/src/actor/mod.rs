//! The task of one pod: it plans, acts, and folds what happens into what is known.
//!
//! It owns the pod's state alone. Everything slow runs in tasks of its own that come back with an [`Event`]; nothing in
//! here waits for a process, an image or a network. So a pod that hangs hurts nobody, and a deletion is heard at once.

mod outcome;
mod publish;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use skiff_runtime::{Pod as RuntimePod, PodState as RuntimeState};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::admit;
use crate::backoff::Backoff;
use crate::caught::caught;
use crate::context::{Context, now_ms};
use crate::desired::Key;
use crate::kill::Killer;
use crate::observed::{ContainerObserved, End, Observed, Sandbox, Stage, Volumes, container_id};
use crate::plan::{Action, PodState, plan};
use crate::prepare;
use crate::probe::{self, News};
use crate::record::Record;
use crate::start::{StartError, Started, Starter, target};
use crate::translate::{PodPaths, identity, stop_signal};
use crate::visible::Directory;

/// Results of a pod's tasks that wait to be read; more than a pod with many containers ever has at once.
const EVENTS_MAX: usize = 64;
/// Until a sandbox that could not be removed is tried again.
const RETRY_MS: u64 = 2_000;
/// Between attempts to make a sandbox or to fill volumes: doubled from the first to the longest, as the kubelet does
/// (its exponential back-off of volume operations).
const SETUP_FIRST_MS: u64 = 500;
const SETUP_LONGEST_MS: u64 = 122_000;
/// Until a container whose configuration lacks something is tried again, unless the objects change before.
const CONFIG_RETRY_MS: u64 = 5_000;

/// The level as far as one pod is concerned.
#[derive(Debug, Clone, Default)]
pub struct Input {
    /// Its object.
    pub pod: Arc<Pod>,
    /// It is not on the list any more.
    pub removed: bool,
    /// It is deleted, but must go on.
    pub hold: bool,
    /// Counts changes of the objects that it refers to.
    pub objects: u64,
}

/// What comes back from a pod's tasks.
enum Event {
    Sandbox(Result<(RuntimePod, Option<Ipv4Addr>), prepare::SandboxError>),
    TornDown,
    Files { first: bool, result: Result<u64, String> },
    Started { name: String, attempt: u32, result: Result<Started, StartError> },
    Probe { name: String, attempt: u32, news: News },
}

/// Tasks that live as long as a container's instance.
#[derive(Default)]
struct Live {
    probes: Option<AbortOnDropHandle<()>>,
    kill: Option<(AbortOnDropHandle<()>, u64)>,
    cancel: CancellationToken,
}

/// One pod's task.
pub struct Actor {
    ctx: Arc<Context>,
    directory: Directory,
    input: watch::Receiver<Input>,
    current: Input,
    paths: PodPaths,
    observed: Observed,
    made: Option<RuntimePod>,
    states: Option<watch::Receiver<RuntimeState>>,
    live: BTreeMap<String, Live>,
    reported: PodStatus,
    /// Whether this agent has told the status since it started.
    told: bool,
    saved: Option<Observed>,
    /// When files want to be written again for their tokens.
    renew_ms: u64,
    refreshing: bool,
    sandbox_backoff: Backoff,
    files_backoff: Backoff,
    /// The pod was over before this agent ever saw it: its status is not ours to write.
    quiet: bool,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
}

impl Actor {
    /// A pod that is new here.
    pub fn new(ctx: Arc<Context>, directory: Directory, mut input: watch::Receiver<Input>) -> Actor {
        let current = input.borrow_and_update().clone();
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let paths = PodPaths::new(&ctx.config.root_dir, &ctx.config.log_dir, &identity(&current.pod));
        let written = current.pod.status.clone().unwrap_or_default();
        let over = matches!(written.phase.as_deref(), Some("Succeeded" | "Failed"));
        let mut observed = Observed { start_ms: now_ms(), ..Observed::default() };
        if over {
            let failed = written.phase.as_deref() == Some("Failed");
            observed.end =
                Some(End { failed, reason: written.reason.clone().unwrap_or_default(), message: String::new() });
        }
        Actor {
            ctx,
            directory,
            input,
            current,
            paths,
            observed,
            made: None,
            states: None,
            live: BTreeMap::new(),
            reported: PodStatus::default(),
            told: false,
            saved: None,
            renew_ms: u64::MAX,
            refreshing: false,
            sandbox_backoff: Backoff::default(),
            files_backoff: Backoff::default(),
            quiet: over,
            events,
            sender,
        }
    }

    /// A pod that an agent before this one ran: `made` is its sandbox if that still lives.
    pub fn adopt(
        ctx: Arc<Context>,
        directory: Directory,
        input: watch::Receiver<Input>,
        record: Record,
        made: Option<RuntimePod>,
    ) -> Actor {
        let mut actor = Actor::new(ctx, directory, input);
        actor.observed = record.observed;
        actor.reported = record.status;
        actor.quiet = false;
        let alive = made.is_some();
        if let Some(made) = made {
            actor.set_made(made);
        }
        actor.resume(alive);
        actor
    }

    /// What was under way when the agent stopped is taken up from what the runtime says.
    fn resume(&mut self, alive: bool) {
        match (&self.observed.sandbox, alive) {
            (Sandbox::Ready { .. }, true) | (Sandbox::None, false) => {}
            _ => self.observed.sandbox = Sandbox::Lost,
        }
        if self.observed.volumes != Volumes::Ready {
            self.observed.volumes = Volumes::None;
        }
        let made = self.made.clone();
        let mut running = Vec::new();
        for (name, seen) in &mut self.observed.containers {
            let state = made.as_ref().and_then(|made| made.container(&container_id(name, seen.attempt)));
            if matches!(seen.stage, Stage::Starting) {
                seen.stage = match state {
                    Some(state) => Stage::Running { started_ms: state.started_ms, killing: false },
                    None => Stage::default(),
                };
            }
            if let Stage::Running { started_ms, killing } = &mut seen.stage {
                *killing = false;
                running.push((name.clone(), *started_ms));
            }
        }
        if alive && self.observed.sandbox != Sandbox::Lost {
            for (name, started_ms) in running {
                self.start_probes(&name, Duration::from_millis(now_ms().saturating_sub(started_ms)));
            }
            // Idempotent: addresses and tokens as they should be.
            self.rewire();
            self.refresh(false);
        }
    }

    /// Runs until the pod is gone or the agent ends.
    pub async fn run(mut self) {
        self.admit().await;
        loop {
            self.observe().await;
            let now = now_ms();
            let input = self.current.clone();
            let plan =
                plan(PodState { pod: &input.pod, removed: input.removed, hold: input.hold }, &self.observed, now);
            let mut again = false;
            for action in plan.actions {
                again |= self.act(action, now).await;
            }
            if again {
                continue;
            }
            self.publish(now).await;
            if self.observed.cleaned {
                return;
            }
            let wake_ms = plan.wake_ms.unwrap_or(u64::MAX).min(self.renew_ms);
            tokio::select! {
                changed = self.input.changed() => match changed {
                    Ok(()) => self.take_input(),
                    // The agent ends; the pod goes on without it.
                    Err(_) => return,
                },
                Some(event) = self.events.recv() => self.handle(event).await,
                () = changed(&mut self.states) => {}
                () = sleep_until(wake_ms), if wake_ms < u64::MAX => {
                    if self.renew_ms <= now_ms() {
                        self.refresh(false);
                    }
                }
            }
            while let Ok(event) = self.events.try_recv() {
                self.handle(event).await;
            }
        }
    }

    /// A pod of which nothing has run yet may be refused altogether.
    async fn admit(&mut self) {
        let begun = self.made.is_some() || !self.observed.containers.is_empty() || self.observed.end.is_some();
        if begun || self.pod().metadata.deletion_timestamp.is_some() {
            return;
        }
        let host = admit::Host::read();
        if let Some(end) = admit::refusal(self.pod(), &self.ctx.config.allowed_unsafe_sysctls, host) {
            self.act(Action::End(end), now_ms()).await;
            return;
        }
        for ignored in admit::ignored(self.pod(), host) {
            self.event(None, true, "IgnoredField", ignored.into()).await;
        }
    }

    fn take_input(&mut self) {
        let next = self.input.borrow_and_update().clone();
        let objects_changed = next.objects != self.current.objects;
        let labels_changed = next.pod.metadata.labels != self.current.pod.metadata.labels
            || next.pod.metadata.annotations != self.current.pod.metadata.annotations;
        self.current = next;
        if objects_changed {
            // What was missing may be there now.
            for seen in self.observed.containers.values_mut() {
                if let Stage::Waiting { reason, retry_ms, .. } = &mut seen.stage
                    && reason == "CreateContainerConfigError"
                {
                    *retry_ms = 0;
                }
            }
            if let Volumes::Failed { retry_ms, .. } = &mut self.observed.volumes {
                *retry_ms = 0;
            }
        }
        if (objects_changed || labels_changed) && prepare::follows_objects(&self.current.pod) {
            self.refresh(false);
        }
    }

    fn pod(&self) -> &Arc<Pod> {
        &self.current.pod
    }

    fn key(&self) -> Key {
        let id = identity(self.pod());
        (id.namespace, id.name)
    }

    fn container(&self, name: &str) -> Option<Container> {
        let spec = self.pod().spec.as_ref()?;
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .find(|container| container.name == name)
            .cloned()
    }

    fn seen(&mut self, name: &str) -> &mut ContainerObserved {
        self.observed.containers.entry(name.to_owned()).or_default()
    }

    fn ip(&self) -> Option<String> {
        self.observed.ip.clone()
    }

    fn set_made(&mut self, made: RuntimePod) {
        self.states = Some(made.watch());
        self.made = Some(made);
    }

    async fn event(&self, container: Option<&str>, warning: bool, reason: &str, message: String) {
        self.ctx.event(self.pod(), container, warning, reason, message).await;
    }

    /// Begins an action. True when the plan must be made again at once.
    async fn act(&mut self, action: Action, now: u64) -> bool {
        match action {
            Action::CreateSandbox => {
                self.observed.sandbox = Sandbox::Creating;
                let (ctx, pod, paths, sender) =
                    (self.ctx.clone(), self.pod().clone(), self.paths.clone(), self.sender.clone());
                tokio::spawn(async move {
                    let work = prepare::sandbox(&ctx, &pod, &paths);
                    let result = caught("sandbox", &identity(&pod).uid, work).await;
                    let result = match result {
                        Ok(result) => result,
                        Err(why) => {
                            prepare::clear(&ctx, &pod).await;
                            Err(("FailedCreatePodSandBox", why))
                        }
                    };
                    if let Err(mpsc::error::SendError(Event::Sandbox(Ok((made, _))))) =
                        sender.send(Event::Sandbox(result)).await
                    {
                        drop(made);
                    }
                });
            }
            Action::TearDown => {
                self.observed.sandbox = Sandbox::TearingDown;
                self.live.clear();
                self.states = None;
                let (ctx, pod, made, sender) =
                    (self.ctx.clone(), self.pod().clone(), self.made.take(), self.sender.clone());
                tokio::spawn(async move {
                    let down = async || {
                        let work = prepare::tear_down(&ctx, &pod, made.clone());
                        caught("tear down", &identity(&pod).uid, work).await.flatten()
                    };
                    while let Err(why) = down().await {
                        tracing::warn!(pod = %identity(&pod).uid, "tear down: {why}; trying again");
                        tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
                    }
                    let _ = sender.send(Event::TornDown).await;
                });
            }
            Action::PrepareVolumes => {
                self.observed.volumes = Volumes::Preparing;
                self.refresh(true);
            }
            Action::Start { name } => self.start(&name, now),
            Action::Kill { name, grace_seconds } => self.kill(&name, grace_seconds, None).await,
            Action::Replace { name, grace_seconds } => {
                let message = format!("Container {name} definition changed, will be restarted");
                self.kill(&name, grace_seconds, Some(message)).await;
            }
            Action::NotePullBackOff { name } => {
                let image = self.container(&name).and_then(|container| container.image).unwrap_or_default();
                let text = format!("Back-off pulling image {image:?}");
                if let Stage::Waiting { reason, message, .. } = &mut self.seen(&name).stage {
                    *reason = "ImagePullBackOff".into();
                    *message = format!("{text}: {message}");
                }
                self.event(Some(&name), false, "BackOff", text).await;
                self.event(Some(&name), true, "Failed", "Error: ImagePullBackOff".into()).await;
                return true;
            }
            Action::End(end) => {
                if !end.reason.is_empty() {
                    self.event(None, end.failed, &end.reason, end.message.clone()).await;
                }
                self.observed.end = Some(end);
                return true;
            }
            Action::Clean => {
                self.clean().await;
                return true;
            }
        }
        false
    }

    /// Writes files: the first time, or again because objects changed or tokens age.
    fn refresh(&mut self, first: bool) {
        // Whoever cannot write now is not woken for it again: the next files that are written set a new time.
        self.renew_ms = u64::MAX;
        let Some(made) = self.made.clone() else { return };
        if self.refreshing || (!first && self.observed.volumes != Volumes::Ready) {
            return;
        }
        self.refreshing = true;
        let (ctx, pod, paths, ip, sender) =
            (self.ctx.clone(), self.pod().clone(), self.paths.clone(), self.ip(), self.sender.clone());
        tokio::spawn(async move {
            let work = prepare::files(&ctx, &pod, &made, ip.as_deref(), &paths);
            let result = caught("files", &identity(&pod).uid, work).await.flatten();
            let _ = sender.send(Event::Files { first, result }).await;
        });
    }

    /// Tells the network once more of a pod that it may have forgotten.
    fn rewire(&self) {
        let (Some(made), Some(_)) = (self.made.clone(), self.observed.ip.as_ref()) else { return };
        let (ctx, pod) = (self.ctx.clone(), self.pod().clone());
        tokio::spawn(async move {
            if let Err(why) = prepare::attach(&ctx, &pod, &made).await {
                ctx.event(&pod, None, true, "NetworkNotReady", format!("attach the pod to the network again: {why}"))
                    .await;
            }
        });
    }

    fn start(&mut self, name: &str, now: u64) {
        let (Some(container), Some(made)) = (self.container(name), self.made.clone()) else { return };
        let seen = self.seen(name);
        if let Stage::Exited(exit) = &seen.stage {
            seen.last = Some(exit.clone());
            seen.attempt += 1;
            seen.restarts += 1;
            seen.backoff.attempt(now);
        }
        seen.stage = Stage::Starting;
        seen.image = container.image.clone().unwrap_or_default();
        let attempt = seen.attempt;
        let live = Live::default();
        let starter = Starter {
            ctx: self.ctx.clone(),
            pod: self.pod().clone(),
            paths: self.paths.clone(),
            made,
            ip: self.observed.ip.clone(),
            cancel: live.cancel.clone(),
        };
        self.live.insert(name.to_owned(), live);
        let (name, sender) = (name.to_owned(), self.sender.clone());
        tokio::spawn(async move {
            let work = starter.start(&container, attempt);
            let result = caught("start", &identity(&starter.pod).uid, work).await;
            let result = result.unwrap_or_else(|why| Err(StartError::Config(why)));
            let _ = sender.send(Event::Started { name, attempt, result }).await;
        });
    }

    /// Begins to stop a container, or hurries a stop that is under way. `why`: when it will be started again.
    async fn kill(&mut self, name: &str, grace_seconds: u64, why: Option<String>) {
        let Some(container) = self.container(name) else { return };
        let live = self.live.entry(name.to_owned()).or_default();
        live.cancel.cancel();
        let deadline_ms = now_ms().saturating_add(grace_seconds.saturating_mul(1000));
        let Some(made) = self.made.clone() else { return };
        if !matches!(self.observed.containers.get(name).map(|seen| &seen.stage), Some(Stage::Running { .. })) {
            return;
        }
        let hurried = match &live.kill {
            Some((_, before_ms)) if *before_ms <= deadline_ms => return,
            Some(_) => true,
            None => false,
        };
        live.probes = live.probes.take().filter(|_| container.readiness_probe.is_some() && why.is_none());
        if !hurried {
            let message = why.unwrap_or_else(|| format!("Stopping container {name}"));
            self.event(Some(name), false, "Killing", message).await;
        }
        let image = self.ctx.deps.runtime.images().resolve(container.image.as_deref().unwrap_or_default());
        let signal = stop_signal(&container, &image.map(|image| image.config).unwrap_or_default());
        let attempt = self.seen(name).attempt;
        if let Stage::Running { killing, .. } = &mut self.seen(name).stage {
            *killing = true;
        }
        let killer = Killer {
            ctx: self.ctx.clone(),
            pod: self.pod().clone(),
            target: target(&self.ctx, &made, name, attempt, self.observed.ip.as_deref()),
            container,
            grace: Duration::from_secs(grace_seconds),
            hook: !hurried,
            signal,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(killer.kill()));
        self.live.entry(name.to_owned()).or_default().kill = Some((task, deadline_ms));
    }

    fn start_probes(&mut self, name: &str, age: Duration) {
        let (Some(container), Some(made)) = (self.container(name), self.made.clone()) else { return };
        let seen = self.seen(name);
        let (attempt, restored) = (seen.attempt, (seen.started, seen.ready));
        let target = target(&self.ctx, &made, name, attempt, self.observed.ip.as_deref());
        let (sender, mut news) = mpsc::channel(4);
        let (events, owner) = (self.sender.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            let forward = async {
                while let Some(news) = news.recv().await {
                    let event = Event::Probe { name: owner.clone(), attempt, news };
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(probe::run(container, target, age, restored, sender), forward);
        });
        self.live.entry(name.to_owned()).or_default().probes = Some(AbortOnDropHandle::new(task));
    }
}

/// Wakes when the runtime has news; never without a sandbox.
async fn changed(states: &mut Option<watch::Receiver<RuntimeState>>) {
    match states {
        Some(receiver) => {
            if receiver.changed().await.is_err() {
                *states = None;
            }
        }
        None => std::future::pending().await,
    }
}

async fn sleep_until(at_ms: u64) {
    tokio::time::sleep(Duration::from_millis(at_ms.saturating_sub(now_ms()))).await;
}
