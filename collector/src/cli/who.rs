//! `alibi who`.

use alibi_proto::{command_line::exit_status, question::Answer, wire};
use anyhow::{Context as _, Result};

use super::{
    ToCollectorArgs, WhoArgs, format,
    way::{Way, in_words},
};
use crate::clock;

pub(super) async fn who(arguments: WhoArgs, to: &ToCollectorArgs) -> Result<u8> {
    let format = arguments.format.of::<Answer>()?;
    // What cannot be meant is said, whoever would be asked.
    let question = arguments.question.question(clock::now())?;
    let way = &Way::find(to)?;
    let request = wire::WhoRequest { question: Some(question.into()), scope: arguments.scope.to_wire() };
    let response = way.client()?.who(request).await.map_err(in_words(way))?;
    let answer = Answer::try_from(response.into_inner()).context("the collector's answer cannot be read")?;
    format::print(format, &answer)?;
    Ok(exit_status(answer.verdict()))
}
