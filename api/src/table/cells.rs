//! The small forms that cells share: ages, lists, containers of a template.

use crate::meta;
use crate::selector::LabelSelector;
use jiff::Timestamp;
use serde_json::Value;

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";
const UNKNOWN: &str = "<unknown>";

/// A span in the two largest units that say enough: `5s`, `3m20s`, `4h`, `12d`, `2y10d`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |a: i64, x: &str, b: i64, y: &str| if b == 0 { format!("{a}{x}") } else { format!("{a}{x}{b}{y}") };
    match seconds {
        // Clocks differ a little between machines.
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => two(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => two(hours / 24, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => two(hours / 24 / 365, "y", (hours / 24) % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// Time since the time at `path`, `<unknown>` when there is none.
pub(super) fn since(obj: &Value, path: &[&str], now: Timestamp) -> String {
    match meta::time_at(obj, path) {
        Some(at) => human_duration(now.duration_since(at).as_secs()),
        None => UNKNOWN.into(),
    }
}

pub(super) fn age(obj: &Value, now: Timestamp) -> Value {
    since(obj, &["metadata", "creationTimestamp"], now).into()
}

pub(super) fn created(obj: &Value) -> Value {
    meta::at(obj, &["metadata", "creationTimestamp"]).cloned().unwrap_or(Value::Null)
}

pub(super) fn text(obj: &Value, path: &[&str]) -> Value {
    meta::str_at(obj, path).into()
}

pub(super) fn text_or(obj: &Value, path: &[&str], other: &str) -> Value {
    let found = meta::str_at(obj, path);
    if found.is_empty() { other.into() } else { found.into() }
}

pub(super) fn number(obj: &Value, path: &[&str]) -> i64 {
    meta::i64_at(obj, path).unwrap_or(0)
}

/// An integer or a string (percentages), else `other`.
pub(super) fn int_or_string(obj: &Value, path: &[&str], other: &str) -> Value {
    match meta::at(obj, path) {
        Some(Value::String(s)) => s.clone().into(),
        Some(Value::Number(n)) => n.to_string().into(),
        _ => other.into(),
    }
}

/// Items joined by commas, `<none>` when there are none.
pub(super) fn joined(items: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = items.collect();
    if all.is_empty() { NONE.into() } else { all.join(",") }
}

/// At most three items, then how many more.
pub(super) fn first_three(items: &[String], none: &str) -> String {
    if items.is_empty() {
        return none.into();
    }
    let shown = items.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    if items.len() > 3 { format!("{shown} + {} more...", items.len() - 3) } else { shown }
}

/// Names and images of the containers at `path`.
pub(super) fn containers(obj: &Value, path: &[&str]) -> [Value; 2] {
    let list = meta::list_at(obj, path);
    let all = |key: &str| list.iter().map(|c| meta::str_at(c, &[key])).collect::<Vec<_>>().join(",");
    [all("name").into(), all("image").into()]
}

pub(super) fn template_containers(obj: &Value) -> [Value; 2] {
    containers(obj, &["spec", "template", "spec", "containers"])
}

/// A `LabelSelector` in its query form.
pub(super) fn selector(obj: &Value, path: &[&str]) -> Value {
    match meta::at(obj, path).map(LabelSelector::from_json) {
        Some(Ok(s)) if !s.is_everything() => s.to_string().into(),
        Some(Err(_)) => "<error>".into(),
        _ => NONE.into(),
    }
}

/// A plain map as `a=b,c=d`, sorted.
pub(super) fn labels(obj: &Value, path: &[&str]) -> Value {
    let map = meta::map_at(obj, path);
    let mut pairs: Vec<String> =
        map.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    pairs.sort();
    joined(pairs.into_iter()).into()
}

#[cfg(test)]
mod tests {
    use super::human_duration;

    #[test]
    fn durations() {
        for (seconds, expect) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600 + 60, "9h"),
            (49 * 3600, "2d1h"),
            (10 * 86400, "10d"),
            (730 * 86400, "2y"),
            (735 * 86400, "2y5d"),
            (3000 * 86400, "8y"),
        ] {
            assert_eq!(human_duration(seconds), expect, "{seconds}");
        }
    }
}
