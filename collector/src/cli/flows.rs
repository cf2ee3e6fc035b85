//! `alibi flows`.

use alibi_proto::wire;
use anyhow::{Context as _, Result};

use super::{
    FlowSort, FlowsArgs, ToCollectorArgs, format,
    search::Asked,
    way::{Way, in_words},
};
use crate::{export::flows::FoundFlows, search::query::Searched};

pub(super) async fn flows(arguments: FlowsArgs, to: &ToCollectorArgs) -> Result<u8> {
    let FlowsArgs { query, sort, listing } = arguments;
    let format = listing.format.of::<FoundFlows>()?;
    let asked = Asked::new(query.unwrap_or_default(), Searched::Flows, &listing)?;
    let way = &Way::find(to)?;
    let request = wire::FlowsRequest {
        query: asked.query.clone(),
        scope: listing.scope.to_wire(),
        from_ns: asked.window.map(|window| window.from().as_nanos()),
        to_ns: asked.window.map(|window| window.to().as_nanos()),
        limit: listing.limit,
        cursor: listing.cursor.clone(),
        order: wire::FlowOrder::from(sort).into(),
    };
    let response = way.client()?.flows(request).await.map_err(in_words(way))?.into_inner();
    let found = FoundFlows::new(&asked.query, response).context("the collector's answer cannot be read")?;
    format::print(format, &found)?;
    Ok(0)
}

impl From<FlowSort> for wire::FlowOrder {
    fn from(sort: FlowSort) -> Self {
        match sort {
            FlowSort::Time => Self::Newest,
            FlowSort::Oldest => Self::Oldest,
            FlowSort::Bytes => Self::Bytes,
        }
    }
}
