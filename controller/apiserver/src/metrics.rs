//! What the server counts, in the Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Key, Series>>,
    inflight: AtomicI64,
    watches: AtomicI64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    verb: String,
    resource: String,
    code: u16,
}

#[derive(Clone, Copy, Default)]
struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

impl Metrics {
    pub fn begin(&self) {
        self.inflight.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end(&self, verb: &str, resource: &str, code: u16, took: Duration) {
        self.inflight.fetch_sub(1, Ordering::Relaxed);
        let key = Key { verb: verb.to_ascii_uppercase(), resource: resource.into(), code };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let series = requests.entry(key).or_default();
        series.count += 1;
        let seconds = took.as_secs_f64();
        series.seconds += seconds;
        for (bucket, bound) in series.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
    }

    pub fn watch_began(&self) {
        self.watches.fetch_add(1, Ordering::Relaxed);
    }

    pub fn render(&self) -> String {
        let mut out = String::new();
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        out.push_str("# HELP apiserver_request_total Requests by verb, resource and status.\n# TYPE apiserver_request_total counter\n");
        for (key, series) in &requests {
            let Key { verb, resource, code } = key;
            let _ = writeln!(
                out,
                "apiserver_request_total{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {}",
                series.count
            );
        }
        out.push_str("# HELP apiserver_request_duration_seconds Time to the answer's head.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (Key { verb, resource, code }, series) in &requests {
            let labels = format!("verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"");
            for (bucket, bound) in series.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {bucket}");
            }
            let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(out, "apiserver_request_duration_seconds_sum{{{labels}}} {}", series.seconds);
            let _ = writeln!(out, "apiserver_request_duration_seconds_count{{{labels}}} {}", series.count);
        }
        let _ = writeln!(
            out,
            "# TYPE apiserver_current_inflight_requests gauge\napiserver_current_inflight_requests {}",
            self.inflight.load(Ordering::Relaxed)
        );
        let _ = writeln!(
            out,
            "# TYPE apiserver_watches_total counter\napiserver_watches_total {}",
            self.watches.load(Ordering::Relaxed)
        );
        out
    }
}
