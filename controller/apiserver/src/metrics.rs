//! What the server counts, in the Prometheus text format.

use crate::http::request::RequestInfo;
use skiff_api::kinds;
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

/// Verbs that are counted under their own name.
const VERBS: [&str; 15] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "head",
    "post",
    "put",
    "options",
    "connect",
    "trace",
    "",
];

/// What a request is counted under: only what there is has a name here, whatever is asked for. So the counts are bounded, and nobody
/// writes lines into them.
pub fn labels(info: &RequestInfo) -> (&'static str, String) {
    let verb = VERBS.into_iter().find(|verb| *verb == info.verb).unwrap_or("other");
    let known = info.is_resource && kinds::by_resource(&info.group, &info.version, &info.resource).is_some();
    let resource = match (known, info.is_resource) {
        (true, _) => info.resource.clone(),
        (false, true) => "other".to_string(),
        (false, false) => String::new(),
    };
    (verb, resource)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::Query;

    #[test]
    fn only_what_there_is_is_counted_by_name() {
        let check = |method: &str, path: &str, expect: (&str, &str)| {
            let info = RequestInfo::parse(method, path, &Query::default()).unwrap_or_default();
            let (verb, resource) = labels(&info);
            assert_eq!((verb, resource.as_str()), expect, "{method} {path}");
        };
        check("GET", "/api/v1/pods", ("list", "pods"));
        check("GET", "/apis/apps/v1/namespaces/a/deployments/d", ("get", "deployments"));
        check("GET", "/api/v1/made-up", ("list", "other"));
        check("GET", "/apis/x/v1/pods%22%7D%201", ("list", "other"));
        check("GET", "/metrics", ("get", ""));
        check("MADEUP", "/metrics", ("other", ""));
        let metrics = Metrics::default();
        for n in 0..1000 {
            let info = RequestInfo::parse(&format!("M{n}"), &format!("/x{n}"), &Query::default()).unwrap();
            let (verb, resource) = labels(&info);
            metrics.end(verb, &resource, 403, Duration::ZERO);
        }
        assert_eq!(metrics.requests.lock().unwrap().len(), 1);
    }
}
