//! `cargo lab ring`: what a full ring costs to write, to open and to ask.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use alibi_agent::{
    labels, query,
    recorder::labels_of,
    ring::{Options as Limits, Record, Ring, View},
};
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    event::{Event, EventKind},
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, Traffic},
    id::{Epoch, HostBoot, HostId, ProcessUid, Seq},
    name::{NameResolution, NameSource, RemoteName},
    process::{ProcessExit, ProcessImage, ProcessRecord, User},
    question::Question,
    target::Target,
    time::{Moment, Timestamp},
    window::Window,
    wire,
};
use anyhow::{Result, ensure};
use prost::Message as _;

use crate::capture::measure::own_cpu;

/// Measures a full ring: what a record costs to append, how long it takes to open it, and to answer questions from it
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Its bytes
    #[arg(long, default_value_t = Limits::default().bytes_max)]
    ring_bytes: u64,
    /// Where it is made; a temporary directory if nowhere
    #[arg(long)]
    data: Option<PathBuf>,
    /// Connections an hour of the laptop that it is filled with
    #[arg(long, default_value_t = 20_000)]
    hourly: u64,
    /// Events that are made safe together
    #[arg(long, default_value_t = 400)]
    together: usize,
    /// Only questions whose description has this in it
    #[arg(long, default_value = "")]
    question: String,
    /// Times that each question is asked
    #[arg(long, default_value_t = 9)]
    times: usize,
}

const HOST: HostId = HostId::from_bytes([7; 16]);
/// When the laptop begins to record.
const BEGINS: Timestamp = Timestamp::from_secs(1_790_000_000);
/// An address that one connection in the middle goes to, and none else.
const RARE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Other addresses; half of all connections go to the first few.
const REMOTES: u64 = 20_000;
/// The grades in force are said again each so many events.
const RESTATED_EACH: u64 = 20_000;
/// A process is started for so many connections.
const CONNECTIONS_PER_PROCESS: u64 = 10;

/// # Errors
/// When the ring cannot be written or read, or answers wrongly.
pub fn measure(options: &Options) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let directory = options.data.clone().unwrap_or_else(|| temporary.path().join("ring"));
    let limits = Limits::within(options.ring_bytes);
    let (mut ring, recovery) = Ring::open(&directory, limits, HOST, Epoch(1), labels_of)?;
    ensure!(recovery.is_new, "{} holds a ring already", directory.display());

    let mut laptop = Laptop::new(options.hourly);
    let (mut encoding, mut appending, mut records) = (Duration::ZERO, Duration::ZERO, 0_u64);
    let mut rare: Option<Timestamp> = None;
    let mut evicted = false;
    while !evicted {
        let events = laptop.events(options.together);
        let half_full =
            ring.view().next_seq().0 > 3_000 && rare.is_none() && bytes(&directory)? > options.ring_bytes / 2;
        let begun = own_cpu();
        let mut batch: Vec<Record> = events.into_iter().map(record).collect();
        encoding += own_cpu() - begun;
        if half_full {
            let flow = laptop.flow(RARE.into());
            rare = Some(laptop.now);
            batch.push(record(flow));
        }
        let begun = own_cpu();
        ring.append(&batch)?;
        appending += own_cpu() - begun;
        records += batch.len() as u64;
        evicted = ring.view().first_seq() > Seq::FIRST;
    }
    ring.mark_closed(laptop.now, laptop.moment())?;
    let kept = ring.next_seq().0 - ring.first_seq().0;
    let disk = bytes(&directory)?;
    drop(ring);
    let per = |time: Duration| time.as_nanos() as f64 / records as f64;
    println!(
        "{records} records of {} h, {kept} kept in {} MiB: {:.1} bytes each",
        laptop.hours(),
        disk >> 20,
        disk as f64 / kept as f64
    );
    println!(
        "append: {:.0} ns a record, {:.2} million a second on one core; labels and encoding before it {:.0} ns",
        per(appending),
        1e3 / per(appending),
        per(encoding),
    );

    let times = |mut what: Box<dyn FnMut() -> Result<()>>| -> Result<String> {
        let mut took = Vec::new();
        for _ in 0..options.times.max(1) {
            let begun = Instant::now();
            what()?;
            took.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        took.sort_by(f64::total_cmp);
        Ok(format!("{:.1} ms ({:.1} to {:.1})", took[took.len() / 2], took[0], took[took.len() - 1]))
    };
    let path = directory.clone();
    println!(
        "open to write: {}",
        times(Box::new(move || {
            Ring::open(&path, limits, HOST, Epoch(1), labels_of)?;
            Ok(())
        }))?
    );
    let path = directory.clone();
    println!(
        "open to read: {}",
        times(Box::new(move || {
            View::open_read_only(&path)?;
            Ok(())
        }))?
    );

    let view = View::open_read_only(&directory)?;
    let rare = rare.unwrap_or(BEGINS);
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let near = Window::new(rare.saturating_sub(minutes(5)), rare.saturating_add(minutes(5)))?;
    let last = Window::new(laptop.now.saturating_sub(minutes(10)), laptop.now)?;
    let day = Window::new(rare.saturating_sub(minutes(720)), rare.saturating_add(minutes(720)))?;
    let ever = Window::new(BEGINS, laptop.now)?;
    let busy = remote(0).to_string();
    for (words, target, window, found) in [
        ("an address, 10 minutes, once", RARE.to_string(), near, Some(1)),
        ("an address, ever, once", RARE.to_string(), ever, Some(1)),
        ("an address, ever, never", "203.0.113.99".to_owned(), ever, Some(0)),
        ("a busy address, last 10 minutes", busy.clone(), last, None),
        ("a busy address, a day", busy, day, None),
        ("a network /16, 10 minutes", "198.51.0.0/16".to_owned(), near, Some(1)),
        ("everything, 10 minutes", "0.0.0.0/0".to_owned(), near, None),
        ("a name, last 10 minutes", name(3), last, None),
        ("a name that was never asked for, 10 minutes", "nobody.example.org".to_owned(), near, None),
    ] {
        if !words.contains(&options.question) {
            continue;
        }
        let question = Question { target: Target::parse(&target, None, None)?, window };
        let mut connections = 0;
        let (view, known_until) = (view.clone(), laptop.now);
        let asked = question.clone();
        let ask = move || query::answer(&view, &asked, HOST, "laptop".to_owned(), Some(known_until));
        let (answer, _) = ask()?;
        answer.processes.iter().for_each(|process| connections += process.connections.len());
        ensure!(found.is_none_or(|found| found == connections), "{words}: {connections} found");
        let took = times(Box::new(move || {
            ask()?;
            Ok(())
        }))?;
        println!("{words}: {took}, {}, {connections} connections", answer.verdict.word());
    }
    Ok(())
}

fn bytes(directory: &std::path::Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

fn record(event: Event) -> Record {
    Record {
        seq: event.seq,
        speaks_from: event.speaks_from(),
        recorded: event.speaks_until(),
        labels: labels::of(&event),
        bytes: wire::Event::from(event).encode_to_vec(),
    }
}

fn remote(number: u64) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 | (number as u32).wrapping_mul(2_654_435_761) >> 8).into()
}

fn name(number: u64) -> String {
    format!("host-{number}.service-{}.example.com", number % 100)
}

/// A laptop on which programs start, ask for names and talk to the same few hosts, and sometimes to others.
struct Laptop {
    boot: HostBoot,
    random: fastrand::Rng,
    seq: u64,
    now: Timestamp,
    between: Duration,
    flows: u64,
    processes: Vec<ProcessUid>,
}

impl Laptop {
    fn new(hourly: u64) -> Self {
        Self {
            boot: HostBoot::new(HOST, "boot"),
            random: fastrand::Rng::with_seed(1),
            seq: 0,
            now: BEGINS,
            between: Duration::from_secs(3600) / u32::try_from(hourly).unwrap_or(u32::MAX),
            flows: 0,
            processes: vec![HostBoot::new(HOST, "boot").process(1, 1)],
        }
    }

    fn hours(&self) -> u64 {
        self.now.since(BEGINS).as_secs() / 3600
    }

    fn event(&mut self, kind: EventKind) -> Event {
        self.seq += 1;
        Event { seq: Seq(self.seq), recorded: self.moment(), kind }
    }

    fn moment(&self) -> Moment {
        Moment { wall: self.now, boot_ns: self.now.since(BEGINS).as_nanos() as u64 }
    }

    /// At least so many.
    fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        // As an agent says it again with each segment.
        if self.seq / RESTATED_EACH != (self.seq + count as u64) / RESTATED_EACH || self.seq == 0 {
            let announced_from = Some(Seq(self.seq + 1));
            for facet in Facet::ALL {
                let change = CoverageChange {
                    facet,
                    grade: Grade::Complete,
                    from: BEGINS,
                    to: None,
                    scope: None,
                    announced_from,
                };
                events.push(self.event(EventKind::CoverageChanged(change)));
            }
        }
        while events.len() < count {
            let pause = self.between.mul_f64(self.random.f64() * 2.0);
            self.now = self.now.saturating_add(pause);
            if self.flows.is_multiple_of(CONNECTIONS_PER_PROCESS) {
                events.extend(self.process());
            }
            // Half of all go to the same few, the rest anywhere.
            let number =
                if self.random.bool() { self.random.u64(0..20) } else { self.random.u64(0..REMOTES) };
            if self.random.u8(0..4) == 0 {
                events.push(self.resolution(number));
            }
            events.push(self.flow(remote(number)));
        }
        events
    }

    /// One starts, and another ends.
    fn process(&mut self) -> Vec<Event> {
        let pid = 1_000 + (self.flows / CONNECTIONS_PER_PROCESS % 4_000_000) as u32;
        let uid = self.boot.process(pid, self.now.since(BEGINS).as_millis() as u64 / 10);
        let parent = *self.random.choice(&self.processes).unwrap_or(&uid);
        let program = self.random.u32(0..200);
        let image = ProcessImage {
            path: Some(format!("/usr/bin/program-{program}")),
            name: format!("program-{program}"),
            arguments: vec![
                format!("/usr/bin/program-{program}"),
                "--session".to_owned(),
                format!("{:x}", self.random.u32(..)),
            ],
            working_directory: Some("/home/jdoe".to_owned()),
            user: Some(User { id: "1000".to_owned(), name: Some("jdoe".to_owned()) }),
            ..ProcessImage::default()
        };
        let started = self.now;
        let record = ProcessRecord {
            uid,
            pid,
            parent: Some(parent),
            parent_pid: Some(1),
            started,
            already_running: false,
            image,
        };
        let mut events = vec![self.event(EventKind::ProcessStarted(Box::new(record)))];
        self.processes.push(uid);
        if self.processes.len() > 100 {
            let uid = self.processes.remove(1 + self.random.usize(0..50));
            let exit = ProcessExit { uid, exited: self.now, exit_code: Some(0) };
            events.push(self.event(EventKind::ProcessExited(exit)));
        }
        events
    }

    fn resolution(&mut self, number: u64) -> Event {
        let resolution = NameResolution {
            at: self.now,
            name: name(number),
            aliases: vec![],
            addresses: vec![remote(number)],
            ttl_s: 60,
            server: SocketAddr::from(([10, 0, 0, 1], 53)),
            process: None,
            network_namespace: Some(1),
        };
        self.event(EventKind::NameResolved(Box::new(resolution)))
    }

    fn flow(&mut self, remote: IpAddr) -> Event {
        self.flows += 1;
        let remote = SocketAddr::new(remote, 443);
        let opened = self.now.saturating_sub(Duration::from_micros(self.random.u64(100..900_000)));
        let flow = FlowRecord {
            connection: self.boot.connection(Protocol::Tcp, remote, self.flows),
            process: self.random.choice(&self.processes).copied(),
            attribution: Attribution::InKernel,
            protocol: Protocol::Tcp,
            direction: Direction::Outbound,
            local: SocketAddr::from(([192, 168, 1, 17], self.random.u16(32_768..))),
            remote,
            first: opened,
            last: self.now,
            traffic: Some(Traffic {
                bytes_sent: self.random.u64(200..4_000),
                bytes_received: self.random.u64(500..100_000),
                packets_sent: self.random.u64(5..40),
                packets_received: self.random.u64(5..80),
                packets_retransmitted: 0,
            }),
            state: FlowState::Closed,
            end_reason: FlowEndReason::EndOfFlow,
            record: 0,
            interface: None,
            network_namespace: Some(4_026_531_840),
            opened,
            already_open: false,
            round_trip: Some(Duration::from_nanos(self.random.u64(1_000_000..60_000_000))),
            remote_name: Some(RemoteName { name: "host.example.com".to_owned(), source: NameSource::Dns }),
        };
        self.event(EventKind::Flow(Box::new(flow)))
    }
}
