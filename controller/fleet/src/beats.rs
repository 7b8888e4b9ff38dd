//! Heartbeats: who is heard of, who is lost, and what each node has taken in.
//!
//! Suspicion adapts: a node is lost after a silence that is long *for it*, judged by the spread of its own past intervals, and
//! never sooner than [`Detector::silence_min`]. A new leader, and a server that was itself stopped for a while, count silence only from when
//! they (again) listened.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often agents send.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// Past intervals that are remembered for each node: some seconds' worth.
const SAMPLES: usize = 40;

/// When a silence means loss.
#[derive(Clone, Copy, Debug)]
pub struct Detector {
    /// No node is suspected before this.
    pub silence_min: Duration,
    /// Every node is suspected after this.
    pub silence_max: Duration,
}

impl Default for Detector {
    fn default() -> Self {
        Detector { silence_min: Duration::from_millis(1000), silence_max: Duration::from_millis(3000) }
    }
}

impl Detector {
    /// The longest silence that is still normal for a node with these past intervals: their mean and six deviations, in bounds.
    pub fn limit(&self, intervals: impl Iterator<Item = Duration> + Clone) -> Duration {
        let count = intervals.clone().count();
        if count < 8 {
            return self.silence_min * 2;
        }
        let mean = intervals.clone().map(|d| d.as_secs_f64()).sum::<f64>() / count as f64;
        let variance = intervals.map(|d| (d.as_secs_f64() - mean).powi(2)).sum::<f64>() / count as f64;
        let limit = Duration::from_secs_f64(mean * 2.0 + 6.0 * variance.sqrt());
        limit.clamp(self.silence_min, self.silence_max)
    }
}

struct Node {
    last: Instant,
    intervals: VecDeque<Duration>,
    applied: u64,
    stopping: bool,
    /// Whom it trusts, and whose certificate it shows.
    stance: String,
}

/// All nodes' heartbeats, as this server hears them.
pub struct Beats {
    detector: Detector,
    nodes: Mutex<BTreeMap<String, Node>>,
    /// Silence counts from here: when this server began to lead, or woke from a pause.
    listening_since: Mutex<Instant>,
    applied: watch::Sender<u64>,
}

impl Beats {
    pub fn new(detector: Detector) -> Self {
        Beats {
            detector,
            nodes: Mutex::default(),
            listening_since: Mutex::new(Instant::now()),
            applied: watch::Sender::new(0),
        }
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Node>> {
        self.nodes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes a heartbeat; true if the node was not known before (or said goodbye).
    pub fn beat(&self, name: &str, applied: u64, stopping: bool, now: Instant) -> bool {
        let mut nodes = self.nodes();
        let mut new = false;
        let node = nodes.entry(name.to_owned()).or_insert_with(|| {
            new = true;
            Node { last: now, intervals: VecDeque::new(), applied: 0, stopping: false, stance: String::new() }
        });
        let interval = now.duration_since(node.last);
        // An interval that was itself a loss says nothing about what is normal.
        if !new && interval < self.detector.silence_max {
            if node.intervals.len() == SAMPLES {
                node.intervals.pop_front();
            }
            node.intervals.push_back(interval);
        }
        (node.last, node.stopping) = (now, stopping);
        if applied != node.applied {
            node.applied = applied;
            self.applied.send_modify(|n| *n += 1);
        }
        new
    }

    /// Notes whom a node trusts and whose certificate it shows, as it says itself.
    pub fn stands(&self, name: &str, stance: String) {
        if let Some(node) = self.nodes().get_mut(name)
            && node.stance != stance
        {
            node.stance = stance;
        }
    }

    /// Where each node stands that has said so.
    pub fn stances(&self) -> BTreeMap<String, String> {
        let nodes = self.nodes();
        let said = nodes.iter().filter(|(_, node)| !node.stance.is_empty());
        said.map(|(name, node)| (name.clone(), node.stance.clone())).collect()
    }

    /// A change of any node's acknowledgement wakes this.
    pub fn acknowledgements(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Counts silence from now on only.
    pub fn listen_anew(&self, now: Instant) {
        *self.listening_since.lock().unwrap_or_else(|e| e.into_inner()) = now;
    }

    /// The silence of a node, if it is too long.
    fn lost_for(&self, node: &Node, since: Instant, now: Instant) -> Option<Duration> {
        let silence = now.duration_since(node.last.max(since));
        (silence > self.detector.limit(node.intervals.iter().copied())).then_some(silence)
    }

    /// Which of `known` nodes are live (None) and which are lost (for how long). A node that was never heard of counts from when this
    /// server began to listen.
    pub fn judge<'a>(&self, known: impl Iterator<Item = &'a str>, now: Instant) -> BTreeMap<String, Option<Duration>> {
        let since = *self.listening_since.lock().unwrap_or_else(|e| e.into_inner());
        let nodes = self.nodes();
        let judge = |name: &str| match nodes.get(name) {
            Some(node) => self.lost_for(node, since, now),
            None => Some(now.duration_since(since)).filter(|s| *s > self.detector.silence_max),
        };
        known.map(|name| (name.to_owned(), judge(name))).collect()
    }

    /// Whether every live node has taken in everything up to `revision`. A node that is silent is not live: it serves nobody who would notice.
    pub fn all_applied<'a>(&self, known: impl Iterator<Item = &'a str>, revision: u64, now: Instant) -> bool {
        let nodes = self.nodes();
        let mut known = known;
        known.all(|name| match nodes.get(name) {
            Some(node) => node.applied >= revision || self.lost_for(node, node.last, now).is_some(),
            None => true,
        })
    }

    /// What is known of each node, in the Prometheus text format.
    pub fn metrics(&self, now: Instant) -> String {
        let nodes = self.nodes();
        let mut out = String::new();
        let mut family = |name: &str, help: &str, value: &dyn Fn(&Node) -> String| {
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
            for (node, known) in nodes.iter() {
                out.push_str(&format!("{name}{{node=\"{node}\"}} {}\n", value(known)));
            }
        };
        family("skiff_node_applied_revision", "The revision that a node's service rules and names reflect.", &|n| {
            n.applied.to_string()
        });
        family("skiff_node_silence_seconds", "The time since a node's last heartbeat.", &|n| {
            format!("{:.3}", now.duration_since(n.last).as_secs_f64())
        });
        out
    }

    /// Forgets a node that left the cluster.
    pub fn forget(&self, name: &str) {
        self.nodes().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicion_adapts_to_how_regular_a_node_is() {
        let check = |intervals: &[u64], expect: u64| {
            let limit = Detector::default().limit(intervals.iter().map(|ms| Duration::from_millis(*ms)));
            assert_eq!(limit.as_millis() as u64, expect, "{intervals:?}");
        };
        check(&[250; 20], 1000);
        check(&[250; 3], 2000);
        check(&[100, 900, 100, 900, 100, 900, 100, 900], 3000);
    }

    #[test]
    fn silence_counts_from_when_this_server_listened() {
        let beats = Beats::new(Detector::default());
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for i in 0..20 {
            beats.beat("n1", i, false, at(i * 250));
        }
        let lost = |ms| beats.judge(["n1"].into_iter(), at(ms))["n1"].is_some();
        assert!(!lost(5000) && lost(6000));
        beats.listen_anew(at(6000));
        assert!(!lost(6500) && lost(7100));
        assert!(!beats.all_applied(["n1"].into_iter(), 20, at(5000)));
        assert!(beats.all_applied(["n1"].into_iter(), 19, at(5000)));
        assert!(beats.all_applied(["n1"].into_iter(), 20, at(9000)), "a silent node holds up nobody");
    }
}
