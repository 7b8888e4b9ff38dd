//! The one schema engine: which fields a kind has, of which type, and how lists and maps merge.
//!
//! Built-in types come from `schema/types.txt` (facts distilled from the published OpenAPI documents; the file's head
//! describes its lines). It is parsed once, on first use, into borrowed names: a few hundred kilobytes, no copies.
//! A type that a user defines at run time is the same [`TypeDef`], held inline.

mod check;
mod normalize;
mod openapi;
mod parse;

use crate::kinds::Kind;
use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

pub use check::UnknownField;
pub use check::{PROBLEMS_MAX, Step, Trail};
pub use openapi::openapi_v3;

/// A name in a schema: borrowed for built-in types.
pub type Name = Cow<'static, str>;

/// The fields of one object type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TypeDef {
    /// `core.v1.Pod`; empty for an inline type.
    pub name: Name,
    pub fields: Vec<Field>,
    /// One owner for the whole object in server-side apply.
    pub atomic: bool,
    /// Unknown fields are kept (`x-kubernetes-preserve-unknown-fields`).
    pub open: bool,
}

/// One field of an object type.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: Name,
    pub shape: Shape,
    pub required: bool,
    /// What the field is when it is absent.
    pub absent: Absent,
    /// A strategic merge patch keeps only the keys it lists in `$retainKeys`.
    pub retain_keys: bool,
    /// A strategic merge patch puts its value in the place of the old one.
    pub replaces: bool,
}

/// What a typed round trip makes of a field that is absent, null or empty.
#[derive(Debug, Clone, PartialEq)]
pub enum Absent {
    /// Absent; a zero value (`""`, `0`, `false`) is dropped too.
    Omitted,
    /// Absent; a zero value that was set is kept.
    Optional,
    /// The zero value of its type is sent.
    Zero,
    /// `null` is sent.
    Null,
    /// Absent, and `default` in a list's key.
    Default(serde_json::Value),
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Any,
    String,
    /// base64 in JSON.
    Bytes,
    Int32,
    Int64,
    Number,
    Bool,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    Object(TypeRef),
    Map(Box<MapShape>),
    List(Box<ListShape>),
}

/// A map with string keys.
#[derive(Debug, Clone, PartialEq)]
pub struct MapShape {
    pub value: Shape,
    pub atomic: bool,
}

/// A list and how it merges.
#[derive(Debug, Clone, PartialEq)]
pub struct ListShape {
    pub item: Shape,
    /// How server-side apply owns it.
    pub ownership: ListOwnership,
    /// How a strategic merge patch treats it.
    pub merge: ListMerge,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ListOwnership {
    Atomic,
    Set,
    /// Items are known by these keys.
    Map(Vec<Name>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum ListMerge {
    Replace,
    /// Scalars: the union.
    Union,
    /// Objects, known by this key.
    Key(Name),
}

/// Where a type is: in the built-in table, or here.
#[derive(Clone, PartialEq)]
pub enum TypeRef {
    Builtin(u16),
    Inline(Arc<TypeDef>),
}

impl TypeRef {
    pub fn get(&self) -> &TypeDef {
        match self {
            TypeRef::Builtin(index) => &TABLE.types[usize::from(*index)],
            TypeRef::Inline(def) => def,
        }
    }
}

// Types refer to each other in circles, so a derived Debug would not end.
impl std::fmt::Debug for TypeRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TypeRef({})", self.get().name)
    }
}

impl TypeDef {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// The shape at `a.b.c`; lists are entered without an index, maps by any key.
    pub fn at(&self, path: &[&str]) -> Option<&Shape> {
        let (first, rest) = path.split_first()?;
        let mut shape = &self.field(first)?.shape;
        for key in rest {
            shape = shape.item().child(key)?;
        }
        Some(shape)
    }
}

impl Shape {
    /// The item of a list, else the shape itself.
    pub fn item(&self) -> &Shape {
        match self {
            Shape::List(list) => &list.item,
            other => other,
        }
    }

    /// The shape of a member.
    pub fn child(&self, key: &str) -> Option<&Shape> {
        match self {
            Shape::Object(def) => Some(&def.get().field(key)?.shape),
            Shape::Map(map) => Some(&map.value),
            _ => None,
        }
    }

    pub fn object(&self) -> Option<&TypeDef> {
        match self {
            Shape::Object(def) => Some(def.get()),
            _ => None,
        }
    }
}

/// Entry to the built-in types.
pub struct Schema;

static TABLE: LazyLock<parse::Table> = LazyLock::new(|| parse::parse(include_str!("../../schema/types.txt")));

impl Schema {
    /// The type of a built-in kind.
    pub fn for_kind(kind: &Kind) -> Option<&'static TypeDef> {
        Self::by_gvk(&kind.group, &kind.version, &kind.kind)
    }

    pub fn by_gvk(group: &str, version: &str, kind: &str) -> Option<&'static TypeDef> {
        Self::by_name(&type_name(group, version, kind))
    }

    /// By the name in the table: `core.v1.PodSpec`, `meta.v1.ObjectMeta`.
    pub fn by_name(name: &str) -> Option<&'static TypeDef> {
        let index = *TABLE.by_name.get(name)?;
        Some(&TABLE.types[usize::from(index)])
    }
}

/// `core.v1.Pod`, `rbac.v1.Role`: the group's first label, and `core` for the core group.
pub fn type_name(group: &str, version: &str, kind: &str) -> String {
    let family = match group {
        "" => "core",
        "meta.k8s.io" => "meta",
        _ => group.split('.').next().unwrap_or(group),
    };
    format!("{family}.{version}.{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn every_kind_has_a_type() {
        for kind in kinds::builtin() {
            assert!(Schema::for_kind(kind).is_some(), "{}", kind.kind);
        }
    }

    #[test]
    fn navigation() {
        let pod = Schema::by_gvk("", "v1", "Pod").expect("pods have a type");
        let ports = pod.at(&["spec", "containers", "ports"]).expect("the path exists");
        let Shape::List(list) = ports else { panic!("a list") };
        assert_eq!(list.ownership, ListOwnership::Map(vec!["containerPort".into(), "protocol".into()]));
        assert_eq!(list.merge, ListMerge::Key("containerPort".into()));
        assert_eq!(pod.at(&["metadata", "labels", "x"]), Some(&Shape::String));
        assert_eq!(pod.at(&["spec", "nothing"]), None);
    }
}
