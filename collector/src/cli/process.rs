//! `alibi process`.

use alibi_proto::{flow::FlowRecord, id::HostId, process::ProcessLife, wire};
use anyhow::{Context as _, Result};

use super::{
    ProcessArgs, ToCollectorArgs,
    executables::nanos,
    format,
    way::{Way, in_words},
};
use crate::{clock, export::process::{More, ShownProcess}};

pub(super) async fn process(arguments: ProcessArgs, to: &ToCollectorArgs) -> Result<u8> {
    let format = arguments.format.of::<ShownProcess>()?;
    let window = arguments.window.window_if_any(clock::now())?;
    let way = &Way::find(to)?;
    let request = wire::ProcessRequest {
        process: arguments.uid,
        from_ns: window.map(|window| window.from().as_nanos()),
        to_ns: window.map(|window| window.to().as_nanos()),
        recorded_for_ns: arguments.recorded_for.map(nanos),
    };
    let response = way.client()?.process(request).await.map_err(in_words(way))?.into_inner();
    format::print(format, &shown(response).context("the collector's answer cannot be read")?)?;
    Ok(0)
}

fn shown(response: wire::ProcessResponse) -> Result<ShownProcess> {
    let lives = |lives: Vec<wire::ProcessLife>| lives.into_iter().map(ProcessLife::try_from).collect();
    let ancestors: Result<_, _> = lives(response.ancestors);
    let children: Result<_, _> = lives(response.children);
    let connections = response.connections.into_iter().map(FlowRecord::try_from);
    let more = More {
        prevalence: response.prevalence.map(Into::into),
        recorded: response.recorded.map(TryInto::try_into).transpose()?,
        total: response.total.unwrap_or_default().into(),
        buckets: response.buckets.into_iter().map(Into::into).collect(),
        bucket_s: response.bucket_ns / 1_000_000_000,
        names: response.names.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
        names_left_out: response.names_left_out,
    };
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
        more,
    })
}
