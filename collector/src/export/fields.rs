//! `alibi search --fields`: what a query may name. A row each.

use alibi_proto::json::pretty;
use serde::Serialize;
use serde_json::json;

use super::{Format, Listing, ROWS, Table, page::plain_table, table::Columns};
use crate::search::fields::{About, FIELDS};

/// All fields.
#[derive(Clone, Copy, Debug)]
pub struct ListedFields;

impl Listing for ListedFields {
    const NAME: &'static str = "search --fields";
    const FORMATS: &'static [Format] = ROWS;

    fn text(&self) -> String {
        let mut table = plain_table(&["FIELD", "ALSO", "TYPE", "MEANS", "EXAMPLE"]);
        for About { name, aliases, kind, meaning, example, .. } in FIELDS {
            table.add_row([name, aliases.join(", ").as_str(), kind.word(), meaning, example]);
        }
        format!("{table}\n")
    }

    fn json(&self) -> serde_json::Result<String> {
        pretty(&FieldsJson { fields: FIELDS.iter().map(FieldJson::from).collect() })
    }

    fn table(&self) -> Table {
        let columns = Columns::default()
            .text("name", |about: &About| Some(about.name.to_owned()))
            .list("aliases", |about| Some(json!(about.aliases)))
            .text("type", |about| Some(about.kind.word().to_owned()))
            .text("meaning", |about| Some(about.meaning.to_owned()))
            .text("example", |about| Some(about.example.to_owned()));
        Table::new(&columns, FIELDS)
    }
}

#[derive(Serialize)]
struct FieldsJson {
    fields: Vec<FieldJson>,
}

#[derive(Serialize)]
struct FieldJson {
    name: &'static str,
    aliases: &'static [&'static str],
    r#type: &'static str,
    meaning: &'static str,
    example: &'static str,
}

impl From<&About> for FieldJson {
    fn from(about: &About) -> Self {
        Self {
            name: about.name,
            aliases: about.aliases,
            r#type: about.kind.word(),
            meaning: about.meaning,
            example: about.example,
        }
    }
}
