//! Reads `schema/types.txt` into types that borrow its text.

use super::{Absent, Field, ListMerge, ListOwnership, ListShape, MapShape, Shape, TypeDef, TypeRef};
use std::collections::HashMap;

pub(super) struct Table {
    pub types: Vec<TypeDef>,
    pub by_name: HashMap<&'static str, u16>,
}

/// The text is part of the program: a line that cannot be read is a mistake of ours, so it panics (a test reads it all).
pub(super) fn parse(text: &'static str) -> Table {
    let mut by_name = HashMap::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix('@') {
            let index = u16::try_from(by_name.len()).expect("fewer than 65536 types");
            by_name.insert(head.split(' ').next().unwrap_or(head), index);
        }
    }
    let mut types: Vec<TypeDef> = Vec::with_capacity(by_name.len());
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match line.strip_prefix('@') {
            Some(head) => {
                let (name, flags) = head.split_once(' ').unwrap_or((head, ""));
                types.push(TypeDef { name: name.into(), atomic: flags == "atomic", ..TypeDef::default() });
            }
            None => types.last_mut().expect("a type before its fields").fields.push(field(line, &by_name)),
        }
    }
    for def in &mut types {
        def.fields.shrink_to_fit();
    }
    Table { types, by_name }
}

fn field(line: &'static str, by_name: &HashMap<&'static str, u16>) -> Field {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default();
    let shape_text = words.next().unwrap_or_default();
    let mut out = Field {
        name: name.into(),
        shape: shape(shape_text, by_name),
        required: false,
        absent: Absent::Omitted,
        retain_keys: false,
        replaces: false,
    };
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "req" => out.required = true,
            "zero" => out.absent = Absent::Zero,
            "opt" => out.absent = Absent::Optional,
            "null" => out.absent = Absent::Null,
            "default" => out.absent = Absent::Default(serde_json::from_str(value).expect("a default is JSON")),
            "retain" => out.retain_keys = true,
            "replace" => out.replaces = true,
            _ => set_merge(&mut out.shape, key, value),
        }
    }
    // Required and not held by value: what is absent is sent as null.
    if out.required && out.absent == Absent::Omitted {
        out.absent = Absent::Null;
    }
    out
}

fn set_merge(shape: &mut Shape, key: &str, value: &'static str) {
    match (shape, key) {
        (Shape::List(list), "atomic") => list.ownership = ListOwnership::Atomic,
        (Shape::List(list), "set") => list.ownership = ListOwnership::Set,
        (Shape::List(list), "map") => list.ownership = ListOwnership::Map(value.split(',').map(Into::into).collect()),
        (Shape::List(list), "merge") if value.is_empty() => list.merge = ListMerge::Union,
        (Shape::List(list), "merge") => list.merge = ListMerge::Key(value.into()),
        (Shape::Map(map), "atomic") => map.atomic = true,
        // An object's own merge mode stands on its type; a merge without a list is the rule for objects anyway.
        _ => {}
    }
}

fn shape(text: &'static str, by_name: &HashMap<&'static str, u16>) -> Shape {
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        let (ownership, merge) = (ListOwnership::Atomic, ListMerge::Replace);
        return Shape::List(Box::new(ListShape { item: shape(inner, by_name), ownership, merge }));
    }
    if let Some(inner) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        return Shape::Map(Box::new(MapShape { value: shape(inner, by_name), atomic: false }));
    }
    match text {
        "any" => Shape::Any,
        "string" => Shape::String,
        "bytes" => Shape::Bytes,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "number" => Shape::Number,
        "bool" => Shape::Bool,
        "time" => Shape::Time,
        "microtime" => Shape::MicroTime,
        "duration" => Shape::Duration,
        "quantity" => Shape::Quantity,
        "intorstring" => Shape::IntOrString,
        name => Shape::Object(TypeRef::Builtin(
            *by_name.get(name).unwrap_or_else(|| panic!("the type {name} is not in the table")),
        )),
    }
}
