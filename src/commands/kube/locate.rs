//! The line of a field in a block of YAML: the server names fields, people look for lines.

/// A part of a field's path.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Key(String),
    Index(usize),
    /// The item of a list with this key and value: `[name="web"]`.
    Item(String, String),
}

/// `spec.containers[0].image` and `metadata.labels[app]` as parts.
fn parts(path: &str) -> Vec<Part> {
    let mut found = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (name, after) = inner.split_once(']').unwrap_or((inner, ""));
            rest = after;
            found.push(match (name.parse(), name.split_once('=')) {
                (Ok(index), _) => Part::Index(index),
                (_, Some((key, value))) => Part::Item(key.to_owned(), value.trim_matches('"').to_owned()),
                _ => Part::Key(name.to_owned()),
            });
        } else {
            let (name, after) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
            rest = after.strip_prefix('.').unwrap_or(after);
            if !name.is_empty() {
                found.push(Part::Key(name.to_owned()));
            }
        }
    }
    found
}

/// A line as the search sees it: its number, its indentation, and its text without a dash before it.
struct Line<'t> {
    number: usize,
    indent: usize,
    text: &'t str,
}

/// The line (from 0) of the deepest part of `path` that the text has. None when not even the first part is there.
pub fn line_of(text: &str, path: &str) -> Option<usize> {
    let mut scope: Vec<Line<'_>> = text
        .lines()
        .enumerate()
        .map(|(number, line)| Line { number, indent: line.len() - line.trim_start().len(), text: line.trim() })
        .filter(|l| !l.text.is_empty() && !l.text.starts_with('#'))
        .collect();
    let mut found = None;
    for part in parts(path) {
        let Some(next) = narrow(scope, &part) else { break };
        found = next.0;
        scope = next.1;
    }
    found
}

/// The line of a part within its scope, and the scope below it.
fn narrow<'t>(scope: Vec<Line<'t>>, part: &Part) -> Option<(Option<usize>, Vec<Line<'t>>)> {
    let indent = scope.first()?.indent;
    let at = match part {
        Part::Key(key) => scope.iter().position(|l| l.indent == indent && is_key(l.text, key))?,
        Part::Index(index) => {
            let mut items = scope.iter().enumerate().filter(|(_, l)| l.indent == indent && l.text.starts_with('-'));
            items.nth(*index)?.0
        }
        Part::Item(key, value) => {
            let says = |l: &Line<'_>| {
                let pair = l.text.trim_start_matches('-').trim_start();
                let said = pair.split_once(':').map_or("", |(_, said)| said.trim().trim_matches(['"', '\'']));
                is_key(pair, key) && said == value
            };
            let line = scope.iter().position(says)?;
            scope[..=line].iter().rposition(|l| l.indent == indent && l.text.starts_with('-'))?
        }
    };
    let number = scope[at].number;
    let mut below = Vec::new();
    let mut lines = scope.into_iter().skip(at);
    let head = lines.next()?;
    if !matches!(part, Part::Key(_)) {
        // What follows the dash is the first line of the item.
        let inner = head.text.trim_start_matches('-').trim_start();
        if !inner.is_empty() {
            below.push(Line { number, indent: head.indent + head.text.len() - inner.len(), text: inner });
        }
    }
    for line in lines {
        // A list may stand at the indentation of its key.
        let belongs =
            line.indent > indent || matches!(part, Part::Key(_)) && line.indent == indent && line.text.starts_with('-');
        if !belongs {
            break;
        }
        below.push(line);
    }
    Some((Some(number), below))
}

fn is_key(line: &str, key: &str) -> bool {
    let rest = line.strip_prefix(key).or_else(|| line.strip_prefix(&format!("\"{key}\"")));
    rest.is_some_and(|r| r == ":" || r.starts_with(": "))
}

/// What a refusal says, in parts that are about one field each: the field (or nothing), and the words.
pub fn complaints(status: &serde_json::Value) -> Vec<(String, String)> {
    let message = status["message"].as_str().unwrap_or_default();
    let undeclared = |line: &str| {
        let field = line.trim().strip_suffix(": field not declared in schema")?.trim_start_matches('.');
        Some((field.to_owned(), format!("unknown field {field:?}")))
    };
    let fields: Vec<_> = message.lines().filter_map(undeclared).collect();
    if !fields.is_empty() {
        return fields;
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let cause = |c: &serde_json::Value| {
        let (field, words) = (c["field"].as_str().filter(|f| !f.is_empty())?, c["message"].as_str()?);
        Some((field.to_owned(), format!("{field}: {words}")))
    };
    let fields: Vec<_> = causes.filter_map(cause).collect();
    if !fields.is_empty() {
        return fields;
    }
    let after = message.split_once("unknown field \"").or_else(|| message.split_once("duplicate field \""));
    let field = after.and_then(|(_, rest)| rest.split_once('"')).map_or("", |(field, _)| field);
    vec![(field.to_owned(), if message.is_empty() { status.to_string() } else { message.to_owned() })]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_have_lines() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    app: x\nspec:\n  # two\n  containers:\n  - name: a\n    image: b\n  - image: c\n    ports:\n      - containerPort: 1\n";
        let check = |path: &str, expect: Option<usize>| assert_eq!(line_of(text, path), expect, "{path}");
        check("", None);
        check("kind", Some(1));
        check("metadata.labels[app]", Some(4));
        check("spec.containers[0].image", Some(9));
        check("spec.containers[1].image", Some(10));
        check("spec.containers[1].ports[0].containerPort", Some(12));
        check("spec.containers[1].imagePullPolicy", Some(10));
        check("spec.containers[name=\"a\"].image", Some(9));
        check("spec.containers[name=\"z\"].image", Some(7));
        check("status", None);
    }

    #[test]
    fn refusals_name_fields() {
        let check = |status: serde_json::Value, expect: &[(&str, &str)]| {
            let expect: Vec<_> = expect.iter().map(|(f, w)| (f.to_string(), w.to_string())).collect();
            assert_eq!(complaints(&status), expect);
        };
        check(
            json!({"message": "is invalid", "details": {"causes": [{"field": "spec.replicas", "message": "must be positive"}]}}),
            &[("spec.replicas", "spec.replicas: must be positive")],
        );
        check(
            json!({"message": "failed:\n  .spec.replica: field not declared in schema\n  .spec.a[name=\"w\"].b: field not declared in schema"}),
            &[
                ("spec.replica", "unknown field \"spec.replica\""),
                ("spec.a[name=\"w\"].b", "unknown field \"spec.a[name=\\\"w\\\"].b\""),
            ],
        );
        check(json!({"message": "unknown field \"spec.x\""}), &[("spec.x", "unknown field \"spec.x\"")]);
        check(json!({"message": "no"}), &[("", "no")]);
    }
}
