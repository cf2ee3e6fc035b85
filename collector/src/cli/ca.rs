//! `alibi ca`.

use alibi_proto::{command_line::say, time::Timestamp, wire};
use anyhow::Result;
use serde::Serialize;

use super::{
    CaCommand,
    way::{Way, in_words},
};

pub(super) async fn ca(command: CaCommand, way: &Way) -> Result<u8> {
    let mut client = way.client()?;
    let (answer, json) = match command {
        CaCommand::List { json } => (client.authorities(wire::AuthoritiesRequest {}).await, json),
        CaCommand::Rotate => (client.rotate_authority(wire::RotateAuthorityRequest {}).await, false),
        CaCommand::Retire { fingerprint } => {
            (client.retire_authority(wire::RetireAuthorityRequest { fingerprint }).await, false)
        }
    };
    let listed = answer.map_err(in_words(way))?.into_inner();
    let authorities: Vec<_> = listed.authorities.into_iter().map(AuthorityJson::from).collect();
    if json {
        say(alibi_proto::json::pretty(&AuthoritiesJson { authorities })?)?;
        return Ok(0);
    }
    for (index, authority) in authorities.iter().enumerate() {
        let state = match (index, authority.retired) {
            (_, Some(retired)) => format!("retired {retired}"),
            (0, None) => "signs".to_owned(),
            (_, None) => "believed".to_owned(),
        };
        let AuthorityJson { fingerprint, not_after, hosts, .. } = authority;
        say(format_args!("{fingerprint}  {state}, until {not_after}, certificates of {hosts} hosts"))?;
    }
    Ok(0)
}

#[derive(Serialize)]
struct AuthoritiesJson {
    /// The newest first: it signs.
    authorities: Vec<AuthorityJson>,
}

#[derive(Serialize)]
struct AuthorityJson {
    fingerprint: String,
    not_before: Timestamp,
    not_after: Timestamp,
    retired: Option<Timestamp>,
    /// Hosts whose newest certificate it has signed.
    hosts: u64,
}

impl From<wire::Authority> for AuthorityJson {
    fn from(authority: wire::Authority) -> Self {
        Self {
            fingerprint: authority.fingerprint,
            not_before: Timestamp::from_nanos(authority.not_before_ns),
            not_after: Timestamp::from_nanos(authority.not_after_ns),
            retired: authority.retired_ns.map(Timestamp::from_nanos),
            hosts: authority.hosts,
        }
    }
}
