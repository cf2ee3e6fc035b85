//! Rows as an Apache Parquet file: a column each, all optional, compressed with Snappy, which every reader knows.
//!
//! | kind | in the file |
//! | --- | --- |
//! | text | BYTE_ARRAY, String |
//! | integer | INT64 |
//! | boolean | BOOLEAN |
//! | time | INT64, Timestamp in nanoseconds, UTC |
//! | list | BYTE_ARRAY, String: the JSON of it |
//!
//! What the answer left out stands in the file's own metadata, under [`NOTICES_KEY`], so that it stays with the rows.

use std::{io, sync::Arc};

use parquet::{
    basic::{Compression, LogicalType, Repetition, TimeUnit, Type as PhysicalType},
    data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int64Type},
    errors::Result,
    file::{
        metadata::KeyValue,
        properties::WriterProperties,
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::types::{Type, TypePtr},
};

use super::table::{Cell, Kind, Table};

/// Rows that a reader has to look at together; what is more begins another group.
const GROUP_ROWS_MAX: usize = 128 * 1024;

/// The key of the metadata that holds what was left out: a JSON array of sentences, empty where nothing was.
pub const NOTICES_KEY: &str = "alibi.notices";

/// Writes it.
///
/// # Errors
/// When it cannot be written there.
pub fn write(table: &Table, notices: &[String], to: impl io::Write + Send) -> io::Result<()> {
    write_file(table, notices, to).map_err(|error| match error {
        parquet::errors::ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(cause) => io::Error::other(cause),
        },
        other => io::Error::other(other),
    })
}

fn write_file(table: &Table, notices: &[String], to: impl io::Write + Send) -> Result<()> {
    let notices = KeyValue::new(NOTICES_KEY.to_owned(), serde_json::json!(notices).to_string());
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by(concat!("alibi ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(vec![notices]))
        .build();
    let mut writer = SerializedFileWriter::new(to, schema(table)?, Arc::new(properties))?;
    for rows in table.rows().chunks(GROUP_ROWS_MAX) {
        let mut group = writer.next_row_group()?;
        let mut index = 0;
        while let Some(mut column) = group.next_column()? {
            write_column(&mut column, table.columns()[index].1, rows, index)?;
            column.close()?;
            index += 1;
        }
        group.close()?;
    }
    writer.close()?;
    Ok(())
}

fn schema(table: &Table) -> Result<TypePtr> {
    let field = |&(name, kind): &(&str, Kind)| {
        let (physical, logical) = match kind {
            Kind::Text | Kind::List => (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)),
            Kind::Integer => (PhysicalType::INT64, None),
            Kind::Boolean => (PhysicalType::BOOLEAN, None),
            Kind::Time => (PhysicalType::INT64, Some(LogicalType::timestamp(true, TimeUnit::NANOS))),
        };
        let field = Type::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical);
        field.build().map(Arc::new)
    };
    let fields: Result<Vec<_>> = table.columns().iter().map(field).collect();
    Type::group_type_builder("alibi").with_fields(fields?).build().map(Arc::new)
}

fn write_column(
    column: &mut SerializedColumnWriter<'_>,
    kind: Kind,
    rows: &[Vec<Cell>],
    index: usize,
) -> Result<()> {
    let cells = rows.iter().map(|row| &row[index]);
    match kind {
        Kind::Text | Kind::List => write_values::<ByteArrayType>(column, cells, |cell| match cell {
            Cell::Text(text) => Some(ByteArray::from(text.as_str())),
            Cell::List(list) => Some(ByteArray::from(list.to_string().into_bytes())),
            _ => None,
        }),
        Kind::Integer | Kind::Time => write_values::<Int64Type>(column, cells, |cell| match cell {
            Cell::Integer(number) => Some(*number),
            Cell::Time(time) => Some(time.as_nanos_i64()),
            _ => None,
        }),
        Kind::Boolean => write_values::<BoolType>(column, cells, |cell| match cell {
            Cell::Boolean(is) => Some(*is),
            _ => None,
        }),
    }
}

/// The values that there are, and for each row whether there is one.
fn write_values<'a, T: DataType>(
    column: &mut SerializedColumnWriter<'_>,
    cells: impl Iterator<Item = &'a Cell>,
    of: fn(&Cell) -> Option<T::T>,
) -> Result<()> {
    let mut values = Vec::new();
    let mut is_there = Vec::new();
    for cell in cells {
        let value = of(cell);
        is_there.push(i16::from(value.is_some()));
        values.extend(value);
    }
    column.typed::<T>().write_batch(&values, Some(&is_there), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use alibi_proto::time::Timestamp;
    use parquet::file::reader::{FileReader as _, SerializedFileReader};

    use super::*;
    use crate::export::table::Columns;

    fn written(rows: usize, notices: &[String]) -> SerializedFileReader<bytes_of::Bytes> {
        let columns = Columns::<usize>::default()
            .text("name", |row| (row % 3 != 0).then(|| format!("=\u{1b}{row}")))
            .integer("number", |row| Some(*row as i64 - 1))
            .boolean("even", |row| (row % 5 != 0).then_some(row % 2 == 0))
            .time("at", |row| {
                (row % 2 == 0).then(|| Timestamp::from_nanos(1_764_000_000_123_456_789 + *row as u64))
            })
            .list("arguments", |row| Some(serde_json::json!([row, "x"])));
        let mut bytes = Vec::new();
        write(&Table::new(&columns, 0..rows), notices, &mut bytes).unwrap();
        SerializedFileReader::new(bytes_of::Bytes::from(bytes)).unwrap()
    }

    /// What the reader reads from.
    mod bytes_of {
        pub(super) use prost::bytes::Bytes;
    }

    #[test]
    fn it_is_read_as_it_was_written_in_more_groups_than_one() {
        const ROWS: usize = GROUP_ROWS_MAX + 3;
        let reader = written(ROWS, &["2 are missing".to_owned()]);
        assert_eq!(reader.num_row_groups(), 2);
        let metadata = reader.metadata().file_metadata();
        let [notices] = metadata.key_value_metadata().unwrap().as_slice() else { panic!("{metadata:?}") };
        assert_eq!(
            (notices.key.as_str(), notices.value.as_deref()),
            (NOTICES_KEY, Some(r#"["2 are missing"]"#))
        );
        let is_in_utc = LogicalType::timestamp(true, TimeUnit::NANOS);
        assert_eq!(metadata.schema_descr().column(3).logical_type_ref(), Some(&is_in_utc));
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), ROWS);
        assert_eq!(
            rows[4].to_string(),
            "{name: \"=\u{1b}4\", number: 3, even: true, at: 1764000000123456793, arguments: \"[4,\"x\"]\"}"
        );
        assert_eq!(
            rows[ROWS - 1].get_column_iter().nth(1).unwrap().1.to_string(),
            (ROWS - 2).to_string(),
            "the second group goes on where the first ends"
        );
        let fifteenth: Vec<_> = rows[15].get_column_iter().map(|(_, field)| field.to_string()).collect();
        assert_eq!(fifteenth, ["null", "14", "null", "null", "\"[15,\"x\"]\""]);
    }

    #[test]
    fn a_file_without_rows_has_its_columns() {
        let reader = written(0, &[]);
        let schema = reader.metadata().file_metadata().schema_descr().num_columns();
        assert_eq!((schema, reader.metadata().file_metadata().num_rows()), (5, 0));
    }
}
