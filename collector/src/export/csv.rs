//! Rows as comma-separated values after RFC 4180: a header, CRLF, quotes where they are needed; UTF-8.
//!
//! What is absent is an empty cell, and so is an empty text. A spreadsheet takes a cell that begins with `=` and a few other
//! characters for a formula, and what a host told must not become one: a text cell (of [`Kind::Text`] or [`Kind::List`]) that
//! begins with one of [`GUARDED`] gets one apostrophe more before it. Since the apostrophe itself is among them, a program has
//! the data back, all of it and nothing else, by taking away one apostrophe from each text cell that begins with one. Numbers,
//! instants and booleans are never touched.
//!
//! [`Kind::Text`]: super::table::Kind::Text
//! [`Kind::List`]: super::table::Kind::List

use std::io;

use alibi_proto::report::printable;

use super::table::{Cell, Table};

/// What a spreadsheet may take for the beginning of a formula, in either width, and what guards against it.
pub const GUARDED: &[char] = &['=', '+', '-', '@', '\t', '\r', '\n', '\'', '＝', '＋', '－', '＠'];

/// Who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A program, or a file: the data as it was.
    Program,
    /// A terminal, which CSV has no way to escape for: what would steer it is shown as `?`.
    Terminal,
}

/// Writes it.
///
/// # Errors
/// When it cannot be written there.
pub fn write(table: &Table, reader: Reader, to: impl io::Write) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(to);
    writer.write_record(table.columns().iter().map(|(name, _)| name))?;
    for row in table.rows() {
        writer.write_record(row.iter().map(|cell| shown(cell, reader)))?;
    }
    writer.flush()
}

fn shown(cell: &Cell, reader: Reader) -> String {
    let text = match cell {
        Cell::Absent => String::new(),
        Cell::Text(text) => guarded(text),
        Cell::List(list) => guarded(&list.to_string()),
        Cell::Integer(number) => number.to_string(),
        Cell::Boolean(is) => is.to_string(),
        Cell::Time(time) => time.to_string(),
    };
    match reader {
        Reader::Program => text,
        Reader::Terminal => printable(&text),
    }
}

fn guarded(text: &str) -> String {
    if text.starts_with(GUARDED) { format!("'{text}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::table::Columns;

    fn written(names: &[&str], reader: Reader) -> String {
        let columns = Columns::<String>::default()
            .text("name", |name| Some(name.clone()))
            .integer("code", |_| Some(-1))
            .list("arguments", |name| Some(serde_json::json!([name])))
            .text("none", |_| None);
        let mut bytes = Vec::new();
        write(&Table::new(&columns, names.iter().map(|name| (*name).to_owned())), reader, &mut bytes)
            .unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn it_is_what_the_rfc_says() {
        assert_eq!(
            written(&["a", "b \"c\", d", "two\nlines", ""], Reader::Program),
            "name,code,arguments,none\r\n\
             a,-1,\"[\"\"a\"\"]\",\r\n\
             \"b \"\"c\"\", d\",-1,\"[\"\"b \\\"\"c\\\"\", d\"\"]\",\r\n\
             \"two\nlines\",-1,\"[\"\"two\\nlines\"\"]\",\r\n\
             ,-1,\"[\"\"\"\"]\",\r\n"
        );
    }

    /// Every text comes back by the rule that is documented, and none begins as a formula does.
    #[test]
    fn formulas_are_guarded_and_nothing_is_lost() {
        let names = [
            "=cmd|' /C calc'!A0",
            "+1",
            "-1",
            "@SUM(1)",
            "\t=1",
            "\r=1",
            "\n=1",
            "'quoted'",
            "''",
            "＝1",
            "plain",
            "<script>alert(1)</script>",
            "\u{1b}[2J",
            "東京",
            "",
        ];
        let text = written(&names, Reader::Program);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let read: Vec<_> = reader.records().map(|record| record.unwrap()[0].to_owned()).collect();
        for cell in &read {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝']), "{cell:?}");
        }
        let back: Vec<_> = read.iter().map(|cell| cell.strip_prefix('\'').unwrap_or(cell)).collect();
        assert_eq!(back, names);
    }

    #[test]
    fn a_terminal_is_not_steered() {
        let text = written(&["a\u{1b}[2J\u{202e}b"], Reader::Terminal);
        assert!(!text.contains('\u{1b}') && text.contains("a?[2J?b"), "{text:?}");
    }
}
