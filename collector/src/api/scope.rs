//! Which hosts a scope means by what they are: their tags and their system. None is left out that may be meant.

use std::collections::BTreeSet;

use tonic::Status;

use crate::store::FollowedAgent;

/// The hosts with any of the `tags`; all if there are none. Only enrolment gives tags, so one that is not enrolled has none.
/// `tags_of` tells those of a host.
///
/// # Errors
/// When no host has one of the tags: whoever mistypes it would take silence for an answer.
pub(super) fn tagged(
    hosts: Vec<FollowedAgent>,
    tags: &[String],
    tags_of: impl Fn(&FollowedAgent) -> Vec<String>,
) -> Result<Vec<FollowedAgent>, Status> {
    if tags.is_empty() {
        return Ok(hosts);
    }
    let hosts: Vec<_> = hosts.into_iter().map(|agent| (tags_of(&agent), agent)).collect();
    let known: BTreeSet<&str> = hosts.iter().flat_map(|(tags, _)| tags).map(String::as_str).collect();
    every_known("host has the tag", "tags", tags, &known)?;
    let is_meant = |of_host: &[String]| tags.iter().any(|tag| of_host.contains(tag));
    Ok(hosts.into_iter().filter(|(of_host, _)| is_meant(of_host)).map(|(_, agent)| agent).collect())
}

/// The hosts with any of these operating systems, and those that never answered, of which nobody knows; all if there are none.
///
/// # Errors
/// When no host has one of the systems.
pub(super) fn with_system(
    hosts: Vec<FollowedAgent>,
    systems: &[String],
) -> Result<Vec<FollowedAgent>, Status> {
    if systems.is_empty() {
        return Ok(hosts);
    }
    let known: BTreeSet<&str> =
        hosts.iter().filter_map(|agent| Some(agent.host.as_ref()?.0.os.as_str())).collect();
    every_known("host runs", "systems", systems, &known)?;
    let is_meant = |agent: &FollowedAgent| {
        agent.host.as_ref().is_none_or(|(description, _)| systems.contains(&description.os))
    };
    Ok(hosts.into_iter().filter(is_meant).collect())
}

/// Words that an error lists.
const LISTED_MAX: usize = 16;

fn every_known(has: &str, what: &str, wanted: &[String], known: &BTreeSet<&str>) -> Result<(), Status> {
    let Some(unknown) = wanted.iter().find(|word| !known.contains(word.as_str())) else { return Ok(()) };
    let listed: Vec<&str> = known.iter().copied().take(LISTED_MAX).collect();
    let more = if known.len() > LISTED_MAX { ", …" } else { "" };
    let there = match listed.as_slice() {
        [] => format!("no {what} are known of those in scope"),
        listed => format!("the {what} of those in scope are {}{more}", listed.join(", ")),
    };
    Err(Status::not_found(format!("no {has} `{unknown}`: {there}")))
}

#[cfg(test)]
mod tests {
    use alibi_proto::{
        host::HostDescription,
        id::{Epoch, HostId, Seq},
        time::Timestamp,
    };

    use super::*;
    use crate::store::Progress;

    fn agent(address: &str, os: Option<&str>) -> FollowedAgent {
        let description = |os: &str| HostDescription {
            host: HostId::from_bytes([address.len() as u8; 16]),
            name: address.to_owned(),
            os: os.to_owned(),
            os_version: String::new(),
            machine_id: None,
            boot_id: String::new(),
            booted: Timestamp::ZERO,
            agent_version: String::new(),
            users: Vec::new(),
            sources: Vec::new(),
            epoch: Epoch(1),
            first_seq: Seq(1),
            next_seq: Seq(1),
        };
        FollowedAgent {
            address: address.to_owned(),
            host: os.map(|os| (description(os).into(), Progress::default())),
        }
    }

    fn fleet() -> Vec<FollowedAgent> {
        vec![agent("a", Some("linux")), agent("b", Some("windows")), agent("c", None)]
    }

    fn addresses(found: Result<Vec<FollowedAgent>, Status>) -> Result<Vec<String>, String> {
        let addresses = |hosts: Vec<FollowedAgent>| hosts.into_iter().map(|agent| agent.address).collect();
        found.map(addresses).map_err(|status| status.message().to_owned())
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_host_that_never_answered_may_have_any_system() {
        let check = |systems: &[&str], want: Result<&[&str], &str>| {
            let found = addresses(with_system(fleet(), &words(systems)));
            assert_eq!(found, want.map(words).map_err(str::to_owned), "{systems:?}");
        };
        check(&[], Ok(&["a", "b", "c"]));
        check(&["linux"], Ok(&["a", "c"]));
        check(&["linux", "windows"], Ok(&["a", "b", "c"]));
        check(
            &["linux", "macos"],
            Err("no host runs `macos`: the systems of those in scope are linux, windows"),
        );
    }

    #[test]
    fn hosts_are_meant_by_any_of_their_tags() {
        let tags_of = |agent: &FollowedAgent| match agent.address.as_str() {
            "a" => words(&["finance", "berlin"]),
            "c" => words(&["berlin"]),
            _ => Vec::new(),
        };
        let check = |tags: &[&str], want: Result<&[&str], &str>| {
            let found = addresses(tagged(fleet(), &words(tags), tags_of));
            assert_eq!(found, want.map(words).map_err(str::to_owned), "{tags:?}");
        };
        check(&[], Ok(&["a", "b", "c"]));
        check(&["berlin"], Ok(&["a", "c"]));
        check(&["finance"], Ok(&["a"]));
        check(
            &["berlin", "oslo"],
            Err("no host has the tag `oslo`: the tags of those in scope are berlin, finance"),
        );
        let none = addresses(tagged(fleet(), &words(&["oslo"]), |_| Vec::new()));
        assert_eq!(none.unwrap_err(), "no host has the tag `oslo`: no tags are known of those in scope");
    }
}
