//! `alibi hosts`: the hosts that are followed, what each says of itself, and how fresh it is. A row each.

use alibi_proto::{
    chain::{ChainBreak, ChainStatus},
    host::{ClockStatus, HostDescription, HostEnrolment, HostStatus},
    id::HostId,
    json::pretty,
    report,
    time::Timestamp,
};
use comfy_table::{ContentArrangement, presets::NOTHING};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Format, Listing, ROWS_AND_EVENTS, Table, ecs, ocsf, table::Columns};

/// The hosts, and when they were looked at.
#[derive(Debug)]
pub struct ListedHosts {
    /// In the collector's order.
    pub hosts: Vec<HostStatus>,
    /// By the clock of who asked.
    pub now: Timestamp,
}

impl Listing for ListedHosts {
    const NAME: &'static str = "hosts";
    const FORMATS: &'static [Format] = ROWS_AND_EVENTS;

    fn text(&self) -> String {
        if self.hosts.is_empty() {
            return "No host is followed. `alibi token create` makes a token with which one enrols."
                .to_owned();
        }
        table(&self.hosts, self.now).to_string()
    }

    fn json(&self) -> serde_json::Result<String> {
        pretty(&HostsJson { hosts: self.hosts.iter().map(HostJson::from).collect() })
    }

    fn table(&self) -> Table {
        Table::new(&columns(), &self.hosts)
    }

    fn ecs(&self) -> Vec<Value> {
        self.hosts.iter().map(|host| ecs::host(host, self.now)).collect()
    }

    fn ocsf(&self) -> Vec<Value> {
        self.hosts.iter().map(|host| ocsf::host(host, self.now)).collect()
    }
}

fn columns() -> Columns<'static, HostStatus> {
    fn described(host: &HostStatus, of: fn(&HostDescription) -> Option<String>) -> Option<String> {
        of(host.description.as_ref()?)
    }
    Columns::default()
        .text("host", |host| described(host, |description| Some(description.host.to_string())))
        .text("name", |host| described(host, |description| Some(description.name.clone())))
        .text("address", |host| Some(host.address.clone()))
        .text("from", |host| host.from.clone())
        .text("os", |host| described(host, |description| Some(description.os.clone())))
        .text("os_version", |host| described(host, |description| Some(description.os_version.clone())))
        .text("machine_id", |host| described(host, |description| description.machine_id.clone()))
        .text("agent_version", |host| described(host, |description| Some(description.agent_version.clone())))
        .time("booted", |host| Some(host.description.as_ref()?.booted))
        .boolean("connected", |host| Some(host.connected))
        .text("trouble", |host| host.trouble.clone())
        .time("heard", |host| host.heard)
        .time("known_until", |host| host.known_until)
        .count("events", |host| Some(host.events))
        .list("users", |host| Some(json!(HostJson::from(host).users)))
        .list("sources", |host| Some(json!(HostJson::from(host).sources)))
        .integer("clock_offset_us", |host| Some(host.clock?.offset_ns / 1_000))
        .count("clock_bound_us", |host| Some(host.clock?.bound_ns.div_ceil(1_000)))
        .time("clock_measured", |host| Some(host.clock?.measured))
        .text("chain", |host| Some(ChainJson::from(&host.chain).state.to_owned()))
        .list("chain_breaks", |host| Some(json!(ChainJson::from(&host.chain).breaks)))
        .text("enrolled_host", |host| Some(host.enrolment.as_ref()?.host.to_string()))
        .text("enrolled_name", |host| Some(host.enrolment.as_ref()?.name.clone()))
        .time("enrolled", |host| Some(host.enrolment.as_ref()?.enrolled))
        .time("certificate_until", |host| Some(host.enrolment.as_ref()?.certificate_until))
        .list("tags", |host| Some(json!(host.enrolment.as_ref()?.tags)))
        .time("revoked", |host| host.enrolment.as_ref()?.revoked)
        .text("copied", |host| host.enrolment.as_ref()?.copied.clone())
}

fn table(hosts: &[HostStatus], now: Timestamp) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["HOST", "SYSTEM", "USERS", "STATE", "KNOWN UNTIL", "CLOCK", "RECORDS", "ADDRESS"]);
    for host in hosts {
        let described = |print: fn(&HostDescription) -> String| {
            host.description.as_ref().map_or_else(|| "?".to_owned(), print)
        };
        let cells = [
            name(host),
            described(|description| description.os_version.clone()),
            described(users),
            state(host, now),
            host.known_until.map_or_else(|| "never".to_owned(), |until| ago(until, now)),
            host.clock.as_ref().map_or_else(|| "not measured".to_owned(), |status| clock(status, now)),
            described(records),
            address(host),
        ];
        table.add_row(cells.map(|cell| report::printable(&cell)));
    }
    table
}

fn name(host: &HostStatus) -> String {
    enrolled_name(host).unwrap_or("?").to_owned()
}

/// What it is called; one that never answered, as it was when it enrolled.
pub(super) fn enrolled_name(host: &HostStatus) -> Option<&str> {
    let described = host.description.as_ref().map(|description| description.name.as_str());
    described.or(host.enrolment.as_ref().map(|enrolment| enrolment.name.as_str()))
}

/// Where it is dialled, or calls from.
fn address(host: &HostStatus) -> String {
    match (&host.from, &host.enrolment) {
        (Some(from), Some(_)) => format!("calls from {from}"),
        (None, Some(enrolment)) if host.address == enrolment.host.to_string() => "calls home".to_owned(),
        _ => host.address.clone(),
    }
}

fn users(description: &HostDescription) -> String {
    const SHOWN: usize = 3;
    let mut users: Vec<_> =
        description.users.iter().take(SHOWN).map(|presence| presence.user.label()).collect();
    let more = format!("and {} more", description.users.len().saturating_sub(SHOWN));
    if description.users.len() > SHOWN {
        users.push(&more);
    }
    users.join(", ")
}

fn records(description: &HostDescription) -> String {
    let facets = description.sources.iter().flat_map(|source| {
        source
            .facets
            .iter()
            .map(move |facet| format!("{} {} ({})", facet.facet, facet.grade.word(), source.name))
    });
    let facets = facets.collect::<Vec<_>>().join(", ");
    let caveats = description.sources.iter().filter_map(|source| source.caveat.as_deref());
    std::iter::once(&*facets).chain(caveats).collect::<Vec<_>>().join("; ")
}

/// How it stands, and since when that is known.
fn clock(status: &ClockStatus, now: Timestamp) -> String {
    let stands = report::clock(status.offset_ns, status.bound_ns);
    format!("{stands}, measured {}", ago(status.measured, now))
}

fn state(host: &HostStatus, now: Timestamp) -> String {
    let state = connection(host, now);
    match host.chain.breaks.first() {
        Some(last) => {
            format!("{state}; its record was rewritten, seen last {}: {}", ago(last.at, now), last.reason)
        }
        None => state,
    }
}

fn connection(host: &HostStatus, now: Timestamp) -> String {
    if let Some(copied) = host.enrolment.as_ref().and_then(|enrolment| enrolment.copied.as_deref()) {
        return copied.to_owned();
    }
    match (&host.trouble, host.connected) {
        (_, true) => "connected".to_owned(),
        (trouble, false) => {
            let heard = host
                .heard
                .map_or_else(|| "never heard".to_owned(), |heard| format!("heard {}", ago(heard, now)));
            let trouble = trouble.as_deref().unwrap_or("being dialled");
            format!("{heard}; {trouble}")
        }
    }
}

fn ago(instant: Timestamp, now: Timestamp) -> String {
    format!("{} ago", report::length(now.since(instant).as_secs()))
}

#[derive(Serialize)]
struct HostsJson<'a> {
    hosts: Vec<HostJson<'a>>,
}

#[derive(Serialize)]
struct HostJson<'a> {
    /// Null until the host has answered once, and so is all that it says of itself.
    host: Option<HostId>,
    name: Option<&'a str>,
    address: &'a str,
    /// Where it calls from; null for one that is dialled.
    from: Option<&'a str>,
    /// Null for one that is not enrolled.
    enrolment: Option<EnrolmentJson<'a>>,
    os: Option<&'a str>,
    os_version: Option<&'a str>,
    machine_id: Option<&'a str>,
    agent_version: Option<&'a str>,
    booted: Option<Timestamp>,
    connected: bool,
    trouble: Option<&'a str>,
    heard: Option<Timestamp>,
    known_until: Option<Timestamp>,
    events: u64,
    users: Vec<UserJson<'a>>,
    sources: Vec<SourceJson<'a>>,
    clock: Option<ClockJson>,
    chain: ChainJson,
}

/// What is known of a host by its certificate.
#[derive(Serialize)]
struct EnrolmentJson<'a> {
    host: HostId,
    name: &'a str,
    enrolled: Timestamp,
    certificate_until: Timestamp,
    tags: &'a [String],
    revoked: Option<Timestamp>,
    copied: Option<&'a str>,
}

impl<'a> From<&'a HostEnrolment> for EnrolmentJson<'a> {
    fn from(enrolment: &'a HostEnrolment) -> Self {
        let HostEnrolment { host, name, enrolled, certificate_until, tags, revoked, copied } = enrolment;
        Self {
            host: *host,
            name,
            enrolled: *enrolled,
            certificate_until: *certificate_until,
            tags,
            revoked: *revoked,
            copied: copied.as_deref(),
        }
    }
}

/// How the chain of hashes over a host's events stands.
#[derive(Serialize)]
pub(crate) struct ChainJson {
    /// whole, broken, or none before anything was anchored.
    state: &'static str,
    epoch: Option<u64>,
    seq: Option<u64>,
    head: Option<String>,
    anchored: Option<Timestamp>,
    pub(crate) breaks: Vec<BreakJson>,
}

/// From this event on, what a host told does not go on from what it told before.
#[derive(Serialize)]
pub(crate) struct BreakJson {
    pub(crate) at: Timestamp,
    epoch: u64,
    pub(crate) seq: u64,
    pub(crate) reason: String,
}

impl From<&ChainStatus> for ChainJson {
    fn from(status: &ChainStatus) -> Self {
        let anchored = status.anchored;
        Self {
            state: match (status.breaks.is_empty(), anchored) {
                (false, _) => "broken",
                (true, Some(_)) => "whole",
                (true, None) => "none",
            },
            epoch: anchored.map(|anchored| anchored.epoch.0),
            seq: anchored.map(|anchored| anchored.anchor.seq.0),
            head: anchored.map(|anchored| anchored.anchor.head.to_string()),
            anchored: anchored.map(|anchored| anchored.at),
            breaks: status
                .breaks
                .iter()
                .map(|ChainBreak { at, epoch, seq, reason }| BreakJson {
                    at: *at,
                    epoch: epoch.0,
                    seq: seq.0,
                    reason: reason.clone(),
                })
                .collect(),
        }
    }
}

/// How a host's clock stands to the collector's; null where it was not measured.
#[derive(Serialize)]
pub(crate) struct ClockJson {
    /// The host's less the collector's; 0 where it cannot be told from 0.
    offset_us: i64,
    /// The truth is no further from it; 0 where both have one clock.
    bound_us: u64,
    measured: Timestamp,
}

impl From<ClockStatus> for ClockJson {
    fn from(status: ClockStatus) -> Self {
        let ClockStatus { offset_ns, bound_ns, measured } = status;
        Self { offset_us: offset_ns / 1_000, bound_us: bound_ns.div_ceil(1_000), measured }
    }
}

#[derive(Serialize)]
struct UserJson<'a> {
    id: &'a str,
    name: Option<&'a str>,
    processes: u32,
}

#[derive(Serialize)]
struct SourceJson<'a> {
    name: &'a str,
    /// Null where the source is tested on such a system.
    caveat: Option<&'a str>,
    facets: Vec<FacetJson<'a>>,
}

#[derive(Serialize)]
struct FacetJson<'a> {
    facet: &'static str,
    grade: &'static str,
    reason: String,
    covers: &'a str,
    cannot_see: &'a str,
}

impl<'a> From<&'a HostStatus> for HostJson<'a> {
    fn from(status: &'a HostStatus) -> Self {
        let description = status.description.as_ref();
        let users = description.map_or(&[][..], |description| &description.users);
        let sources = description.map_or(&[][..], |description| &description.sources);
        Self {
            host: description.map(|description| description.host),
            name: description.map(|description| description.name.as_str()),
            address: &status.address,
            from: status.from.as_deref(),
            enrolment: status.enrolment.as_ref().map(Into::into),
            os: description.map(|description| description.os.as_str()),
            os_version: description.map(|description| description.os_version.as_str()),
            machine_id: description.and_then(|description| description.machine_id.as_deref()),
            agent_version: description.map(|description| description.agent_version.as_str()),
            booted: description.map(|description| description.booted),
            connected: status.connected,
            trouble: status.trouble.as_deref(),
            heard: status.heard,
            known_until: status.known_until,
            events: status.events,
            clock: status.clock.map(Into::into),
            chain: ChainJson::from(&status.chain),
            users: users
                .iter()
                .map(|presence| UserJson {
                    id: &presence.user.id,
                    name: presence.user.name.as_deref(),
                    processes: presence.processes,
                })
                .collect(),
            sources: sources
                .iter()
                .map(|source| SourceJson {
                    name: &source.name,
                    caveat: source.caveat.as_deref(),
                    facets: source
                        .facets
                        .iter()
                        .map(|facet| FacetJson {
                            facet: facet.facet.word(),
                            grade: facet.grade.word(),
                            reason: facet.grade.reason(),
                            covers: &facet.scope.covers,
                            cannot_see: &facet.scope.cannot_see,
                        })
                        .collect(),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use alibi_proto::{
        coverage::{Facet, Grade, Scope},
        host::{FacetCoverage, SourceDescription},
        id::{Epoch, Seq},
    };

    use super::*;

    #[test]
    fn a_source_that_nobody_has_seen_work_says_so() {
        let scope = Scope { source: "poll".into(), covers: "some".into(), cannot_see: "much".into() };
        let facet = FacetCoverage { facet: Facet::Names, grade: Grade::Complete, scope };
        let source = |caveat: Option<&str>| SourceDescription {
            name: "poll".into(),
            facets: vec![facet.clone()],
            caveat: caveat.map(str::to_owned),
        };
        let check = |caveat, shown: &str| {
            let description = HostDescription {
                host: HostId::random(),
                name: String::new(),
                os: String::new(),
                os_version: String::new(),
                machine_id: None,
                boot_id: String::new(),
                booted: Timestamp::ZERO,
                agent_version: String::new(),
                users: vec![],
                sources: vec![source(caveat)],
                epoch: Epoch(1),
                first_seq: Seq::FIRST,
                next_seq: Seq::FIRST,
            };
            assert_eq!(records(&description), shown);
        };
        check(None, "names complete (poll)");
        check(Some("never run there"), "names complete (poll); never run there");
    }

    #[test]
    fn what_an_agent_says_does_not_steer_the_terminal() {
        let host = HostStatus {
            address: "127.0.0.1:1".into(),
            description: None,
            connected: false,
            heard: None,
            known_until: None,
            trouble: Some("it says \u{1b}[2Jall is well\n\nHOST".into()),
            events: 0,
            clock: None,
            chain: ChainStatus::default(),
            from: None,
            enrolment: None,
        };
        let shown = table(&[host], Timestamp::ZERO).to_string();
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        assert!(shown.contains("it says ?[2Jall is well??HOST"), "{shown:?}");
    }
}
