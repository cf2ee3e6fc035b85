//! What a tree is held against: a process with its connections, or a flow record with its owner.
//!
//! What was not looked up yet leaves a term open, and so the tree only where it depends on that: the host is known before
//! anything is read, a record before its owner, a process before its connections.

use std::net::{IpAddr, SocketAddr};

use alibi_proto::{
    clock::{Difference, shifted},
    flow::{Direction, FlowRecord, Protocol, RECORD_SPAN_MAX, Traffic},
    id::{ConnectionUid, HostId},
    process::{ProcessImage, ProcessLife, User},
    time::Timestamp,
};

use super::{
    fields::{Field, Subject},
    query::Searched,
    time::Stretch,
    tree::{Condition, Test, Tree},
};

/// What is known of a part of a document.
#[derive(Clone, Copy, Debug)]
pub enum Seen<T> {
    /// It was not looked up.
    NotYet,
    /// This.
    Known(T),
}

/// A process with its connections, or a flow record with its owner. Times in it are the host's own.
#[derive(Clone, Copy, Debug)]
pub struct Document<'a> {
    /// Which of the two it is.
    pub searched: Searched,
    /// The host.
    pub host: HostId,
    /// What it is called.
    pub host_name: &'a str,
    /// Its clock less the collector's.
    pub clock: Difference,
    /// The process, or the owner of the flow record; none where that is not on record.
    pub process: Seen<Option<&'a ProcessLife>>,
    /// Its parent; none where that is not on record.
    pub parent: Seen<Option<&'a ProcessLife>>,
    /// Its connections, or the one record.
    pub connections: Seen<&'a [Connection]>,
}

/// What is on record of a connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Its newest record.
    pub newest: FlowRecord,
    /// From when until when it may have lived, for all that its records tell, by the host's clock: in order, each apart from
    /// the others.
    lives: Vec<(Timestamp, Timestamp)>,
    /// What moved in all its records.
    pub traffic: Traffic,
}

impl Connection {
    /// A record by itself, from its beginning to its end.
    pub fn of_record(record: FlowRecord) -> Self {
        Self {
            lives: vec![(record.first, record.last)],
            traffic: record.traffic.unwrap_or_default(),
            newest: record,
        }
    }

    /// Connections of records, in no order. One that a record leaves open may have lived on until its next record; after its
    /// newest, as long as that may stand for it.
    pub fn of_records(mut records: Vec<FlowRecord>) -> Vec<Self> {
        records.sort_by_key(|record| (record.connection, record.first, record.last, record.record));
        let is_same = |one: &FlowRecord, other: &FlowRecord| one.connection == other.connection;
        let of_one = |records: &[FlowRecord]| {
            let (first, others) = records.split_first()?;
            let mut connection = Self::of_record(first.clone());
            others.iter().for_each(|record| connection.goes_on(record));
            let until = until(&connection.newest);
            connection.lives.last_mut()?.1 = until.max(connection.lives.last()?.1);
            Some(connection)
        };
        records.chunk_by(is_same).filter_map(of_one).collect()
    }

    /// By a record that begins no earlier.
    fn goes_on(&mut self, record: &FlowRecord) {
        let stood_until = until(&self.newest);
        match self.lives.last_mut() {
            Some((_, last)) if record.first <= (*last).max(stood_until) => *last = (*last).max(record.last),
            Some((_, last)) => {
                *last = (*last).max(stood_until);
                self.lives.push((record.first, record.last));
            }
            None => self.lives.push((record.first, record.last)),
        }
        self.traffic = self.traffic.plus(&record.traffic.unwrap_or_default());
        if record.last >= self.newest.last {
            self.newest = record.clone();
        }
    }

    /// Names it.
    pub const fn uid(&self) -> ConnectionUid {
        self.newest.connection
    }
}

/// One that a record leaves open may have lived on until the next.
fn until(record: &FlowRecord) -> Timestamp {
    if record.leaves_open() { record.last.saturating_add(RECORD_SPAN_MAX) } else { record.last }
}

/// Whether something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It does not.
    No,
    /// It depends on what was not looked up.
    Perhaps,
    /// It does.
    Yes,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl Tree {
    /// Whether it holds of a document.
    pub fn holds(&self, document: &Document<'_>) -> Truth {
        let mut open = false;
        let mut decided_by = |trees: &[Self], decisive: Truth, otherwise: Truth| {
            for tree in trees {
                match tree.holds(document) {
                    Truth::Perhaps => open = true,
                    truth if truth == decisive => return decisive,
                    _ => {}
                }
            }
            if open { Truth::Perhaps } else { otherwise }
        };
        match self {
            Self::And(trees) => decided_by(trees, Truth::No, Truth::Yes),
            Self::Or(trees) => decided_by(trees, Truth::Yes, Truth::No),
            Self::Not(tree) => match tree.holds(document) {
                Truth::No => Truth::Yes,
                Truth::Perhaps => Truth::Perhaps,
                Truth::Yes => Truth::No,
            },
            Self::Test(test) => document.fits(test),
        }
    }
}

impl Document<'_> {
    fn fits(&self, test: &Test) -> Truth {
        let (field, condition) = (test.field, &test.condition);
        match (field, field.about().subject) {
            (Field::HostId, _) => any_text([self.host.to_string().as_str()], condition).into(),
            (Field::HostName, _) | (_, Subject::Host) => any_text([self.host_name], condition).into(),
            (Field::ParentName, _) => match self.parent {
                Seen::NotYet => Truth::Perhaps,
                Seen::Known(parent) => parent.is_some_and(|parent| has_name(parent, condition)).into(),
            },
            (Field::LastUpdate, _) => self.last_update(condition),
            (Field::ConnectionCount, _) => match self.connections {
                Seen::NotYet => Truth::Perhaps,
                Seen::Known(connections) => match condition {
                    Condition::Exists => Truth::Yes,
                    condition => condition.fits_number(connections.len() as i128).into(),
                },
            },
            (_, Subject::Process) => match self.process {
                Seen::NotYet => Truth::Perhaps,
                Seen::Known(life) => {
                    life.is_some_and(|life| self.process_fits(life, field, condition)).into()
                }
            },
            (_, Subject::Connection) => match self.connections {
                Seen::NotYet => Truth::Perhaps,
                Seen::Known(connections) => connections
                    .iter()
                    .any(|connection| self.connection_fits(connection, field, condition))
                    .into(),
            },
        }
    }

    /// Whether a stretch of the host's time may have been in that of the condition, which is the collector's.
    fn times_fit(&self, first: Timestamp, last: Timestamp, condition: &Condition) -> bool {
        let (from, to) = (shifted(first, -self.clock.most()), shifted(last, -self.clock.least()));
        matches!(condition, Condition::Exists) || condition.fits_times(from, to)
    }

    fn process_fits(&self, life: &ProcessLife, field: Field, condition: &Condition) -> bool {
        let record = &life.record;
        let is_any = |of: fn(&ProcessImage) -> Option<&str>| any_text(images(life).filter_map(of), condition);
        let number = |number: Option<i128>| {
            number
                .is_some_and(|number| matches!(condition, Condition::Exists) || condition.fits_number(number))
        };
        match field {
            Field::UserName => images(life).any(|image| image_user_fits(image, condition)),
            Field::ProcessId => any_text([record.uid.to_string().as_str()], condition),
            Field::ProcessPid => number(Some(record.pid.into())),
            Field::ProcessName => has_name(life, condition),
            Field::ProcessExecutable => is_any(|image| image.path.as_deref()),
            Field::ProcessCommandLine => {
                let lines = images(life).filter(|image| !image.arguments.is_empty());
                lines.map(|image| image.arguments.join(" ")).any(|line| any_text([line.as_str()], condition))
            }
            Field::ProcessWorkingDirectory => is_any(|image| image.working_directory.as_deref()),
            Field::ProcessSha256 => {
                let hashes = images(life).filter_map(|image| image.sha256).chain(life.sha256());
                hashes.map(|hash| hash.to_string()).any(|hash| any_text([hash.as_str()], condition))
            }
            Field::ProcessSigner => {
                let signature = life.signature();
                any_text(signature.and_then(|signature| signature.subject.as_deref()), condition)
            }
            Field::ProcessSignatureStatus => {
                any_text(life.signature().map(|signature| signature.status.word()), condition)
            }
            Field::ProcessStart => self.times_fit(record.started, record.started, condition),
            Field::ProcessEnd => {
                life.exit.is_some_and(|exit| self.times_fit(exit.exited, exit.exited, condition))
            }
            Field::ProcessExitCode => number(life.exit.and_then(|exit| exit.exit_code).map(i128::from)),
            Field::ParentId => {
                record.parent.is_some_and(|parent| any_text([parent.to_string().as_str()], condition))
            }
            Field::ParentPid => number(record.parent_pid.map(i128::from)),
            _ => false,
        }
    }

    fn connection_fits(&self, connection: &Connection, field: Field, condition: &Condition) -> bool {
        let Connection { newest, traffic, .. } = connection;
        let (source, destination) = match newest.direction {
            Direction::Outbound => (newest.local, newest.remote),
            Direction::Inbound => (newest.remote, newest.local),
        };
        let number =
            |number: u64| matches!(condition, Condition::Exists) || condition.fits_number(number.into());
        match field {
            Field::ConnectionActivity => {
                connection.lives.iter().any(|(first, last)| self.times_fit(*first, *last, condition))
            }
            Field::ConnectionId => any_text([newest.connection.to_string().as_str()], condition),
            Field::RemoteAddress => address_fits(newest.remote, condition),
            Field::RemotePort => number(newest.remote.port().into()),
            Field::RemoteName => any_text(
                newest.remote_name.as_ref().map(|remote| remote.name.trim_end_matches('.')),
                condition,
            ),
            Field::SourceAddress => address_fits(source, condition),
            Field::SourcePort => number(source.port().into()),
            Field::DestinationAddress => address_fits(destination, condition),
            Field::DestinationPort => number(destination.port().into()),
            Field::Transport => any_text([Protocol::word(newest.protocol)], condition),
            Field::Direction => any_text([newest.direction.word()], condition),
            Field::State => any_text([newest.state.word()], condition),
            // What was not measured has no value.
            Field::Bytes | Field::BytesSent | Field::BytesReceived if newest.traffic.is_none() => false,
            Field::Bytes => number(traffic.bytes_sent.saturating_add(traffic.bytes_received)),
            Field::BytesSent => number(traffic.bytes_sent),
            Field::BytesReceived => number(traffic.bytes_received),
            _ => false,
        }
    }

    /// Of a process all is looked up before the end of the last is known; a record has its own.
    fn last_update(&self, condition: &Condition) -> Truth {
        let process = match (self.searched, self.process) {
            (Searched::Flows, _) => None,
            (Searched::Processes, Seen::Known(process)) => process,
            (Searched::Processes, Seen::NotYet) => return Truth::Perhaps,
        };
        let Seen::Known(connections) = self.connections else { return Truth::Perhaps };
        last_of(process, connections).is_some_and(|last| self.times_fit(last, last, condition)).into()
    }
}

/// The last that is on record of a process and its connections, by the host's clock.
pub fn last_of(process: Option<&ProcessLife>, connections: &[Connection]) -> Option<Timestamp> {
    let of_process = process.map(|life| {
        let executed = life.executions.iter().map(|execution| execution.executed);
        let ended = life.exit.map(|exit| exit.exited);
        executed.chain(ended).fold(life.record.started, Timestamp::max)
    });
    connections.iter().map(|connection| connection.newest.last).chain(of_process).max()
}

/// The stretch of a host's own time in which something must have been that may have been in one of the collector's.
pub fn by_host(stretch: Stretch, clock: Difference) -> Stretch {
    Stretch { from: shifted(stretch.from, clock.least()), to: shifted(stretch.to, clock.most()) }
}

/// From its first image to that in force.
fn images(life: &ProcessLife) -> impl Iterator<Item = &ProcessImage> {
    std::iter::once(&life.record.image).chain(life.executions.iter().map(|execution| &execution.image))
}

fn has_name(life: &ProcessLife, condition: &Condition) -> bool {
    let names = images(life).flat_map(|image| {
        let file = image.path.as_deref().and_then(|path| path.rsplit(['/', '\\']).next());
        [Some(image.name.as_str()).filter(|name| !name.is_empty()), file]
    });
    any_text(names.flatten(), condition)
}

fn image_user_fits(image: &ProcessImage, condition: &Condition) -> bool {
    let users: [&Option<User>; 2] = [&image.user, &image.effective_user];
    users.into_iter().flatten().any(|user| {
        let name = user.name.as_deref();
        let without_domain = name.and_then(|name| name.rsplit_once('\\')).map(|(_, name)| name);
        any_text([Some(user.id.as_str()), name, without_domain].into_iter().flatten(), condition)
    })
}

fn any_text<'a>(texts: impl IntoIterator<Item = &'a str>, condition: &Condition) -> bool {
    texts.into_iter().any(|text| matches!(condition, Condition::Exists) || condition.fits_text(text))
}

fn address_fits(address: SocketAddr, condition: &Condition) -> bool {
    let address = address.ip().to_canonical();
    match condition {
        Condition::Exists => true,
        Condition::Network(network) => network.contains(&address),
        Condition::Addresses { is_v6, lowest, highest } => {
            let (v6, bits) = bits(address);
            v6 == *is_v6 && (*lowest..=*highest).contains(&bits)
        }
        condition => condition.fits_text(&address.to_string()),
    }
}

/// Of which family, and the number that it is.
pub fn bits(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => (false, address.to_bits().into()),
        IpAddr::V6(address) => (true, address.to_bits()),
    }
}
