//! The probes of one running container: start-up first, then liveness and readiness side by side.
//!
//! Each probe is a small task that looks once a period and counts in a row; the pod's own task hears only of single
//! failures (for events) and of a verdict that changed.

use std::time::{Duration, Instant};

use futures_util::future::join;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::sync::mpsc;

use crate::check::{Look, Target};

/// First pause after a first look that failed.
const EAGER_PAUSE: Duration = Duration::from_millis(100);

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Holds off the others.
    Startup,
    /// Restarts the container.
    Liveness,
    /// Takes the pod out of its services.
    Readiness,
}

impl Kind {
    /// As in `Liveness probe failed: ...`.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// What a probe has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The container counts as started.
    Started,
    /// It is ready, or is not any more.
    Ready(bool),
    /// One look failed.
    Failed(Kind, String),
    /// So many failed in a row that it must be restarted, within this grace (seconds) if the probe has its own.
    Dead(Kind, Option<u64>),
}

/// Counts looks in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streak {
    successes: u32,
    failures: u32,
}

impl Streak {
    /// Counts one look; `Some` when enough of one kind came in a row.
    pub fn count(&mut self, success: bool, success_threshold: u32, failure_threshold: u32) -> Option<bool> {
        if success {
            *self = Streak { successes: self.successes.saturating_add(1), failures: 0 };
            (self.successes >= success_threshold).then_some(true)
        } else {
            *self = Streak { successes: 0, failures: self.failures.saturating_add(1) };
            (self.failures >= failure_threshold).then_some(false)
        }
    }
}

/// Probes until it is dropped. `age`: how long the container has run already (after the agent came back).
/// `restored`: what was known then.
pub async fn run(
    container: Container,
    target: Target,
    age: Duration,
    restored: (bool, bool),
    news: mpsc::Sender<News>,
) {
    let (mut started, ready) = restored;
    if let Some(probe) = container.startup_probe.as_ref().filter(|_| !started) {
        match watch(Kind::Startup, probe, &container, &target, age, None, &news).await {
            Some(true) => started = true,
            _ => return,
        }
        let _ = news.send(News::Started).await;
    }
    if !started {
        let _ = news.send(News::Started).await;
    }
    let liveness = async {
        if let Some(probe) = &container.liveness_probe {
            watch(Kind::Liveness, probe, &container, &target, age, None, &news).await;
        }
    };
    let readiness = async {
        match &container.readiness_probe {
            Some(probe) => drop(watch(Kind::Readiness, probe, &container, &target, age, Some(ready), &news).await),
            None => drop(news.send(News::Ready(true)).await),
        }
    };
    join(liveness, readiness).await;
}

/// One probe's loop. Start-up ends with its verdict, liveness with a death, readiness (`ready` given) never.
async fn watch(
    kind: Kind,
    probe: &Probe,
    container: &Container,
    target: &Target,
    age: Duration,
    mut ready: Option<bool>,
    news: &mpsc::Sender<News>,
) -> Option<bool> {
    let positive = |value: Option<i32>, default: i32| {
        u64::from(value.filter(|value| *value > 0).unwrap_or(default).unsigned_abs())
    };
    let period = Duration::from_secs(positive(probe.period_seconds, 10));
    let timeout = Duration::from_secs(positive(probe.timeout_seconds, 1));
    let (successes, failures) =
        (positive(probe.success_threshold, 1) as u32, positive(probe.failure_threshold, 3) as u32);
    let grace = probe.termination_grace_period_seconds.map(i64::unsigned_abs);
    let delay = Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0).max(0) as u64).saturating_sub(age);
    tokio::time::sleep(delay).await;
    let look = Look::of_probe(probe, container);
    let mut streak = Streak::default();
    // Between the first look and the end of its period come a few more, ever further apart, so that a pod that is ready
    // is seen to be so at once. They can only succeed: a failure of theirs counts for nothing.
    let eager = kind != Kind::Liveness;
    let mut pause = if eager { period.min(EAGER_PAUSE) } else { period };
    let mut due = Instant::now();
    loop {
        let result = match &look {
            Ok(look) => look.look(target, timeout).await,
            Err(why) => Err(why.clone()),
        };
        let success = result.is_ok();
        let counts = success || Instant::now() >= due;
        if counts {
            due = Instant::now() + period;
            if let Err(why) = result {
                news.send(News::Failed(kind, why)).await.ok()?;
            }
            match (kind, streak.count(success, successes, failures)) {
                (Kind::Startup, Some(true)) => return Some(true),
                (Kind::Startup | Kind::Liveness, Some(false)) => {
                    news.send(News::Dead(kind, grace)).await.ok()?;
                    return Some(false);
                }
                (Kind::Readiness, Some(verdict)) if ready != Some(verdict) => {
                    ready = Some(verdict);
                    news.send(News::Ready(verdict)).await.ok()?;
                }
                _ => {}
            }
        }
        if success || pause >= period {
            pause = period;
            tokio::time::sleep(pause).await;
        } else {
            tokio::time::sleep(pause.min(due.saturating_duration_since(Instant::now()))).await;
            pause = (pause * 2).min(period);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaks() {
        let check = |looks: &str, thresholds: (u32, u32), expect: &[Option<bool>]| {
            let mut streak = Streak::default();
            let got: Vec<_> = looks.chars().map(|look| streak.count(look == '+', thresholds.0, thresholds.1)).collect();
            assert_eq!(got, expect, "{looks}");
        };
        check("+-+", (1, 2), &[Some(true), None, Some(true)]);
        check("---", (1, 3), &[None, None, Some(false)]);
        check("--+--", (1, 3), &[None, None, Some(true), None, None]);
        check("+++", (2, 1), &[None, Some(true), Some(true)]);
    }
}
