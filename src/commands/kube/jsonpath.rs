//! kubectl's JSONPath templates: text, paths in braces, `{range}` to `{end}`, filters.
//!
//! Source: the Kubernetes reference, "JSONPath Support". A path that leads nowhere prints nothing.

use anyhow::{Context as _, bail};
use serde_json::Value;
use std::iter::Peekable;
use std::str::Chars;

/// A template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Node>),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// `$`: the whole document, also within a range.
    Root,
    Field(String),
    All,
    Index(i64),
    /// From, to (not included), stride.
    Slice(Option<i64>, Option<i64>, i64),
    Union(Vec<Step>),
    /// Every value below, and the value itself.
    Descend,
    Filter(Vec<Step>, Option<(String, Operand)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Literal(Value),
    Path(Vec<Step>),
}

impl Template {
    /// Reads a template; a bare path needs no braces.
    pub fn parse(text: &str) -> anyhow::Result<Template> {
        let wrapped = if text.contains('{') { text.to_owned() } else { format!("{{{text}}}") };
        let mut rest = wrapped.as_str();
        // Unfinished ranges, the innermost last; the first entry is the template itself.
        let mut open: Vec<(Vec<Step>, Vec<Node>)> = vec![(Vec::new(), Vec::new())];
        while !rest.is_empty() {
            let node = match rest.strip_prefix('{') {
                None => {
                    let (text, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
                    rest = after;
                    Node::Text(text.to_owned())
                }
                Some(inner) => {
                    let end = closing(inner).with_context(|| format!("no }} closes {{{inner}"))?;
                    let action = inner[..end].trim();
                    rest = &inner[end + 1..];
                    if action == "end" {
                        let (path, nodes) = open.pop().filter(|_| !open.is_empty()).context("{end} without {range}")?;
                        Node::Range(path, nodes)
                    } else if let Some(path) = action.strip_prefix("range ") {
                        open.push((parse_path(path.trim())?, Vec::new()));
                        continue;
                    } else if action.starts_with(['"', '\'']) {
                        Node::Text(literal(action)?)
                    } else {
                        Node::Path(parse_path(action)?)
                    }
                }
            };
            open.last_mut().context("{end} without {range}")?.1.push(node);
        }
        match open.pop() {
            Some((_, nodes)) if open.is_empty() => Ok(Template(nodes)),
            _ => bail!("{{range}} without {{end}}"),
        }
    }

    pub fn render(&self, value: &Value) -> String {
        let mut out = String::new();
        render(&self.0, value, value, &mut out);
        out
    }
}

/// Where the brace that opened `text` closes; braces in quotes do not count.
fn closing(text: &str) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (None, '}') => return Some(at),
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            _ => {}
        }
    }
    None
}

/// A text in quotes, with `\n` and `\t` in it.
fn literal(text: &str) -> anyhow::Result<String> {
    let quote = text.chars().next().unwrap_or('"');
    let inner = text
        .strip_prefix(quote)
        .and_then(|t| t.strip_suffix(quote))
        .with_context(|| format!("{text} is not closed"))?;
    Ok(inner.replace("\\n", "\n").replace("\\t", "\t").replace("\\\"", "\"").replace("\\\\", "\\"))
}

fn parse_path(text: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '$' if steps.is_empty() => steps.push(Step::Root),
            '@' if steps.is_empty() => {}
            '.' if chars.peek() == Some(&'.') => {
                chars.next();
                steps.push(Step::Descend);
                let name = field(&mut chars);
                if !name.is_empty() {
                    steps.push(name_step(name));
                }
            }
            '.' => {
                let name = field(&mut chars);
                if !name.is_empty() {
                    steps.push(name_step(name));
                }
            }
            '[' => steps.push(bracket(&inside(&mut chars, text)?)?),
            c if steps.is_empty() => {
                let name = field(&mut chars);
                steps.push(name_step(format!("{c}{name}")));
            }
            c => bail!("{c:?} was not expected in the path {text:?}"),
        }
    }
    Ok(steps)
}

fn name_step(name: String) -> Step {
    if name == "*" { Step::All } else { Step::Field(name) }
}

/// A field's name; a backslash takes the next character as it is.
fn field(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    while let Some(&c) = chars.peek() {
        match c {
            '.' | '[' => break,
            '\\' => {
                chars.next();
                name.extend(chars.next());
                continue;
            }
            c => name.push(c),
        }
        chars.next();
    }
    name
}

/// What stands in brackets that were just opened.
fn inside(chars: &mut Peekable<Chars<'_>>, path: &str) -> anyhow::Result<String> {
    let (mut depth, mut quote, mut text) = (1, None, String::new());
    for c in chars.by_ref() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(text);
        }
        text.push(c);
    }
    bail!("no ] closes a [ in the path {path:?}")
}

fn bracket(text: &str) -> anyhow::Result<Step> {
    let text = text.trim();
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        return parse_filter(filter);
    }
    if text == "*" {
        return Ok(Step::All);
    }
    if text.contains(',') {
        return Ok(Step::Union(text.split(',').map(bracket).collect::<anyhow::Result<_>>()?));
    }
    if text.starts_with(['"', '\'']) {
        return Ok(Step::Field(literal(text)?));
    }
    let number =
        |t: &str| t.trim().parse::<i64>().with_context(|| format!("[{text}] is no index, slice or name in quotes"));
    if text.contains(':') {
        let bounds: Vec<&str> = text.split(':').collect();
        let bound = |i: usize| bounds.get(i).filter(|t| !t.trim().is_empty()).map(|t| number(t)).transpose();
        return Ok(Step::Slice(bound(0)?, bound(1)?, bound(2)?.unwrap_or(1).max(1)));
    }
    Ok(Step::Index(number(text)?))
}

fn parse_filter(text: &str) -> anyhow::Result<Step> {
    let Some((left, operator, right)) = comparison(text) else {
        return Ok(Step::Filter(parse_path(text.trim())?, None));
    };
    let (left, right) = (left.trim(), right.trim());
    let operand = if right.starts_with(['@', '$']) {
        Operand::Path(parse_path(right)?)
    } else if right.starts_with(['"', '\'']) {
        Operand::Literal(Value::String(literal(right)?))
    } else {
        Operand::Literal(serde_json::from_str(right).with_context(|| format!("{right:?} is no value to compare with"))?)
    };
    Ok(Step::Filter(parse_path(left)?, Some((operator.to_owned(), operand))))
}

/// A comparison's sides and its operator, which may not stand in quotes.
fn comparison(text: &str) -> Option<(&str, &'static str, &str)> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match quote {
            Some(q) if q == c => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None => {
                let found = ["==", "!=", ">=", "<=", ">", "<"].into_iter().find(|op| text[at..].starts_with(op));
                if let Some(operator) = found {
                    return Some((&text[..at], operator, &text[at + operator.len()..]));
                }
            }
            Some(_) => {}
        }
    }
    None
}

fn render(nodes: &[Node], root: &Value, current: &Value, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(steps) => {
                let words: Vec<String> = walk(steps, root, current).into_iter().map(word).collect();
                out.push_str(&words.join(" "));
            }
            Node::Range(steps, inner) => {
                for value in walk(steps, root, current) {
                    render(inner, root, value, out);
                }
            }
        }
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn walk<'v>(steps: &[Step], root: &'v Value, value: &'v Value) -> Vec<&'v Value> {
    let mut current = vec![value];
    for step in steps {
        current = current.into_iter().flat_map(|v| take(step, root, v)).collect();
    }
    current
}

fn take<'v>(step: &Step, root: &'v Value, value: &'v Value) -> Vec<&'v Value> {
    let children = || -> Vec<&'v Value> {
        match value {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        }
    };
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    let place = |index: i64| if index < 0 { index + list.len() as i64 } else { index };
    match step {
        Step::Root => vec![root],
        Step::Field(name) => value.get(name.as_str()).into_iter().collect(),
        Step::All => children(),
        Step::Index(index) => usize::try_from(place(*index)).ok().and_then(|i| list.get(i)).into_iter().collect(),
        Step::Slice(from, to, stride) => {
            let clamp = |bound: i64| place(bound).clamp(0, list.len() as i64) as usize;
            let (from, to) = (clamp(from.unwrap_or(0)), to.map_or(list.len(), clamp));
            list.get(from..to).unwrap_or_default().iter().step_by(*stride as usize).collect()
        }
        Step::Union(steps) => steps.iter().flat_map(|s| take(s, root, value)).collect(),
        Step::Descend => {
            let mut all = vec![value];
            for child in children() {
                all.extend(take(step, root, child));
            }
            all
        }
        Step::Filter(path, test) => {
            children().into_iter().filter(|child| matches(path, test.as_ref(), root, child)).collect()
        }
    }
}

fn matches(path: &[Step], test: Option<&(String, Operand)>, root: &Value, value: &Value) -> bool {
    let left = walk(path, root, value).first().copied();
    let Some((operator, operand)) = test else { return left.is_some() };
    let right = match operand {
        Operand::Literal(value) => Some(value),
        Operand::Path(path) => walk(path, root, value).first().copied(),
    };
    let (Some(left), Some(right)) = (left, right) else { return false };
    let order = match (left.as_f64(), right.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ => left.as_str().zip(right.as_str()).map(|(a, b)| a.cmp(b)),
    };
    match operator.as_str() {
        "==" => left == right,
        "!=" => left != right,
        ">" => order.is_some_and(std::cmp::Ordering::is_gt),
        "<" => order.is_some_and(std::cmp::Ordering::is_lt),
        ">=" => order.is_some_and(std::cmp::Ordering::is_ge),
        _ => order.is_some_and(std::cmp::Ordering::is_le),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates() {
        let value = json!({"items": [
            {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x"}}, "status": {"conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}], "n": 1}},
            {"metadata": {"name": "b"}, "status": {"n": 2}},
            {"metadata": {"name": "c"}, "status": {"n": 3}}], "kind": "List"});
        let check = |template: &str, expect: &str| {
            assert_eq!(Template::parse(template).unwrap().render(&value), expect, "{template}");
        };
        check(".kind", "List");
        check("{.kind}", "List");
        check("{$.kind}", "List");
        check("{.items[*].metadata.name}", "a b c");
        check("{.items[0].metadata.name}-{.items[-1].metadata.name}", "a-c");
        check("{.items[0:2].metadata.name}", "a b");
        check("{.items[0,2].metadata.name}", "a c");
        check("{range .items[*]}{.metadata.name}{\"\\t\"}{.status.n}{\"\\n\"}{end}", "a\t1\nb\t2\nc\t3\n");
        check("{.items[?(@.status.n>=2)].metadata.name}", "b c");
        check("{.items[0].status.conditions[?(@.type==\"Ready\")].status}", "True");
        check("{.items[0].metadata.labels.app\\.kubernetes\\.io/name}", "x");
        check("{.items[0].metadata.labels['app.kubernetes.io/name']}", "x");
        check("{..name}", "a b c");
        check("{.items[?(@.metadata.labels)].metadata.name}", "a");
        check("{range .items[:2]}{$.kind}/{@.metadata.name} {end}", "List/a List/b ");
        check("{.nothing.here}", "");
        check("{.items[1].metadata}", "{\"name\":\"b\"}");
        check("{.items[9]}", "");
    }

    #[test]
    fn what_is_wrong() {
        for template in ["{.a", "{range .a}", "{end}", "{.a[}", "{.a[x]}", "{\"x}", "{.a[?(@.b==x)]}"] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }
}
