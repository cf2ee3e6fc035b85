//! `alibi-agent enroll`.

use std::{fs, io, path::Path};

use alibi_proto::{
    command_line::{say, token},
    data_directory::{DataDirectory, DataDirectoryError, check_marker},
    id::HostId,
    token::{Token, TokenKind},
};
use anyhow::{Context as _, Result, bail};

use super::{ASKED, DATA_FORMAT, EnrollArgs, PROGRAM, RING};
use crate::{
    enrolment::{self, Enrolment},
    identity,
    link::certificates,
    sys,
};

pub(super) async fn enroll(arguments: EnrollArgs) -> Result<u8> {
    let token = read_token(&arguments.token)?;
    let proxy = arguments.proxy.proxy()?;
    let host = match arguments.reset {
        true => become_another(&arguments.data)?,
        false => host_of(&arguments.data)?,
    };
    if let Some(enrolment) = Enrolment::load(&arguments.data)?
        && enrolment.expires > sys::now().wall
        && enrolment.collector == token.address
    {
        tracing::warn!(collector = %enrolment.collector, "it is enrolled there already, and is so once more");
    }
    let name = sys::host_facts().name;
    let enrolment = certificates::enrol(&arguments.data, &token, host, name, &proxy, sys::now().wall).await?;
    say(format_args!(
        "{host} is enrolled with {}, its certificate until {}",
        enrolment.collector, enrolment.expires
    ))?;
    say(format_args!(
        "an agent over {} calls it from now on, and renews the certificate",
        arguments.data.display()
    ))?;
    Ok(0)
}

fn read_token(word: &str) -> Result<Token> {
    let token = token(word)?;
    match token.kind {
        TokenKind::Host => Ok(token),
        TokenKind::User => bail!("that is an analyst's token, for `alibi login`: hosts enrol with another"),
    }
}

/// The id under which this host records, or will. An agent may be running over the directory.
fn host_of(data: &Path) -> Result<HostId> {
    match check_marker(data, PROGRAM, DATA_FORMAT) {
        Ok(()) => {}
        Err(DataDirectoryError::Absent(_)) => DataDirectory::open(data, PROGRAM, DATA_FORMAT)?.keep(),
        Err(error) => return Err(error.into()),
    }
    Ok(identity::load_or_make(data)?)
}

/// A new id. What was recorded under the old one is that host's, and is put aside: whoever wants it back can put it back.
fn become_another(data: &Path) -> Result<HostId> {
    let mut directory = DataDirectory::open(data, PROGRAM, DATA_FORMAT).map_err(|error| match error {
        DataDirectoryError::InUse(path) => anyhow::anyhow!(
            "an agent is running over {}, as the host that it was: stop it first (`systemctl stop alibi-agent`)",
            path.display()
        ),
        error => error.into(),
    })?;
    directory.keep();
    let ring = data.join(RING);
    if let (Some(was), true) = (identity::load(data)?, ring.exists()) {
        let aside = data.join(format!("{RING}-of-{was}"));
        fs::rename(&ring, &aside)
            .with_context(|| format!("cannot put {} aside as {}", ring.display(), aside.display()))?;
        say(format_args!("what was recorded as {was} is in {} now", aside.display()))?;
    }
    enrolment::forget(data)?;
    // Who asked about the host that it was is none of this one's business.
    match fs::remove_file(data.join(ASKED)) {
        Err(problem) if problem.kind() != io::ErrorKind::NotFound => {
            return Err(problem).with_context(|| format!("cannot remove {}", data.join(ASKED).display()));
        }
        _ => {}
    }
    Ok(identity::make(data)?)
}
