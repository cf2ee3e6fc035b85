//! What `alibi login` keeps: for each collector a certificate and its key, in a file of this user alone.

use std::{
    io,
    path::{Path, PathBuf},
};

use alibi_proto::{
    address::HostPort,
    data_directory::{create_private, read_secret, write_secret},
    time::Timestamp,
    tls::{CertificateDer, Identity, PrivatePkcs8KeyDer, Trust},
};
use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;
/// Collectors that one user is logged in to.
const LOGINS_MAX: usize = 64;

/// A login at one collector.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    pub(super) collector: HostPort,
    pub(super) name: String,
    pub(super) role: String,
    pub(super) expires: Timestamp,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) authorities: Vec<CertificateDer<'static>>,
    pub(super) key: Vec<u8>,
}

/// The file. The newest login is the first, and is meant where no collector is named.
#[derive(Default, Serialize, Deserialize)]
struct Written {
    format: u32,
    logins: Vec<Login>,
}

#[derive(Serialize, Deserialize)]
struct Login {
    collector: String,
    name: String,
    role: String,
    expires: u64,
    chain: Vec<String>,
    authorities: Vec<String>,
    key: String,
}

/// Where the logins are unless told otherwise: with the user's other configuration.
pub(super) fn default_path() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = if cfg!(windows) {
        variable("APPDATA")
    } else {
        variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")))
    };
    directory.unwrap_or_default().join("alibi").join("credentials.json")
}

impl Credentials {
    /// The login at `collector`; where there is none, the newest: a collector is known by its CA, and may have moved.
    pub(super) fn find(path: &Path, collector: Option<&HostPort>) -> Result<Option<Self>> {
        let written = read(path)?;
        let is_there =
            |login: &Login| collector.is_some_and(|collector| login.collector == collector.to_string());
        let at = written.logins.iter().position(is_there).unwrap_or(0);
        let login = written.logins.into_iter().nth(at);
        login.map(|login| login.read().with_context(|| broken(path))).transpose()
    }

    /// Keeps it, as the newest, in the place of an older one at the same collector.
    pub(super) fn keep(&self, path: &Path) -> Result<()> {
        let mut written = read(path)?;
        let login = Login::of(self);
        written.logins.retain(|other| other.collector != login.collector);
        ensure!(
            written.logins.len() < LOGINS_MAX,
            "{} has {LOGINS_MAX} logins already: `alibi logout` at one of them",
            path.display()
        );
        written.logins.insert(0, login);
        write(path, &written)
    }

    /// Forgets the login at `collector`, or the newest; which that was.
    pub(super) fn forget(path: &Path, collector: Option<&HostPort>) -> Result<Option<String>> {
        let mut written = read(path)?;
        let is_meant =
            |login: &Login| collector.is_none_or(|collector| login.collector == collector.to_string());
        let Some(at) = written.logins.iter().position(is_meant) else { return Ok(None) };
        let gone = written.logins.remove(at);
        write(path, &written)?;
        Ok(Some(gone.collector))
    }

    pub(super) fn trust(&self) -> Trust {
        Trust::Authorities(self.authorities.clone())
    }

    pub(super) fn identity(&self) -> Identity {
        Identity { chain: self.chain.clone(), key: PrivatePkcs8KeyDer::from(self.key.clone()).into() }
    }
}

impl Login {
    fn of(credentials: &Credentials) -> Self {
        let encode = |ders: &[CertificateDer<'_>]| ders.iter().map(|der| STANDARD.encode(der)).collect();
        Self {
            collector: credentials.collector.to_string(),
            name: credentials.name.clone(),
            role: credentials.role.clone(),
            expires: credentials.expires.as_nanos(),
            chain: encode(&credentials.chain),
            authorities: encode(&credentials.authorities),
            key: STANDARD.encode(&credentials.key),
        }
    }

    fn read(self) -> Result<Credentials> {
        let decode = |texts: Vec<String>| -> Result<Vec<_>> {
            texts.into_iter().map(|text| Ok(CertificateDer::from(STANDARD.decode(text)?))).collect()
        };
        Ok(Credentials {
            collector: self.collector.parse()?,
            name: self.name,
            role: self.role,
            expires: Timestamp::from_nanos(self.expires),
            chain: decode(self.chain)?,
            authorities: decode(self.authorities)?,
            key: STANDARD.decode(self.key)?,
        })
    }
}

fn read(path: &Path) -> Result<Written> {
    let text = match read_secret(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Written { format: FORMAT, logins: vec![] });
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read the logins in {}", path.display()));
        }
    };
    let written: Written = serde_json::from_slice(&text).with_context(|| broken(path))?;
    if written.format > FORMAT {
        bail!(
            "{} was written by a newer version (format {}): upgrade `alibi`",
            path.display(),
            written.format
        );
    }
    Ok(written)
}

fn broken(path: &Path) -> String {
    format!("{} is no file of logins: remove it, and log in anew", path.display())
}

fn write(path: &Path, written: &Written) -> Result<()> {
    let text = serde_json::to_vec_pretty(written)?;
    let made = path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), create_private);
    made.and_then(|()| write_secret(path, &text))
        .with_context(|| format!("cannot keep the login in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn credentials(collector: &str) -> Credentials {
        Credentials {
            collector: collector.parse().unwrap(),
            name: "jane".into(),
            role: "analyst".into(),
            expires: Timestamp::from_secs(7),
            chain: vec![CertificateDer::from(vec![1])],
            authorities: vec![CertificateDer::from(vec![2])],
            key: vec![3],
        }
    }

    #[test]
    fn the_newest_login_is_meant_unless_another_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new").join("credentials.json");
        let found = |collector: Option<&str>| {
            let collector = collector.map(|collector| collector.parse().unwrap());
            let found = Credentials::find(&path, collector.as_ref()).unwrap();
            found.map(|found| found.collector.to_string())
        };
        assert_eq!(found(None), None);
        credentials("a:1").keep(&path).unwrap();
        credentials("b:1").keep(&path).unwrap();
        assert_eq!(found(None).as_deref(), Some("b:1"));
        assert_eq!(found(Some("a:1")).as_deref(), Some("a:1"));
        assert_eq!(found(Some("c:1")).as_deref(), Some("b:1"), "it may have moved");
        credentials("a:1").keep(&path).unwrap();
        assert_eq!(found(None).as_deref(), Some("a:1"));
        let forget = || Credentials::forget(&path, None).unwrap();
        assert_eq!([forget(), forget(), forget()], [Some("a:1".into()), Some("b:1".into()), None]);
    }

    #[test]
    fn logins_are_read_by_their_user_alone_and_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials.json");
        for number in 0..LOGINS_MAX {
            credentials(&format!("a:{number}")).keep(&path).unwrap();
        }
        let error = credentials("b:1").keep(&path).unwrap_err().to_string();
        assert!(error.contains("alibi logout"), "{error}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        fs::write(&path, "{").unwrap();
        let error = Credentials::find(&path, None).err().unwrap().to_string();
        assert!(error.contains("log in anew"), "{error}");
    }
}
