//! A JSON object that is filled field by field, by the dotted names that schemas have for their fields.

use serde_json::{Map, Value};

/// The object.
#[derive(Debug, Default)]
pub(super) struct Document(Map<String, Value>);

impl Document {
    /// Sets a field, as `process.parent.pid`. What is null, or a list or an object without anything in it, is not known, and
    /// leaves the field away.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        let value = value.into();
        let is_empty = match &value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if !is_empty {
            place(&mut self.0, name, value);
        }
        self
    }

    /// Takes over all fields of another, below a name.
    pub(super) fn set_all(&mut self, name: &str, other: Self) -> &mut Self {
        self.set(name, other.into_value())
    }

    pub(super) fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

fn place(fields: &mut Map<String, Value>, name: &str, value: Value) {
    match name.split_once('.') {
        None => drop(fields.insert(name.to_owned(), value)),
        Some((outer, rest)) => {
            let inner = fields.entry(outer).or_insert_with(|| Value::Object(Map::new()));
            // A field that is a value has no fields below it: the tests that hold documents against the schemas tell.
            if let Value::Object(inner) = inner {
                place(inner, rest, value);
            }
        }
    }
}
