//! How common executables are and what connections come to, as JSON and in words: parts of several listings.

use alibi_proto::{
    coverage::Gap, executable::Sha256, id::HostId, json::GapJson, name::RemoteName, prevalence::Times,
    report::instant, time::Timestamp, wire,
};
use anyhow::Result;
use serde::Serialize;

use super::table::Columns;

/// `prevalence`. All times are the collector's.
#[derive(Debug, Serialize)]
pub(super) struct PrevalenceJson {
    /// sha256, file or path.
    identified_by: &'static str,
    pub(super) sha256: Option<String>,
    /// On how many hosts it was run or written, and run; of how many of which anything is known.
    pub(super) hosts: u64,
    hosts_run: u64,
    hosts_known: u64,
    /// Hosts that saw it when their clock was not measured: their own times are told.
    hosts_unmeasured: u64,
    pub(super) fleet: SeenJson,
    pub(super) host: SeenJson,
    /// In the window: new, `seen_before` or unknown; null without a window.
    pub(super) new_on_host: Option<NoveltyJson>,
    pub(super) new_in_fleet: Option<NoveltyJson>,
}

/// The last time is late by less than an hour.
#[derive(Debug, Serialize)]
pub(super) struct SeenJson {
    pub(super) run: Option<Times>,
    pub(super) written: Option<Times>,
}

#[derive(Debug, Serialize)]
pub(super) struct NoveltyJson {
    pub(super) verdict: &'static str,
    pub(super) reason: Option<String>,
}

impl From<wire::Novelty> for NoveltyJson {
    fn from(novelty: wire::Novelty) -> Self {
        let novelty = alibi_proto::prevalence::Novelty::from(novelty);
        Self { verdict: novelty.word(), reason: novelty.reason().map(str::to_owned) }
    }
}

impl From<wire::Prevalence> for PrevalenceJson {
    fn from(told: wire::Prevalence) -> Self {
        let seen = |run: Option<wire::SeenTimes>, written: Option<wire::SeenTimes>| SeenJson {
            run: run.map(Into::into),
            written: written.map(Into::into),
        };
        Self {
            identified_by: match told.identified_by() {
                wire::IdentifiedBy::Sha256 => "sha256",
                wire::IdentifiedBy::File => "file",
                _ => "path",
            },
            sha256: told.sha256.as_deref().and_then(hexadecimal),
            hosts: told.hosts,
            hosts_run: told.hosts_run,
            hosts_known: told.hosts_known,
            hosts_unmeasured: told.hosts_unmeasured,
            fleet: seen(told.fleet_run, told.fleet_written),
            host: seen(told.host_run, told.host_written),
            new_on_host: told.on_host.map(Into::into),
            new_in_fleet: told.in_fleet.map(Into::into),
        }
    }
}

impl PrevalenceJson {
    /// In a sentence.
    pub(super) fn text(&self) -> String {
        let mut text = format!("seen on {} of {} hosts", self.hosts, self.hosts_known);
        for (what, times) in [("run", self.fleet.run), ("written", self.fleet.written)] {
            if let Some(Times { first, last }) = times {
                text.push_str(&format!(", {what} first {} and last {}", instant(first), instant(last)));
            }
        }
        let first_here = self.host.run.into_iter().chain(self.host.written).reduce(Times::and);
        if let Some(Times { first, .. }) = first_here {
            text.push_str(&format!("; on this host first {}", instant(first)));
        }
        if self.identified_by != "sha256" {
            text.push_str(&format!(" (it has no SHA-256 and is told by its {} alone)", self.identified_by));
        }
        text
    }
}

/// How common it is, and whether it was new, for the row that `of` leads to.
pub(super) fn prevalence_columns<'a, T: 'a>(
    columns: Columns<'a, T>,
    of: fn(&T) -> &PrevalenceJson,
) -> Columns<'a, T> {
    let verdict = |novelty: &Option<NoveltyJson>| novelty.as_ref().map(|novelty| novelty.verdict.to_owned());
    let reason = |novelty: &Option<NoveltyJson>| novelty.as_ref()?.reason.clone();
    columns
        .text("sha256", move |row| of(row).sha256.clone())
        .text("identified_by", move |row| Some(of(row).identified_by.to_owned()))
        .count("hosts", move |row| Some(of(row).hosts))
        .count("hosts_run", move |row| Some(of(row).hosts_run))
        .count("hosts_known", move |row| Some(of(row).hosts_known))
        .count("hosts_unmeasured", move |row| Some(of(row).hosts_unmeasured))
        .time("fleet_first_run", move |row| Some(of(row).fleet.run?.first))
        .time("fleet_last_run", move |row| Some(of(row).fleet.run?.last))
        .time("fleet_first_written", move |row| Some(of(row).fleet.written?.first))
        .time("fleet_last_written", move |row| Some(of(row).fleet.written?.last))
        .time("host_first_run", move |row| Some(of(row).host.run?.first))
        .time("host_last_run", move |row| Some(of(row).host.run?.last))
        .time("host_first_written", move |row| Some(of(row).host.written?.first))
        .time("host_last_written", move |row| Some(of(row).host.written?.last))
        .text("new_on_host", move |row| verdict(&of(row).new_on_host))
        .text("new_on_host_reason", move |row| reason(&of(row).new_on_host))
        .text("new_in_fleet", move |row| verdict(&of(row).new_in_fleet))
        .text("new_in_fleet_reason", move |row| reason(&of(row).new_in_fleet))
}

impl NoveltyJson {
    /// `new`, `seen before`, or `not known to be new: …`.
    pub(super) fn text(&self, place: &str) -> String {
        match (self.verdict, &self.reason) {
            ("new", _) => format!("new {place}"),
            ("seen_before", _) => format!("seen before {place}"),
            (_, reason) => {
                format!("not known to be new {place}: {}", reason.as_deref().unwrap_or_default())
            }
        }
    }
}

/// What connections come to: all records that overlap the window, wholly.
#[derive(Debug, Default, Serialize)]
pub(super) struct TotalJson {
    /// Different connections; at least so many if `connections_cut`.
    pub(super) connections: u64,
    connections_cut: bool,
    records: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    /// Of these, in records that reach out of the window: what moved in it is less by so much at most.
    bytes_sent_at_edges: u64,
    bytes_received_at_edges: u64,
    /// Records of which bytes could not be measured.
    records_unmeasured: u64,
    first: Option<Timestamp>,
    pub(super) last: Option<Timestamp>,
}

impl From<wire::Total> for TotalJson {
    fn from(total: wire::Total) -> Self {
        let time = |nanos| Some(Timestamp::from_nanos(nanos)).filter(|_| total.records > 0);
        Self {
            connections: total.connections,
            connections_cut: total.connections_cut,
            records: total.records,
            bytes_sent: total.bytes_sent,
            bytes_received: total.bytes_received,
            bytes_sent_at_edges: total.bytes_sent_at_edges,
            bytes_received_at_edges: total.bytes_received_at_edges,
            records_unmeasured: total.unmeasured,
            first: time(total.first_ns),
            last: time(total.last_ns),
        }
    }
}

/// Of what connections come to, for the row that `of` leads to.
pub(super) fn total_columns<'a, T: 'a>(columns: Columns<'a, T>, of: fn(&T) -> &TotalJson) -> Columns<'a, T> {
    columns
        .count("connections", move |row| Some(of(row).connections))
        .boolean("connections_cut", move |row| Some(of(row).connections_cut))
        .count("records", move |row| Some(of(row).records))
        .count("bytes_sent", move |row| Some(of(row).bytes_sent))
        .count("bytes_received", move |row| Some(of(row).bytes_received))
        .count("bytes_sent_at_edges", move |row| Some(of(row).bytes_sent_at_edges))
        .count("bytes_received_at_edges", move |row| Some(of(row).bytes_received_at_edges))
        .count("records_unmeasured", move |row| Some(of(row).records_unmeasured))
        .time("first", move |row| of(row).first)
        .time("last", move |row| of(row).last)
}

impl TotalJson {
    pub(super) fn connections_text(&self) -> String {
        let least = if self.connections_cut { "at least " } else { "" };
        format!("{least}{}", self.connections)
    }

    /// Bytes of records that reach out of the window.
    pub(super) const fn at_edges(&self) -> u64 {
        self.bytes_sent_at_edges + self.bytes_received_at_edges
    }
}

/// How a host was recorded.
#[derive(Debug, Serialize)]
pub(super) struct RecordedJson {
    pub(super) host: Option<HostId>,
    pub(super) name: String,
    recorded_since: Option<Timestamp>,
    pub(super) problem: Option<String>,
    /// Of the window, by the host's own clock; at most 4.
    pub(super) gaps: Vec<GapJson>,
}

impl TryFrom<wire::HostRecorded> for RecordedJson {
    type Error = anyhow::Error;

    fn try_from(recorded: wire::HostRecorded) -> Result<Self> {
        let gap = |gap| -> Result<GapJson> { Ok(GapJson::from(&Gap::try_from(gap)?)) };
        Ok(Self {
            host: host(&recorded.host)?,
            name: recorded.host_name,
            recorded_since: recorded.since_ns.map(Timestamp::from_nanos),
            problem: recorded.problem,
            gaps: recorded.gaps.into_iter().map(gap).collect::<Result<_>>()?,
        })
    }
}

impl RecordedJson {
    /// Since when it is recorded.
    pub(super) fn text(&self) -> String {
        match self.recorded_since {
            Some(since) => format!("recorded since {}", instant(since)),
            None => "not recorded before the window".to_owned(),
        }
    }
}

/// A stretch of time, by the host's own clock.
#[derive(Debug, Serialize)]
pub(super) struct BucketJson {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    /// Connections that were opened in it.
    pub(super) opened: u64,
    /// Records that ended in it, with all their bytes.
    records: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
}

impl From<wire::Bucket> for BucketJson {
    fn from(bucket: wire::Bucket) -> Self {
        Self {
            from: Timestamp::from_nanos(bucket.from_ns),
            to: Timestamp::from_nanos(bucket.to_ns),
            opened: bucket.opened,
            records: bucket.records,
            bytes_sent: bucket.bytes_sent,
            bytes_received: bucket.bytes_received,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct NameJson {
    pub(super) name: String,
    /// dns or sni.
    pub(super) source: &'static str,
    #[serde(flatten)]
    pub(super) total: TotalJson,
}

impl TryFrom<wire::NameUsed> for NameJson {
    type Error = anyhow::Error;

    fn try_from(used: wire::NameUsed) -> Result<Self> {
        let RemoteName { name, source } = used.name.unwrap_or_default().try_into()?;
        Ok(Self { name, source: source.word(), total: used.total.unwrap_or_default().into() })
    }
}

pub(super) fn hexadecimal(sha256: &[u8]) -> Option<String> {
    Some(Sha256::from_bytes(sha256.try_into().ok()?).to_string())
}

/// A host; none where it never answered.
pub(super) fn host(bytes: &[u8]) -> Result<Option<HostId>> {
    if bytes.is_empty() { Ok(None) } else { Ok(Some(HostId::from_wire(bytes)?)) }
}

/// A number of bytes, for a person.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_units_that_people_know() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
