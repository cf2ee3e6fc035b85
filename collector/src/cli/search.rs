//! `alibi search`, and what it has in common with `alibi flows`.

use alibi_proto::{command_line::say, json::pretty, window::Window, wire};
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    ListingArgs, SearchArgs, ToCollectorArgs, format,
    way::{Way, in_words},
};
use crate::{
    clock,
    export::{Format, page::plain_table, search::FoundProcesses},
    search::{
        fields::{About, FIELDS},
        query::{self, Searched},
    },
};

pub(super) async fn search(arguments: SearchArgs, to: &ToCollectorArgs) -> Result<u8> {
    let SearchArgs { query, fields, listing } = arguments;
    let format = listing.format.of::<FoundProcesses>()?;
    if fields {
        return list_fields(format);
    }
    let asked = Asked::new(query.unwrap_or_default(), Searched::Processes, &listing)?;
    let way = &Way::find(to)?;
    let request = wire::SearchRequest {
        query: asked.query.clone(),
        scope: listing.scope.to_wire(),
        from_ns: asked.window.map(|window| window.from().as_nanos()),
        to_ns: asked.window.map(|window| window.to().as_nanos()),
        limit: listing.limit,
        cursor: listing.cursor.clone(),
    };
    let response = way.client()?.search(request).await.map_err(in_words(way))?.into_inner();
    let found =
        FoundProcesses::new(&asked.query, response).context("the collector's answer cannot be read")?;
    format::print(format, &found)?;
    Ok(0)
}

/// What is asked, checked before anybody is.
pub(super) struct Asked {
    pub(super) query: String,
    pub(super) window: Option<Window>,
}

impl Asked {
    pub(super) fn new(query: String, searched: Searched, arguments: &ListingArgs) -> Result<Self> {
        let now = clock::now();
        query::parse(&query, searched, now)?;
        Ok(Self { query, window: arguments.window.window_if_any(now)? })
    }
}

fn list_fields(format: Format) -> Result<u8> {
    if format == Format::Json {
        let fields = FIELDS.iter().map(FieldJson::from).collect();
        say(pretty(&FieldsJson { fields })?)?;
        return Ok(0);
    }
    let mut table = plain_table(&["FIELD", "ALSO", "TYPE", "MEANS", "EXAMPLE"]);
    for About { name, aliases, kind, meaning, example, .. } in FIELDS {
        table.add_row([name, aliases.join(", ").as_str(), kind.word(), meaning, example]);
    }
    say(table)?;
    Ok(0)
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
