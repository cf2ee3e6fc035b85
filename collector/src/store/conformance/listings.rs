//! What searches list, page by page.

use std::net::{IpAddr, SocketAddr};

use alibi_proto::{
    flow::{FlowRecord, Protocol, RECORD_SPAN_MAX},
    id::{ConnectionUid, HostId, ProcessUid},
    process::ProcessRecord,
};
use ipnet::IpNet;

use super::{Home, samples::*};
use crate::{
    search::{cursor::Place, document::Truth, time::Stretch},
    store::{
        Store, StoreError,
        listing::{
            FlowListing, FlowOrder, HostStretch, ListedFlow, OWNERS_MAX, PROCESSES_READ_MAX, Page,
            ProcessListing, RECORDS_OF_PROCESS_MAX, RECORDS_READ_MAX, RecordSelection,
        },
    },
};

const OTHER: HostId = HostId::from_bytes([8; 16]);
const ORDERS: [FlowOrder; 3] = [FlowOrder::Newest, FlowOrder::Oldest, FlowOrder::MostBytes];

fn follow_other(store: &impl Store) {
    assert!(store.add_agent("two:1").unwrap());
    store.describe("two:1", &description(OTHER), None, at(1)).unwrap();
}

fn stretch(from: u64, to: u64) -> Stretch {
    Stretch { from: at(from), to: at(to) }
}

fn random_flow(random: &mut fastrand::Rng) -> FlowRecord {
    let remotes = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "192.0.2.255", "2001:db8::1", "::1"];
    let address: IpAddr = remotes[random.usize(0..remotes.len())].parse().unwrap();
    let first = random.u64(0..5_000);
    let mut flow = flow("10.0.0.1:1", first, first + random.u64(0..=RECORD_SPAN_MAX.as_secs()));
    flow.remote = SocketAddr::new(address, random.u16(440..444));
    flow.protocol = if random.bool() { Protocol::Tcp } else { Protocol::Udp };
    flow.record = random.u32(..);
    flow.traffic.as_mut().unwrap().bytes_received = random.u64(0..1_000);
    flow
}

/// What is asked of flow records.
struct Asked {
    hosts: Vec<HostStretch>,
    remotes: Option<Vec<IpNet>>,
    port: Option<u16>,
    protocol: Option<Protocol>,
    /// Only those whose number is a multiple, which is not kept in columns.
    every: u32,
    order: FlowOrder,
}

impl Asked {
    fn random(random: &mut fastrand::Rng) -> Self {
        let some = |random: &mut fastrand::Rng| {
            let from = random.u64(0..6_000);
            if random.bool() { Stretch::EVER } else { stretch(from, from + random.u64(0..2_000)) }
        };
        let mut hosts: Vec<HostStretch> =
            [HOST, OTHER].map(|host| HostStretch { host, stretch: some(random) }).into();
        if random.bool() {
            hosts.remove(random.usize(0..2));
        }
        let networks = ["10.0.0.0/24", "10.0.1.1/32", "2001:db8::/32", "::/0", "0.0.0.0/0", "10.0.0.2/32"];
        let network = |random: &mut fastrand::Rng| networks[random.usize(0..networks.len())].parse().unwrap();
        Self {
            hosts,
            remotes: random.bool().then(|| (0..random.usize(1..4)).map(|_| network(random)).collect()),
            port: random.bool().then(|| random.u16(440..444)),
            protocol: [None, Some(Protocol::Tcp), Some(Protocol::Udp)][random.usize(0..3)],
            every: [1, 2, 30][random.usize(0..3)],
            order: ORDERS[random.usize(0..3)],
        }
    }

    fn page(&self, store: &impl Store, after: Option<Place>, limit: usize) -> Page<ListedFlow> {
        let mut wants = |_, flow: &FlowRecord| Ok::<_, StoreError>(flow.record.is_multiple_of(self.every));
        let Self { remotes, port, protocol, order, .. } = self;
        let selection = RecordSelection {
            hosts: &self.hosts,
            remotes: remotes.as_deref(),
            port: *port,
            protocol: *protocol,
        };
        let mut listing = FlowListing { selection, order: *order, after, limit, wants: &mut wants };
        store.list_flows(&mut listing).unwrap()
    }

    /// All pages: what they list, and whether one was cut.
    fn pages(&self, store: &impl Store, limit: usize) -> (Vec<FlowRecord>, bool) {
        let (mut flows, mut is_cut, mut after) = (Vec::new(), false, None);
        for _ in 0..10_000 {
            let page = self.page(store, after, limit);
            assert!(page.rows.len() <= limit && page.damage.is_empty());
            assert!(page.next.is_none() || page.next > after, "it goes on");
            is_cut |= page.cut.is_some();
            flows.extend(page.rows.into_iter().map(|row| row.flow));
            after = page.next;
            if after.is_none() {
                return (flows, is_cut);
            }
        }
        panic!("the pages do not end");
    }

    /// What is listed, by trying every record: in the order of the listing, and what is equal in that of hosts and events.
    fn plainly(&self, stored: &[(HostId, Vec<FlowRecord>)]) -> Vec<FlowRecord> {
        let mut found = Vec::new();
        for (host, flows) in stored {
            let Some(asked) = self.hosts.iter().find(|asked| asked.host == *host) else { continue };
            let Stretch { from, to } = asked.stretch;
            let is_meant = |flow: &&FlowRecord| {
                let remote = flow.remote.ip();
                flow.first <= to
                    && flow.last >= from.saturating_sub(RECORD_SPAN_MAX)
                    && self.remotes.as_ref().is_none_or(|all| all.iter().any(|net| net.contains(&remote)))
                    && self.port.is_none_or(|port| port == flow.remote.port())
                    && self.protocol.is_none_or(|protocol| protocol == flow.protocol)
                    && flow.record.is_multiple_of(self.every)
            };
            found.extend(flows.iter().filter(is_meant).cloned());
        }
        let bytes = |flow: &FlowRecord| {
            let traffic = flow.traffic.unwrap();
            traffic.bytes_sent + traffic.bytes_received
        };
        found.sort_by_key(|flow| match self.order {
            FlowOrder::Newest => u64::MAX - flow.last.as_nanos(),
            FlowOrder::Oldest => flow.last.as_nanos(),
            FlowOrder::MostBytes => u64::MAX - bytes(flow),
        });
        found
    }
}

pub(in crate::store) fn of_flows_are_what_a_plain_search_lists_page_by_page<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    follow_other(&store);
    let mut random = fastrand::Rng::with_seed(21);
    let mut some = |count: usize| -> Vec<FlowRecord> {
        std::iter::repeat_with(|| random_flow(&mut random)).take(count).collect()
    };
    let stored = [(HOST, some(1_500)), (OTHER, some(300))];
    for (host, flows) in &stored {
        let mut seq = 1;
        for part in flows.chunks(100) {
            store.commit(*host, &batch(EPOCH, seq, super::samples::flows(part)), at(2)).unwrap();
            seq += part.len() as u64;
        }
    }
    let mut cut = [0, 0];
    for _ in 0..150 {
        let asked = Asked::random(&mut random);
        let want = asked.plainly(&stored);
        let (got, is_cut) = asked.pages(&store, random.usize(1..400));
        cut[usize::from(is_cut)] += 1;
        match asked.order {
            // There is no part of it in that order that can be told without the rest.
            FlowOrder::MostBytes if is_cut => {
                assert!(want.len() as u64 * u64::from(asked.every) > RECORDS_READ_MAX / 4)
            }
            _ => assert_eq!(got, want),
        }
    }
    assert!(cut.iter().all(|count| *count >= 5), "{cut:?}");
}

pub(in crate::store) fn of_flows_go_on_where_they_were_while_more_comes<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let stored: Vec<_> = (0..100).map(|second| flow("10.0.0.1:1", second, second)).collect();
    store.commit(HOST, &batch(EPOCH, 1, flows(&stored)), at(2)).unwrap();
    let asked = Asked {
        hosts: vec![HostStretch { host: HOST, stretch: stretch(0, 99) }],
        remotes: None,
        port: None,
        protocol: None,
        every: 1,
        order: FlowOrder::Newest,
    };
    let first = asked.page(&store, None, 30);
    let later: Vec<_> = (100..200).map(|second| flow("10.0.0.1:1", second, second)).collect();
    store.commit(HOST, &batch(EPOCH, 101, flows(&later)), at(2)).unwrap();
    let second = asked.page(&store, first.next, 100);
    let listed: Vec<_> = first.rows.into_iter().chain(second.rows).map(|row| row.flow).collect();
    assert_eq!(listed, stored.into_iter().rev().collect::<Vec<_>>());
    assert_eq!(second.next, None);
    assert_eq!(asked.page(&store, None, 0).rows, []);
}

/// A process that is told from any other.
fn numbered(number: u16, started: u64) -> ProcessRecord {
    let mut uid = [0; 16];
    uid[..2].copy_from_slice(&number.to_be_bytes());
    ProcessRecord { uid: ProcessUid::from_bytes(uid), pid: number.into(), ..process(1, None, started) }
}

fn of(process: &ProcessRecord, connection: u8, first: u64, last: u64) -> FlowRecord {
    let connection = ConnectionUid::from_bytes([connection; 16]);
    FlowRecord { process: Some(process.uid), connection, ..flow("10.0.0.9:22", first, last) }
}

const EVERYWHERE: [HostStretch; 2] =
    [HostStretch { host: HOST, stretch: Stretch::EVER }, HostStretch { host: OTHER, stretch: Stretch::EVER }];

/// The numbers of the processes on a page, each with how many connections it has where that was looked up.
type Listed = Vec<(u32, Option<usize>)>;

fn list(
    store: &impl Store,
    hosts: &[HostStretch],
    with_record: Option<RecordSelection<'_>>,
    (after, limit): (Option<Place>, usize),
    least_connections: Option<usize>,
) -> (Listed, Page<()>) {
    let mut wants = |candidate: &crate::store::listing::Candidate<'_>| match least_connections {
        None => Truth::Yes,
        Some(least) => {
            candidate.connections.map_or(Truth::Perhaps, |connections| (connections.len() >= least).into())
        }
    };
    let mut listing =
        ProcessListing { hosts, with_record, with_parent: true, after, limit, wants: &mut wants };
    let page = store.list_processes(&mut listing).unwrap();
    let row = |row: &crate::store::listing::ListedProcess| {
        (row.life.record.pid, row.connections.as_ref().map(Vec::len))
    };
    let rows = page.rows.iter().map(row).collect();
    let Page { next, cut, looked_at, damage, .. } = page;
    (rows, Page { rows: vec![], next, cut, looked_at, damage })
}

pub(in crate::store) fn of_processes_are_the_newest_first_page_by_page<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    follow_other(&store);
    let mut random = fastrand::Rng::with_seed(22);
    let processes: Vec<_> = (0..200).map(|number| numbered(number, random.u64(100..200))).collect();
    let mut connections = vec![0_usize; 200];
    let mut kinds: Vec<_> = processes.iter().map(start).collect();
    for process in &processes {
        connections[process.pid as usize] = random.usize(0..3);
        let own = (0..connections[process.pid as usize] as u8)
            .flat_map(|connection| [of(process, connection, 200, 250), of(process, connection, 250, 300)]);
        kinds.extend(flows(&own.collect::<Vec<_>>()));
    }
    store.commit(HOST, &batch(EPOCH, 1, kinds), at(2)).unwrap();
    store.commit(OTHER, &batch(EPOCH, 1, vec![start(&numbered(500, 150))]), at(2)).unwrap();

    let mut newest_first: Vec<&ProcessRecord> = processes.iter().collect();
    newest_first.sort_by_key(|process| (std::cmp::Reverse(process.started), process.uid));
    let only_host = [HostStretch { host: HOST, stretch: stretch(120, 180) }];
    for least in [None, Some(0), Some(1), Some(2), Some(3)] {
        for limit in [1, 7, 60, 1_000] {
            let want: Listed = newest_first
                .iter()
                .filter(|process| process.started >= at(120) && process.started <= at(180))
                .map(|process| (process.pid, connections[process.pid as usize]))
                .filter(|(_, connections)| least.is_none_or(|least| *connections >= least))
                .map(|(pid, connections)| (pid, least.map(|_| connections)))
                .collect();
            let (mut got, mut after, mut is_cut) = (Listed::new(), None, false);
            loop {
                let (rows, page) = list(&store, &only_host, None, (after, limit), least);
                assert!(rows.len() <= limit && page.looked_at <= 2 * PROCESSES_READ_MAX as u64);
                assert!(after.is_none() || page.next > after || page.next.is_none());
                got.extend(rows);
                is_cut |= page.cut.is_some();
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(got, want, "{least:?}, {limit} on a page");
            assert!(is_cut || limit < 60, "{limit}");
        }
    }
    let (rows, _) = list(&store, &EVERYWHERE[1..], None, (None, 10), Some(0));
    assert_eq!(rows, [(500, Some(0))]);
}

pub(in crate::store) fn of_processes_find_an_old_one_by_its_connections<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let (old, newer) = (numbered(1, 10), (2..150).map(|number| numbered(number, 1_000)));
    let mut kinds: Vec<_> =
        std::iter::once(start(&old)).chain(newer.map(|process| start(&process))).collect();
    kinds.extend(flows(&[of(&old, 1, 100, 110), of(&old, 2, 5_000, 5_010)]));
    store.commit(HOST, &batch(EPOCH, 1, kinds), at(2)).unwrap();

    let (rows, page) = list(&store, &EVERYWHERE, None, (None, 10), Some(1));
    assert_eq!((rows.len(), page.cut.is_some(), page.next.is_some()), (0, true, true), "newest first");
    let selected = |from, to| -> Listed {
        let hosts = [HostStretch { host: HOST, stretch: stretch(from, to) }];
        let selection = RecordSelection { hosts: &hosts, remotes: None, port: Some(22), protocol: None };
        let (rows, page) = list(&store, &EVERYWHERE, Some(selection), (None, 10), Some(1));
        assert_eq!((page.cut, page.next), (None, None));
        rows
    };
    assert_eq!(selected(4_000, 6_000), [(1, Some(2))]);
    assert_eq!(selected(5_005, 5_005), [(1, Some(2))]);
    assert_eq!(selected(2_000, 3_000), []);
}

pub(in crate::store) fn of_processes_say_what_was_not_read<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    // More owners than are looked at.
    let owners: Vec<_> = (0..3 * OWNERS_MAX as u16).map(|number| numbered(number, 10)).collect();
    let mut kinds: Vec<_> = owners.iter().map(start).collect();
    let own = owners.iter().map(|owner| of(owner, 1, 100, 100 + u64::from(owner.pid)));
    kinds.extend(flows(&own.collect::<Vec<_>>()));
    // More records of one than are read.
    let busy = numbered(900, 20);
    kinds.push(start(&busy));
    let count = RECORDS_OF_PROCESS_MAX as u64 + 5;
    kinds.extend(flows(&(0..count).map(|at| of(&busy, at as u8, 300 + at, 300 + at)).collect::<Vec<_>>()));
    store.commit(HOST, &batch(EPOCH, 1, kinds), at(2)).unwrap();

    let selection = RecordSelection { hosts: &EVERYWHERE, remotes: None, port: None, protocol: None };
    let (rows, page) = list(&store, &EVERYWHERE, Some(selection), (None, 1_000), None);
    assert!(page.cut.is_some_and(|cut| cut.contains("more processes have such connections")), "{page:?}");
    assert_eq!(rows.len(), OWNERS_MAX);
    assert!(rows.contains(&(900, None)) && rows.contains(&(3 * OWNERS_MAX as u32 - 1, None)), "{rows:?}");

    let (rows, page) = list(&store, &EVERYWHERE, None, (None, 1), Some(1));
    assert_eq!(rows, [(900, Some(RECORDS_OF_PROCESS_MAX))]);
    assert!(page.cut.is_some_and(|cut| cut.contains("more records of connections")), "{page:?}");
}
