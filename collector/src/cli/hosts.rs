//! `alibi hosts`.

use alibi_proto::{host::HostStatus, wire};
use anyhow::{Context as _, Result};

use super::{
    HostsArgs, format,
    way::{Way, in_words},
};
use crate::{clock, export::hosts::ListedHosts};

pub(super) async fn hosts(arguments: HostsArgs, way: &Way) -> Result<u8> {
    let format = arguments.format.of::<ListedHosts>()?;
    let request = wire::HostsRequest { scope: arguments.scope.to_wire() };
    let response = way.client()?.hosts(request).await.map_err(in_words(way))?;
    let hosts = response.into_inner().hosts.into_iter().map(HostStatus::try_from);
    let hosts: Vec<HostStatus> =
        hosts.collect::<Result<_, _>>().context("the collector's answer cannot be read")?;
    format::print(format, &ListedHosts { hosts, now: clock::now() })?;
    Ok(0)
}
