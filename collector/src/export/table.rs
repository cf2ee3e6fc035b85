//! Typed columns and rows: what CSV, Parquet and NDJSON are written from.

use std::borrow::Borrow;

use alibi_proto::time::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// What a column holds; absent cells are possible in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// 64 bits, signed.
    Integer,
    /// True or false.
    Boolean,
    /// Nanoseconds, UTC.
    Time,
    /// A JSON array, for what has no fixed number; where a cell is text, that JSON as text.
    List,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Not known, or there is none.
    Absent,
    /// [`Kind::Text`].
    Text(String),
    /// [`Kind::Integer`].
    Integer(i64),
    /// [`Kind::Boolean`].
    Boolean(bool),
    /// [`Kind::Time`].
    Time(Timestamp),
    /// [`Kind::List`].
    List(Value),
}

/// The columns of rows that are made of `T`: the name of each, and how its cells come from them.
pub struct Columns<'a, T>(Vec<Column<'a, T>>);

struct Column<'a, T> {
    name: &'static str,
    kind: Kind,
    cell: Box<dyn Fn(&T) -> Cell + 'a>,
}

impl<T> Default for Columns<'_, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'a, T: 'a> Columns<'a, T> {
    /// A column of text.
    #[must_use]
    pub fn text(self, name: &'static str, of: impl Fn(&T) -> Option<String> + 'a) -> Self {
        self.column(name, Kind::Text, move |row| of(row).map(Cell::Text))
    }

    /// A column of signed integers.
    #[must_use]
    pub fn integer(self, name: &'static str, of: impl Fn(&T) -> Option<i64> + 'a) -> Self {
        self.column(name, Kind::Integer, move |row| of(row).map(Cell::Integer))
    }

    /// A column of what is counted. Nothing that is counted reaches 63 bits; what does is shown as their greatest.
    #[must_use]
    pub fn count(self, name: &'static str, of: impl Fn(&T) -> Option<u64> + 'a) -> Self {
        self.integer(name, move |row| of(row).map(|count| i64::try_from(count).unwrap_or(i64::MAX)))
    }

    /// A column of yes and no.
    #[must_use]
    pub fn boolean(self, name: &'static str, of: impl Fn(&T) -> Option<bool> + 'a) -> Self {
        self.column(name, Kind::Boolean, move |row| of(row).map(Cell::Boolean))
    }

    /// A column of instants.
    #[must_use]
    pub fn time(self, name: &'static str, of: impl Fn(&T) -> Option<Timestamp> + 'a) -> Self {
        self.column(name, Kind::Time, move |row| of(row).map(Cell::Time))
    }

    /// A column of lists, each a JSON array.
    #[must_use]
    pub fn list(self, name: &'static str, of: impl Fn(&T) -> Option<Value> + 'a) -> Self {
        self.column(name, Kind::List, move |row| of(row).map(Cell::List))
    }

    fn column(mut self, name: &'static str, kind: Kind, of: impl Fn(&T) -> Option<Cell> + 'a) -> Self {
        self.0.push(Column { name, kind, cell: Box::new(move |row| of(row).unwrap_or(Cell::Absent)) });
        self
    }
}

/// Rows under typed columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    columns: Vec<(&'static str, Kind)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A row of each item.
    pub fn new<T, I: Borrow<T>>(columns: &Columns<'_, T>, items: impl IntoIterator<Item = I>) -> Self {
        let row = |item: I| columns.0.iter().map(|column| (column.cell)(item.borrow())).collect();
        Self {
            columns: columns.0.iter().map(|column| (column.name, column.kind)).collect(),
            rows: items.into_iter().map(row).collect(),
        }
    }

    /// Names and kinds, from the left.
    pub fn columns(&self) -> &[(&'static str, Kind)] {
        &self.columns
    }

    /// The rows, each with a cell for every column.
    pub fn rows(&self) -> &[Vec<Cell>] {
        &self.rows
    }

    /// Each row as an object, in which every column is a field, null where it is absent.
    pub fn objects(&self) -> impl Iterator<Item = impl Serialize> {
        self.rows.iter().map(|cells| Object { columns: &self.columns, cells })
    }
}

struct Object<'a> {
    columns: &'a [(&'static str, Kind)],
    cells: &'a [Cell],
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.columns.iter().map(|(name, _)| name).zip(self.cells))
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent => serializer.serialize_none(),
            Self::Text(text) => text.serialize(serializer),
            Self::Integer(number) => number.serialize(serializer),
            Self::Boolean(is) => is.serialize(serializer),
            Self::Time(time) => time.serialize(serializer),
            Self::List(list) => list.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_every_column_in_order() {
        let columns = Columns::<(u64, &str)>::default()
            .text("name", |row| Some(row.1.to_owned()))
            .count("uses", |row| Some(row.0))
            .time("used", |row| (row.0 > 0).then_some(Timestamp::from_secs(1)))
            .list("tags", |_| Some(serde_json::json!(["a"])))
            .boolean("good", |row| (row.0 > 0).then_some(true));
        let table = Table::new(&columns, [(0, "x"), (u64::MAX, "")]);
        let lines: Vec<_> = table.objects().map(|object| serde_json::to_string(&object).unwrap()).collect();
        assert_eq!(
            lines,
            [
                r#"{"name":"x","uses":0,"used":null,"tags":["a"],"good":null}"#,
                r#"{"name":"","uses":9223372036854775807,"used":"1970-01-01T00:00:01Z","tags":["a"],"good":true}"#,
            ]
        );
    }
}
