//! On how many hosts an executable was seen, first and last, held against a plain look at all that was told.

use std::collections::BTreeMap;

use alibi_proto::{
    event::EventKind,
    executable::{
        ExecutableRecord, ExecutableSighting, FileIdentity, Package, Sha256, Signature, SignatureStatus,
    },
    id::{HostId, ProcessUid},
    prevalence::{Identity, Sighting, Times},
    process::{ProcessExecution, ProcessImage, ProcessRecord},
    time::Timestamp,
    window::Window,
};

use super::{Home, samples::*};
use crate::store::{LAST_WITHIN, SIGHTING_PATHS_MAX, SIGHTINGS_KEPT, SIGHTINGS_OF_HOST_MAX, Store};

const OTHER: HostId = HostId::from_bytes([8; 16]);

fn follow_both(store: &impl Store) {
    follow(store);
    store.add_agent("two:1").unwrap();
    store.describe("two:1", &description(OTHER), Some(&same_clock()), at(1)).unwrap();
}

fn file(inode: u64) -> FileIdentity {
    FileIdentity { device: 1, inode, modified: at(5), size: 7 }
}

fn hash(byte: u8) -> Sha256 {
    Sha256::from_bytes([byte; 32])
}

fn image(path: &str, inode: Option<u64>, sha256: Option<u8>) -> ProcessImage {
    ProcessImage {
        path: Some(path.into()).filter(|path: &String| !path.is_empty()),
        name: "x".into(),
        file: inode.map(file),
        sha256: sha256.map(hash),
        ..ProcessImage::default()
    }
}

fn started(number: u64, secs: u64, image: ProcessImage) -> EventKind {
    let uid = ProcessUid::from_bytes(u128::from(number).to_be_bytes());
    start(&ProcessRecord { uid, image, ..process(1, None, secs) })
}

fn executed(number: u64, secs: u64, image: ProcessImage) -> EventKind {
    let uid = ProcessUid::from_bytes(u128::from(number).to_be_bytes());
    EventKind::ProcessExecuted(Box::new(ProcessExecution { uid, executed: at(secs), image }))
}

fn seen(
    secs: u64,
    path: &str,
    inode: Option<u64>,
    sha256: Option<u8>,
    sighting: ExecutableSighting,
) -> EventKind {
    EventKind::ExecutableSeen(Box::new(ExecutableRecord {
        at: at(secs),
        path: path.into(),
        file: inode.map(file),
        sha256: sha256.map(hash),
        first_on_host: true,
        package: None,
        sighting,
        process: None,
        problem: sha256.is_none().then(|| "vanished".into()),
        signature: None,
        version: None,
    }))
}

/// What an event tells: of what, when, and whether it was written.
fn told(kind: &EventKind) -> Option<(ProcessImage, Timestamp, bool)> {
    match kind {
        EventKind::ProcessStarted(process) => Some((process.image.clone(), process.started, false)),
        EventKind::ProcessExecuted(execution) => Some((execution.image.clone(), execution.executed, false)),
        EventKind::ExecutableSeen(seen) => {
            let is_written = seen.sighting == ExecutableSighting::Written;
            let (path, file, sha256) = (Some(seen.path.clone()), seen.file, seen.sha256);
            Some((ProcessImage { path, file, sha256, ..ProcessImage::default() }, seen.at, is_written))
        }
        _ => None,
    }
}

/// What a host saw, from all that it ever told.
fn plain(events: &[EventKind]) -> BTreeMap<Identity, Sighting> {
    let told: Vec<_> = events.iter().filter_map(told).collect();
    let hash_of = |file: Option<FileIdentity>| {
        let mut known = events.iter().filter_map(|kind| match kind {
            EventKind::ExecutableSeen(seen) if seen.file == file => seen.sha256,
            _ => None,
        });
        file.and_then(|_| known.next())
    };
    let mut sightings: BTreeMap<Identity, Sighting> = BTreeMap::new();
    for (image, at, is_written) in told {
        let sha256 = image.sha256.or_else(|| hash_of(image.file));
        let Some(identity) = Identity::of(sha256, image.file, image.path.as_deref()) else { continue };
        let sighting = sightings.entry(identity).or_default();
        let times = if is_written { &mut sighting.written } else { &mut sighting.run };
        *times = Some(times.map_or(Times::once(at), |times| times.and(Times::once(at))));
    }
    sightings
}

/// A file has one content, and whoever tells its hash tells the same.
fn random_event(random: &mut fastrand::Rng, number: u64) -> EventKind {
    let secs = random.u64(1_000..30_000);
    let inode = random.bool().then(|| random.u64(1..6));
    let path = ["", "/bin/a", "/bin/b"][random.usize(0..3)];
    let content = inode.map(|inode| (inode % 3) as u8 + 1);
    let sha256 = content.filter(|_| random.bool());
    match random.u8(0..4) {
        0 => {
            let sighting = if random.bool() { ExecutableSighting::Run } else { ExecutableSighting::Written };
            seen(secs, "/bin/c", inode, sha256, sighting)
        }
        1 => executed(number, secs, image(path, inode, sha256)),
        _ => started(number, secs, image(path, inode, sha256)),
    }
}

#[track_caller]
fn is_told(store: &impl Store, hosts: &[(HostId, &[EventKind])]) {
    let mut by_identity: BTreeMap<Identity, BTreeMap<HostId, Sighting>> = BTreeMap::new();
    for (host, events) in hosts {
        for (identity, sighting) in plain(events) {
            by_identity.entry(identity).or_default().insert(*host, sighting);
        }
    }
    let is_near = |found: Option<Times>, want: Option<Times>| match (found, want) {
        (Some(found), Some(want)) => {
            found.first == want.first && found.last <= want.last && want.last.since(found.last) < LAST_WITHIN
        }
        (found, want) => found == want,
    };
    for (identity, want) in &by_identity {
        let found: BTreeMap<_, _> =
            store.sightings(identity).unwrap().into_iter().map(|on| (on.host, on.sighting)).collect();
        assert_eq!(found.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{identity:?}");
        for (host, want) in want {
            let found = found[host];
            let both = is_near(found.run, want.run) && is_near(found.written, want.written);
            assert!(both, "{identity:?}: {found:?}, and {want:?} was told");
        }
    }
    for (host, events) in hosts {
        let (from, to) = (at(5_000), at(25_000));
        let window = Window::new(from, to).unwrap();
        let mut want: Vec<(Timestamp, Identity)> = plain(events)
            .into_iter()
            .filter_map(|(identity, sighting)| Some((sighting.times()?.first, identity)))
            .filter(|(first, _)| window.contains(*first))
            .collect();
        want.sort();
        let found = store.first_seen(*host, window, 100).unwrap();
        let mut listed: Vec<_> = found
            .rows
            .into_iter()
            .map(|seen| (seen.sighting.times().unwrap().first, seen.identity))
            .collect();
        assert!(listed.is_sorted_by(|one, other| one.0 >= other.0), "newest first");
        listed.sort();
        assert_eq!((listed, found.left_out), (want, 0));
    }
}

pub(in crate::store) fn is_what_all_that_was_told_comes_to<H: Home>() {
    for seed in 0..20 {
        let home = H::new();
        let mut store = home.open();
        follow_both(&store);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut events: [Vec<EventKind>; 2] = Default::default();
        for round in 0..12 {
            for (host, stored) in [HOST, OTHER].into_iter().zip(&mut events) {
                let count = random.usize(1..20);
                let first = stored.len() as u64 + 1;
                let new: Vec<_> =
                    (first..).map(|number| random_event(&mut random, number)).take(count).collect();
                store.commit(host, &batch(EPOCH, first, new.clone()), at(2)).unwrap();
                if random.bool() {
                    store.commit(host, &batch(EPOCH, first, new.clone()), at(3)).unwrap();
                }
                stored.extend(new);
            }
            if round % 5 == 4 {
                drop(store);
                store = home.open();
            }
        }
        is_told(&store, &[(HOST, &events[0]), (OTHER, &events[1])]);
    }
}

pub(in crate::store) fn costs_no_doubt_where_a_batch_is_refused<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let run = started(1, 5_000, image("/bin/a", Some(1), Some(1)));
    // It is taken in, but for its last event, which does not continue the stream.
    let mut refused = batch(EPOCH, 1, vec![run.clone(), run.clone()]);
    refused.events[1].seq = alibi_proto::id::Seq(9);
    store.commit(HOST, &refused, at(2)).unwrap_err();
    assert!(store.sightings(&Identity::Sha256(hash(1))).unwrap().is_empty());
    store.commit(HOST, &batch(EPOCH, 1, vec![run]), at(2)).unwrap();
    assert_eq!(store.sightings(&Identity::Sha256(hash(1))).unwrap().len(), 1);
}

pub(in crate::store) fn tells_what_it_was_called_and_what_it_is<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow_both(&store);
    let with = |package: Option<&str>, signature: Option<Signature>| {
        let EventKind::ExecutableSeen(mut record) =
            seen(6_000, "/bin/a", Some(1), Some(1), ExecutableSighting::Run)
        else {
            panic!()
        };
        record.package =
            package.map(|name| Package { name: name.into(), version: "1".into(), source: "dpkg".into() });
        record.signature = signature;
        EventKind::ExecutableSeen(record)
    };
    let trusted = Signature::of_status(SignatureStatus::Trusted, None);
    let told = vec![
        with(Some("tool"), Some(Signature::not_checked("busy"))),
        with(None, Some(trusted.clone())),
        with(Some("another"), None),
        started(1, 7_000, image("/tmp/b", Some(1), None)),
    ];
    store.commit(HOST, &batch(EPOCH, 1, told), at(2)).unwrap();
    let window = Window::new(at(1), at(10_000)).unwrap();
    let one = |host| store.first_seen(host, window, 10).unwrap().rows.pop();
    let found = one(HOST).unwrap();
    assert_eq!((found.paths.as_slice(), found.more_paths), (&["/bin/a".into(), "/tmp/b".into()][..], false));
    assert_eq!(found.about.package.unwrap().name, "tool");
    assert_eq!(found.about.signature, Some(trusted));
    assert_eq!(one(OTHER), None, "nothing of it was told there");

    let many = (0..SIGHTING_PATHS_MAX as u64)
        .map(|number| started(10 + number, 8_000, image(&format!("/opt/{number}"), Some(1), Some(1))));
    store.commit(HOST, &batch(EPOCH, 5, many.collect()), at(2)).unwrap();
    let found = one(HOST).unwrap();
    assert_eq!((found.paths.len(), found.more_paths), (SIGHTING_PATHS_MAX, true));
}

pub(in crate::store) fn is_cut_to_the_limit_and_counted<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let runs =
        (1..=9_u8).map(|byte| started(byte.into(), 5_000 + u64::from(byte), image("/a", None, Some(byte))));
    store.commit(HOST, &batch(EPOCH, 1, runs.collect()), at(2)).unwrap();
    let window = Window::new(at(5_002), at(5_009)).unwrap();
    let found = store.first_seen(HOST, window, 3).unwrap();
    let listed: Vec<_> = found.rows.iter().map(|seen| seen.identity.clone()).collect();
    assert_eq!((listed, found.left_out), ([8, 7, 6].map(|byte| Identity::Sha256(hash(byte))).to_vec(), 4));
    assert!(store.first_seen(OTHER, window, 3).unwrap().rows.is_empty(), "a host that is not known");
}

pub(in crate::store) fn is_remembered_longer_than_what_it_was_made_of<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let kept = SIGHTINGS_KEPT.as_secs();
    let run = |number: u8, secs| started(number.into(), secs, image("/a", None, Some(number)));
    let mut events = vec![run(1, 1_000), run(2, 1_000), run(3, 9_000)];
    events.push(started(9, 2_000, image("/a", None, Some(2))));
    store.commit(HOST, &batch(EPOCH, 1, events), at(2)).unwrap();
    let known = |byte| !store.sightings(&Identity::Sha256(hash(byte))).unwrap().is_empty();
    store.forget(at(1_000 + kept)).unwrap();
    assert_eq!([known(1), known(2), known(3)], [true; 3]);
    store.forget(at(1_001 + kept)).unwrap();
    // What was run again within the hour is not told later than it was written.
    assert_eq!([known(1), known(3)], [false, true]);
    assert_eq!(store.sightings_forgotten(HOST).unwrap(), None, "it was old, and nothing had to make room");
    // Forgotten, it is noted anew.
    store.commit(HOST, &batch(EPOCH, 5, vec![run(1, 1_000)]), at(2)).unwrap();
    assert!(known(1));
}

pub(in crate::store) fn is_bounded_for_each_host<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow_both(&store);
    let run = |number: u64, secs| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let image = ProcessImage { sha256: Some(Sha256::from_bytes(bytes)), ..image("/a", None, None) };
        started(number, secs, image)
    };
    let many = SIGHTINGS_OF_HOST_MAX as u64 + 10;
    let runs = (1..=many).map(|number| run(number, 1_000 + number)).collect();
    store.commit(HOST, &batch(EPOCH, 1, runs), at(2)).unwrap();
    store.commit(OTHER, &batch(EPOCH, 1, vec![run(1, 5)]), at(2)).unwrap();
    store.forget(at(2)).unwrap();
    let ever = Window::new(at(0), at(100_000)).unwrap();
    let listed = |host| store.first_seen(host, ever, 1_000).unwrap().rows;
    assert_eq!((listed(HOST).len(), listed(OTHER).len()), (SIGHTINGS_OF_HOST_MAX, 1));
    let oldest = listed(HOST).pop().unwrap().sighting.times().unwrap().first;
    assert_eq!(oldest, at(1_011), "those that were seen last are kept");
    let forgotten = [HOST, OTHER].map(|host| store.sightings_forgotten(host).unwrap());
    assert_eq!(forgotten, [Some(at(1_010)), None], "a host that tells of many takes nothing from others");
}
