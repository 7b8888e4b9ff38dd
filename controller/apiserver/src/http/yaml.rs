//! JSON values as YAML, in the block style and with the sorted keys that Kubernetes clients know.

use serde_json::Value;
use std::fmt::Write;

/// Appends `value` as a YAML document.
pub fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, out),
        Value::Array(list) if !list.is_empty() => block(value, 0, out),
        other => {
            scalar(other, 0, out);
            out.push('\n');
        }
    }
}

fn is_block(value: &Value) -> bool {
    matches!(value, Value::Object(m) if !m.is_empty()) || matches!(value, Value::Array(l) if !l.is_empty())
}

fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(k, _)| k.as_str());
            for (index, (key, inner)) in pairs.into_iter().enumerate() {
                if index > 0 {
                    out.push_str(&pad);
                }
                scalar(&Value::String(key.clone()), indent, out);
                out.push(':');
                match inner {
                    Value::Object(m) if !m.is_empty() => {
                        let _ = write!(out, "\n{pad}  ");
                        block(inner, indent + 2, out);
                    }
                    Value::Array(l) if !l.is_empty() => {
                        let _ = write!(out, "\n{pad}");
                        block(inner, indent, out);
                    }
                    inner => {
                        out.push(' ');
                        scalar(inner, indent + 2, out);
                        out.push('\n');
                    }
                }
            }
        }
        Value::Array(list) => {
            for (index, inner) in list.iter().enumerate() {
                if index > 0 {
                    out.push_str(&pad);
                }
                out.push_str("- ");
                if is_block(inner) {
                    block(inner, indent + 2, out);
                } else {
                    scalar(inner, indent + 2, out);
                    out.push('\n');
                }
            }
        }
        other => scalar(other, indent, out),
    }
}

fn scalar(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(text) if text.contains('\n') && is_printable(text) => literal(text, indent, out),
        Value::String(text) if needs_quotes(text) => {
            let _ = write!(out, "{}", Value::String(text.clone()));
        }
        Value::String(text) => out.push_str(text),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

fn is_printable(text: &str) -> bool {
    !text.starts_with([' ', '\n']) && text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control())
}

/// A text of several lines as a block scalar.
fn literal(text: &str, indent: usize, out: &mut String) {
    let chomp = if text.ends_with("\n\n") {
        "+"
    } else if text.ends_with('\n') {
        ""
    } else {
        "-"
    };
    let _ = write!(out, "|{chomp}");
    let pad = " ".repeat(indent.max(2));
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.push_str(&pad);
            out.push_str(line);
        }
    }
}

/// Whether a plain text would be read back as something else (YAML 1.1).
fn needs_quotes(text: &str) -> bool {
    let Some(first) = text.chars().next() else { return true };
    let lower = text.to_ascii_lowercase();
    let word = matches!(
        lower.as_str(),
        "null"
            | "~"
            | "true"
            | "false"
            | "yes"
            | "no"
            | "on"
            | "off"
            | "y"
            | "n"
            | "."
            | ".."
            | ".nan"
            | ".inf"
            | "-.inf"
            | "="
            | "<<"
    );
    let number = text.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && text
            .chars()
            .all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | '+' | '-' | '_' | ':' | 'x' | 'o' | 'T' | 'Z'));
    word || number
        || matches!(
            first,
            '!' | '&'
                | '*'
                | '-'
                | '?'
                | ':'
                | '['
                | ']'
                | '{'
                | '}'
                | ','
                | '#'
                | '|'
                | '>'
                | '@'
                | '`'
                | '"'
                | '\''
                | '%'
                | ' '
        ) && !(matches!(first, '-' | ':' | '?')
            && text.chars().nth(1).is_some_and(|c| !c.is_whitespace())
            && !text.starts_with("---"))
        || text.ends_with([' ', ':'])
        || text.contains(": ")
        || text.contains(" #")
        || text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents() {
        let check = |value: Value, expect: &str| {
            let mut out = String::new();
            write(&value, &mut out);
            assert_eq!(out, expect);
            let back: Value = serde_yaml::from_str(&out).unwrap();
            assert_eq!(back, value);
        };
        check(
            json!({"kind": "L", "apiVersion": "v1", "items": [], "metadata": {"resourceVersion": "7"}}),
            "apiVersion: v1\nitems: []\nkind: L\nmetadata:\n  resourceVersion: \"7\"\n",
        );
        check(
            json!({"a": [{"b": 1, "c": [2, 3]}, "x"], "d": {}, "e": null}),
            "a:\n- b: 1\n  c:\n  - 2\n  - 3\n- x\nd: {}\ne: null\n",
        );
        check(
            json!({"t": "one\ntwo\n", "y": "yes", "n": "1.5"}),
            "\"n\": \"1.5\"\nt: |\n  one\n  two\n\"y\": \"yes\"\n",
        );
    }
}
