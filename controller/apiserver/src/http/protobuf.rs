//! Bodies in protobuf, which typed clients (kubectl create, drain, auth can-i) send: read into the JSON form that everything else works on.
//!
//! The wire says numbers, not names; `data/protobuf.txt` gives each number its JSON name and type. Go writes plain fields even when they are
//! zero, where JSON leaves them out, so zero counts as absent unless the table says otherwise. Answers are always JSON.
//!
//! Source: Kubernetes API concepts, "Kubernetes Protobuf encoding"; Protocol Buffers encoding.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::LazyLock;

/// The media type of such bodies.
pub const MEDIA: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
const TABLE: &str = include_str!("../../data/protobuf.txt");
/// How deep messages may lie in each other.
const DEPTH_MAX: usize = 64;

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Problem {
    #[error("the body does not begin with the prefix of Kubernetes protobuf (6b 38 73 00)")]
    Magic,
    #[error("the body ends in the middle of a field")]
    Truncated,
    #[error("field {0} has a wire type that is not in use")]
    WireType(u64),
    #[error("field {0} has another type than {1}")]
    Mismatch(String, &'static str),
    #[error("{0} is not valid JSON")]
    Raw(String),
    #[error("messages lie more than {DEPTH_MAX} deep in each other")]
    Depth,
    #[error("{0} cannot be read from protobuf here; send it as application/json")]
    Unknown(String),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    String,
    Bytes,
    Int,
    Bool,
    Double,
    Time {
        micro: bool,
    },
    Quantity,
    IntOrString,
    Raw,
    Strings,
    /// The index of another message.
    Message(usize),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    One,
    List,
    Map,
    /// The fields belong to the outer message.
    Inline,
}

struct Field {
    name: &'static str,
    shape: Shape,
    of: Type,
    keeps_zero: bool,
}

#[derive(Default)]
struct Tables {
    messages: Vec<HashMap<u64, Field>>,
    /// By `section:Name`.
    index: HashMap<String, usize>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(load);

fn load() -> Tables {
    let mut tables = Tables::default();
    let mut rows = Vec::new();
    let mut section = "";
    for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
        match (line.strip_prefix('@'), line.split_once(' ')) {
            (Some(name), _) => section = name,
            (None, parts) => {
                let (name, fields) = parts.unwrap_or((line, ""));
                tables.index.insert(format!("{section}:{name}"), rows.len());
                rows.push((section, fields));
            }
        }
    }
    tables.messages = rows.iter().map(|(section, fields)| message_row(section, fields, &tables.index)).collect();
    tables
}

fn message_row(section: &str, fields: &'static str, index: &HashMap<String, usize>) -> HashMap<u64, Field> {
    let field = |text: &'static str| {
        let (name, rest) = text.split_once('=')?;
        let (number, of) = rest.split_once(':')?;
        let (of, keeps_zero) = of.strip_suffix('!').map_or((of, false), |of| (of, true));
        let (of, shape) = match of.as_bytes().first()? {
            b'[' => (of.trim_matches(['[', ']']), Shape::List),
            b'{' => (of.trim_matches(['{', '}']), Shape::Map),
            b'^' => (&of[1..], Shape::Inline),
            _ => (of, Shape::One),
        };
        let of = match of {
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "int" => Type::Int,
            "bool" => Type::Bool,
            "double" => Type::Double,
            "time" => Type::Time { micro: false },
            "microtime" => Type::Time { micro: true },
            "quantity" => Type::Quantity,
            "intorstring" => Type::IntOrString,
            "raw" => Type::Raw,
            "strings" => Type::Strings,
            message => {
                let full = if message.contains(':') { message.to_string() } else { format!("{section}:{message}") };
                Type::Message(*index.get(&full)?)
            }
        };
        Some((number.parse().ok()?, Field { name, shape, of, keeps_zero }))
    };
    fields.split_whitespace().filter_map(field).collect()
}

/// Reads a body: the envelope says kind and version, the rest is the object.
pub fn decode(body: &[u8]) -> Result<Value, Problem> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Problem::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for item in Wire(envelope) {
        match item? {
            (1, Scalar::Bytes(types)) => {
                for item in Wire(types) {
                    match item? {
                        (1, Scalar::Bytes(text)) => api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Scalar::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Scalar::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let tables = &*TABLES;
    let found = tables.index.get(&format!("{api_version}:{kind}"));
    // Options of requests are written in the version of the group that they are for.
    let found = found.or_else(|| tables.index.get(&format!("meta:{kind}")));
    let Some(index) = found else { return Err(Problem::Unknown(format!("{kind} ({api_version})"))) };
    let mut object = Map::new();
    object.insert("kind".into(), json!(kind));
    object.insert("apiVersion".into(), json!(api_version));
    message(*index, raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

fn message(index: usize, bytes: &[u8], out: &mut Map<String, Value>, depth: usize) -> Result<(), Problem> {
    if depth > DEPTH_MAX {
        return Err(Problem::Depth);
    }
    for item in Wire(bytes) {
        let (number, scalar) = item?;
        // What is newer than the table is left out, as unknown fields are.
        let Some(field) = TABLES.messages[index].get(&number) else { continue };
        match field.shape {
            Shape::Inline => match (field.of, scalar) {
                (Type::Message(inner), Scalar::Bytes(bytes)) => message(inner, bytes, out, depth + 1)?,
                _ => return Err(Problem::Mismatch(field.name.into(), "a message")),
            },
            Shape::One => {
                let value = single(field, scalar, depth)?;
                if field.keeps_zero || !is_zero(&value, field.of) {
                    out.insert(field.name.into(), value);
                }
            }
            Shape::List => {
                let list = out.entry(field.name).or_insert_with(|| json!([]));
                let Value::Array(list) = list else { continue };
                match (field.of, scalar) {
                    // Numbers may also come packed into one field.
                    (Type::Int | Type::Bool, Scalar::Bytes(mut packed)) => {
                        while !packed.is_empty() {
                            let number = varint(&mut packed)?;
                            list.push(single(field, Scalar::Number(number), depth)?);
                        }
                    }
                    (_, scalar) => list.push(single(field, scalar, depth)?),
                }
            }
            Shape::Map => {
                let Scalar::Bytes(entry) = scalar else { return Err(Problem::Mismatch(field.name.into(), "a map")) };
                let (key, value) = map_entry(field, entry, depth)?;
                if let Value::Object(map) = out.entry(field.name).or_insert_with(|| json!({})) {
                    map.insert(key, value);
                }
            }
        }
    }
    Ok(())
}

fn map_entry(field: &Field, entry: &[u8], depth: usize) -> Result<(String, Value), Problem> {
    let (mut key, mut value) = (String::new(), None);
    for item in Wire(entry) {
        match item? {
            (1, Scalar::Bytes(text)) => key = String::from_utf8_lossy(text).into_owned(),
            (2, scalar) => value = Some(single(field, scalar, depth)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        // An absent value is the zero of its type.
        None if matches!(field.of, Type::Int | Type::Bool | Type::Double) => single(field, Scalar::Number(0), depth)?,
        None => single(field, Scalar::Bytes(&[]), depth)?,
    };
    Ok((key, value))
}

/// Whether Go would have left it out of JSON, were it empty. Messages and times that are there stay.
fn is_zero(value: &Value, of: Type) -> bool {
    match value {
        Value::String(text) => text.is_empty() && !matches!(of, Type::Time { .. }),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(on) => !on,
        _ => false,
    }
}

fn single(field: &Field, scalar: Scalar<'_>, depth: usize) -> Result<Value, Problem> {
    let mismatch = |expected| Problem::Mismatch(field.name.into(), expected);
    Ok(match (field.of, scalar) {
        (Type::String, Scalar::Bytes(bytes)) => json!(String::from_utf8_lossy(bytes)),
        (Type::Bytes, Scalar::Bytes(bytes)) => json!(base64::engine::general_purpose::STANDARD.encode(bytes)),
        (Type::Int, Scalar::Number(number)) => json!(number as i64),
        (Type::Bool, Scalar::Number(number)) => json!(number != 0),
        (Type::Double, Scalar::Number(number)) => json!(f64::from_bits(number)),
        (Type::Time { micro }, Scalar::Bytes(bytes)) => time(bytes, micro)?,
        (Type::Quantity, Scalar::Bytes(bytes)) => match first_text(bytes)? {
            text if text.is_empty() => json!("0"),
            text => json!(text),
        },
        (Type::IntOrString, Scalar::Bytes(bytes)) => int_or_string(bytes)?,
        (Type::Raw, Scalar::Bytes(bytes)) => {
            let text = first_bytes(bytes)?;
            match text.is_empty() {
                true => Value::Null,
                false => serde_json::from_slice(text).map_err(|_| Problem::Raw(field.name.into()))?,
            }
        }
        (Type::Strings, Scalar::Bytes(bytes)) => {
            let texts = Wire(bytes).filter_map(|item| match item {
                Ok((1, Scalar::Bytes(text))) => Some(Ok(json!(String::from_utf8_lossy(text)))),
                Ok(_) => None,
                Err(problem) => Some(Err(problem)),
            });
            Value::Array(texts.collect::<Result<_, _>>()?)
        }
        (Type::Message(index), Scalar::Bytes(bytes)) => {
            let mut inner = Map::new();
            message(index, bytes, &mut inner, depth + 1)?;
            Value::Object(inner)
        }
        (Type::Int | Type::Bool | Type::Double, Scalar::Bytes(_)) => return Err(mismatch("a number")),
        (_, Scalar::Number(_)) => return Err(mismatch("text or a message")),
    })
}

fn first_bytes(bytes: &[u8]) -> Result<&[u8], Problem> {
    for item in Wire(bytes) {
        if let (1, Scalar::Bytes(found)) = item? {
            return Ok(found);
        }
    }
    Ok(&[])
}

fn first_text(bytes: &[u8]) -> Result<String, Problem> {
    Ok(String::from_utf8_lossy(first_bytes(bytes)?).into_owned())
}

/// Seconds and nanoseconds; an empty message is no time.
fn time(bytes: &[u8], micro: bool) -> Result<Value, Problem> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for item in Wire(bytes) {
        match item? {
            (1, Scalar::Number(number)) => seconds = number as i64,
            (2, Scalar::Number(number)) => nanos = number as i32,
            _ => {}
        }
    }
    let Ok(at) = Timestamp::new(seconds, nanos) else { return Ok(Value::Null) };
    let format = if micro { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(json!(at.strftime(format).to_string()))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Problem> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for item in Wire(bytes) {
        match item? {
            (1, Scalar::Number(kind)) => is_text = kind == 1,
            (2, Scalar::Number(value)) => number = value as i64,
            (3, Scalar::Bytes(value)) => text = String::from_utf8_lossy(value).into_owned(),
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

/// One value on the wire, before its type is known.
#[derive(Clone, Copy)]
enum Scalar<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message: number and value.
struct Wire<'a>(&'a [u8]);

impl<'a> Iterator for Wire<'a> {
    type Item = Result<(u64, Scalar<'a>), Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = self.field();
        if item.is_err() {
            self.0 = &[];
        }
        Some(item)
    }
}

impl<'a> Wire<'a> {
    fn field(&mut self) -> Result<(u64, Scalar<'a>), Problem> {
        let key = varint(&mut self.0)?;
        let number = key >> 3;
        let value = match key & 7 {
            0 => Scalar::Number(varint(&mut self.0)?),
            1 => Scalar::Number(u64::from_le_bytes(self.fixed()?)),
            5 => Scalar::Number(u32::from_le_bytes(self.fixed()?).into()),
            2 => {
                let len = usize::try_from(varint(&mut self.0)?).map_err(|_| Problem::Truncated)?;
                let (bytes, rest) = self.0.split_at_checked(len).ok_or(Problem::Truncated)?;
                self.0 = rest;
                Scalar::Bytes(bytes)
            }
            _ => return Err(Problem::WireType(number)),
        };
        Ok((number, value))
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(Problem::Truncated)?;
        self.0 = rest;
        Ok(*bytes)
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Problem> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Problem::Truncated)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Problem::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with bytes, or with a number.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    fn body(version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let types = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &types), &field(2, object)].concat()
    }

    #[test]
    fn every_row_of_the_table_is_read() {
        let fields = |line: &str| line.split_whitespace().count() - 1;
        let rows = TABLE.lines().filter(|l| !l.starts_with(['#', '@']));
        let expect: usize = rows.map(fields).sum();
        assert_eq!(TABLES.messages.iter().map(HashMap::len).sum::<usize>(), expect);
    }

    #[test]
    fn bodies_become_json() {
        let check = |body: Vec<u8>, expect: Value| assert_eq!(decode(&body), Ok(expect));
        let metadata = field(1, &[field(1, b"web"), field(2, b""), field(8, b"")].concat());
        let replicas = field(2, &[0x08, 0x00, 0x28, 0x00]);
        check(
            body("apps/v1", "Deployment", &[metadata.clone(), replicas].concat()),
            json!({
                "kind": "Deployment", "apiVersion": "apps/v1",
                "metadata": {"name": "web", "creationTimestamp": null}, "spec": {"replicas": 0},
            }),
        );
        let label = field(11, &[field(1, b"app"), field(2, b"web")].concat());
        let port = field(1, &[&field(2, b"TCP")[..], &[0x18, 80], &field(4, &[0x08, 1, 0x1a, 1, b'x'])].concat());
        check(
            body("v1", "Service", &[field(1, &label), field(2, &port)].concat()),
            json!({
                "kind": "Service", "apiVersion": "v1", "metadata": {"labels": {"app": "web"}},
                "spec": {"ports": [{"protocol": "TCP", "port": 80, "targetPort": "x"}]},
            }),
        );
        // The source of a volume lies in it.
        let volume = field(2, &field(1, &[field(1, b"v"), field(2, &field(2, b""))].concat()));
        check(
            body("v1", "Pod", &volume),
            json!({"kind": "Pod", "apiVersion": "v1", "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
        );
        check(
            body("policy/v1", "DeleteOptions", &[0x08, 0]),
            json!({"kind": "DeleteOptions", "apiVersion": "policy/v1", "gracePeriodSeconds": 0}),
        );
    }

    #[test]
    fn bad_bodies_are_told() {
        let check = |body: &[u8], expect: Problem| assert_eq!(decode(body), Err(expect));
        check(b"{}", Problem::Magic);
        check(&body("v1", "Pod", &[0x0a, 9]), Problem::Truncated);
        check(&body("v1", "Pod", &[0x08, 9]), Problem::Mismatch("metadata".into(), "text or a message"));
        check(&body("v1", "Pod", &[0x0b]), Problem::WireType(1));
        check(&body("example.com/v1", "Boat", b""), Problem::Unknown("Boat (example.com/v1)".into()));
    }
}
