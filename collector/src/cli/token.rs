//! `alibi token` and `alibi whoami`.

use std::fmt;

use alibi_proto::{command_line::say, json::pretty, report, time::Timestamp, wire};
use anyhow::{Result, bail};
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;

use super::{
    TokenCommand, TokenCreateArgs,
    format::{self, FormatArgs},
    role_word,
    way::{Way, in_words},
};
use crate::{
    clock,
    export::{self, Format, Listing, ROWS, table::Columns},
};

pub(super) async fn token(command: TokenCommand, way: &Way) -> Result<u8> {
    match command {
        TokenCommand::Create(arguments) => create(arguments, way).await,
        TokenCommand::List { format } => list(format, way).await,
        TokenCommand::Revoke { credential } => {
            let request = wire::RevokeCredentialRequest { credential };
            way.client()?.revoke_credential(request).await.map_err(in_words(way))?;
            say(format_args!("credential {credential} and what came of it are revoked"))?;
            Ok(0)
        }
    }
}

async fn create(arguments: TokenCreateArgs, way: &Way) -> Result<u8> {
    let lifetime_ns = u64::try_from(arguments.expires.as_nanos()).unwrap_or(u64::MAX);
    let mut client = way.client()?;
    let created = match (arguments.role, arguments.name) {
        (Some(role), Some(name)) => {
            if arguments.uses.is_some() || !arguments.tags.is_empty() {
                bail!(
                    "--uses and --tag are for tokens that enrol hosts: leave them out, or --role and --name"
                );
            }
            let role = wire::Role::from(role).into();
            client.create_analyst_token(wire::CreateAnalystTokenRequest { name, role, lifetime_ns }).await
        }
        (None, None) => {
            let uses = arguments.uses.unwrap_or(1);
            let request = wire::CreateEnrolmentTokenRequest { uses, lifetime_ns, tags: arguments.tags };
            client.create_enrolment_token(request).await
        }
        _ => bail!("an analyst's token takes both --role and --name; one that enrols hosts takes neither"),
    };
    let created = created.map_err(in_words(way))?.into_inner();
    // Alone on standard output, so that it can be kept by `$(…)`.
    say(created.token)?;
    eprintln!(
        "credential {}, until {}; it is not shown again",
        created.credential,
        Timestamp::from_nanos(created.expires_ns)
    );
    Ok(0)
}

async fn list(format: FormatArgs, way: &Way) -> Result<u8> {
    let format = format.of::<ListedCredentials>()?;
    let listed =
        way.client()?.credentials(wire::CredentialsRequest {}).await.map_err(in_words(way))?.into_inner();
    let credentials = listed.credentials.into_iter().map(CredentialJson::from).collect();
    let listed = CredentialsJson { credentials, left_out: listed.left_out };
    format::print(format, &ListedCredentials { listed, now: clock::now() })?;
    Ok(0)
}

struct ListedCredentials {
    listed: CredentialsJson,
    now: Timestamp,
}

impl Listing for ListedCredentials {
    const NAME: &'static str = "token list";
    const FORMATS: &'static [Format] = ROWS;

    fn text(&self) -> String {
        let mut text = table(&self.listed.credentials, self.now).to_string();
        for notice in self.notices() {
            text.push_str(&format!("\n{notice}"));
        }
        text
    }

    fn json(&self) -> serde_json::Result<String> {
        pretty(&self.listed)
    }

    fn table(&self) -> export::Table {
        let state = |credential: &CredentialJson| Some(credential.state(self.now).to_owned());
        let columns = Columns::<CredentialJson>::default()
            .count("credential", |credential| Some(credential.credential))
            .text("kind", |credential| Some(credential.kind.to_owned()))
            .text("name", |credential| Some(credential.name.clone()))
            .text("role", |credential| Some(credential.role.to_owned()))
            .text("state", state)
            .time("created", |credential| Some(credential.created))
            .time("expires", |credential| Some(credential.expires))
            .time("revoked", |credential| credential.revoked)
            .time("used", |credential| credential.used)
            .count("uses", |credential| Some(credential.uses.into()))
            .count("uses_max", |credential| Some(credential.uses_max.into()))
            .list("tags", |credential| Some(serde_json::json!(credential.tags)));
        export::Table::new(&columns, &self.listed.credentials)
    }

    fn notices(&self) -> Vec<String> {
        let left_out = self.listed.left_out;
        (left_out > 0).then(|| format!("and {left_out} older ones")).into_iter().collect()
    }
}

#[derive(Serialize)]
struct CredentialsJson {
    credentials: Vec<CredentialJson>,
    left_out: u64,
}

#[derive(Serialize)]
struct CredentialJson {
    credential: u64,
    kind: &'static str,
    name: String,
    role: &'static str,
    created: Timestamp,
    expires: Timestamp,
    revoked: Option<Timestamp>,
    used: Option<Timestamp>,
    uses: u32,
    /// 0: as often as one likes.
    uses_max: u32,
    tags: Vec<String>,
}

impl From<wire::Credential> for CredentialJson {
    fn from(credential: wire::Credential) -> Self {
        Self {
            credential: credential.credential,
            kind: match credential.kind() {
                wire::CredentialKind::EnrolmentToken => "enrolment token",
                wire::CredentialKind::AnalystToken => "analyst token",
                wire::CredentialKind::AnalystCertificate => "analyst certificate",
                wire::CredentialKind::Unspecified => "unknown",
            },
            role: role_word(credential.role()),
            name: credential.name,
            created: Timestamp::from_nanos(credential.created_ns),
            expires: Timestamp::from_nanos(credential.expires_ns),
            revoked: credential.revoked_ns.map(Timestamp::from_nanos),
            used: credential.used_ns.map(Timestamp::from_nanos),
            uses: credential.uses,
            uses_max: credential.uses_max,
            tags: credential.tags,
        }
    }
}

impl CredentialJson {
    fn state(&self, now: Timestamp) -> &'static str {
        match self {
            Self { revoked: Some(_), .. } => "revoked",
            Self { expires, .. } if *expires <= now => "run out",
            Self { uses, uses_max, .. } if *uses_max > 0 && uses >= uses_max => "used up",
            _ => "good",
        }
    }
}

fn table(credentials: &[CredentialJson], now: Timestamp) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["NUMBER", "KIND", "NAME", "ROLE", "STATE", "UNTIL", "USED", "TAGS"]);
    for credential in credentials {
        let uses = match credential.uses_max {
            0 => credential.uses.to_string(),
            max => format!("{} of {max}", credential.uses),
        };
        let cells = [
            credential.credential.to_string(),
            credential.kind.to_owned(),
            credential.name.clone(),
            credential.role.to_owned(),
            credential.state(now).to_owned(),
            credential.expires.to_string(),
            uses,
            credential.tags.join(", "),
        ];
        table.add_row(cells.map(|cell| report::printable(&cell)));
    }
    table
}

pub(super) async fn who_am_i(json: bool, way: &Way) -> Result<u8> {
    let answer = way.client()?.who_am_i(wire::WhoAmIRequest {}).await.map_err(in_words(way))?.into_inner();
    let me = MeJson {
        collector: way.address().to_string(),
        role: role_word(answer.role()),
        name: answer.name,
        credential: answer.credential,
        expires: answer.expires_ns.map(Timestamp::from_nanos),
    };
    if json {
        say(pretty(&me)?)?;
    } else {
        say(me)?;
    }
    Ok(0)
}

#[derive(Serialize)]
struct MeJson {
    collector: String,
    name: String,
    role: &'static str,
    credential: Option<u64>,
    expires: Option<Timestamp>,
}

impl fmt::Display for MeJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) at {}", report::printable(&self.name), self.role, self.collector)?;
        if let (Some(credential), Some(expires)) = (self.credential, self.expires) {
            write!(f, ", by credential {credential}, until {expires}")?;
        }
        Ok(())
    }
}
