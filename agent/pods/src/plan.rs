//! What to do next with a pod: a function of what is wanted, what is known, and the time.
//!
//! The order is Kubernetes': sandbox, volumes, init containers one after the other (those that restart always are
//! sidecars: they count as done once started, and go on), then all others. Everything that stops, stops main containers
//! first and sidecars in reverse order after them. An action that is under way shows in what is observed, so planning
//! again at any time does no harm.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::observed::{ContainerObserved, End, Observed, Sandbox, Stage, Volumes};

/// The pod as it is wanted.
#[derive(Debug, Clone, Copy)]
pub struct PodState<'a> {
    /// Its object.
    pub pod: &'a Pod,
    /// It is not on this node's list any more.
    pub removed: bool,
    /// It is deleted, but must go on for now.
    pub hold: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make namespaces and network.
    CreateSandbox,
    /// Remove processes, namespaces, network.
    TearDown,
    /// Write files into volumes.
    PrepareVolumes,
    /// Get the image and run a new instance.
    Start {
        /// The container.
        name: String,
    },
    /// Stop an instance; a shorter grace than before makes haste.
    Kill {
        /// The container.
        name: String,
        /// Seconds from the signal to the kill.
        grace_seconds: u64,
    },
    /// Stop an instance whose definition is not what is wanted any more; the next one follows it.
    Replace {
        /// The container.
        name: String,
        /// Seconds from the signal to the kill.
        grace_seconds: u64,
    },
    /// The failed pull is now a wait.
    NotePullBackOff {
        /// The container.
        name: String,
    },
    /// The pod is over.
    End(End),
    /// Remove directories and logs: nothing is left to do for this pod, ever.
    Clean,
}

/// Steps for now, and when to plan again if nothing happens before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// Milliseconds since the epoch.
    pub wake_ms: Option<u64>,
}

impl Plan {
    fn wake(&mut self, at_ms: u64) {
        self.wake_ms = Some(self.wake_ms.map_or(at_ms, |have| have.min(at_ms)));
    }

    /// True when the time has come; otherwise remembers it.
    fn due(&mut self, at_ms: u64, now_ms: u64) -> bool {
        if at_ms > now_ms {
            self.wake(at_ms);
        }
        at_ms <= now_ms
    }
}

/// How long a failed pull shows as one before it shows as a wait.
const PULL_ERROR_SHOWN_MS: u64 = 1_000;

/// Decides.
pub fn plan(wanted: PodState<'_>, observed: &Observed, now_ms: u64) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &wanted.pod.spec else {
        return Plan { actions: vec![Action::Clean], wake_ms: None };
    };
    if observed.cleaned {
        return plan;
    }
    let deleted = wanted.removed || (wanted.pod.metadata.deletion_timestamp.is_some() && !wanted.hold);
    if !deleted
        && observed.end.is_none()
        && let Some(limit) = spec.active_deadline_seconds
    {
        let deadline = observed.start_ms.saturating_add((limit.max(0) as u64).saturating_mul(1000));
        if plan.due(deadline, now_ms) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            plan.actions.push(Action::End(End { failed: true, reason: "DeadlineExceeded".into(), message }));
            return plan;
        }
    }
    if deleted || observed.end.is_some() {
        stop(&mut plan, wanted, spec, observed, deleted);
        return plan;
    }
    match &observed.sandbox {
        Sandbox::None => plan.actions.push(Action::CreateSandbox),
        Sandbox::Failed { retry_ms, .. } => {
            if plan.due(*retry_ms, now_ms) {
                plan.actions.push(Action::CreateSandbox);
            }
        }
        Sandbox::Lost => plan.actions.push(Action::TearDown),
        Sandbox::Creating | Sandbox::TearingDown => {}
        Sandbox::Ready { .. } => match &observed.volumes {
            Volumes::None => plan.actions.push(Action::PrepareVolumes),
            Volumes::Failed { retry_ms, .. } => {
                if plan.due(*retry_ms, now_ms) {
                    plan.actions.push(Action::PrepareVolumes);
                }
            }
            Volumes::Preparing => {}
            Volumes::Ready => containers(&mut plan, spec, observed, now_ms),
        },
    }
    plan
}

/// A sidecar: an init container that goes on beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether an ended instance of a main container is followed by another.
pub fn restarts(spec: &PodSpec, code: i32) -> bool {
    match spec.restart_policy.as_deref().unwrap_or("Always") {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// Whether all init containers are done: ended well, or (sidecars) started.
pub fn initialized(spec: &PodSpec, observed: &Observed) -> bool {
    spec.init_containers.iter().flatten().all(|container| {
        let Some(seen) = observed.containers.get(&container.name) else { return false };
        if is_sidecar(container) {
            return seen.started;
        }
        seen.exit().is_some_and(|exit| exit.code == 0)
    }) || main_began(spec, observed)
}

/// A main container has run in this sandbox: init is behind the pod, whatever sidecars do now.
fn main_began(spec: &PodSpec, observed: &Observed) -> bool {
    spec.containers.iter().any(|container| {
        observed.containers.get(&container.name).is_some_and(|seen| !matches!(&seen.stage, Stage::Waiting { .. }))
    })
}

/// When a new instance may start, if the container wants one.
fn next_start(seen: &ContainerObserved, restarts: impl Fn(i32) -> bool) -> Option<u64> {
    match &seen.stage {
        Stage::Waiting { retry_ms, .. } => Some(*retry_ms),
        Stage::Exited(exit) if restarts(exit.code) => Some(seen.backoff.earliest_ms(exit.finished_ms)),
        _ => None,
    }
}

fn containers(plan: &mut Plan, spec: &PodSpec, observed: &Observed, now_ms: u64) {
    let unseen = ContainerObserved::default();
    let seen = |container: &Container| observed.containers.get(&container.name).unwrap_or(&unseen);
    let start = |plan: &mut Plan, container: &Container, restarts: &dyn Fn(i32) -> bool| {
        let state = seen(container);
        if let Stage::Waiting { reason, since_ms, .. } = &state.stage
            && reason == "ErrImagePull"
            && plan.due(since_ms + PULL_ERROR_SHOWN_MS, now_ms)
        {
            plan.actions.push(Action::NotePullBackOff { name: container.name.clone() });
        }
        if let Some(at_ms) = next_start(state, restarts)
            && plan.due(at_ms, now_ms)
        {
            plan.actions.push(Action::Start { name: container.name.clone() });
        }
    };
    let began = main_began(spec, observed);
    for container in spec.init_containers.iter().flatten() {
        let state = seen(container);
        if is_sidecar(container) {
            start(plan, container, &|_| true);
            if !began && !state.started {
                return;
            }
            continue;
        }
        if began {
            continue;
        }
        match state.exit() {
            Some(exit) if exit.code == 0 => continue,
            Some(exit) if !restarts(spec, 1) => {
                let message = format!("init container {} ended with exit code {}", container.name, exit.code);
                end(plan, observed, End { failed: true, reason: String::new(), message });
                return;
            }
            _ => {}
        }
        start(plan, container, &|code| code != 0);
        return;
    }
    for container in &spec.containers {
        let state = seen(container);
        let changed = container.image.as_ref().is_some_and(|image| *image != state.image);
        if changed && matches!(state.stage, Stage::Running { killing: false, .. }) {
            let grace_seconds = spec.termination_grace_period_seconds.unwrap_or(30).max(0) as u64;
            plan.actions.push(Action::Replace { name: container.name.clone(), grace_seconds });
        }
        start(plan, container, &|code| restarts(spec, code));
    }
    let over =
        spec.containers.iter().all(|container| seen(container).exit().is_some_and(|exit| !restarts(spec, exit.code)));
    if over {
        let failed = spec.containers.iter().any(|container| seen(container).exit().is_some_and(|exit| exit.code != 0));
        end(plan, observed, End { failed, reason: String::new(), message: String::new() });
    }
}

fn end(plan: &mut Plan, observed: &Observed, end: End) {
    if observed.end.is_none() {
        plan.actions.push(Action::End(end));
    }
}

/// Seconds that a stopping pod's containers have.
pub fn grace_seconds(pod: &Pod) -> u64 {
    let spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let deletion = pod.metadata.deletion_timestamp.as_ref().and(pod.metadata.deletion_grace_period_seconds);
    deletion.or(spec).unwrap_or(30).max(0) as u64
}

fn stop(plan: &mut Plan, wanted: PodState<'_>, spec: &PodSpec, observed: &Observed, deleted: bool) {
    let grace_seconds = grace_seconds(wanted.pod);
    let active =
        |container: &&Container| observed.containers.get(&container.name).is_some_and(ContainerObserved::active);
    let kill = |plan: &mut Plan, container: &Container| {
        plan.actions.push(Action::Kill { name: container.name.clone(), grace_seconds });
    };
    let init = || spec.init_containers.iter().flatten();
    let mut waiting = false;
    for container in spec.containers.iter().chain(init().filter(|container| !is_sidecar(container))).filter(active) {
        waiting = true;
        kill(plan, container);
    }
    if !waiting && let Some(container) = init().rev().filter(|container| is_sidecar(container)).find(active) {
        waiting = true;
        kill(plan, container);
    }
    if waiting {
        return;
    }
    match observed.sandbox {
        Sandbox::None => {}
        Sandbox::Ready { .. } | Sandbox::Failed { .. } | Sandbox::Lost => {
            plan.actions.push(Action::TearDown);
            return;
        }
        Sandbox::Creating | Sandbox::TearingDown => return,
    }
    if deleted && !matches!(observed.volumes, Volumes::Preparing) {
        plan.actions.push(Action::Clean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Exit;
    use serde_json::json;

    fn pod(spec: serde_json::Value, deleted: bool) -> Pod {
        let mut object = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        if deleted {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            object["metadata"]["deletionGracePeriodSeconds"] = json!(7);
        }
        serde_json::from_value(object).unwrap()
    }

    fn exited(code: i32, finished_ms: u64) -> Stage {
        Stage::Exited(Exit { code, finished_ms, ..Exit::default() })
    }

    fn running() -> Stage {
        Stage::Running { started_ms: 0, killing: false }
    }

    /// Names and stages of containers in a pod whose sandbox and files are ready.
    fn observed(stages: &[(&str, Stage, bool)]) -> Observed {
        let containers = stages.iter().map(|(name, stage, started)| {
            (
                name.to_string(),
                ContainerObserved { stage: stage.clone(), started: *started, ..ContainerObserved::default() },
            )
        });
        Observed {
            sandbox: Sandbox::Ready { ip: None },
            volumes: Volumes::Ready,
            containers: containers.collect(),
            ..Observed::default()
        }
    }

    fn words(plan: &Plan) -> String {
        let word = |action: &Action| match action {
            Action::Start { name } => format!("start {name}"),
            Action::Kill { name, grace_seconds } => format!("kill {name} {grace_seconds}"),
            Action::Replace { name, .. } => format!("replace {name}"),
            Action::End(end) => format!("end {}", if end.failed { "failed" } else { "succeeded" }),
            other => format!("{other:?}").to_lowercase(),
        };
        plan.actions.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_way_up() {
        let pod = pod(json!({"containers": [{"name": "a"}]}), false);
        let check = |sandbox: Sandbox, volumes: Volumes, expect: &str| {
            let observed = Observed { sandbox: sandbox.clone(), volumes, ..Observed::default() };
            assert_eq!(
                words(&plan(PodState { pod: &pod, removed: false, hold: false }, &observed, 100)),
                expect,
                "{sandbox:?}"
            );
        };
        let ready = Sandbox::Ready { ip: None };
        check(Sandbox::None, Volumes::None, "createsandbox");
        check(Sandbox::Creating, Volumes::None, "");
        check(Sandbox::Failed { message: String::new(), retry_ms: 200 }, Volumes::None, "");
        check(Sandbox::Failed { message: String::new(), retry_ms: 100 }, Volumes::None, "createsandbox");
        check(Sandbox::Lost, Volumes::Ready, "teardown");
        check(ready.clone(), Volumes::None, "preparevolumes");
        check(ready.clone(), Volumes::Preparing, "");
        check(ready, Volumes::Ready, "start a");
    }

    #[test]
    fn containers_in_order() {
        let check = |spec: serde_json::Value, stages: &[(&str, Stage, bool)], expect: &str| {
            let pod = pod(spec.clone(), false);
            let got = plan(PodState { pod: &pod, removed: false, hold: false }, &observed(stages), 1_000_000);
            assert_eq!(words(&got), expect, "{spec} {stages:?}");
        };
        let two =
            json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}, {"name": "b"}]});
        check(two.clone(), &[], "start i");
        check(two.clone(), &[("i", running(), true)], "");
        check(two.clone(), &[("i", exited(0, 0), false)], "start j");
        check(two.clone(), &[("i", exited(1, 0), false)], "start i");
        check(two.clone(), &[("i", exited(0, 0), false), ("j", exited(0, 0), false)], "start a, start b");
        check(
            two.clone(),
            &[("i", exited(0, 0), false), ("j", exited(0, 0), false), ("a", running(), true)],
            "start b",
        );
        check(two, &[("a", exited(0, 0), false), ("b", running(), true)], "start a");
        let never = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        check(never.clone(), &[("i", exited(1, 0), false)], "end failed");
        check(never.clone(), &[("i", exited(0, 0), false), ("a", exited(0, 0), false)], "end succeeded");
        check(never, &[("i", exited(0, 0), false), ("a", exited(2, 0), false)], "end failed");
        let on_failure = json!({"restartPolicy": "OnFailure", "containers": [{"name": "a"}, {"name": "b"}]});
        check(on_failure.clone(), &[("a", exited(0, 0), false), ("b", exited(1, 0), false)], "start b");
        check(on_failure, &[("a", exited(0, 0), false), ("b", exited(0, 0), false)], "end succeeded");
        let other = json!({"containers": [{"name": "a", "image": "other"}]});
        check(other.clone(), &[("a", running(), true)], "replace a");
        check(other, &[("a", Stage::Running { started_ms: 0, killing: true }, true)], "");
        let sidecar = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}], "containers": [{"name": "a"}]});
        check(sidecar.clone(), &[("s", running(), false)], "");
        check(sidecar.clone(), &[("s", running(), true)], "start i");
        check(sidecar.clone(), &[("s", running(), true), ("i", exited(0, 0), false)], "start a");
        check(sidecar, &[("s", exited(0, 0), false), ("i", exited(0, 0), false), ("a", running(), true)], "start s");
    }

    #[test]
    fn restarts_wait() {
        let pod = pod(json!({"containers": [{"name": "a"}]}), false);
        let mut observed = observed(&[("a", exited(1, 50_000), false)]);
        let mut check = |wait_ms: u64, now: u64, expect: &str, wake: Option<u64>| {
            if let Some(seen) = observed.containers.get_mut("a") {
                (seen.backoff.wait_ms, seen.backoff.attempt_ms) = (wait_ms, 40_000);
            }
            let got = plan(PodState { pod: &pod, removed: false, hold: false }, &observed, now);
            assert_eq!((words(&got).as_str(), got.wake_ms), (expect, wake), "{wait_ms} {now}");
        };
        check(0, 50_000, "start a", None);
        check(10_000, 50_000, "", Some(60_000));
        check(10_000, 60_000, "start a", None);
    }

    #[test]
    fn the_way_down() {
        let spec = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
        let pod = pod(spec, true);
        let check = |hold: bool, stages: &[(&str, Stage, bool)], sandbox: Sandbox, expect: &str| {
            let observed = Observed { sandbox, ..observed(stages) };
            assert_eq!(words(&plan(PodState { pod: &pod, removed: false, hold }, &observed, 1)), expect, "{stages:?}");
        };
        let ready = || Sandbox::Ready { ip: None };
        let all = [("s", running(), true), ("t", running(), true), ("a", running(), true)];
        check(true, &all, ready(), "");
        check(false, &all, ready(), "kill a 7");
        check(false, &[all[0].clone(), all[1].clone(), ("a", exited(0, 0), false)], ready(), "kill t 7");
        check(false, &[all[0].clone(), ("t", exited(0, 0), false), ("a", exited(0, 0), false)], ready(), "kill s 7");
        check(false, &[("a", exited(0, 0), false)], ready(), "teardown");
        check(false, &[("a", exited(0, 0), false)], Sandbox::TearingDown, "");
        check(false, &[("a", exited(0, 0), false)], Sandbox::None, "clean");
        check(false, &[], Sandbox::None, "clean");
    }

    #[test]
    fn deadlines() {
        let pod = pod(json!({"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]}), false);
        let state = PodState { pod: &pod, removed: false, hold: false };
        let mut observed = observed(&[("a", running(), true)]);
        observed.start_ms = 1000;
        let early = plan(state, &observed, 2000);
        assert_eq!((words(&early).as_str(), early.wake_ms), ("", Some(6000)));
        assert_eq!(words(&plan(state, &observed, 6000)), "end failed");
        observed.end = Some(End { failed: true, reason: String::new(), message: String::new() });
        assert_eq!(words(&plan(state, &observed, 6000)), "kill a 30");
    }
}
