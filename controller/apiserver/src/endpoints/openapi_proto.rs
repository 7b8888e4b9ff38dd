//! OpenAPI version 2 in protobuf, the form in which Go clients ask for it.
//!
//! The messages are those of the public `openapi.v2` protocol (OpenAPIv2.proto of the gnostic project): only the fields
//! that our documents have. Values without a schema of their own (defaults, `x-` members) travel as YAML text, of which
//! JSON is a part.

use serde_json::{Map, Value};

/// The media type that clients ask for; the second is how servers and later clients write it.
pub const ASKED: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];

/// Encodes a version 2 document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.message(2, |info| {
        info.text(1, &document["info"]["title"]);
        info.text(2, &document["info"]["version"]);
    });
    out.message(8, |paths| each(&document["paths"], |name, item| paths.named(2, name, |m| path_item(m, item))));
    out.message(9, |all| {
        each(&document["definitions"], |name, schema| all.named(1, name, |m| self::schema(m, schema)))
    });
    out.0
}

/// One message as its bytes.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.number(field << 3 | 2);
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A text; nothing when there is none.
    fn text(&mut self, field: u64, value: &Value) {
        if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u64, value: &Value) {
        value.as_array().into_iter().flatten().for_each(|text| self.text(field, text));
    }

    fn flag(&mut self, field: u64, value: &Value) {
        if value == true {
            self.number(field << 3);
            self.number(1);
        }
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// A member of a map: a message of name and value.
    fn named(&mut self, field: u64, name: &str, fill: impl FnOnce(&mut Message)) {
        self.message(field, |pair| {
            pair.bytes(1, name.as_bytes());
            pair.message(2, fill);
        });
    }

    /// Any value, as YAML.
    fn any(&mut self, field: u64, value: &Value) {
        self.message(field, |any| any.bytes(2, value.to_string().as_bytes()));
    }

    /// The `x-` members.
    fn extensions(&mut self, field: u64, of: &Value) {
        each(of, |name, value| {
            if name.starts_with("x-") {
                self.message(field, |pair| {
                    pair.bytes(1, name.as_bytes());
                    pair.any(2, value);
                });
            }
        });
    }
}

fn each(value: &Value, mut act: impl FnMut(&str, &Value)) {
    value.as_object().into_iter().flat_map(Map::iter).for_each(|(name, member)| act(name, member));
}

fn schema(out: &mut Message, of: &Value) {
    out.text(1, &of["$ref"]);
    out.text(2, &of["format"]);
    out.text(4, &of["description"]);
    if let Some(default) = of.get("default") {
        out.any(5, default);
    }
    out.texts(19, &of["required"]);
    if let Some(inner) = of.get("additionalProperties") {
        out.message(21, |item| item.message(1, |m| schema(m, inner)));
    }
    if of["type"].is_string() {
        out.message(22, |item| item.text(1, &of["type"]));
    }
    if let Some(inner) = of.get("items") {
        out.message(23, |items| items.message(1, |m| schema(m, inner)));
    }
    if of["properties"].is_object() {
        out.message(25, |all| each(&of["properties"], |name, inner| all.named(1, name, |m| schema(m, inner))));
    }
    out.extensions(31, of);
}

fn path_item(out: &mut Message, item: &Value) {
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = item.get(method) {
            out.message(field, |m| operation(m, found));
        }
    }
    parameters(out, 9, &item["parameters"]);
}

fn operation(out: &mut Message, of: &Value) {
    out.texts(1, &of["tags"]);
    out.text(5, &of["operationId"]);
    out.texts(6, &of["produces"]);
    out.texts(7, &of["consumes"]);
    parameters(out, 8, &of["parameters"]);
    out.message(9, |responses| {
        each(&of["responses"], |code, response| {
            responses.named(1, code, |value| {
                value.message(1, |m| {
                    m.text(1, &response["description"]);
                    if let Some(inner) = response.get("schema") {
                        m.message(2, |item| item.message(1, |m| schema(m, inner)));
                    }
                });
            });
        });
    });
    out.extensions(13, of);
}

fn parameters(out: &mut Message, field: u64, list: &Value) {
    for parameter in list.as_array().into_iter().flatten() {
        out.message(field, |item| item.message(1, |m| self::parameter(m, parameter)));
    }
}

fn parameter(out: &mut Message, of: &Value) {
    let head = |m: &mut Message| {
        m.flag(1, &of["required"]);
        m.text(2, &of["in"]);
        m.text(3, &of["description"]);
        m.text(4, &of["name"]);
    };
    match of["in"].as_str() {
        Some("body") => out.message(1, |m| {
            m.text(2, &of["name"]);
            m.text(3, &of["in"]);
            m.flag(4, &of["required"]);
            m.message(5, |inner| schema(inner, &of["schema"]));
        }),
        Some("path") => out.message(2, |any| {
            any.message(4, |m| {
                head(m);
                m.text(5, &of["type"]);
            });
        }),
        _ => out.message(2, |any| {
            any.message(3, |m| {
                head(m);
                m.text(6, &of["type"]);
            });
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_of_a_small_document() {
        let document = json!({"swagger": "2.0", "info": {"title": "t", "version": "v"}, "paths": {},
            "definitions": {"X": {"type": "object", "x-a": "b"}}});
        #[rustfmt::skip]
        let expect: &[u8] = &[
            0x0a, 3, b'2', b'.', b'0', // swagger
            0x12, 6, 0x0a, 1, b't', 0x12, 1, b'v', // info
            0x42, 0, // no paths
            0x4a, 33, 0x0a, 31, 0x0a, 1, b'X', 0x12, 26, // definitions, one of them named X
            0xb2, 1, 8, 0x0a, 6, b'o', b'b', b'j', b'e', b'c', b't', // its type
            0xfa, 1, 12, 0x0a, 3, b'x', b'-', b'a', 0x12, 5, 0x12, 3, b'"', b'b', b'"', // x-a: "b"
        ];
        assert_eq!(encode(&document), expect);
    }
}
