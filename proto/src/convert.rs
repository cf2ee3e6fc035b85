//! Wire to domain, fallibly, and domain to wire: once, here.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::{
    coverage::{CoverageChange, Facet, Gap, Grade, Hole, Scope},
    event::{Event, EventKind, ListenRecord},
    executable::Sha256,
    flow::{
        Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, RECORD_SPAN_MAX, Traffic,
    },
    host::{FacetCoverage, HostDescription, HostEnrolment, HostStatus, SourceDescription, UserPresence},
    id::{ConnectionUid, Cursor, Epoch, HostId, ProcessUid, Seq},
    process::{ProcessExit, ProcessLife, ProcessRecord},
    question::{Answer, ConnectionActivity, HostAnswer, InWindow, ProcessActivity, Question, Verdict},
    target::Target,
    time::{Moment, Timestamp},
    window::Window,
    wire,
};

mod clock;
mod ledger;
mod prevalence;
mod process;
mod sighting;
pub mod stream;

/// A message that breaks the contract of the schema.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("field `{field}` {problem}")]
pub struct ConvertError {
    field: &'static str,
    problem: String,
}

type Result<T> = std::result::Result<T, ConvertError>;

fn bad<T>(field: &'static str, problem: impl Into<String>) -> Result<T> {
    Err(ConvertError { field, problem: problem.into() })
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| ConvertError { field, problem: "is missing".to_owned() })
}

fn uid(field: &'static str, bytes: &[u8]) -> Result<[u8; 16]> {
    bytes.try_into().or_else(|_| bad(field, format!("has {} bytes, not 16", bytes.len())))
}

fn optional_process(field: &'static str, bytes: Option<&Vec<u8>>) -> Result<Option<ProcessUid>> {
    bytes.map(|bytes| uid(field, bytes).map(ProcessUid::from_bytes)).transpose()
}

fn optional_time(nanos: Option<u64>) -> Option<Timestamp> {
    nanos.map(Timestamp::from_nanos)
}

fn all<W, D>(wire: Vec<W>) -> Result<Vec<D>>
where
    D: TryFrom<W, Error = ConvertError>,
{
    wire.into_iter().map(D::try_from).collect()
}

fn wires<D, W>(domain: Vec<D>) -> Vec<W>
where
    W: From<D>,
{
    domain.into_iter().map(W::from).collect()
}

/// Both ways between a wire enumeration, whose zero means unspecified, and a domain one.
macro_rules! enumeration {
    ($domain:ident, $field:literal, $($variant:ident),+) => {
        impl From<$domain> for wire::$domain {
            fn from(domain: $domain) -> Self {
                match domain { $($domain::$variant => Self::$variant),+ }
            }
        }

        impl $domain {
            fn from_wire(number: i32) -> Result<Self> {
                match wire::$domain::try_from(number) {
                    $(Ok(wire::$domain::$variant) => Ok(Self::$variant),)+
                    _ => bad($field, format!("has no meaning for the value {number}")),
                }
            }

            fn to_wire(self) -> i32 {
                wire::$domain::from(self) as i32
            }
        }
    };
}

use enumeration;

enumeration!(Protocol, "protocol", Tcp, Udp);
enumeration!(Direction, "direction", Outbound, Inbound);
enumeration!(Attribution, "attribution", InKernel, SocketTable, Guessed, Unknown);
enumeration!(FlowEndReason, "end_reason", IdleTimeout, ActiveTimeout, EndOfFlow, ForcedEnd, LackOfResources);
enumeration!(Facet, "facet", Processes, Connections, Names);
enumeration!(Verdict, "verdict", Talked, Clear, Unknown);
enumeration!(InWindow, "in_window", Bytes, Attempt, Idle);

impl HostId {
    /// From the wire.
    ///
    /// # Errors
    /// When it has not 16 bytes.
    pub fn from_wire(bytes: &[u8]) -> Result<Self> {
        uid("host", bytes).map(Self::from_bytes)
    }
}

impl From<Cursor> for wire::Cursor {
    fn from(cursor: Cursor) -> Self {
        Self { epoch: cursor.epoch.0, seq: cursor.seq.0 }
    }
}

impl From<wire::Cursor> for Cursor {
    fn from(cursor: wire::Cursor) -> Self {
        Self { epoch: Epoch(cursor.epoch), seq: Seq(cursor.seq) }
    }
}

// Events.

impl From<Event> for wire::Event {
    fn from(event: Event) -> Self {
        use wire::event::Kind;
        Self {
            seq: event.seq.0,
            time_ns: event.recorded.wall.as_nanos(),
            boot_time_ns: event.recorded.boot_ns,
            kind: match event.kind {
                EventKind::ProcessStarted(process) => Some(Kind::ProcessStarted((*process).into())),
                EventKind::ProcessExited(exit) => Some(Kind::ProcessExited(exit.into())),
                EventKind::Flow(flow) => Some(Kind::Flow((*flow).into())),
                EventKind::Listen(listen) => Some(Kind::Listen(listen.into())),
                EventKind::CoverageChanged(change) => Some(Kind::CoverageChanged(change.into())),
                EventKind::ProcessExecuted(execution) => Some(Kind::ProcessExecuted((*execution).into())),
                EventKind::NameResolved(resolution) => Some(Kind::NameResolved((*resolution).into())),
                EventKind::ServerName(hello) => Some(Kind::ServerName((*hello).into())),
                EventKind::ExecutableSeen(executable) => Some(Kind::ExecutableSeen((*executable).into())),
                EventKind::LinkChanged(link) => Some(Kind::LinkChanged((*link).into())),
                EventKind::Unrecognised => None,
            },
        }
    }
}

impl TryFrom<wire::Event> for Event {
    type Error = ConvertError;

    fn try_from(event: wire::Event) -> Result<Self> {
        use wire::event::Kind;
        if event.seq == 0 {
            return bad("seq", "is 0: positions begin at 1");
        }
        let kind = match event.kind {
            Some(Kind::ProcessStarted(process)) => EventKind::ProcessStarted(Box::new(process.try_into()?)),
            Some(Kind::ProcessExited(exit)) => EventKind::ProcessExited(exit.try_into()?),
            Some(Kind::Flow(flow)) => EventKind::Flow(Box::new(flow.try_into()?)),
            Some(Kind::Listen(listen)) => EventKind::Listen(listen.try_into()?),
            Some(Kind::CoverageChanged(change)) => EventKind::CoverageChanged(change.try_into()?),
            Some(Kind::ProcessExecuted(execution)) => {
                EventKind::ProcessExecuted(Box::new(execution.try_into()?))
            }
            Some(Kind::NameResolved(resolution)) => EventKind::NameResolved(Box::new(resolution.try_into()?)),
            Some(Kind::ServerName(hello)) => EventKind::ServerName(Box::new(hello.try_into()?)),
            Some(Kind::ExecutableSeen(seen)) => EventKind::ExecutableSeen(Box::new(seen.try_into()?)),
            Some(Kind::LinkChanged(link)) => EventKind::LinkChanged(Box::new(link.into())),
            None => EventKind::Unrecognised,
        };
        let recorded = Moment { wall: Timestamp::from_nanos(event.time_ns), boot_ns: event.boot_time_ns };
        Ok(Self { seq: Seq(event.seq), recorded, kind })
    }
}

fn address_to_wire(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_from_wire(field: &'static str, bytes: &[u8]) -> Result<IpAddr> {
    match *bytes {
        [a, b, c, d] => Ok(IpAddr::from([a, b, c, d])),
        _ => match <[u8; 16]>::try_from(bytes) {
            Ok(bytes) => Ok(IpAddr::from(bytes).to_canonical()),
            Err(_) => bad(field, format!("has an address of {} bytes, not 4 or 16", bytes.len())),
        },
    }
}

fn endpoint_to_wire(endpoint: SocketAddr) -> Option<wire::Endpoint> {
    Some(wire::Endpoint { address: address_to_wire(endpoint.ip()), port: endpoint.port().into() })
}

fn endpoint(field: &'static str, endpoint: Option<wire::Endpoint>) -> Result<SocketAddr> {
    let endpoint = required(field, endpoint)?;
    let address = address_from_wire(field, &endpoint.address)?;
    match u16::try_from(endpoint.port) {
        Ok(port) => Ok(SocketAddr::new(address, port)),
        Err(_) => bad(field, format!("has port {}: the highest is 65535", endpoint.port)),
    }
}

fn sha256(field: &'static str, bytes: Option<&Vec<u8>>) -> Result<Option<Sha256>> {
    let convert = |bytes: &Vec<u8>| {
        <[u8; 32]>::try_from(bytes.as_slice())
            .or_else(|_| bad(field, format!("has {} bytes, not 32", bytes.len())))
    };
    Ok(bytes.map(convert).transpose()?.map(Sha256::from_bytes))
}

impl From<Traffic> for wire::Traffic {
    fn from(traffic: Traffic) -> Self {
        let Traffic { bytes_sent, bytes_received, packets_sent, packets_received, packets_retransmitted } =
            traffic;
        Self { bytes_sent, bytes_received, packets_sent, packets_received, packets_retransmitted }
    }
}

impl From<wire::Traffic> for Traffic {
    fn from(traffic: wire::Traffic) -> Self {
        let wire::Traffic {
            bytes_sent,
            bytes_received,
            packets_sent,
            packets_received,
            packets_retransmitted,
        } = traffic;
        Self { bytes_sent, bytes_received, packets_sent, packets_received, packets_retransmitted }
    }
}

impl From<FlowRecord> for wire::Flow {
    fn from(flow: FlowRecord) -> Self {
        Self {
            connection_uid: flow.connection.as_bytes().to_vec(),
            process_uid: flow.process.map(|uid| uid.as_bytes().to_vec()),
            attribution: flow.attribution.to_wire(),
            protocol: flow.protocol.to_wire(),
            direction: flow.direction.to_wire(),
            local: endpoint_to_wire(flow.local),
            remote: endpoint_to_wire(flow.remote),
            first_ns: flow.first.as_nanos(),
            last_ns: flow.last.as_nanos(),
            traffic: flow.traffic.map(Into::into),
            state: match flow.state {
                FlowState::Attempted => wire::FlowState::Attempted,
                FlowState::Established => wire::FlowState::Established,
                FlowState::Closed => wire::FlowState::Closed,
                FlowState::Failed(_) => wire::FlowState::Failed,
            } as i32,
            errno: flow.state.errno(),
            end_reason: flow.end_reason.to_wire(),
            record: flow.record,
            interface: flow.interface,
            network_namespace: flow.network_namespace,
            opened_ns: flow.opened.as_nanos(),
            already_open: flow.already_open,
            round_trip_ns: flow.round_trip.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            remote_name: flow.remote_name.map(Into::into),
        }
    }
}

/// The fields alone; whether they make a record that may stand in a ring is for `TryFrom`.
fn flow_fields(flow: wire::Flow) -> Result<FlowRecord> {
    Ok(FlowRecord {
        connection: ConnectionUid::from_bytes(uid("flow.connection_uid", &flow.connection_uid)?),
        process: optional_process("flow.process_uid", flow.process_uid.as_ref())?,
        attribution: Attribution::from_wire(flow.attribution)?,
        protocol: Protocol::from_wire(flow.protocol)?,
        direction: Direction::from_wire(flow.direction)?,
        local: endpoint("flow.local", flow.local)?,
        remote: endpoint("flow.remote", flow.remote)?,
        opened: Timestamp::from_nanos(flow.opened_ns),
        already_open: flow.already_open,
        first: Timestamp::from_nanos(flow.first_ns),
        last: Timestamp::from_nanos(flow.last_ns),
        traffic: flow.traffic.map(Into::into),
        state: match wire::FlowState::try_from(flow.state) {
            Ok(wire::FlowState::Attempted) => FlowState::Attempted,
            Ok(wire::FlowState::Established) => FlowState::Established,
            Ok(wire::FlowState::Closed) => FlowState::Closed,
            Ok(wire::FlowState::Failed) => FlowState::Failed(flow.errno),
            _ => return bad("state", format!("has no meaning for the value {}", flow.state)),
        },
        end_reason: FlowEndReason::from_wire(flow.end_reason)?,
        record: flow.record,
        interface: flow.interface,
        network_namespace: flow.network_namespace,
        round_trip: flow.round_trip_ns.map(Duration::from_nanos),
        remote_name: flow.remote_name.map(TryInto::try_into).transpose()?,
    })
}

impl TryFrom<wire::Flow> for FlowRecord {
    type Error = ConvertError;

    fn try_from(flow: wire::Flow) -> Result<Self> {
        let flow = flow_fields(flow)?;
        if flow.last < flow.first {
            return bad("flow.last_ns", "is before first_ns");
        }
        // An overlap query looks back so far and no further: a longer record would not be found.
        if flow.last.since(flow.first) > RECORD_SPAN_MAX {
            return bad(
                "flow.last_ns",
                format!("is more than {} s after first_ns", RECORD_SPAN_MAX.as_secs()),
            );
        }
        Ok(flow)
    }
}

impl From<ListenRecord> for wire::Listen {
    fn from(listen: ListenRecord) -> Self {
        Self {
            process_uid: listen.process.map(|uid| uid.as_bytes().to_vec()),
            protocol: listen.protocol.to_wire(),
            local: endpoint_to_wire(listen.local),
            attribution: listen.attribution.to_wire(),
            since_ns: listen.since.as_nanos(),
        }
    }
}

impl TryFrom<wire::Listen> for ListenRecord {
    type Error = ConvertError;

    fn try_from(listen: wire::Listen) -> Result<Self> {
        Ok(Self {
            process: optional_process("listen.process_uid", listen.process_uid.as_ref())?,
            attribution: Attribution::from_wire(listen.attribution)?,
            protocol: Protocol::from_wire(listen.protocol)?,
            local: endpoint("listen.local", listen.local)?,
            since: Timestamp::from_nanos(listen.since_ns),
        })
    }
}

// Coverage.

impl From<Grade> for wire::Grade {
    fn from(grade: Grade) -> Self {
        use wire::grade::Grade as Kind;
        let kind = match grade {
            Grade::Complete => Kind::Complete(wire::Complete {}),
            Grade::Sampled { period } => Kind::Sampled(wire::Sampled {
                period_ns: u64::try_from(period.as_nanos()).unwrap_or(u64::MAX),
            }),
            Grade::Doubtful { reason } => Kind::Doubtful(wire::Doubtful { reason }),
            Grade::Lost { count, reason } => Kind::Lost(wire::Lost { count, reason }),
            Grade::NotRecorded { reason } => Kind::NotRecorded(wire::NotRecorded { reason }),
        };
        Self { grade: Some(kind) }
    }
}

impl TryFrom<Option<wire::Grade>> for Grade {
    type Error = ConvertError;

    fn try_from(grade: Option<wire::Grade>) -> Result<Self> {
        use wire::grade::Grade as Kind;
        Ok(match required("grade", grade.and_then(|grade| grade.grade))? {
            Kind::Complete(_) => Self::Complete,
            Kind::Sampled(sampled) => Self::Sampled { period: Duration::from_nanos(sampled.period_ns) },
            Kind::Doubtful(doubtful) => Self::Doubtful { reason: doubtful.reason },
            Kind::Lost(lost) => Self::Lost { count: lost.count, reason: lost.reason },
            Kind::NotRecorded(none) => Self::NotRecorded { reason: none.reason },
        })
    }
}

impl From<Scope> for wire::Scope {
    fn from(scope: Scope) -> Self {
        let Scope { source, covers, cannot_see } = scope;
        Self { source, covers, cannot_see }
    }
}

impl From<wire::Scope> for Scope {
    fn from(scope: wire::Scope) -> Self {
        let wire::Scope { source, covers, cannot_see } = scope;
        Self { source, covers, cannot_see }
    }
}

impl From<CoverageChange> for wire::CoverageChanged {
    fn from(change: CoverageChange) -> Self {
        Self {
            facet: change.facet.to_wire(),
            grade: Some(change.grade.into()),
            from_ns: change.from.as_nanos(),
            to_ns: change.to.map(Timestamp::as_nanos),
            scope: change.scope.map(Into::into),
            announced_from_seq: change.announced_from.map(|seq| seq.0),
        }
    }
}

impl TryFrom<wire::CoverageChanged> for CoverageChange {
    type Error = ConvertError;

    fn try_from(change: wire::CoverageChanged) -> Result<Self> {
        Ok(Self {
            facet: Facet::from_wire(change.facet)?,
            grade: change.grade.try_into()?,
            from: Timestamp::from_nanos(change.from_ns),
            to: optional_time(change.to_ns),
            scope: change.scope.map(Into::into),
            announced_from: change.announced_from_seq.map(Seq),
        })
    }
}

impl From<Gap> for wire::Gap {
    fn from(gap: Gap) -> Self {
        Self {
            facet: gap.facet.to_wire(),
            grade: Some(gap.grade.into()),
            from_ns: gap.from.as_nanos(),
            to_ns: gap.to.as_nanos(),
        }
    }
}

impl TryFrom<wire::Gap> for Gap {
    type Error = ConvertError;

    fn try_from(gap: wire::Gap) -> Result<Self> {
        Ok(Self {
            facet: Facet::from_wire(gap.facet)?,
            grade: gap.grade.try_into()?,
            from: Timestamp::from_nanos(gap.from_ns),
            to: Timestamp::from_nanos(gap.to_ns),
        })
    }
}

// The stream.

impl From<Hole> for wire::Hole {
    fn from(hole: Hole) -> Self {
        Self {
            first_seq: hole.first.0,
            last_seq: hole.last.0,
            from_ns: hole.from.as_nanos(),
            to_ns: hole.to.as_nanos(),
            reason: hole.reason,
        }
    }
}

impl TryFrom<wire::Hole> for Hole {
    type Error = ConvertError;

    fn try_from(hole: wire::Hole) -> Result<Self> {
        if hole.first_seq == 0 || hole.last_seq < hole.first_seq {
            return bad("hole.last_seq", "is before first_seq, or first_seq is 0");
        }
        if hole.to_ns < hole.from_ns {
            return bad("hole.to_ns", "is before from_ns");
        }
        Ok(Self {
            first: Seq(hole.first_seq),
            last: Seq(hole.last_seq),
            from: Timestamp::from_nanos(hole.from_ns),
            to: Timestamp::from_nanos(hole.to_ns),
            reason: hole.reason,
        })
    }
}

// Hosts.

impl From<HostDescription> for wire::DescribeResponse {
    fn from(description: HostDescription) -> Self {
        Self {
            host: description.host.as_bytes().to_vec(),
            name: description.name,
            os: description.os,
            os_version: description.os_version,
            machine_id: description.machine_id,
            boot_id: description.boot_id,
            agent_version: description.agent_version,
            boot_ns: description.booted.as_nanos(),
            users: wires(description.users),
            sources: wires(description.sources),
            epoch: description.epoch.0,
            first_seq: description.first_seq.0,
            next_seq: description.next_seq.0,
        }
    }
}

impl TryFrom<wire::DescribeResponse> for HostDescription {
    type Error = ConvertError;

    fn try_from(response: wire::DescribeResponse) -> Result<Self> {
        Ok(Self {
            host: HostId::from_wire(&response.host)?,
            name: response.name,
            os: response.os,
            os_version: response.os_version,
            machine_id: response.machine_id,
            boot_id: response.boot_id,
            booted: Timestamp::from_nanos(response.boot_ns),
            agent_version: response.agent_version,
            users: all(response.users)?,
            sources: all(response.sources)?,
            epoch: Epoch(response.epoch),
            first_seq: Seq(response.first_seq),
            next_seq: Seq(response.next_seq),
        })
    }
}

impl From<UserPresence> for wire::UserPresence {
    fn from(presence: UserPresence) -> Self {
        Self { user: Some(presence.user.into()), processes: presence.processes }
    }
}

impl TryFrom<wire::UserPresence> for UserPresence {
    type Error = ConvertError;

    fn try_from(presence: wire::UserPresence) -> Result<Self> {
        Ok(Self { user: required("user", presence.user)?.into(), processes: presence.processes })
    }
}

impl From<SourceDescription> for wire::Source {
    fn from(source: SourceDescription) -> Self {
        Self { name: source.name, facets: wires(source.facets), caveat: source.caveat }
    }
}

impl TryFrom<wire::Source> for SourceDescription {
    type Error = ConvertError;

    fn try_from(source: wire::Source) -> Result<Self> {
        Ok(Self { name: source.name, facets: all(source.facets)?, caveat: source.caveat })
    }
}

impl From<FacetCoverage> for wire::FacetCoverage {
    fn from(coverage: FacetCoverage) -> Self {
        Self {
            facet: coverage.facet.to_wire(),
            grade: Some(coverage.grade.into()),
            scope: Some(coverage.scope.into()),
        }
    }
}

impl TryFrom<wire::FacetCoverage> for FacetCoverage {
    type Error = ConvertError;

    fn try_from(coverage: wire::FacetCoverage) -> Result<Self> {
        Ok(Self {
            facet: Facet::from_wire(coverage.facet)?,
            grade: coverage.grade.try_into()?,
            scope: required("scope", coverage.scope)?.into(),
        })
    }
}

impl From<HostStatus> for wire::HostStatus {
    fn from(status: HostStatus) -> Self {
        Self {
            address: status.address,
            description: status.description.map(Into::into),
            connected: status.connected,
            heard_ns: status.heard.map(Timestamp::as_nanos),
            known_until_ns: status.known_until.map(Timestamp::as_nanos),
            trouble: status.trouble,
            events: status.events,
            clock: status.clock.map(Into::into),
            chain: Some(status.chain.into()),
            from: status.from,
            enrolment: status.enrolment.map(Into::into),
        }
    }
}

impl From<HostEnrolment> for wire::HostEnrolment {
    fn from(enrolment: HostEnrolment) -> Self {
        Self {
            host: enrolment.host.as_bytes().to_vec(),
            name: enrolment.name,
            enrolled_ns: enrolment.enrolled.as_nanos(),
            certificate_until_ns: enrolment.certificate_until.as_nanos(),
            tags: enrolment.tags,
            revoked_ns: enrolment.revoked.map(Timestamp::as_nanos),
            copied: enrolment.copied,
        }
    }
}

impl TryFrom<wire::HostEnrolment> for HostEnrolment {
    type Error = ConvertError;

    fn try_from(enrolment: wire::HostEnrolment) -> Result<Self> {
        Ok(Self {
            host: HostId::from_wire(&enrolment.host)?,
            name: enrolment.name,
            enrolled: Timestamp::from_nanos(enrolment.enrolled_ns),
            certificate_until: Timestamp::from_nanos(enrolment.certificate_until_ns),
            tags: enrolment.tags,
            revoked: optional_time(enrolment.revoked_ns),
            copied: enrolment.copied,
        })
    }
}

impl TryFrom<wire::HostStatus> for HostStatus {
    type Error = ConvertError;

    fn try_from(status: wire::HostStatus) -> Result<Self> {
        Ok(Self {
            address: status.address,
            description: status.description.map(TryInto::try_into).transpose()?,
            connected: status.connected,
            heard: optional_time(status.heard_ns),
            known_until: optional_time(status.known_until_ns),
            trouble: status.trouble,
            events: status.events,
            clock: status.clock.map(Into::into),
            chain: status.chain.unwrap_or_default().try_into()?,
            from: status.from,
            enrolment: status.enrolment.map(TryInto::try_into).transpose()?,
        })
    }
}

// Questions and answers.

impl From<Question> for wire::Question {
    fn from(question: Question) -> Self {
        Self {
            target: question.target.text(),
            addresses: match question.target.name() {
                Some(_) => question.target.addresses(),
                None => Vec::new(),
            },
            from_ns: question.window.from().as_nanos(),
            to_ns: question.window.to().as_nanos(),
            port: question.target.port().map(u32::from),
            protocol: question.target.protocol().map_or(0, Protocol::to_wire),
        }
    }
}

impl TryFrom<Option<wire::Question>> for Question {
    type Error = ConvertError;

    fn try_from(question: Option<wire::Question>) -> Result<Self> {
        let question = required("question", question)?;
        let port = question.port.map(u16::try_from).transpose();
        let port = port.or_else(|_| bad("question.port", "is not a port"))?;
        let protocol = match question.protocol {
            0 => None,
            number => Some(Protocol::from_wire(number)?),
        };
        let target = Target::parse(&question.target, port, protocol)
            .and_then(|target| target.with_addresses(&question.addresses))
            .or_else(|error| bad("question.target", format!("is refused: {error}")))?;
        let window =
            Window::new(Timestamp::from_nanos(question.from_ns), Timestamp::from_nanos(question.to_ns))
                .or_else(|error| bad("question.from_ns", format!("is refused: {error}")))?;
        Ok(Self { target, window })
    }
}

impl From<ProcessLife> for wire::ProcessLife {
    fn from(life: ProcessLife) -> Self {
        Self {
            process: Some(life.record.into()),
            exited_ns: life.exit.map(|exit| exit.exited.as_nanos()),
            exit_code: life.exit.and_then(|exit| exit.exit_code),
            executions: wires(life.executions),
            executions_left_out: life.executions_left_out,
            executable: wires(life.executable),
        }
    }
}

impl TryFrom<wire::ProcessLife> for ProcessLife {
    type Error = ConvertError;

    fn try_from(life: wire::ProcessLife) -> Result<Self> {
        let record: ProcessRecord = required("process", life.process)?.try_into()?;
        let exit = life.exited_ns.map(|exited| ProcessExit {
            uid: record.uid,
            exited: Timestamp::from_nanos(exited),
            exit_code: life.exit_code,
        });
        Ok(Self {
            record,
            exit,
            executions: all(life.executions)?,
            executions_left_out: life.executions_left_out,
            executable: all(life.executable)?,
        })
    }
}

impl From<ConnectionActivity> for wire::ConnectionActivity {
    fn from(activity: ConnectionActivity) -> Self {
        let (in_window, in_margin) = (activity.in_window.to_wire(), activity.in_margin);
        Self { flow: Some(activity.flow.into()), in_window, in_margin }
    }
}

impl TryFrom<wire::ConnectionActivity> for ConnectionActivity {
    type Error = ConvertError;

    fn try_from(activity: wire::ConnectionActivity) -> Result<Self> {
        // A whole life, which may well be longer than a record.
        let flow = flow_fields(required("flow", activity.flow)?)?;
        let in_window = InWindow::from_wire(activity.in_window)?;
        Ok(Self { flow, in_window, in_margin: activity.in_margin })
    }
}

impl From<ProcessActivity> for wire::ProcessActivity {
    fn from(activity: ProcessActivity) -> Self {
        Self {
            process_uid: activity.uid.map(|uid| uid.as_bytes().to_vec()),
            life: activity.life.map(Into::into),
            connections: wires(activity.connections),
        }
    }
}

impl TryFrom<wire::ProcessActivity> for ProcessActivity {
    type Error = ConvertError;

    fn try_from(activity: wire::ProcessActivity) -> Result<Self> {
        Ok(Self {
            uid: optional_process("process_uid", activity.process_uid.as_ref())?,
            life: activity.life.map(TryInto::try_into).transpose()?,
            connections: all(activity.connections)?,
        })
    }
}

impl From<HostAnswer> for wire::HostAnswer {
    fn from(answer: HostAnswer) -> Self {
        Self {
            host: answer.host.map(|host| host.as_bytes().to_vec()),
            name: answer.name,
            verdict: answer.verdict.to_wire(),
            gaps: wires(answer.gaps),
            processes: wires(answer.processes),
            scopes: answer.scopes.into_iter().map(|scope| Arc::unwrap_or_clone(scope).into()).collect(),
            shared_scopes: Vec::new(),
            known_until_ns: answer.known_until.map(Timestamp::as_nanos),
            records_left_out: answer.records_left_out,
            clock: answer.clock.map(Into::into),
        }
    }
}

impl TryFrom<wire::HostAnswer> for HostAnswer {
    type Error = ConvertError;

    fn try_from(answer: wire::HostAnswer) -> Result<Self> {
        Ok(Self {
            host: answer.host.as_deref().map(HostId::from_wire).transpose()?,
            name: answer.name,
            verdict: Verdict::from_wire(answer.verdict)?,
            gaps: all(answer.gaps)?,
            processes: all(answer.processes)?,
            scopes: answer.scopes.into_iter().map(|scope| Arc::new(scope.into())).collect(),
            known_until: optional_time(answer.known_until_ns),
            records_left_out: answer.records_left_out,
            clock: answer.clock.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<Answer> for wire::WhoResponse {
    fn from(answer: Answer) -> Self {
        let (mut scopes, mut places) = (Vec::new(), HashMap::new());
        let mut place = |scope: Arc<Scope>| -> u32 {
            *places.entry(scope).or_insert_with_key(|scope| {
                scopes.push(Scope::clone(scope).into());
                scopes.len() as u32 - 1
            })
        };
        let mut host = |mut host: HostAnswer| {
            let shared = std::mem::take(&mut host.scopes);
            let shared_scopes = shared.into_iter().map(&mut place).collect();
            wire::HostAnswer { shared_scopes, ..host.into() }
        };
        let hosts = answer.hosts.into_iter().map(&mut host).collect();
        Self { question: Some(answer.question.into()), addresses: answer.addresses, hosts, scopes }
    }
}

impl TryFrom<wire::WhoResponse> for Answer {
    type Error = ConvertError;

    fn try_from(response: wire::WhoResponse) -> Result<Self> {
        let scopes: Vec<Arc<Scope>> =
            response.scopes.into_iter().map(|scope| Arc::new(scope.into())).collect();
        let host = |mut host: wire::HostAnswer| {
            let shared = std::mem::take(&mut host.shared_scopes);
            let mut host = HostAnswer::try_from(host)?;
            for place in shared {
                match scopes.get(place as usize) {
                    Some(scope) => host.scopes.push(Arc::clone(scope)),
                    None => {
                        return bad(
                            "host_answer.shared_scopes",
                            format!("has {place}: there are {}", scopes.len()),
                        );
                    }
                }
            }
            Ok(host)
        };
        Ok(Self {
            question: response.question.try_into()?,
            addresses: response.addresses,
            hosts: response.hosts.into_iter().map(host).collect::<Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{
        executable::{
            ExecutableRecord, ExecutableSighting, FileIdentity, Package, Signature, SignatureStatus,
            VersionInfo,
        },
        link::LinkRecord,
        name::{NameResolution, NameSource, RemoteName, ServerNameRecord},
        process::{ProcessExecution, ProcessImage, User},
        question::AnswerClock,
    };

    fn address() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port))),
            (any::<[u8; 16]>(), any::<u16>())
                .prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip).to_canonical(), port)),
        ]
    }

    fn user() -> impl Strategy<Value = User> {
        (".*", proptest::option::of(".*")).prop_map(|(id, name)| User { id, name })
    }

    fn grade() -> BoxedStrategy<Grade> {
        prop_oneof![
            Just(Grade::Complete),
            any::<u64>().prop_map(|nanos| Grade::Sampled { period: Duration::from_nanos(nanos) }),
            ".*".prop_map(|reason| Grade::Doubtful { reason }),
            (any::<u64>(), ".*").prop_map(|(count, reason)| Grade::Lost { count, reason }),
            ".*".prop_map(|reason| Grade::NotRecorded { reason }),
        ]
        .boxed()
    }

    fn time() -> impl Strategy<Value = Timestamp> {
        (0..i64::MAX as u64).prop_map(Timestamp::from_nanos)
    }

    prop_compose! {
        fn process()(
            ids in any::<([u8; 16], u32, Option<[u8; 16]>, Option<u32>)>(),
            started in time(),
            already_running in any::<bool>(),
            path in proptest::option::of(".*"),
            words in (".*", proptest::collection::vec(".*", 0..4), any::<bool>()),
            user in proptest::option::of(user()),
            sha256 in any::<Option<[u8; 32]>>(),
        ) -> ProcessRecord {
            ProcessRecord {
                uid: ProcessUid::from_bytes(ids.0),
                pid: ids.1,
                parent: ids.2.map(ProcessUid::from_bytes),
                parent_pid: ids.3,
                started,
                already_running,
                image: ProcessImage {
                    working_directory: path.clone(),
                    terminal: path.clone(),
                    cgroup: path.clone(),
                    path,
                    name: words.0,
                    arguments: words.1,
                    arguments_truncated: words.2,
                    effective_user: user.clone(),
                    user,
                    file: sha256.map(|_| FileIdentity { device: 1, inode: 2, modified: started, size: 7 }),
                    sha256: sha256.map(Sha256::from_bytes),
                },
            }
        }
    }

    prop_compose! {
        fn flow()(
            ids in any::<([u8; 16], Option<[u8; 16]>, u32, bool, Option<u64>)>(),
            ends in (address(), address()),
            first in time(),
            span in 0..=RECORD_SPAN_MAX.as_nanos() as u64,
            counts in proptest::option::of(any::<[u64; 5]>()),
            state in prop_oneof![
                Just(FlowState::Attempted),
                Just(FlowState::Established),
                Just(FlowState::Closed),
                any::<i32>().prop_map(FlowState::Failed),
            ],
            interface in proptest::option::of(".*"),
        ) -> FlowRecord {
            FlowRecord {
                connection: ConnectionUid::from_bytes(ids.0),
                process: ids.1.map(ProcessUid::from_bytes),
                attribution: Attribution::SocketTable,
                protocol: if ids.3 { Protocol::Tcp } else { Protocol::Udp },
                direction: if ids.3 { Direction::Inbound } else { Direction::Outbound },
                local: ends.0,
                remote: ends.1,
                opened: first,
                already_open: ids.3,
                first,
                last: first.saturating_add(Duration::from_nanos(span)),
                traffic: counts.map(|counts| Traffic {
                    bytes_sent: counts[0],
                    bytes_received: counts[1],
                    packets_sent: counts[2],
                    packets_received: counts[3],
                    packets_retransmitted: counts[4],
                }),
                state,
                end_reason: FlowEndReason::LackOfResources,
                record: ids.2,
                round_trip: ids.4.map(Duration::from_nanos),
                remote_name: interface.clone().map(|name| RemoteName { name, source: NameSource::Sni }),
                interface,
                network_namespace: ids.4,
            }
        }
    }

    fn sighting() -> impl Strategy<Value = EventKind> {
        let parts = || (process(), address(), address(), ".*", any::<bool>());
        prop_oneof![
            parts().prop_map(|(process, remote, server, name, _)| {
                EventKind::NameResolved(Box::new(NameResolution {
                    at: process.started,
                    aliases: vec![name.clone()],
                    name,
                    addresses: vec![remote.ip(), server.ip()],
                    ttl_s: process.pid,
                    server,
                    process: Some(process.uid),
                    network_namespace: Some(3),
                }))
            }),
            parts().prop_map(|(process, remote, local, name, known)| {
                let connection = ConnectionUid::from_bytes(*process.uid.as_bytes());
                EventKind::ServerName(Box::new(ServerNameRecord {
                    at: process.started,
                    connection: known.then_some(connection),
                    name: known.then_some(name),
                    local,
                    remote,
                    network_namespace: None,
                }))
            }),
            parts().prop_map(|(process, _, _, text, known)| {
                let package = Package { name: text.clone(), version: text.clone(), source: "dpkg".into() };
                let status = if known { SignatureStatus::Trusted } else { SignatureStatus::Invalid };
                let signature = Signature {
                    status,
                    reason: Some(text.clone()),
                    subject: known.then(|| text.clone()),
                    issuer: Some(text.clone()),
                    certificate_sha256: process.image.sha256,
                    identifier: None,
                    team: Some(text.clone()),
                };
                let version = VersionInfo {
                    company: Some(text.clone()),
                    file_version: known.then(|| text.clone()),
                    ..VersionInfo::default()
                };
                EventKind::ExecutableSeen(Box::new(ExecutableRecord {
                    at: process.started,
                    path: text.clone(),
                    file: process.image.file,
                    sha256: process.image.sha256,
                    first_on_host: known,
                    package: known.then_some(package),
                    sighting: ExecutableSighting::Written,
                    process: process.parent,
                    problem: process.image.sha256.is_none().then_some(text),
                    signature: process.parent.is_some().then_some(signature),
                    version: known.then_some(version),
                }))
            }),
            parts().prop_map(|(process, _, _, text, up)| {
                EventKind::LinkChanged(Box::new(LinkRecord {
                    at: process.started,
                    interface: text.clone(),
                    index: process.pid,
                    present: true,
                    up,
                    running: !up,
                    addresses: vec![text.clone()],
                    default_gateways: vec![text],
                    network_namespace: Some(1),
                }))
            }),
        ]
    }

    fn kind() -> impl Strategy<Value = EventKind> {
        prop_oneof![
            process().prop_map(|process| EventKind::ProcessStarted(Box::new(process))),
            (any::<[u8; 16]>(), time(), any::<Option<i32>>()).prop_map(|(uid, exited, exit_code)| {
                EventKind::ProcessExited(ProcessExit { uid: ProcessUid::from_bytes(uid), exited, exit_code })
            }),
            process().prop_map(|process| EventKind::ProcessExecuted(Box::new(ProcessExecution {
                uid: process.uid,
                executed: process.started,
                image: process.image,
            }))),
            sighting(),
            flow().prop_map(|flow| EventKind::Flow(Box::new(flow))),
            (any::<Option<[u8; 16]>>(), address(), time()).prop_map(|(process, local, since)| {
                EventKind::Listen(ListenRecord {
                    process: process.map(ProcessUid::from_bytes),
                    attribution: Attribution::Unknown,
                    protocol: Protocol::Udp,
                    local,
                    since,
                })
            }),
            (grade(), time(), proptest::option::of(time()), proptest::option::of(".*")).prop_map(
                |(grade, from, to, scope)| EventKind::CoverageChanged(CoverageChange {
                    facet: Facet::Names,
                    grade,
                    from,
                    to,
                    scope: scope.map(|text| Scope {
                        source: text.clone(),
                        covers: text.clone(),
                        cannot_see: text
                    }),
                    announced_from: to.map(|to| Seq(to.as_nanos())),
                })
            ),
            Just(EventKind::Unrecognised),
        ]
    }

    proptest! {
        #[test]
        fn events_survive_the_wire(seq in 1..u64::MAX, wall in time(), boot_ns: u64, kind in kind()) {
            let event = Event { seq: Seq(seq), recorded: Moment { wall, boot_ns }, kind };
            let bytes = wire::Event::from(event.clone()).encode_to_vec();
            let back = Event::try_from(wire::Event::decode(bytes.as_slice()).unwrap()).unwrap();
            prop_assert_eq!(back, event);
        }

        #[test]
        fn bytes_from_outside_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(event) = wire::Event::decode(bytes.as_slice()) {
                let _ = Event::try_from(event);
            }
            if let Ok(response) = wire::TailResponse::decode(bytes.as_slice()) {
                let _ = crate::event::Batch::try_from(response);
            }
        }

        #[test]
        fn answers_survive_the_wire(flow in flow(), process in process(), grade in grade()) {
            let scope = Scope { source: "poll".into(), covers: "a".into(), cannot_see: "b".into() };
            let (first, last) = (flow.first, flow.first.saturating_add(Duration::from_secs(1)));
            prop_assume!(first < last);
            let exit = ProcessExit { uid: process.uid, exited: last, exit_code: Some(-9) };
            let answer = Answer {
                question: Question {
                    target: Target::parse("*.example.com", Some(443), Some(Protocol::Tcp))
                        .and_then(|target| target.with_addresses(&["10.0.0.0/8"]))
                        .unwrap(),
                    window: Window::new(first, last).unwrap(),
                },
                addresses: vec!["10.0.0.0/8".into()],
                hosts: vec![HostAnswer {
                    host: Some(HostId::from_bytes([3; 16])),
                    name: "laptop".into(),
                    verdict: Verdict::Talked,
                    gaps: vec![Gap { facet: Facet::Connections, grade, from: first, to: last }],
                    processes: vec![ProcessActivity {
                        uid: Some(process.uid),
                        life: Some(ProcessLife {
                            executions: vec![ProcessExecution {
                                uid: process.uid,
                                executed: last,
                                image: process.image.clone(),
                            }],
                            executions_left_out: 3,
                            ..ProcessLife::new(process, Some(exit))
                        }),
                        connections: vec![ConnectionActivity {
                            flow,
                            in_window: InWindow::Bytes,
                            in_margin: true,
                        }],
                    }],
                    scopes: vec![Arc::new(scope)],
                    known_until: Some(last),
                    records_left_out: 4,
                    clock: Some(AnswerClock {
                        offset_ns: -5,
                        bound_ns: 7,
                        window: Window::new(first, last).unwrap(),
                    }),
                }],
            };
            prop_assert_eq!(Answer::try_from(wire::WhoResponse::from(answer.clone())), Ok(answer));
        }
    }

    fn wire_flow() -> wire::Flow {
        let end = || Some(wire::Endpoint { address: vec![10, 0, 0, 1], port: 443 });
        wire::Flow {
            connection_uid: vec![1; 16],
            attribution: 2,
            protocol: 1,
            direction: 1,
            local: end(),
            remote: end(),
            first_ns: 10,
            last_ns: 20,
            state: 2,
            end_reason: 2,
            ..wire::Flow::default()
        }
    }

    #[test]
    fn broken_contracts_are_named() {
        let check = |spoil: fn(&mut wire::Flow), want: &str| {
            let mut flow = wire_flow();
            spoil(&mut flow);
            assert_eq!(FlowRecord::try_from(flow).unwrap_err().to_string(), want);
        };
        assert!(FlowRecord::try_from(wire_flow()).is_ok());
        check(|flow| flow.connection_uid.truncate(3), "field `flow.connection_uid` has 3 bytes, not 16");
        check(|flow| flow.protocol = 9, "field `protocol` has no meaning for the value 9");
        check(|flow| flow.state = 0, "field `state` has no meaning for the value 0");
        check(|flow| flow.local = None, "field `flow.local` is missing");
        check(
            |flow| flow.remote = Some(wire::Endpoint { address: vec![1; 4], port: 65536 }),
            "field `flow.remote` has port 65536: the highest is 65535",
        );
        check(
            |flow| flow.remote = Some(wire::Endpoint { address: vec![1; 5], port: 1 }),
            "field `flow.remote` has an address of 5 bytes, not 4 or 16",
        );
        check(|flow| flow.last_ns = 9, "field `flow.last_ns` is before first_ns");
        check(
            |flow| flow.last_ns = flow.first_ns + 900_000_000_001,
            "field `flow.last_ns` is more than 900 s after first_ns",
        );
        let signature =
            wire::Signature { certificate_sha256: Some(vec![1; 20]), status: 4, ..Default::default() };
        assert_eq!(
            Signature::try_from(signature).unwrap_err().to_string(),
            "field `signature.certificate_sha256` has 20 bytes, not 32"
        );
    }
}
