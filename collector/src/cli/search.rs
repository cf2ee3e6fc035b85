//! `alibi search`, and what it has in common with `alibi flows`.

use alibi_proto::{window::Window, wire};
use anyhow::{Context as _, Result};

use super::{
    ListingArgs, SearchArgs, ToCollectorArgs, format,
    way::{Way, in_words},
};
use crate::{
    clock,
    export::{fields::ListedFields, search::FoundProcesses},
    search::query::{self, Searched},
};

pub(super) async fn search(arguments: SearchArgs, to: &ToCollectorArgs) -> Result<u8> {
    let SearchArgs { query, fields, listing } = arguments;
    if fields {
        format::print(listing.format.of::<ListedFields>()?, &ListedFields)?;
        return Ok(0);
    }
    let format = listing.format.of::<FoundProcesses>()?;
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
