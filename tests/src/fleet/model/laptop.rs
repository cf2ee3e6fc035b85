//! One laptop.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    mem,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use alibi_agent::capture::{
    ConnectionChange, Fact, Observation, ObservedConnection, ObservedProcess, ObservedResolution,
    ObservedServerName, ProcessKey, SocketKey,
};
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    flow::{Attribution, Direction, FlowState, Protocol, Traffic},
    process::{ProcessImage, User},
    time::{Moment, Timestamp},
};
use fastrand::Rng;

use super::{Began, Lived, Plan, Step, Unrecorded, World, world::By};

const HOUR: Duration = Duration::from_secs(3600);
/// A name that was resolved is asked for again after so long.
const RESOLVED_S: std::ops::Range<u64> = 60..3_600;
/// What is begun is over so long before the look at which it is told.
const ROOM: Duration = Duration::from_millis(40);
const NAMESPACE: Option<u64> = Some(1);
const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 53));

const BROWSER: Program = Program("/usr/lib/firefox/firefox", "firefox");
const MAIL: Program = Program("/usr/bin/thunderbird", "thunderbird");
const UPDATER: Program = Program("/usr/libexec/updater", "updater");
const SSH: Program = Program("/usr/bin/ssh", "ssh");
const SSHD: Program = Program("/usr/sbin/sshd", "sshd");
const INIT: Program = Program("/usr/lib/systemd/systemd", "systemd");
const HELPERS: [Program; 4] = [
    Program("/usr/bin/curl", "curl"),
    Program("/usr/bin/git", "git"),
    Program("/usr/bin/python3.11", "python3"),
    Program("/usr/libexec/telemetry", "telemetry"),
];

/// Its path and short name.
#[derive(Clone, Copy, Debug)]
struct Program(&'static str, &'static str);

#[derive(Clone, Copy, Debug)]
struct Process {
    key: ProcessKey,
    program: Program,
    started: Timestamp,
}

/// A connection that is open.
#[derive(Debug)]
struct Open {
    local: SocketAddr,
    owner: Process,
    /// The owner ends with it.
    is_helpers: bool,
    site: Option<u32>,
    direction: Direction,
    state: FlowState,
    ends_as: FlowState,
    /// Where the stretch of its life began that is not told of in any step yet.
    since: Timestamp,
    ends: Timestamp,
    /// The source has seen it.
    is_told: bool,
    traffic: Traffic,
    /// Between two times that something moves, if it does so now and then.
    moves_each: Option<Duration>,
}

/// A laptop, and where in its history it is.
#[derive(Debug)]
pub struct Laptop {
    plan: Plan,
    world: Arc<World>,
    rng: Rng,
    /// Its time zone, east of UTC.
    zone_s: u64,
    is_closed_at_night: bool,
    own_address: IpAddr,
    now: Timestamp,
    began: bool,
    ended: bool,
    residents: Vec<Process>,
    next_pid: u32,
    next_socket: u64,
    open: BTreeMap<SocketKey, Open>,
    due: BinaryHeap<Reverse<(Timestamp, SocketKey)>>,
    resolved: HashMap<u32, Timestamp>,
    /// Events that are still to be made.
    owed: f64,
    told: Vec<Observation>,
    lived: Vec<Lived>,
    /// What the source loses in this step, of what concerns connections.
    loss: Loss,
}

#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    share: f64,
    count: u64,
}

impl Laptop {
    pub(super) fn new(plan: Plan, world: Arc<World>, number: u32) -> Self {
        let mut rng = Rng::with_seed(plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(number));
        let begins = plan.begins();
        let ago = |hours: u64| begins.saturating_sub(HOUR * u32::try_from(hours).unwrap_or(1));
        let resident = |pid: u32, program, hours| {
            let key = ProcessKey { pid, start: u64::from(pid) };
            Process { key, program, started: ago(hours) }
        };
        let residents = vec![
            resident(1, INIT, 100),
            resident(1_001, BROWSER, 20),
            resident(1_002, MAIL, 30),
            resident(1_003, UPDATER, 90),
            resident(1_004, SSH, 26),
            resident(1_005, SSHD, 99),
        ];
        Self {
            zone_s: [0, 1, 6, 9][number as usize % 4] * 3_600,
            is_closed_at_night: rng.f64() < 0.7,
            own_address: Ipv4Addr::from(0x0A10_0000 | number & 0x000F_FFFF).into(),
            plan,
            world,
            rng,
            now: begins,
            began: false,
            ended: false,
            residents,
            next_pid: 2_000,
            next_socket: 1,
            open: BTreeMap::new(),
            due: BinaryHeap::new(),
            resolved: HashMap::new(),
            owed: 0.0,
            told: Vec::new(),
            lived: Vec::new(),
            loss: Loss::default(),
        }
    }

    fn moment(&self, wall: Timestamp) -> Moment {
        self.plan.moment(wall)
    }

    /// Up to where its history has come.
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// What comes next; none once the history has ended.
    pub fn step(&mut self) -> Option<Step> {
        if self.ended {
            return None;
        }
        if !mem::replace(&mut self.began, true) {
            self.begin();
            return Some(self.finish(Began::First, self.now, None));
        }
        Some(if self.plan.is_eventful { self.eventful() } else { self.look(self.plan.look(), 0.0) })
    }

    /// What an agent finds when it is started first.
    fn begin(&mut self) {
        let now = self.now;
        for resident in self.residents.clone() {
            self.tell_process(resident, now, true);
        }
        // Somewhere in the middle of its life: opened before anybody looked.
        let ends = self.later(4..60);
        self.open_long(4, 22, now, ends, true);
        for _ in 0..self.rng.u32(2..6) {
            let ends = self.later(1..10);
            self.open_long(1, 443, now, ends, true);
        }
    }

    fn later(&mut self, hours: std::ops::Range<u64>) -> Timestamp {
        let seconds = self.rng.u64(hours.start * 3_600..hours.end * 3_600);
        self.now.saturating_add(Duration::from_secs(seconds))
    }

    /// Now and then something other than a look.
    fn eventful(&mut self) -> Step {
        let hours = self.plan.look().as_secs_f64() / 3_600.0;
        let hour = (self.now.as_nanos() / 1_000_000_000 + self.zone_s) / 3_600 % 24;
        let is_night = !(8..22).contains(&hour);
        let draw = self.rng.f64() / hours;
        let seconds = |rng: &mut Rng, range| Duration::from_secs(rng.u64(range));
        match draw {
            _ if is_night && self.is_closed_at_night => {
                let until_eight = (32 - hour) % 24 * 3_600;
                let sleep =
                    seconds(&mut self.rng, until_eight.max(3_600) - 1_800..until_eight.max(3_600) + 1_800);
                self.sleep(sleep)
            }
            draw if draw < 0.04 => {
                let away = seconds(&mut self.rng, 20..1_200);
                self.away(away, Began::Killed)
            }
            draw if draw < 0.08 => {
                let away = seconds(&mut self.rng, 5..600);
                self.away(away, Began::Stopped)
            }
            draw if draw < 0.35 => {
                let sleep = seconds(&mut self.rng, 60..5_400);
                self.sleep(sleep)
            }
            draw if draw < 0.65 => {
                let length = seconds(&mut self.rng, 2..90);
                self.look(length, 0.5)
            }
            _ => self.look(self.plan.look(), 0.0),
        }
    }

    /// The source looks after so long; it loses this share of what happened to connections, and knows that.
    fn look(&mut self, length: Duration, loses: f64) -> Step {
        let (from, until) = (self.now, self.ending(length));
        self.loss = Loss { share: loses, count: 0 };
        self.live(from, until);
        let lost = mem::take(&mut self.loss).count;
        let unrecorded = (lost > 0).then(|| self.tell_loss(lost, from, until));
        self.finish(Began::GoingOn, until, unrecorded)
    }

    /// What it lost it lists, as far as it is open still, and only then says that it lost something.
    fn tell_loss(&mut self, count: u64, from: Timestamp, until: Timestamp) -> Unrecorded {
        self.told.sort_by_key(|observation| observation.at.wall);
        self.tell_all_open(until);
        let grade = Grade::Lost { count, reason: "the buffer was full".to_owned() };
        let (facet, to) = (Facet::Connections, Some(until));
        let change = CoverageChange { facet, grade, from, to, scope: None, announced_from: None };
        self.tell(until, Fact::Coverage(change));
        Unrecorded { from, to: until, doubtful_from: from }
    }

    fn tell_all_open(&mut self, at: Timestamp) {
        let untold = self.open.iter_mut().filter(|(_, open)| !open.is_told);
        let facts: Vec<Fact> = untold
            .map(|(socket, open)| {
                open.is_told = true;
                opened(*socket, open, true)
            })
            .collect();
        facts.into_iter().for_each(|fact| self.tell(at, fact));
    }

    /// Nothing runs for so long.
    fn sleep(&mut self, length: Duration) -> Step {
        let (from, until) = (self.now, self.ending(length));
        let mut again = Vec::new();
        for (socket, open) in &mut self.open {
            self.lived.push(lived(*socket, open, from, from));
            open.since = until;
            // Half of them are found to be dead then; what was to end meanwhile ends afterwards.
            if self.rng.bool() || open.ends <= until {
                open.ends = until.saturating_add(Duration::from_millis(self.rng.u64(100..5_000)));
                again.push((open.ends, *socket));
            }
        }
        self.due.extend(again.into_iter().map(Reverse));
        let (from, to) = (self.moment(from), self.moment(until));
        self.tell(until, Fact::Suspended { from, to });
        self.finish(Began::GoingOn, until, None)
    }

    /// The agent is not there for so long, and then finds what is open.
    fn away(&mut self, length: Duration, began: Began) -> Step {
        let (from, until) = (self.now, self.ending(length));
        self.live(from, until);
        self.told.clear();
        let mut running: BTreeMap<ProcessKey, Process> =
            self.residents.iter().map(|resident| (resident.key, *resident)).collect();
        for open in self.open.values_mut() {
            open.is_told = false;
            running.insert(open.owner.key, open.owner);
        }
        for process in running.into_values() {
            self.tell_process(process, until, true);
        }
        self.tell_all_open(until);
        let doubtful_from = from.saturating_sub(Duration::from_secs(1));
        self.finish(began, until, Some(Unrecorded { from, to: until, doubtful_from }))
    }

    fn ending(&self, length: Duration) -> Timestamp {
        self.now.saturating_add(length).min(self.plan.ends())
    }

    fn finish(&mut self, began: Began, until: Timestamp, unrecorded: Option<Unrecorded>) -> Step {
        self.now = until;
        if until >= self.plan.ends() {
            self.ended = true;
            for (socket, open) in &self.open {
                self.lived.push(lived(*socket, open, until, until));
            }
        }
        let (mut told, lived) = (mem::take(&mut self.told), mem::take(&mut self.lived));
        told.sort_by_key(|observation| observation.at.wall);
        Step { began, told, until, lived, unrecorded }
    }

    /// What happens between two instants: what was to end or to move does, and something new begins.
    fn live(&mut self, from: Timestamp, until: Timestamp) {
        let length = until.since(from);
        self.owed += self.plan.events_per_s * length.as_secs_f64() * self.diligence(from);
        let span = u64::try_from(length.saturating_sub(ROOM).as_nanos()).unwrap_or(u64::MAX).max(1);
        while self.owed >= 1.0 {
            let at = from.saturating_add(Duration::from_nanos(self.rng.u64(0..span)));
            self.owed -= self.begin_something(at);
        }
        while let Some(&Reverse((at, socket))) = self.due.peek()
            && at < until
        {
            self.due.pop();
            // What was to move while the laptop slept does so now.
            self.come_due(at.max(from), socket, until);
        }
    }

    /// How much is done at this time of the day.
    fn diligence(&self, at: Timestamp) -> f64 {
        if !self.plan.is_eventful {
            return 1.0;
        }
        match (at.as_nanos() / 1_000_000_000 + self.zone_s) / 3_600 % 24 {
            9..=11 | 13..=17 => 1.0,
            8 | 12 | 18..=21 => 0.4,
            _ => 0.05,
        }
    }

    fn come_due(&mut self, at: Timestamp, socket: SocketKey, until: Timestamp) {
        let Some(open) = self.open.get_mut(&socket) else { return };
        if open.ends <= at {
            self.end(socket, at, until);
        } else if let Some(each) = open.moves_each {
            let bytes = self.rng.u64(50..20_000);
            open.traffic.bytes_sent += bytes / 4;
            open.traffic.bytes_received += bytes;
            open.traffic.packets_sent += 1;
            open.traffic.packets_received += 1 + bytes / 1_400;
            let (traffic, is_told, ends) = (open.traffic, open.is_told, open.ends);
            self.due.push(Reverse((at.saturating_add(each).min(ends), socket)));
            if is_told && self.hears() {
                let change = ConnectionChange { traffic: Some(traffic), ..ConnectionChange::default() };
                self.tell(at, Fact::ConnectionChanged { socket, change });
            }
        }
    }

    fn end(&mut self, socket: SocketKey, at: Timestamp, until: Timestamp) {
        let Some(open) = self.open.remove(&socket) else { return };
        let mut told_last = at;
        if open.is_told {
            // What it has not heard it finds out as it lists what is open.
            told_last = if self.hears() { at } else { until };
            let change = ConnectionChange { traffic: Some(open.traffic), ..ConnectionChange::default() };
            self.tell(told_last, Fact::ConnectionClosed { socket, state: open.ends_as, change });
        }
        self.lived.push(lived(socket, &open, at, told_last));
        if open.is_helpers {
            let after = at.saturating_add(Duration::from_millis(1));
            self.tell(after.min(until), Fact::ProcessExited { process: open.owner.key, exit_code: Some(0) });
        }
    }

    /// Begins something, and says how many events that makes.
    fn begin_something(&mut self, at: Timestamp) -> f64 {
        match self.rng.f64() {
            draw if draw < 0.02 => {
                let ends = at.saturating_add(Duration::from_secs(self.rng.u64(600..36_000)));
                let (resident, port) = if self.rng.bool() { (4, 22) } else { (1, 443) };
                self.open_long(resident, port, at, ends, false);
                2.0
            }
            draw if draw < 0.05 => self.fail(at),
            draw if draw < 0.07 => self.come_in(at),
            draw if draw < 0.17 => {
                let helper = self.helper(at);
                2.0 + self.visit(helper, true, at.saturating_add(Duration::from_millis(1)))
            }
            _ => {
                let resident = self.residents[[1, 1, 1, 2, 3][self.rng.usize(0..5)]];
                self.visit(resident, false, at)
            }
        }
    }

    fn helper(&mut self, at: Timestamp) -> Process {
        let key = ProcessKey { pid: self.next_pid, start: at.as_nanos() / 10_000_000 };
        self.next_pid = if self.next_pid >= 4_000_000 { 2_000 } else { self.next_pid + 1 };
        let program = HELPERS[self.rng.usize(0..HELPERS.len())];
        let process = Process { key, program, started: at };
        self.tell_process(process, at, false);
        process
    }

    /// A name is resolved, unless that was just done, and its site is asked for something.
    fn visit(&mut self, owner: Process, is_helpers: bool, at: Timestamp) -> f64 {
        let world = Arc::clone(&self.world);
        let rank = world.some_site(&mut self.rng);
        let site = world.site(rank);
        let mut events = 0.0;
        let is_known = self.resolved.get(&rank).is_some_and(|until| *until > at);
        if let Some(name) = site.name.as_ref().filter(|_| !is_known) {
            events += self.resolve(rank, name, &site.addresses, owner, at);
        }
        let opened = at.saturating_add(Duration::from_millis(3));
        let (protocol, port) = match site.by {
            By::Tls => (Protocol::Tcp, 443),
            By::Quic => (Protocol::Udp, 443),
            By::Plain => (Protocol::Tcp, 80),
        };
        let remote = site.addresses[self.rng.usize(0..site.addresses.len())];
        let lasts_ms = if self.rng.f64() < 0.7 { self.rng.u64(15..900) } else { self.rng.u64(900..90_000) };
        let ends = opened.saturating_add(Duration::from_millis(lasts_ms));
        let open = self.open_now(owner, is_helpers, Some(rank), opened, ends);
        let socket = self.begin_connection(protocol, (remote, port).into(), open, opened);
        if let (By::Tls, Some(name)) = (site.by, &site.name) {
            let local = self.open[&socket].local;
            let hello = ObservedServerName {
                name: Some(name.clone()),
                direction: Direction::Outbound,
                socket: Some(socket.socket),
                local,
                remote: socket.remote,
                network_namespace: NAMESPACE,
            };
            self.tell(opened.saturating_add(Duration::from_millis(2)), Fact::ServerName(Box::new(hello)));
            events += 1.0;
        }
        events + if lasts_ms < 1_000 { 1.0 } else { 2.0 }
    }

    fn resolve(&mut self, rank: u32, name: &str, addresses: &[IpAddr], owner: Process, at: Timestamp) -> f64 {
        let ttl_s = self.rng.u64(RESOLVED_S);
        self.resolved.retain(|_, until| *until > at);
        self.resolved.insert(rank, at.saturating_add(Duration::from_secs(ttl_s)));
        let ends = at.saturating_add(Duration::from_millis(2));
        let open = self.open_now(owner, false, None, at, ends);
        let server = SocketAddr::from((RESOLVER, 53));
        let socket = self.begin_connection(Protocol::Udp, server, open, at);
        let answer = ObservedResolution {
            name: name.to_owned(),
            aliases: Vec::new(),
            addresses: addresses.to_vec(),
            ttl_s: u32::try_from(ttl_s).unwrap_or(u32::MAX),
            server,
            local: self.open[&socket].local,
            process: Some(owner.key),
            network_namespace: NAMESPACE,
        };
        self.tell(at.saturating_add(Duration::from_millis(1)), Fact::NameResolved(Box::new(answer)));
        2.0
    }

    /// Nobody answers, or says no; what is refused is tried again at once.
    fn fail(&mut self, at: Timestamp) -> f64 {
        let world = Arc::clone(&self.world);
        let rank = world.some_site(&mut self.rng);
        let site = world.site(rank);
        let (remote, owner) = ((site.addresses[0], 443).into(), self.residents[3]);
        let is_refused = self.rng.bool();
        let tries = if is_refused { self.rng.u64(1..5) } else { 1 };
        for number in 0..tries {
            let at = at.saturating_add(Duration::from_millis(5 * number));
            let lasts = Duration::from_millis(if is_refused { 1 } else { self.rng.u64(5_000..60_000) });
            let open = Open {
                state: FlowState::Attempted,
                ends_as: FlowState::Failed(if is_refused { 111 } else { 110 }),
                traffic: Traffic::default(),
                // It was asked for by its address.
                ..self.open_now(owner, false, None, at, at.saturating_add(lasts))
            };
            self.begin_connection(Protocol::Tcp, remote, open, at);
        }
        tries as f64
    }

    /// Somebody in the same network connects to this laptop.
    fn come_in(&mut self, at: Timestamp) -> f64 {
        let remote = SocketAddr::from((
            Ipv4Addr::from(0x0A10_0000 | self.rng.u32(0..1 << 12)),
            self.rng.u16(32_768..),
        ));
        let ends = at.saturating_add(Duration::from_millis(self.rng.u64(20..5_000)));
        let owner = self.residents[5];
        let open = Open {
            local: (self.own_address, 22).into(),
            direction: Direction::Inbound,
            ..self.open_now(owner, false, None, at, ends)
        };
        self.begin_connection(Protocol::Tcp, remote, open, at);
        1.5
    }

    /// One of the programs that run all the time keeps a connection, over which something moves now and then.
    fn open_long(&mut self, resident: usize, port: u16, at: Timestamp, ends: Timestamp, already_open: bool) {
        let world = Arc::clone(&self.world);
        let rank = world.some_site(&mut self.rng);
        let remote = SocketAddr::from((world.site(rank).addresses[0], port));
        let owner = self.residents[resident];
        let each = Duration::from_secs(self.rng.u64(10..1_800));
        let open = Open {
            moves_each: Some(each),
            is_told: already_open,
            ..self.open_now(owner, false, None, at, ends)
        };
        let socket = self.begin_connection(Protocol::Tcp, remote, open, at);
        self.due.push(Reverse((at.saturating_add(each).min(ends), socket)));
        if already_open {
            let fact = opened(socket, &self.open[&socket], true);
            self.tell(at, fact);
        }
    }

    fn open_now(
        &mut self,
        owner: Process,
        is_helpers: bool,
        site: Option<u32>,
        since: Timestamp,
        ends: Timestamp,
    ) -> Open {
        let port = 32_768 + u16::try_from(self.next_socket % 28_000).unwrap_or(0);
        let bytes = self.rng.u64(200..60_000);
        Open {
            local: (self.own_address, port).into(),
            owner,
            is_helpers,
            site,
            direction: Direction::Outbound,
            state: FlowState::Established,
            ends_as: FlowState::Closed,
            since,
            ends,
            is_told: false,
            traffic: Traffic {
                bytes_sent: bytes / 8,
                bytes_received: bytes,
                packets_sent: 3 + bytes / 3_000,
                packets_received: 3 + bytes / 1_400,
                packets_retransmitted: 0,
            },
            moves_each: None,
        }
    }

    /// It is opened, and told, unless the source has told it already or does not hear it.
    fn begin_connection(
        &mut self,
        protocol: Protocol,
        remote: SocketAddr,
        mut open: Open,
        at: Timestamp,
    ) -> SocketKey {
        let socket = SocketKey { protocol, remote, socket: self.next_socket };
        self.next_socket += 1;
        if !open.is_told && self.hears() {
            open.is_told = true;
            let fact = opened(socket, &open, false);
            self.tell(at, fact);
        }
        self.due.push(Reverse((open.ends, socket)));
        self.open.insert(socket, open);
        socket
    }

    fn hears(&mut self) -> bool {
        let hears = self.loss.share <= 0.0 || self.rng.f64() >= self.loss.share;
        self.loss.count += u64::from(!hears);
        hears
    }

    fn tell_process(&mut self, process: Process, at: Timestamp, already_running: bool) {
        let Program(path, name) = process.program;
        let image = ProcessImage {
            path: Some(path.to_owned()),
            name: name.to_owned(),
            arguments: vec![name.to_owned()],
            user: Some(User { id: "1000".to_owned(), name: Some("jdoe".to_owned()) }),
            ..ProcessImage::default()
        };
        let parent = (process.key.pid != 1).then(|| self.residents[0].key);
        let observed = ObservedProcess {
            process: process.key,
            parent,
            parent_pid: parent.map(|parent| parent.pid),
            started: process.started,
            already_running,
            image,
        };
        self.tell(at, Fact::ProcessStarted(Box::new(observed)));
    }

    fn tell(&mut self, at: Timestamp, fact: Fact) {
        self.told.push(Observation { at: self.moment(at), fact });
    }
}

fn opened(socket: SocketKey, open: &Open, already_open: bool) -> Fact {
    Fact::ConnectionOpened(Box::new(ObservedConnection {
        socket,
        local: open.local,
        owner: Some(open.owner.key),
        attribution: Attribution::InKernel,
        direction: open.direction,
        state: open.state,
        already_open,
        traffic: Some(if already_open { open.traffic } else { Traffic::default() }),
        interface: Some("wlan0".to_owned()),
        network_namespace: NAMESPACE,
    }))
}

fn lived(socket: SocketKey, open: &Open, last: Timestamp, told_last: Timestamp) -> Lived {
    Lived {
        socket,
        owner: open.owner.key,
        path: open.owner.program.0,
        site: open.site,
        direction: open.direction,
        first: open.since,
        last,
        told_last,
    }
}
