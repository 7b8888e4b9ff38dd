//! Sends the requests of a scenario to a server and compares the answers.

use crate::corpus::{Expected, Scenario, Step};
use crate::unify::{Bindings, Rules};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How one step went.
#[derive(Debug)]
pub struct Outcome {
    pub name: String,
    /// None when the answer is as recorded.
    pub problem: Option<String>,
    /// How the answer differs, when it does so in `metadata.managedFields` only and this step is not about them.
    pub managed_fields_differ: Option<String>,
}

#[derive(Debug, Default)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// A watch: the server ended the stream while we read.
    closed: bool,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    fn warnings(&self) -> Vec<String> {
        let all = self.headers.iter().filter(|(k, _)| k == "warning");
        all.map(|(_, v)| unquote(v.strip_prefix("299 - ").unwrap_or(v))).collect()
    }
}

fn unquote(text: &str) -> String {
    let text = text.trim();
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    inner.replace("\\\"", "\"").replace("\\\\", "\\")
}

/// Replays every step in order; each setup step is sent but not scored.
pub async fn scenario(addr: SocketAddr, topic: &str, scenario: &Scenario) -> Vec<Outcome> {
    let mut bindings = Bindings::default();
    let mut captured = HashMap::new();
    let mut outcomes = Vec::new();
    for step in &scenario.steps {
        if let Some(seconds) = step.delay {
            // The real server's informers lag; ours answers from what is committed, a short pause is plenty.
            tokio::time::sleep(Duration::from_secs_f64(seconds.min(0.3))).await;
        }
        let answer = send(addr, step, &captured).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(problem) => {
                if !step.setup {
                    outcomes.push(Outcome {
                        name: step.name.clone(),
                        problem: Some(problem),
                        managed_fields_differ: None,
                    });
                }
                continue;
            }
        };
        if let Some(json) = answer.json() {
            for (name, pointer) in &step.capture {
                let found = pointer.as_str().and_then(|p| json.pointer(p));
                let text = found.map(|v| v.as_str().map(str::to_string).unwrap_or_else(|| v.to_string()));
                captured.insert(name.clone(), text.unwrap_or_default());
            }
        }
        if step.setup {
            continue;
        }
        outcomes.push(judge(topic, step, &answer, &mut bindings, &captured));
    }
    outcomes
}

fn judge(
    topic: &str,
    step: &Step,
    answer: &Answer,
    bindings: &mut Bindings,
    captured: &HashMap<String, String>,
) -> Outcome {
    let rules = Rules {
        managed_fields: true,
        ignore_column_prose: std::env::var_os("SKIFF_GOLDEN_PROSE").is_none(),
        causes_unordered: step.compare.as_deref() == Some("causes-unordered"),
        rules_unordered: step.compare.as_deref() == Some("rules-unordered"),
        go_text: step.go_text,
        events_unordered: step.path.contains("resourceVersion=0"),
    };
    let mut strict = bindings.clone();
    let mut problem = compare(step, answer, &mut strict, rules, captured).err();
    let mut managed_fields_differ = None;
    if problem.is_none() {
        *bindings = strict;
    } else if topic != "apply" {
        let mut loose = bindings.clone();
        let outcome = compare(step, answer, &mut loose, Rules { managed_fields: false, ..rules }, captured);
        *bindings = loose;
        if outcome.is_ok() {
            managed_fields_differ = problem.clone();
            if std::env::var_os("SKIFF_GOLDEN_STRICT").is_none() {
                problem = None;
            }
        } else {
            problem = outcome.err();
        }
    } else {
        let _ = compare(step, answer, bindings, Rules { managed_fields: false, ..rules }, captured);
    }
    Outcome { name: step.name.clone(), problem, managed_fields_differ }
}

fn compare(
    step: &Step,
    answer: &Answer,
    bindings: &mut Bindings,
    rules: Rules,
    captured: &HashMap<String, String>,
) -> Result<(), String> {
    let want = &step.response;
    let body_text = || String::from_utf8_lossy(&answer.body).chars().take(500).collect::<String>();
    if answer.status != want.status {
        return Err(format!("status {} expected, {} found: {}", want.status, answer.status, body_text()));
    }
    if step.compare.as_deref() == Some("status") {
        return Ok(());
    }
    let expected_body = want.body.as_ref().map(|body| {
        let mut body = body.clone();
        substitute_value(&mut body, captured);
        if step.fork {
            strip_fork(&mut body);
        }
        body
    });
    // The body first: it binds the placeholders that later steps need, even where a header differs.
    if let Some(body) = &expected_body {
        let actual = answer.json().ok_or_else(|| format!("JSON expected, found: {}", body_text()))?;
        let keys_only = step.path == "/version";
        if keys_only {
            let keys = |v: &Value| v.as_object().map(|m| m.keys().cloned().collect::<std::collections::BTreeSet<_>>());
            if keys(body) != keys(&actual) {
                return Err(format!("keys {:?} expected, {:?} found", keys(body), keys(&actual)));
            }
        } else {
            bindings.value("", body, &actual, rules)?;
        }
    } else if let Some(text) = &want.body_text {
        if !bindings.text(text, &String::from_utf8_lossy(&answer.body)) {
            return Err(format!("text {text:?} expected, found {:?}", body_text()));
        }
    } else if let Some(events) = &want.events {
        compare_events(events, answer, bindings, rules, want, step)?;
    } else if let Some(prefix) = &want.body_prefix {
        if !answer.body.starts_with(prefix.as_bytes()) {
            return Err(format!("a body that begins with {prefix:?} expected"));
        }
    } else if !answer.body.is_empty() {
        return Err(format!("no body expected, found: {}", body_text()));
    }
    if answer.header("content-type") != want.content_type.as_deref() {
        return Err(format!(
            "content type {:?} expected, {:?} found",
            want.content_type,
            answer.header("content-type")
        ));
    }
    // What the reference server acts on and we do not yet is told beside its own warnings.
    let mut warnings = answer.warnings();
    warnings.retain(|text| !text.contains(skiff_api::warnings::idle::PREFIX));
    let same =
        warnings.len() == want.warnings.len() && want.warnings.iter().zip(&warnings).all(|(w, h)| bindings.text(w, h));
    if !same {
        return Err(format!("warnings {:?} expected, {warnings:?} found", want.warnings));
    }
    for (name, value) in &want.headers {
        let found = answer.header(&name.to_ascii_lowercase());
        if !value.as_str().zip(found).is_some_and(|(w, h)| bindings.text(w, h)) {
            return Err(format!("header {name}: {value} expected, {found:?} found"));
        }
    }
    Ok(())
}

fn compare_events(
    events: &[Value],
    answer: &Answer,
    bindings: &mut Bindings,
    rules: Rules,
    want: &Expected,
    step: &Step,
) -> Result<(), String> {
    let lines = answer.body.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    let mut actual: Vec<Value> = lines.filter_map(|l| serde_json::from_slice(l).ok()).collect();
    // How many bookmarks come between is not promised.
    let marked = |e: &Value| e.pointer("/object/metadata/annotations").is_some();
    let is_bookmark = |e: &Value| e["type"] == "BOOKMARK" && !marked(e);
    if !events.iter().any(is_bookmark) {
        actual.retain(|e| !is_bookmark(e));
    }
    actual.truncate(step.watch.map_or(usize::MAX, |w| w.events));
    let mut events = events.to_vec();
    if step.fork {
        events.iter_mut().for_each(strip_fork);
    }
    let (want_list, have_list) = (Value::Array(events), Value::Array(actual));
    if rules.events_unordered {
        bindings.set("/events", &want_list, &have_list, rules)?;
    } else {
        bindings.value("/events", &want_list, &have_list, rules)?;
    }
    if want.closed && !answer.closed {
        return Err("the server was expected to end the stream".into());
    }
    Ok(())
}

/// Takes what the recording server's fork adds out of an expected body.
fn strip_fork(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (_, inner) in map.iter_mut() {
                strip_fork(inner);
            }
            if let Some(Value::Array(rules)) = map.get_mut("nonResourceRules") {
                rules.retain(|r| !r.to_string().contains("/.well-known\""));
            }
        }
        Value::Array(list) => {
            list.retain(|v| v.pointer("/configMap/name").and_then(Value::as_str) != Some("openshift-service-ca.crt"));
            list.iter_mut().for_each(strip_fork);
        }
        _ => {}
    }
}

fn substitute(text: &str, captured: &HashMap<String, String>) -> String {
    let mut out = text.to_string();
    while let Some(start) = out.find("${") {
        let Some(end) = out[start..].find('}').map(|i| i + start) else { break };
        let name = &out[start + 2..end];
        let value = match name.strip_prefix("repeat:").and_then(|r| r.rsplit_once(':')) {
            Some((unit, times)) => unit.repeat(times.parse().unwrap_or(0)),
            None => captured.get(name).cloned().unwrap_or_default(),
        };
        out.replace_range(start..=end, &value);
    }
    out
}

fn substitute_value(value: &mut Value, captured: &HashMap<String, String>) {
    match value {
        Value::String(s) if s.contains("${") => *s = substitute(s, captured),
        Value::Array(list) => list.iter_mut().for_each(|v| substitute_value(v, captured)),
        Value::Object(map) => map.values_mut().for_each(|v| substitute_value(v, captured)),
        _ => {}
    }
}

async fn send(addr: SocketAddr, step: &Step, captured: &HashMap<String, String>) -> Result<Answer, String> {
    let Some(until) = &step.until else { return once(addr, step, captured).await };
    let deadline = Instant::now() + Duration::from_secs_f64(step.within.unwrap_or(30.0).min(5.0));
    loop {
        let answer = once(addr, step, captured).await?;
        let json = answer.json().unwrap_or(Value::Null);
        if until.iter().all(|(key, want)| holds(key, want, &answer, &json)) || Instant::now() >= deadline {
            return Ok(answer);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn holds(key: &str, want: &Value, answer: &Answer, json: &Value) -> bool {
    match key {
        "status" => want.as_u64() == Some(answer.status.into()),
        "warnings" => {
            let prefix = skiff_api::warnings::idle::PREFIX;
            want.as_bool() == Some(answer.warnings().iter().any(|text| !text.contains(prefix)))
        }
        _ => match key.strip_suffix("#len") {
            Some(pointer) => json.pointer(pointer).and_then(Value::as_array).map(|l| l.len() as u64) == want.as_u64(),
            None => match want.as_str() {
                Some("<absent>") => json.pointer(key).is_none(),
                Some("<present>") => json.pointer(key).is_some(),
                _ => json.pointer(key) == Some(want),
            },
        },
    }
}

async fn once(addr: SocketAddr, step: &Step, captured: &HashMap<String, String>) -> Result<Answer, String> {
    let user = step.user.as_deref().unwrap_or("admin");
    let path = substitute(&step.path, captured);
    let mut request =
        hyper::Request::builder().method(step.method.as_str()).uri(&path).header("host", addr.to_string());
    let token = match user {
        "admin" | "alice" | "bob" => Some(format!("golden-{user}")),
        "badtoken" => Some("no-such-token".to_string()),
        "anonymous" | "none" => None,
        other => other.strip_prefix("token:").map(|t| substitute(t, captured)),
    };
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request = request.header("accept", step.accept.as_deref().unwrap_or("application/json"));
    match (&step.content_type, &step.body) {
        (Some(t), _) if t.is_empty() => {}
        (Some(t), _) => request = request.header("content-type", t),
        (None, Some(_)) => request = request.header("content-type", "application/json"),
        (None, None) => {}
    }
    if !step.headers.keys().any(|k| k.eq_ignore_ascii_case("user-agent")) {
        request = request.header("user-agent", "golden/1");
    }
    for (name, value) in &step.headers {
        request = request.header(name, substitute(value.as_str().unwrap_or_default(), captured));
    }
    let body = match &step.body {
        Some(Value::String(text)) => substitute(text, captured),
        Some(other) => {
            let mut other = other.clone();
            substitute_value(&mut other, captured);
            other.to_string()
        }
        None => String::new(),
    };
    let request =
        request.body(Full::new(bytes::Bytes::from(body))).map_err(|e| format!("building the request: {e}"))?;
    let stream = tokio::net::TcpStream::connect(addr).await.map_err(|e| format!("connecting: {e}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("handshake: {e}"))?;
    let driver = tokio::spawn(connection);
    let answer = timeout(Duration::from_secs(40), exchange(&mut sender, request, step)).await;
    driver.abort();
    answer.map_err(|_| "no answer within 40 s".to_string())?
}

async fn exchange(
    sender: &mut hyper::client::conn::http1::SendRequest<Full<bytes::Bytes>>,
    request: hyper::Request<Full<bytes::Bytes>>,
    step: &Step,
) -> Result<Answer, String> {
    let response = sender.send_request(request).await.map_err(|e| format!("sending: {e}"))?;
    let (parts, mut body) = response.into_parts();
    let headers =
        parts.headers.iter().map(|(k, v)| (k.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()));
    let mut answer = Answer { status: parts.status.as_u16(), headers: headers.collect(), ..Default::default() };
    let deadline = Instant::now() + Duration::from_secs_f64(step.watch.map_or(38.0, |w| w.seconds));
    loop {
        let seen = answer.body.iter().filter(|b| **b == b'\n').count();
        if step.watch.is_some_and(|w| answer.status == 200 && seen >= w.events) {
            // The recorder stopped reading here; whether the stream ends now is asked only where it was recorded.
            if !step.response.closed {
                return Ok(answer);
            }
        }
        match tokio::time::timeout_at(deadline, body.frame()).await {
            Err(_) => return Ok(answer),
            Ok(None) => {
                answer.closed = true;
                return Ok(answer);
            }
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    answer.body.extend_from_slice(data);
                }
            }
            Ok(Some(Err(e))) => return Err(format!("reading the body: {e}")),
        }
    }
}
