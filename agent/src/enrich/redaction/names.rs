//! What options, variables, fields and headers are called that hold a secret.

use super::hidden::Hidden;

/// Whether an option, a variable, a field or a header of this name holds a secret, and what of its value: `db_password`,
/// `PGPASSWORD`, `apiKey`, `X-Auth-Token`; but not `password-file`, `no-password` or `tokenizer`.
pub(super) fn names_a_secret(name: &str) -> Option<Hidden> {
    if !may_name_one(name) || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c)) {
        return None;
    }
    // Vault's is a secret itself, unlike those that are called so elsewhere.
    if matches!(name, "secret_id" | "VAULT_SECRET_ID") {
        return Some(Hidden::Whole);
    }
    let words = words_of(name);
    let (first, last) = (words.first()?.as_str(), words.last()?.as_str());
    let is_about_it =
        ABOUT_AT_THE_END.contains(&last) || (words.len() > 1 && ABOUT_AT_THE_START.contains(&first));
    // The working directory, in every environment there is; and the file of a VPN's login.
    if is_about_it || matches!(name, "PWD" | "OLDPWD" | "auth-user-pass") {
        return None;
    }
    let may_be_a_file = matches!(last, "credential" | "credentials")
        || words.windows(2).any(|pair| pair == ["private", "key"] || pair == ["ssh", "key"]);
    if may_be_a_file {
        return Some(Hidden::UnlessFile);
    }
    let is_key = |pair: &[String]| pair[1] == "key" && KINDS_OF_KEYS.contains(&pair[0].as_str());
    let is_one = AT_THE_END.contains(&last)
        || words.iter().any(|word| ENDINGS.iter().any(|ending| word.ends_with(ending)))
        || words.windows(2).any(is_key);
    match last {
        "secret" | "secrets" if words.len() == 1 => Some(Hidden::UnlessReference),
        _ => is_one.then_some(Hidden::Whole),
    }
}

/// What ends in one of these is about a secret, and is none.
const ABOUT_AT_THE_END: [&str; 68] = [
    "age",
    "arn",
    "audience",
    "auth",
    "authentication",
    "authenticator",
    "cache",
    "class",
    "cmd",
    "command",
    "count",
    "dir",
    "directory",
    "duration",
    "enabled",
    "endpoint",
    "env",
    "expiration",
    "expires",
    "expiry",
    "fd",
    "field",
    "file",
    "filename",
    "files",
    "format",
    "generation",
    "header",
    "helper",
    "id",
    "ids",
    "interval",
    "issuer",
    "length",
    "lifetime",
    "limit",
    "location",
    "manager",
    "max",
    "method",
    "min",
    "mode",
    "name",
    "names",
    "path",
    "paths",
    "policy",
    "prefix",
    "prompt",
    "provider",
    "ref",
    "refresh",
    "region",
    "required",
    "rotation",
    "scope",
    "scopes",
    "separator",
    "server",
    "service",
    "stdin",
    "store",
    "strength",
    "timeout",
    "ttl",
    "type",
    "uri",
    "url",
];

/// And what begins with one of these.
const ABOUT_AT_THE_START: [&str; 15] = [
    "allow", "ask", "disable", "has", "list", "max", "min", "no", "print", "prompt", "require", "show",
    "skip", "use", "with",
];

/// A word that ends so is a secret, wherever it stands.
const ENDINGS: [&str; 10] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "storepass",
    "keypass",
    "passcode",
    "passkey",
];

/// As in `--db-pass`, unlike `--pass-through`.
const AT_THE_END: [&str; 15] = [
    "authorization",
    "bearer",
    "jwt",
    "pass",
    "passwordd",
    "passwordo",
    "psk",
    "pswd",
    "pw",
    "pwd",
    "secrets",
    "sig",
    "sshpass",
    "upw",
    "opw",
];

/// A key of these is a secret.
const KINDS_OF_KEYS: [&str; 18] = [
    "access",
    "account",
    "api",
    "app",
    "application",
    "auth",
    "deploy",
    "encrypt",
    "encryption",
    "integration",
    "licence",
    "license",
    "master",
    "secret",
    "shared",
    "signing",
    "subscription",
    "write",
];

/// What has none of these in it names no secret: most names, told without taking them apart.
fn may_name_one(name: &str) -> bool {
    const STEMS: [&[u8]; 12] = [
        b"pass", b"secret", b"token", b"key", b"cred", b"auth", b"jwt", b"pw", b"psk", b"pswd", b"bearer",
        b"sig",
    ];
    let name = name.as_bytes();
    (0..name.len()).any(|at| {
        let rest = &name[at..];
        let begins = |stem: &[u8]| rest.get(..stem.len()).is_some_and(|part| part.eq_ignore_ascii_case(stem));
        STEMS.iter().any(|stem| begins(stem))
    })
}

/// `dbPassword`, `DB_PASSWORD` and `db-password` are the same words, in lower case.
fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for c in name.chars() {
        let starts_word = c.is_ascii_uppercase() && after_lower;
        if (starts_word || !c.is_ascii_alphanumeric()) && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut()
            && c.is_ascii_alphanumeric()
        {
            word.push(c.to_ascii_lowercase());
        }
        after_lower = c.is_ascii_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}
