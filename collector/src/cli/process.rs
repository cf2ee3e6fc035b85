//! `alibi process`.

use alibi_proto::{flow::FlowRecord, id::HostId, process::ProcessLife, wire};
use anyhow::{Context as _, Result};

use super::{
    ProcessArgs, format,
    way::{Way, in_words},
};
use crate::export::process::ShownProcess;

pub(super) async fn process(arguments: ProcessArgs, way: &Way) -> Result<u8> {
    let format = arguments.format.of::<ShownProcess>()?;
    let request = wire::ProcessRequest { process: arguments.uid };
    let response = way.client()?.process(request).await.map_err(in_words(way))?.into_inner();
    format::print(format, &shown(response).context("the collector's answer cannot be read")?)?;
    Ok(0)
}

fn shown(response: wire::ProcessResponse) -> Result<ShownProcess> {
    let lives = |lives: Vec<wire::ProcessLife>| lives.into_iter().map(ProcessLife::try_from).collect();
    let ancestors: Result<_, _> = lives(response.ancestors);
    let children: Result<_, _> = lives(response.children);
    let connections = response.connections.into_iter().map(FlowRecord::try_from);
    Ok(ShownProcess {
        host: HostId::from_wire(&response.host)?,
        host_name: response.host_name,
        process: response.process.context("the process is missing")?.try_into()?,
        ancestors: ancestors?,
        children: children?,
        connections: connections.collect::<Result<_, _>>()?,
        left_out: response.left_out,
        damage: response.damage,
        clock: response.clock.map(Into::into),
    })
}
