//! `alibi ca`.

use alibi_proto::{json::pretty, time::Timestamp, wire};
use anyhow::Result;
use serde::Serialize;

use super::{
    CaCommand, format,
    way::{Way, in_words},
};
use crate::export::{Format, Listing, ROWS, Table, table::Columns};

pub(super) async fn ca(command: CaCommand, way: &Way) -> Result<u8> {
    let format = match &command {
        CaCommand::List { format } => format.of::<AuthoritiesJson>()?,
        CaCommand::Rotate | CaCommand::Retire { .. } => Format::Table,
    };
    let mut client = way.client()?;
    let answer = match command {
        CaCommand::List { .. } => client.authorities(wire::AuthoritiesRequest {}).await,
        CaCommand::Rotate => client.rotate_authority(wire::RotateAuthorityRequest {}).await,
        CaCommand::Retire { fingerprint } => {
            client.retire_authority(wire::RetireAuthorityRequest { fingerprint }).await
        }
    };
    let listed = answer.map_err(in_words(way))?.into_inner();
    let authorities = listed.authorities.into_iter().map(AuthorityJson::from).collect();
    format::print(format, &AuthoritiesJson { authorities })?;
    Ok(0)
}

impl AuthoritiesJson {
    /// Each with what it is for.
    fn states(&self) -> impl Iterator<Item = (&AuthorityJson, &'static str)> {
        self.authorities.iter().enumerate().map(|(index, authority)| match (index, authority.retired) {
            (_, Some(_)) => (authority, "retired"),
            (0, None) => (authority, "signs"),
            (_, None) => (authority, "believed"),
        })
    }
}

impl Listing for AuthoritiesJson {
    const NAME: &'static str = "ca list";
    const FORMATS: &'static [Format] = ROWS;

    fn text(&self) -> String {
        let line = |(authority, state): (&AuthorityJson, &str)| {
            let AuthorityJson { fingerprint, not_after, hosts, retired, .. } = authority;
            let since = retired.map_or_else(String::new, |retired| format!(" {retired}"));
            format!("{fingerprint}  {state}{since}, until {not_after}, certificates of {hosts} hosts")
        };
        self.states().map(line).collect::<Vec<_>>().join("\n")
    }

    fn json(&self) -> serde_json::Result<String> {
        pretty(self)
    }

    fn table(&self) -> Table {
        type Row<'a> = (&'a AuthorityJson, &'static str);
        let columns = Columns::<Row<'_>>::default()
            .text("fingerprint", |row| Some(row.0.fingerprint.clone()))
            .text("state", |row| Some(row.1.to_owned()))
            .time("not_before", |row| Some(row.0.not_before))
            .time("not_after", |row| Some(row.0.not_after))
            .time("retired", |row| row.0.retired)
            .count("hosts", |row| Some(row.0.hosts));
        Table::new(&columns, self.states())
    }
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
