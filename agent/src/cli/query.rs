//! `alibi-agent query`.

use std::{fs, path::Path};

use alibi_proto::{
    address::Address,
    command_line::{exit_status, say},
    data_directory::check_marker,
    json::WhoJson,
    question::{Answer, HostAnswer, Question},
    report,
    transport::{self, MESSAGE_BYTES_MAX},
    wire::{self, recorder_client::RecorderClient},
};
use anyhow::{Context as _, Result};

use super::{ADDRESS, DATA_FORMAT, PROGRAM, QueryArgs, RING};
use crate::{
    boots, identity,
    ledger::{Ledger, Past},
    query,
    ring::View,
    sys,
};

pub(super) async fn query(arguments: QueryArgs) -> Result<u8> {
    let question = arguments.question.question(sys::now().wall)?;
    check_marker(&arguments.data, PROGRAM, DATA_FORMAT)?;
    let ours = identity::load(&arguments.data)?;
    let (host, addresses) = match ask_running_agent(&arguments.data, &question).await? {
        // Whoever answers for another host has the address that ours had before it was killed.
        Some((answer, addresses)) if answer.host == ours => (answer, addresses),
        _ => {
            let (data, question) = (arguments.data.clone(), question.clone());
            tokio::task::spawn_blocking(move || read_ring(&data, &question)).await??
        }
    };
    let answer = Answer { addresses, question, hosts: vec![host] };
    if arguments.json {
        say(alibi_proto::json::pretty(&WhoJson::from(&answer))?)?;
    } else {
        say(report::answer(&answer))?;
    }
    Ok(exit_status(answer.verdict()))
}

/// The answer of the agent that runs over this data, with the addresses used; none if none does.
async fn ask_running_agent(data: &Path, question: &Question) -> Result<Option<(HostAnswer, Vec<String>)>> {
    let Ok(text) = fs::read_to_string(data.join(ADDRESS)) else { return Ok(None) };
    let address: Address = text.trim().parse().context("the running agent's address cannot be read")?;
    let mut client =
        RecorderClient::new(transport::channel(&address)?).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let request = wire::QueryRequest { question: Some(question.clone().into()) };
    match client.query(request).await {
        Ok(response) => {
            let wire::QueryResponse { answer, addresses } = response.into_inner();
            let answer = answer.context("the running agent gave no answer")?;
            Ok(Some((answer.try_into()?, addresses)))
        }
        // Left behind by one that was killed.
        Err(status) if status.code() == tonic::Code::Unavailable => Ok(None),
        Err(status) => anyhow::bail!("the running agent at {address} cannot answer: {}", status.message()),
    }
}

fn read_ring(data: &Path, question: &Question) -> Result<(HostAnswer, Vec<String>)> {
    let host =
        identity::load(data)?.context("the data directory has no identity: nothing was recorded yet")?;
    let view = View::open_read_only(&data.join(RING))?;
    let known_until = view.recorded_until();
    let facts = sys::host_facts();
    // A clock that was set back since may have shown times again that were recorded, and were not the second time.
    let now = sys::now();
    let past = Past::of(&view.recovery(), boots::number(&facts.boot_id), sys::last_restart(now));
    let mut since = Ledger::default().begin(past, now);
    since.retain(|change| change.to.is_some());
    Ok(query::answer_with(&view, question, host, facts.name, known_until, &since)?)
}
