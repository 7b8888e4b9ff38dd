//! What verbs print: tables of the server, and objects as YAML, JSON, names, or through a JSONPath.

use super::jsonpath::Template;
use serde_json::{Value, json};
use std::io::Write as _;
use std::str::FromStr;

/// How `-o` was given.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    Table { wide: bool },
    Yaml,
    Json,
    Name,
    JsonPath(Template),
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "" => Ok(Format::Table { wide: false }),
            "wide" => Ok(Format::Table { wide: true }),
            "yaml" => Ok(Format::Yaml),
            "json" => Ok(Format::Json),
            "name" => Ok(Format::Name),
            other => match other.strip_prefix("jsonpath=") {
                Some(template) => Template::parse(template).map(Format::JsonPath).map_err(|e| format!("{e:#}")),
                None => Err(format!("{other:?} is not one of wide, yaml, json, name, jsonpath=TEMPLATE")),
            },
        }
    }
}

/// Writes to stdout at once.
pub fn say(text: &str) -> anyhow::Result<()> {
    say_bytes(text.as_bytes())
}

pub fn say_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// Whether the error is that nobody reads our output any more (`skiff get pods | head -1`).
pub fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Takes away what only machines read.
pub fn without_managed_fields(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

/// Several objects as one.
pub fn list_of(objects: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "items": objects, "kind": "List", "metadata": {"resourceVersion": ""}})
}

/// An object in the format (tables are not made of objects).
pub fn object(format: &Format, object: &Value) -> String {
    match format {
        Format::Yaml => {
            let mut out = String::new();
            skiff_apiserver::write_yaml(object, &mut out);
            out
        }
        Format::JsonPath(template) => template.render(object),
        _ => format!("{}\n", serde_json::to_string_pretty(object).unwrap_or_default()),
    }
}

/// A table as it will be printed. Widths grow with the rows and stay for the rows that a watch adds.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Columns of the server's table that are shown.
    shown: Vec<usize>,
    head: Vec<String>,
    widths: Vec<usize>,
    pub options: TableOptions,
}

#[derive(Clone, Debug, Default)]
pub struct TableOptions {
    pub wide: bool,
    pub namespaces: bool,
    pub labels: bool,
    pub no_headers: bool,
    /// Put before names: `deployment.apps/`.
    pub prefix: String,
}

impl Table {
    pub fn new(options: TableOptions) -> Table {
        Table { options, ..Table::default() }
    }

    /// The text of a server's table: its head the first time, then its rows.
    pub fn text(&mut self, table: &Value) -> String {
        let columns = table["columnDefinitions"].as_array().map_or(&[][..], Vec::as_slice);
        let mut lines = Vec::new();
        if self.head.is_empty() && !columns.is_empty() {
            self.shown = (0..columns.len()).filter(|&i| self.options.wide || columns[i]["priority"] == 0).collect();
            let names = self.shown.iter().map(|&i| columns[i]["name"].as_str().unwrap_or_default().to_uppercase());
            let namespace = self.options.namespaces.then(|| "NAMESPACE".to_owned());
            let labels = self.options.labels.then(|| "LABELS".to_owned());
            self.head = namespace.into_iter().chain(names).chain(labels).collect();
            self.widths = vec![0; self.head.len()];
            if !self.options.no_headers {
                lines.push(self.head.clone());
            }
        }
        lines.extend(table["rows"].as_array().into_iter().flatten().map(|row| self.cells(row)));
        for line in &lines {
            for (width, cell) in self.widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        lines.iter().map(|line| padded(line, &self.widths)).collect()
    }

    fn cells(&self, row: &Value) -> Vec<String> {
        let metadata = &row["object"]["metadata"];
        let mut cells = Vec::with_capacity(self.head.len());
        if self.options.namespaces {
            cells.push(metadata["namespace"].as_str().unwrap_or_default().to_owned());
        }
        for (position, &index) in self.shown.iter().enumerate() {
            let cell = match &row["cells"][index] {
                Value::String(text) => text.lines().next().unwrap_or_default().to_owned(),
                Value::Null => "<none>".to_owned(),
                other => other.to_string(),
            };
            cells.push(if position == 0 { format!("{}{cell}", self.options.prefix) } else { cell });
        }
        if self.options.labels {
            cells.push(labels(&metadata["labels"]));
        }
        cells
    }
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(labels: &Value) -> String {
    let pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

/// Cells three spaces apart, the last one as it is.
fn padded(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        line.push_str(cell);
        if index + 1 < cells.len() {
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let table = json!({"columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "IP", "priority": 1}, {"name": "Age", "priority": 0}],
            "rows": [{"cells": ["web", "10.42.0.3", "5s"], "object": {"metadata": {"namespace": "shop", "labels": {"a": "b"}}}}]});
        let check = |options: TableOptions, expect: &str| assert_eq!(Table::new(options).text(&table), expect);
        check(TableOptions::default(), "NAME   AGE\nweb    5s\n");
        check(
            TableOptions { wide: true, namespaces: true, labels: true, ..Default::default() },
            "NAMESPACE   NAME   IP          AGE   LABELS\nshop        web    10.42.0.3   5s    a=b\n",
        );
        check(TableOptions { no_headers: true, prefix: "pod/".into(), ..Default::default() }, "pod/web   5s\n");
        let mut watched = Table::new(TableOptions::default());
        watched.text(&table);
        let event = json!({"columnDefinitions": null, "rows": [{"cells": ["w", null, "9s"]}]});
        assert_eq!(watched.text(&event), "w      9s\n");
    }

    #[test]
    fn formats() {
        let check = |text: &str, ok: bool| assert_eq!(text.parse::<Format>().is_ok(), ok, "{text}");
        for good in ["wide", "yaml", "json", "name", "jsonpath={.a}"] {
            check(good, true);
        }
        for bad in ["wild", "jsonpath={", "jsonpath"] {
            check(bad, false);
        }
    }
}
