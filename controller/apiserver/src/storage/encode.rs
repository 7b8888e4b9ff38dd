//! The stored form of an object, and how it is spliced into answers without being decoded.
//!
//! An object is stored as JSON that begins with `{"kind":...,"apiVersion":...,"metadata":{`; its resourceVersion is not in
//! it, because it is the revision of the key. An answer is the stored bytes with `"resourceVersion":"N",` put in after that
//! brace. Items of a list leave kind and apiVersion out, so they begin at `"metadata"`.

use bytes::Bytes;
use serde_json::{Map, Value};
use skiff_store::{KeyValue, Revision};

const METADATA: &[u8] = b"\"metadata\":{";

/// An object as it is in the store.
#[derive(Clone, Debug)]
pub struct Stored {
    pub bytes: Bytes,
    /// Its resourceVersion; 0 for one that is not stored (the answer to a dry run).
    pub revision: Revision,
}

impl Stored {
    pub fn of(kv: &KeyValue) -> Self {
        Stored { bytes: kv.value.clone(), revision: kv.mod_revision }
    }

    /// What was stored at `kv`, as an event of `revision` shows it.
    pub fn at(kv: &KeyValue, revision: Revision) -> Self {
        Stored { bytes: kv.value.clone(), revision }
    }

    /// Encodes an object. What it says of its resourceVersion is dropped; kind and apiVersion are set to the given ones.
    pub fn encode(object: &Value, kind: &str, api_version: &str) -> Bytes {
        let empty = Map::new();
        let object = object.as_object().unwrap_or(&empty);
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(b"{\"kind\":");
        push(&mut out, &Value::from(kind));
        out.extend_from_slice(b",\"apiVersion\":");
        push(&mut out, &Value::from(api_version));
        out.extend_from_slice(b",\"metadata\":{");
        let mut first = true;
        if let Some(metadata) = object.get("metadata").and_then(Value::as_object) {
            for (key, value) in metadata.iter().filter(|(k, _)| !matches!(k.as_str(), "resourceVersion" | "selfLink")) {
                field(&mut out, key, value, &mut first);
            }
        }
        out.push(b'}');
        first = false;
        for (key, value) in object.iter().filter(|(k, _)| !matches!(k.as_str(), "kind" | "apiVersion" | "metadata")) {
            field(&mut out, key, value, &mut first);
        }
        out.push(b'}');
        Bytes::from(out)
    }

    /// The object, with its resourceVersion.
    pub fn decode(&self) -> Value {
        let mut value: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        if self.revision != 0
            && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.insert("resourceVersion".into(), Value::from(self.revision.to_string()));
        }
        value
    }

    /// Where `"metadata":{` begins. Kind and apiVersion come before it and cannot hold these bytes unescaped.
    fn metadata_at(&self) -> Option<usize> {
        self.bytes.windows(METADATA.len()).position(|w| w == METADATA)
    }

    /// Appends the object as JSON. Without `typed`, kind and apiVersion are left out, as in lists of built-in kinds.
    pub fn write_to(&self, out: &mut Vec<u8>, typed: bool) {
        let Some(at) = self.metadata_at() else {
            out.extend_from_slice(&self.bytes);
            return;
        };
        if typed {
            out.extend_from_slice(&self.bytes[..at]);
        } else {
            out.push(b'{');
        }
        let inside = at + METADATA.len();
        out.extend_from_slice(METADATA);
        if self.revision != 0 {
            out.extend_from_slice(format!("\"resourceVersion\":\"{}\"", self.revision).as_bytes());
            if self.bytes.get(inside) != Some(&b'}') {
                out.push(b',');
            }
        }
        out.extend_from_slice(&self.bytes[inside..]);
    }

    /// The object as `application/json`.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len() + 40);
        self.write_to(&mut out, true);
        out
    }
}

fn push(out: &mut Vec<u8>, value: &Value) {
    // Writing JSON to memory fails only for maps with keys that are not text, which a Value cannot hold.
    serde_json::to_writer(out, value).unwrap_or_default();
}

fn field(out: &mut Vec<u8>, key: &str, value: &Value, first: &mut bool) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    push(out, &Value::from(key));
    out.push(b':');
    push(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_revision_is_spliced_in() {
        let object = json!({"apiVersion": "x", "metadata": {"name": "a", "resourceVersion": "9"}, "data": {"k": "v"}});
        let bytes = Stored::encode(&object, "ConfigMap", "v1");
        let plain = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":{"k":"v"}}"#;
        assert_eq!(bytes, plain.as_bytes());
        let stored = Stored { bytes, revision: 17 };
        let expect =
            r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"17","name":"a"},"data":{"k":"v"}}"#;
        assert_eq!(String::from_utf8(stored.to_json()).unwrap(), expect);
        let mut item = Vec::new();
        stored.write_to(&mut item, false);
        assert_eq!(item, br#"{"metadata":{"resourceVersion":"17","name":"a"},"data":{"k":"v"}}"#);
        assert_eq!(stored.decode()["metadata"]["resourceVersion"], "17");
    }

    #[test]
    fn empty_metadata_stays_well_formed() {
        let stored = Stored { bytes: Stored::encode(&json!({}), "K", "v1"), revision: 3 };
        assert_eq!(stored.to_json(), br#"{"kind":"K","apiVersion":"v1","metadata":{"resourceVersion":"3"}}"#);
    }
}
