//! `alibi process`.

use alibi_proto::wire;
use anyhow::{Context as _, Result};

use super::{
    ProcessArgs, ToCollectorArgs,
    executables::nanos,
    format,
    way::{Way, in_words},
};
use crate::{clock, export::process::ShownProcess};

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
    let shown = ShownProcess::new(response).context("the collector's answer cannot be read")?;
    format::print(format, &shown)?;
    Ok(0)
}
