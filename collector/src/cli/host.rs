//! `alibi host`.

use alibi_proto::{transport::Address, wire};
use anyhow::Result;

use super::{HostCommand, collector, in_words};

pub(super) async fn host(command: HostCommand, address: &Address) -> Result<u8> {
    let mut collector = collector(address)?;
    match command {
        HostCommand::Add { address: agent } => {
            let request = wire::AddAgentRequest { address: agent.to_string() };
            collector.add_agent(request).await.map_err(in_words(address))?;
            println!("{agent} is followed from now on");
        }
        HostCommand::Remove { address: agent } => {
            let request = wire::RemoveAgentRequest { address: agent.to_string() };
            collector.remove_agent(request).await.map_err(in_words(address))?;
            println!("{agent} is followed no longer");
        }
    }
    Ok(0)
}
