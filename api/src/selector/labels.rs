//! Label selectors: the query form `a in (b,c),!d,e!=f` and the object form of a spec.
//!
//! Both become the same list of requirements. Source: the Kubernetes documentation on labels and selectors.

use crate::meta::names;
use crate::validate::error::go_quote;
use serde_json::{Map, Value};

/// All requirements must hold. No requirement matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// The selector of an absent `LabelSelector` object: matches no object.
    nothing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Requirement {
    key: String,
    operator: Operator,
    /// Sorted.
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operator {
    In,
    NotIn,
    Equals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// The text or the object is not a selector. The message is the one clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        LabelSelector { nothing: true, ..Self::default() }
    }

    /// Parses the query form.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let parsed = Parser::new(text).requirements();
        let mut requirements = parsed.map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?;
        requirements.sort();
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// Reads a `LabelSelector` object: null or absent selects nothing, `{}` everything.
    pub fn from_json(selector: &Value) -> Result<Self, SelectorError> {
        let Some(map) = selector.as_object() else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in map.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_string();
            requirements.push(Requirement { key: key.clone(), operator: Operator::In, values: vec![value] });
        }
        for term in map.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| term.get(key).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::GreaterThan,
                "Lt" => Operator::LessThan,
                other => {
                    return Err(SelectorError(format!("{} is not a valid label selector operator", go_quote(other))));
                }
            };
            let values = term.get("values").and_then(Value::as_array).into_iter().flatten();
            let mut values: Vec<String> = values.filter_map(Value::as_str).map(str::to_string).collect();
            values.sort();
            requirements.push(Requirement { key: text("key").to_string(), operator, values });
        }
        requirements.sort();
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// Reads a plain map, as Services and ReplicationControllers select.
    pub fn from_map(map: &Map<String, Value>) -> Self {
        let requirement = |(key, value): (&String, &Value)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.as_str().unwrap_or_default().to_string()],
        };
        LabelSelector { requirements: map.iter().map(requirement).collect(), nothing: false }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// As [`matches`](Self::matches), for labels that are kept in another form.
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.holds(lookup(&r.key)))
    }

    /// `key=value` pairs that every match must have, for indices.
    pub fn exact_pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.requirements.iter().filter_map(|r| match (r.operator, r.values.as_slice()) {
            (Operator::Equals | Operator::In, [value]) => Some((r.key.as_str(), value.as_str())),
            _ => None,
        })
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = |t: &str| t.parse::<i64>().ok();
                let (Some(have), Some(want)) = (value.and_then(number), self.values.first().and_then(|v| number(v)))
                else {
                    return false;
                };
                if self.operator == Operator::GreaterThan { have > want } else { have < want }
            }
        }
    }
}

/// The query form, sorted by key, as `scale` shows a selector.
impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let first = r.values.first().map_or("", String::as_str);
            match r.operator {
                Operator::Equals => write!(f, "{}={first}", r.key)?,
                Operator::NotEquals => write!(f, "{}!={first}", r.key)?,
                // An object's matchLabels prints as equality, a set of values in brackets.
                Operator::In if r.values.len() == 1 => write!(f, "{}={first}", r.key)?,
                Operator::In => write!(f, "{} in ({})", r.key, r.values.join(","))?,
                Operator::NotIn => write!(f, "{} notin ({})", r.key, r.values.join(","))?,
                Operator::Exists => write!(f, "{}", r.key)?,
                Operator::DoesNotExist => write!(f, "!{}", r.key)?,
                Operator::GreaterThan => write!(f, "{}>{first}", r.key)?,
                Operator::LessThan => write!(f, "{}<{first}", r.key)?,
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(text) => text,
            Token::Symbol(text) => text,
            Token::End => "",
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn new(text: &str) -> Self {
        Parser { tokens: scan(text), at: 0 }
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn eat(&mut self, symbol: &'static str) -> bool {
        let found = *self.peek() == Token::Symbol(symbol);
        self.at += usize::from(found);
        found
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut found = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => found.push(self.requirement()?),
                Token::End => return Ok(found),
                other => {
                    return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text()));
                }
            }
            match self.next() {
                Token::End => return Ok(found),
                Token::Symbol(",") => {
                    if !matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) {
                        let text = self.peek().text();
                        return Err(format!("found '{text}', expected: identifier after ','"));
                    }
                }
                other => {
                    return Err(format!("found '{}', expected: ',' or 'end of string'", other.text()));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.eat("!");
        let key = match self.next() {
            Token::Word(word) => word,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        let problems = names::qualified_name(&key);
        if !problems.is_empty() {
            let text = format!("key: Invalid value: {}: {}", go_quote(&key), problems.join("; "));
            return Err(text);
        }
        if absent {
            return Ok(Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() });
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(Requirement { key, operator: Operator::Exists, values: Vec::new() });
        }
        let operator = match self.next() {
            Token::Word(word) if word == "in" => Operator::In,
            Token::Word(word) if word == "notin" => Operator::NotIn,
            Token::Symbol("=") | Token::Symbol("==") => Operator::Equals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            other => {
                let text = format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text());
                return Err(text);
            }
        };
        let mut values = match operator {
            Operator::In | Operator::NotIn => self.set()?,
            _ => vec![self.value()?],
        };
        values.sort();
        values.dedup();
        if matches!(operator, Operator::GreaterThan | Operator::LessThan) && values[0].parse::<i64>().is_err() {
            let text = format!(
                "values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                go_quote(&values[0])
            );
            return Err(text);
        }
        for (i, value) in values.iter().enumerate() {
            let problems = names::label_value(value);
            if !problems.is_empty() {
                let text = format!("values[{i}][{key}]: Invalid value: {}: {}", go_quote(value), problems.join("; "));
                return Err(text);
            }
        }
        Ok(Requirement { key, operator, values })
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        if !self.eat("(") {
            return Err(format!("found '{}' expected: '('", self.peek().text()));
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(word) => {
                    values.push(word);
                    match self.next() {
                        Token::Symbol(",") => {
                            // A comma at the end stands for an empty value.
                            if self.eat(")") {
                                values.push(String::new());
                                return Ok(values);
                            }
                        }
                        Token::Symbol(")") => return Ok(values),
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Symbol(",") => {
                    values.push(String::new());
                    if self.eat(")") {
                        return Ok(values);
                    }
                }
                Token::Symbol(")") => {
                    values.push(String::new());
                    return Ok(values);
                }
                other => {
                    return Err(format!("found '{}', expected: ',', ')' or identifier", other.text()));
                }
            }
        }
    }

    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(_) => Ok(self.next().text().to_string()),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }
}

const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn scan(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "=!(),><".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_string()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn matching() {
        let labels = json!({"a": "b", "n": "5", "e": ""});
        let check = |text: &str, expect: bool| {
            let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.matches(labels.as_object()), expect, "{text}");
        };
        for (text, expect) in [
            ("", true),
            ("a", true),
            ("!a", false),
            ("x", false),
            ("!x", true),
            ("a=b", true),
            ("a==b", true),
            ("a!=b", false),
            ("x!=b", true),
            ("a in (b, c)", true),
            ("a notin (b,c)", false),
            ("x notin (b)", true),
            ("n>4", true),
            ("n<4", false),
            ("e=", true),
            ("e", true),
            ("a=b,n=5,!x", true),
            ("a=b,n=6", false),
            ("a in (,)", false),
        ] {
            check(text, expect);
        }
    }

    #[test]
    fn refused() {
        let check = |text: &str, expect: &str| {
            let error = LabelSelector::parse(text).expect_err(text).to_string();
            assert_eq!(error, expect, "{text}");
        };
        check("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        check("a,", "unable to parse requirement: found '', expected: identifier after ','");
    }

    #[test]
    fn objects() {
        let labels = json!({"a": "b"});
        let check = |selector: Value, expect: bool| {
            let selector = LabelSelector::from_json(&selector).expect("a selector");
            assert_eq!(selector.matches(labels.as_object()), expect);
        };
        check(json!(null), false);
        check(json!({}), true);
        check(json!({"matchLabels": {"a": "b"}}), true);
        check(json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}), false);
        assert!(LabelSelector::from_json(&json!({"matchExpressions": [{"key": "a", "operator": "X"}]})).is_err());
        let shown = LabelSelector::from_json(&json!({"matchLabels": {"b": "1", "a": "2"}})).expect("a selector");
        assert_eq!(shown.to_string(), "a=2,b=1");
    }
}
