//! The fields that a query may name: one table, of names as the Elastic Common Schema has them where it has, and aliases as
//! Carbon Black has them.

use strsim::damerau_levenshtein;

use Field::*;
use Kind::{Activity, Address, Identity, Keyword, Number, Text, Time};
use Subject::{Connection, Host, Process};

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the table tells what each means")]
pub enum Field {
    HostId,
    HostName,
    UserName,
    ProcessId,
    ProcessPid,
    ProcessName,
    ProcessExecutable,
    ProcessCommandLine,
    ProcessWorkingDirectory,
    ProcessSha256,
    ProcessSigner,
    ProcessSignatureStatus,
    ProcessStart,
    ProcessEnd,
    ProcessExitCode,
    ParentId,
    ParentPid,
    ParentName,
    LastUpdate,
    ConnectionCount,
    ConnectionActivity,
    ConnectionId,
    RemoteAddress,
    RemotePort,
    RemoteName,
    SourceAddress,
    SourcePort,
    DestinationAddress,
    DestinationPort,
    Transport,
    Direction,
    State,
    Bytes,
    BytesSent,
    BytesReceived,
}

/// What values a field has, and how they are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A word: whole, in any case, with wildcards.
    Keyword,
    /// A text: any part of it, in any case; with wildcards all of it.
    Text,
    /// Hexadecimal digits, or the first of them.
    Identity,
    /// An address, network or range.
    Address,
    /// A number or range.
    Number,
    /// A time or range.
    Time,
    /// A stretch of time: one with which it has an instant in common.
    Activity,
}

impl Kind {
    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Keyword => "keyword",
            Text => "text",
            Identity => "id",
            Address => "address",
            Number => "number",
            Time => "time",
            Activity => "activity",
        }
    }
}

/// What it is a field of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A host: known before anything is read.
    Host,
    /// A process; of a flow record, its owner.
    Process,
    /// A connection; of a process, any of those that are kept.
    Connection,
}

/// What is known of a field.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The field.
    pub field: Field,
    /// Its name.
    pub name: &'static str,
    /// Other names of it.
    pub aliases: &'static [&'static str],
    /// Its values.
    pub kind: Kind,
    /// What it is a field of.
    pub subject: Subject,
    /// What it means.
    pub meaning: &'static str,
    /// A term with it.
    pub example: &'static str,
}

macro_rules! fields {
    ($($field:ident, $kind:ident, $subject:ident, $name:literal, $aliases:expr, $meaning:literal, $example:literal;)+) => {
        &[$(About {
            field: $field, name: $name, aliases: &$aliases, kind: $kind, subject: $subject, meaning: $meaning,
            example: $example,
        }),+]
    };
}

/// All of them, in the order in which they are listed.
#[rustfmt::skip]
pub const FIELDS: &[About] = fields! {
    HostId, Keyword, Host, "host.id", ["sensor_id", "device_id", "agent.id"],
        "the host's uuid", "sensor_id:7f0c3a4e-*";
    HostName, Keyword, Host, "host.name", ["hostname", "device_name", "host"],
        "what the host is called", "hostname:laptop-*";
    UserName, Keyword, Process, "user.name", ["username", "process_username", "user", "user.id"],
        "who the process runs for, by name (also without its domain) or id", "username:jdoe";
    ProcessId, Identity, Process, "process.entity_id", ["process_guid", "process_id", "process"],
        "the process uid, or the first 4 digits of it or more", "process.entity_id:6f21d0c4";
    ProcessPid, Number, Process, "process.pid", ["process_pid", "pid"],
        "the system's number for it", "pid:4711";
    ProcessName, Keyword, Process, "process.name", ["process_name", "name"],
        "its short name, or the name of its executable file, now or before", "process_name:winscp*";
    ProcessExecutable, Text, Process, "process.executable", ["path", "process_path", "process.path"],
        "the path of its executable file, now or before", "path:/usr/bin/*";
    ProcessCommandLine, Text, Process, "process.command_line", ["cmdline", "process_cmdline", "process.args"],
        "its arguments, joined by spaces, as the host kept them", "cmdline:\"--resume job\"";
    ProcessWorkingDirectory, Text, Process, "process.working_directory", [],
        "where it was started", "process.working_directory:/tmp";
    ProcessSha256, Identity, Process, "process.hash.sha256", ["sha256", "process_sha256", "hash"],
        "the content of its executable, now or before; or the first 4 digits of it or more", "sha256:9f86d081884c7d65";
    ProcessSigner, Keyword, Process, "process.code_signature.subject_name", ["digsig_publisher", "process_publisher"],
        "who signed its executable", "digsig_publisher:\"Example Corp.\"";
    ProcessSignatureStatus, Keyword, Process, "process.code_signature.status", ["digsig_result"],
        "what the host says of that signature", "digsig_result:unsigned";
    ProcessStart, Time, Process, "process.start", ["start", "process_start_time"],
        "when it was started, which says nothing of when it talked: see activity", "start:[NOW-10MINUTES TO NOW]";
    ProcessEnd, Time, Process, "process.end", ["end", "process_end_time"],
        "when it ended; one that runs still has none", "-process.end:*";
    ProcessExitCode, Number, Process, "process.exit_code", ["exit_code"],
        "its exit code, where known", "exit_code:>0";
    ParentId, Identity, Process, "process.parent.entity_id", ["parent_guid", "parent_id"],
        "the uid of its parent", "parent_id:6f21d0c4";
    ParentPid, Number, Process, "process.parent.pid", ["parent_pid"],
        "the system's number for its parent", "parent_pid:1";
    ParentName, Keyword, Process, "process.parent.name", ["parent_name", "parent"],
        "the short name of its parent, or the name of that one's executable file", "parent_name:explorer.exe";
    LastUpdate, Time, Connection, "event.end", ["last_update", "last_activity"],
        "the last that is on record of it: its start, an execution, its end, or the end of any record of a connection of it; of a flow record, its end",
        "last_update:[NOW-1HOUR TO *]";
    ConnectionCount, Number, Connection, "network.connections", ["netconn_count", "connection_count"],
        "how many of its connections are on record", "netconn_count:[1 TO *]";
    ConnectionActivity, Activity, Connection, "activity", ["network.activity", "netconn_active", "active"],
        "from when until when a connection lived, and of a flow record from its beginning to its end: matched by what overlaps it, whenever the process was started",
        "activity:[NOW-10MINUTES TO NOW]";
    ConnectionId, Identity, Connection, "network.connection_id", ["connection", "connection_id"],
        "the connection uid, or the first 4 digits of it or more", "connection:2b7c90aa";
    RemoteAddress, Address, Connection, "remote.ip", ["ipaddr", "netconn_ipv4", "netconn_ipv6", "remote_ip"],
        "the address of the other end", "ipaddr:203.0.113.0/24";
    RemotePort, Number, Connection, "remote.port", ["ipport", "netconn_port", "remote_port"],
        "the port of the other end", "ipport:22";
    RemoteName, Keyword, Connection, "destination.domain", ["domain", "netconn_domain", "dns.question.name", "remote.name"],
        "the name by which the owner most likely knew the other end; *.example.com is any name below it", "domain:*.example.com";
    SourceAddress, Address, Connection, "source.ip", [],
        "the address of whoever asked for the connection", "source.ip:192.0.2.7";
    SourcePort, Number, Connection, "source.port", [],
        "the port of whoever asked for the connection", "source.port:[49152 TO 65535]";
    DestinationAddress, Address, Connection, "destination.ip", [],
        "the address that was asked", "destination.ip:203.0.113.9";
    DestinationPort, Number, Connection, "destination.port", [],
        "the port that was asked", "destination.port:443";
    Transport, Keyword, Connection, "network.transport", ["protocol", "ipproto", "netconn_protocol"],
        "tcp or udp", "protocol:tcp";
    Direction, Keyword, Connection, "network.direction", ["direction"],
        "outbound if this host asked for the connection, inbound if the other end did", "direction:inbound";
    State, Keyword, Connection, "network.state", ["state"],
        "what is known of the connection: attempted, established, closed or failed", "state:failed";
    Bytes, Number, Connection, "network.bytes", ["bytes"],
        "payload bytes both ways: of a connection of a process, all that are on record; of a flow record, its own", "bytes:>1000000";
    BytesSent, Number, Connection, "network.bytes_sent", ["bytes_sent"],
        "payload bytes from the host", "bytes_sent:>1000000";
    BytesReceived, Number, Connection, "network.bytes_received", ["bytes_received"],
        "payload bytes to the host", "bytes_received:[1 TO 100]";
};

/// Near names that are told for one that is not known.
const NEAR_MAX: usize = 3;
/// Characters of a name beyond which there is none near: names are compared in a time that grows with both lengths.
const NAME_CHARS_MAX: usize = 64;

impl Field {
    /// What is known of it.
    pub fn about(self) -> &'static About {
        FIELDS.iter().find(|about| about.field == self).expect("the table has every field")
    }

    /// The field with this name, in any case.
    pub fn named(name: &str) -> Option<&'static About> {
        FIELDS.iter().find(|about| about.names().any(|known| known.eq_ignore_ascii_case(name)))
    }
}

impl About {
    /// Its names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

/// Names of fields that are nearest to one that is none, the nearest first: those that differ in few letters, or have it as
/// one of their parts.
pub fn near(name: &str) -> Vec<&'static str> {
    if name.chars().count() > NAME_CHARS_MAX {
        return Vec::new();
    }
    let name = name.to_ascii_lowercase();
    let few = (name.chars().count() / 3).max(1);
    let distance = |known: &'static str| {
        let has_part = name.len() >= 2 && known.split(['.', '_']).any(|part| part == name);
        let differs = damerau_levenshtein(&name, known);
        (differs <= few || has_part).then_some((differs, known))
    };
    let mut near: Vec<_> = FIELDS.iter().flat_map(About::names).filter_map(distance).collect();
    near.sort_unstable();
    near.truncate(NEAR_MAX);
    near.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_name_means_one_field_and_all_of_carbon_blacks_are_there() {
        let names: Vec<&str> = FIELDS.iter().flat_map(About::names).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        let fields: HashSet<Field> = FIELDS.iter().map(|about| about.field).collect();
        assert_eq!(fields.len(), FIELDS.len(), "each field once");
        for name in [
            "sensor_id",
            "hostname",
            "username",
            "process_name",
            "cmdline",
            "sha256",
            "parent_name",
            "ipaddr",
            "ipport",
            "domain",
            "netconn_count",
            "start",
            "last_update",
            "SENSOR_ID",
        ] {
            assert!(Field::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn near_names_are_told() {
        for (wrong, want) in [
            ("proces_name", "process_name"),
            ("processname", "process_name"),
            ("hostnme", "hostname"),
            ("netcon_count", "netconn_count"),
            ("ip", "remote.ip"),
            ("destination.prot", "destination.port"),
            ("Domian", "domain"),
        ] {
            assert!(near(wrong).contains(&want), "{wrong}: {:?}", near(wrong));
        }
        assert_eq!(near("zzzzzzzz"), Vec::<&str>::new());
        assert_eq!(near(&"a".repeat(10_000)), Vec::<&str>::new());
    }
}
