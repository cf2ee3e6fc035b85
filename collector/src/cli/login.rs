//! `alibi login` and `alibi logout`.

use alibi_proto::{
    address::{Address, HostPort},
    command_line::{say, token},
    dial,
    time::Timestamp,
    tls::{self, CERTIFICATE_BYTES_MAX, CHAIN_MAX, CertificateDer, Trust},
    token::{Token, TokenKind},
    transport,
    wire::{self, enrolment_client::EnrolmentClient},
};
use anyhow::{Result, bail, ensure};

use super::{LoginArgs, ToCollectorArgs, credentials::Credentials, role_word};

/// Exchanges a token for a certificate, whose key never leaves this machine.
pub(super) async fn login(arguments: LoginArgs, to: &ToCollectorArgs) -> Result<u8> {
    let token = token(&arguments.token)?;
    if token.kind != TokenKind::User {
        bail!("that token enrols hosts (`alibi-agent enroll`): analysts log in with another");
    }
    let address = match &to.collector {
        Some(Address::Tcp(address)) => address.clone(),
        Some(Address::Unix(_)) => bail!("on a socket of this machine nobody has to log in"),
        None => token.address.clone(),
    };
    let credentials = exchange(&token, address, to).await?;
    let path = to.credentials();
    credentials.keep(&path)?;
    say(format_args!(
        "logged in at {} as {} ({}), until {}",
        credentials.collector, credentials.name, credentials.role, credentials.expires
    ))?;
    Ok(0)
}

async fn exchange(token: &Token, address: HostPort, to: &ToCollectorArgs) -> Result<Credentials> {
    let key = tls::make_key()?;
    let config = tls::to_collector(&Trust::Pinned(token.authority), None, tls::ENROL)?;
    let (stream, _) = dial::connect_tls(&address, &to.proxy()?, config).await?;
    let mut client = EnrolmentClient::new(transport::channel_over(stream).await?);
    let request = wire::LoginRequest {
        secret: token.secret.to_vec(),
        certificate_request: tls::certificate_request(&key)?,
    };
    let given = client.login(request).await;
    let given = given.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
    let role = role_word(given.role()).to_owned();
    Ok(Credentials {
        collector: address,
        name: given.name,
        role,
        expires: Timestamp::from_nanos(given.not_after_ns),
        chain: certificates(given.chain)?,
        authorities: certificates(given.authorities)?,
        key: key.secret_pkcs8_der().to_vec(),
    })
}

fn certificates(ders: Vec<Vec<u8>>) -> Result<Vec<CertificateDer<'static>>> {
    let fits = ders.iter().all(|der| der.len() <= CERTIFICATE_BYTES_MAX);
    ensure!(
        (1..=CHAIN_MAX).contains(&ders.len()) && fits,
        "the collector gave a certificate that cannot be used"
    );
    Ok(ders.into_iter().map(CertificateDer::from).collect())
}

/// Forgets a login. What it could do, it can until it is revoked or runs out.
pub(super) fn logout(to: &ToCollectorArgs) -> Result<u8> {
    let chosen = match &to.collector {
        Some(Address::Tcp(address)) => Some(address),
        _ => None,
    };
    match Credentials::forget(&to.credentials(), chosen)? {
        Some(collector) => say(format_args!("forgot the login at {collector}"))?,
        None => say("there was no login")?,
    }
    Ok(0)
}
