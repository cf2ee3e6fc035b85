//! Which role each method of the analysts' service takes: one table. What is not in it, nobody may call.

use super::role::Role;

/// By the path of the method, as gRPC has it.
const METHODS: &[(&str, Role)] = &[
    ("/alibi.v1.Analyst/Hosts", Role::Viewer),
    ("/alibi.v1.Analyst/WhoAmI", Role::Viewer),
    ("/alibi.v1.Analyst/Who", Role::Analyst),
    ("/alibi.v1.Analyst/Process", Role::Analyst),
    ("/alibi.v1.Analyst/Executables", Role::Analyst),
    ("/alibi.v1.Analyst/Top", Role::Analyst),
    ("/alibi.v1.Analyst/Search", Role::Analyst),
    ("/alibi.v1.Analyst/Flows", Role::Analyst),
    ("/alibi.v1.Analyst/VerifyHost", Role::Analyst),
    ("/alibi.v1.Analyst/AddAgent", Role::Admin),
    ("/alibi.v1.Analyst/RemoveAgent", Role::Admin),
    ("/alibi.v1.Analyst/RevokeHost", Role::Admin),
    ("/alibi.v1.Analyst/UnmarkHost", Role::Admin),
    ("/alibi.v1.Analyst/CreateEnrolmentToken", Role::Admin),
    ("/alibi.v1.Analyst/CreateAnalystToken", Role::Admin),
    ("/alibi.v1.Analyst/Credentials", Role::Admin),
    ("/alibi.v1.Analyst/RevokeCredential", Role::Admin),
    ("/alibi.v1.Analyst/Audit", Role::Admin),
    ("/alibi.v1.Analyst/VerifyAudit", Role::Admin),
    ("/alibi.v1.Analyst/Authorities", Role::Admin),
    ("/alibi.v1.Analyst/RotateAuthority", Role::Admin),
    ("/alibi.v1.Analyst/RetireAuthority", Role::Admin),
];

/// Whether whoever has `role` may call the method at `path`.
///
/// # Errors
/// When it takes more than that, or there is no such method.
pub fn check(role: Role, path: &str) -> Result<(), Denied> {
    let method = path.rsplit('/').next().unwrap_or(path).to_owned();
    let (_, needed) = METHODS
        .iter()
        .find(|(known, _)| *known == path)
        .ok_or_else(|| Denied::NoSuchMethod(path.to_owned()))?;
    if role >= *needed { Ok(()) } else { Err(Denied::Role { method, needed: *needed, role }) }
}

/// A call that is not allowed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Denied {
    /// The role is too small.
    #[error("{method} takes the role {needed}, and yours is {role}: ask an admin for a token with that role")]
    Role {
        /// What was called.
        method: String,
        /// What it takes.
        needed: Role,
        /// What the caller has.
        role: Role,
    },
    /// It is not in the table.
    #[error("there is no method {0} that anybody may call: is the client newer than the collector?")]
    NoSuchMethod(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = include_str!("../../../proto/schema/alibi/v1/analyst.proto");

    /// The paths of the methods in the schema.
    fn methods() -> Vec<String> {
        let service = SCHEMA.split_once("service Analyst {").unwrap().1.split_once("\n}").unwrap().0;
        let names = service.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        names.map(|name| format!("/alibi.v1.Analyst/{name}")).collect()
    }

    #[test]
    fn every_method_of_the_schema_has_a_role_and_no_other_has() {
        let mut known: Vec<_> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
        let mut methods = methods();
        assert!(methods.len() > 10, "{methods:?}");
        known.sort();
        methods.sort();
        assert_eq!(known, methods);
    }

    #[test]
    fn each_role_may_what_it_may_and_no_more() {
        // In the order of `Role::ALL`: viewer, analyst, responder, admin.
        let table = [
            ("Hosts", [true, true, true, true]),
            ("WhoAmI", [true, true, true, true]),
            ("Who", [false, true, true, true]),
            ("Process", [false, true, true, true]),
            ("Executables", [false, true, true, true]),
            ("Top", [false, true, true, true]),
            ("Search", [false, true, true, true]),
            ("Flows", [false, true, true, true]),
            ("VerifyHost", [false, true, true, true]),
            ("AddAgent", [false, false, false, true]),
            ("RemoveAgent", [false, false, false, true]),
            ("RevokeHost", [false, false, false, true]),
            ("UnmarkHost", [false, false, false, true]),
            ("CreateEnrolmentToken", [false, false, false, true]),
            ("CreateAnalystToken", [false, false, false, true]),
            ("Credentials", [false, false, false, true]),
            ("RevokeCredential", [false, false, false, true]),
            ("Audit", [false, false, false, true]),
            ("VerifyAudit", [false, false, false, true]),
            ("Authorities", [false, false, false, true]),
            ("RotateAuthority", [false, false, false, true]),
            ("RetireAuthority", [false, false, false, true]),
        ];
        assert_eq!(table.len(), methods().len());
        for (method, want) in table {
            let path = format!("/alibi.v1.Analyst/{method}");
            assert_eq!(Role::ALL.map(|role| check(role, &path).is_ok()), want, "{method}");
        }
    }

    #[test]
    fn what_is_not_known_is_denied_to_all() {
        let paths =
            ["", "/", "Hosts", "/alibi.v1.Analyst/", "/alibi.v1.Analyst/hosts", "/alibi.v1.Analyst/Hosts/"];
        for path in paths.into_iter().chain(["/alibi.v1.Enrolment/Login", "//alibi.v1.Analyst/Hosts"]) {
            assert_eq!(check(Role::Admin, path), Err(Denied::NoSuchMethod(path.to_owned())));
        }
        let denied = check(Role::Viewer, "/alibi.v1.Analyst/Who").unwrap_err();
        assert_eq!(
            denied.to_string(),
            "Who takes the role analyst, and yours is viewer: ask an admin for a token with that role"
        );
    }
}
