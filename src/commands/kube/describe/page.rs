//! A page of text: names and values in two columns, lists below names, small tables.

use serde_json::Value;
use std::fmt::Write as _;

/// How wide the column of names is.
const NAMES_WIDTH: usize = 18;

/// A text as it grows.
#[derive(Default)]
pub struct Page {
    text: String,
}

/// A scalar as a word; nothing as `<none>`.
pub fn word(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "<none>".into(),
        Value::String(text) => text.clone(),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}

/// `hostPath` as `Host Path`; what is no field's name (`ca.crt`) stays as it is.
fn title(field: &str) -> String {
    if !field.chars().all(|c| c.is_ascii_alphanumeric()) {
        return field.to_owned();
    }
    let mut out = String::new();
    for (index, c) in field.char_indices() {
        if index == 0 {
            out.extend(c.to_uppercase());
        } else {
            if c.is_uppercase() && out.chars().last().is_some_and(char::is_lowercase) {
                out.push(' ');
            }
            out.push(c);
        }
    }
    out
}

impl Page {
    pub fn text(self) -> String {
        self.text
    }

    /// A name and its value, `depth` levels in.
    pub fn line(&mut self, depth: usize, name: &str, value: &str) {
        let label = format!("{}{name}:", "  ".repeat(depth));
        let _ = writeln!(self.text, "{label:<NAMES_WIDTH$} {}", value.trim_end());
    }

    /// A name under which more follows.
    pub fn section(&mut self, depth: usize, name: &str) {
        let _ = writeln!(self.text, "{}{name}:", "  ".repeat(depth));
    }

    /// `a=b` of a map, one a line.
    pub fn pairs(&mut self, depth: usize, name: &str, map: &Value) {
        let pairs: Vec<String> =
            map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", word(v))).collect();
        let mut pairs = pairs.iter();
        self.line(depth, name, pairs.next().map_or("<none>", String::as_str));
        for pair in pairs {
            let _ = writeln!(self.text, "{:NAMES_WIDTH$} {pair}", "");
        }
    }

    /// Rows in columns, two spaces in.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let mut widths: Vec<usize> = head.iter().map(|h| h.len()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let head: Vec<String> = head.iter().map(ToString::to_string).collect();
        let rule: Vec<String> = head.iter().map(|h| "-".repeat(h.len())).collect();
        for row in [&head, &rule].into_iter().chain(rows) {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
            let _ = writeln!(self.text, "  {}", cells.join("  ").trim_end());
        }
    }

    /// What every object has.
    pub fn head(&mut self, object: &Value) {
        let metadata = &object["metadata"];
        self.line(0, "Name", &word(&metadata["name"]));
        if metadata["namespace"].is_string() {
            self.line(0, "Namespace", &word(&metadata["namespace"]));
        }
        self.pairs(0, "Labels", &metadata["labels"]);
        self.pairs(0, "Annotations", &metadata["annotations"]);
        self.line(0, "Created", &word(&metadata["creationTimestamp"]));
        if metadata["deletionTimestamp"].is_string() {
            self.line(0, "Terminating since", &word(&metadata["deletionTimestamp"]));
        }
        for owner in metadata["ownerReferences"].as_array().into_iter().flatten().filter(|o| o["controller"] == true) {
            self.line(0, "Controlled By", &format!("{}/{}", word(&owner["kind"]), word(&owner["name"])));
        }
    }

    /// All fields but the metadata.
    pub fn rest(&mut self, object: &Value) {
        for (name, value) in object.as_object().into_iter().flatten() {
            if !matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
                self.field(0, &title(name), value);
            }
        }
    }

    fn field(&mut self, depth: usize, name: &str, value: &Value) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                self.section(depth, name);
                for (inner, value) in map {
                    self.field(depth + 1, &title(inner), value);
                }
            }
            Value::Array(list) if list.iter().any(|v| v.is_object() || v.is_array()) => {
                self.section(depth, name);
                for (index, value) in list.iter().enumerate() {
                    self.field(depth + 1, &format!("[{index}]"), value);
                }
            }
            Value::Array(list) => self.line(depth, name, &list.iter().map(word).collect::<Vec<_>>().join(", ")),
            Value::String(text) if text.contains('\n') => {
                self.section(depth, name);
                for line in text.lines() {
                    let _ = writeln!(self.text, "{}{line}", "  ".repeat(depth + 1));
                }
            }
            other => self.line(depth, name, &word(other)),
        }
    }

    pub fn conditions(&mut self, conditions: &Value) {
        let Some(list) = conditions.as_array().filter(|l| !l.is_empty()) else { return };
        self.section(0, "Conditions");
        let row = |c: &Value| {
            ["type", "status", "reason", "message"].map(|f| c[f].as_str().unwrap_or_default().to_owned()).to_vec()
        };
        self.table(&["Type", "Status", "Reason", "Message"], &list.iter().map(row).collect::<Vec<_>>());
    }

    pub fn events(&mut self, events: &[Value]) {
        if events.is_empty() {
            return self.line(0, "Events", "<none>");
        }
        self.section(0, "Events");
        let row = |e: &Value| {
            let from =
                if e["source"]["component"].is_string() { &e["source"]["component"] } else { &e["reportingComponent"] };
            let count = e["count"].as_u64().unwrap_or(1).to_string();
            vec![
                word(&e["type"]),
                word(&e["reason"]),
                word(&e["lastTimestamp"]),
                count,
                word(from),
                word(&e["message"]),
            ]
        };
        let rows: Vec<Vec<String>> = events.iter().map(row).collect();
        self.table(&["Type", "Reason", "Last Seen", "Count", "From", "Message"], &rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn any_object() {
        let object = json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a", "creationTimestamp": "t", "labels": {"a": "b", "c": "d"}},
            "data": {"hostPath": "1\n2\n", "ca.crt": "x"}, "verbs": ["get", "list"], "rules": [{"a": 1}]});
        let mut page = Page::default();
        page.head(&object);
        page.rest(&object);
        page.events(&[]);
        let expect = "Name:              a\nLabels:            a=b\n                   c=d\nAnnotations:       <none>\nCreated:           t\n\
            Data:\n  Host Path:\n    1\n    2\n  ca.crt:          x\nVerbs:             get, list\nRules:\n  [0]:\n    A:             1\nEvents:            <none>\n";
        assert_eq!(page.text(), expect);
    }
}
