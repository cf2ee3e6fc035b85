//! The log as its users see it. What it takes to falsify it is tried where the file is, in the store.

use std::{net::IpAddr, thread};

use super::*;

const HOST: HostId = HostId::from_bytes([1; 16]);
const OTHER: HostId = HostId::from_bytes([2; 16]);

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn open(directory: &tempfile::TempDir) -> Audit {
    let store = AccessStore::open(&directory.path().join("access.db")).unwrap();
    Audit::open(Arc::new(store)).unwrap()
}

fn note(action: &str) -> Note {
    Note {
        actor: Actor::Nobody,
        from: "10.0.0.1".into(),
        action: action.into(),
        detail: String::new(),
        outcome: "ok".into(),
        rows: 0,
        scope: Scope::Hosts(vec![]),
    }
}

fn by(name: &str, action: &str, scope: Scope) -> Note {
    Note { actor: Actor::Analyst { name: name.into(), role: Role::Analyst }, scope, ..note(action) }
}

fn actions(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.action.as_str()).collect()
}

#[test]
fn what_is_noted_is_read_as_it_was_and_outlives_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let audit = open(&directory);
    let asked = Note {
        detail: "203.0.113.9, last 10m".into(),
        rows: 3,
        ..by("jdoe", "who", Scope::Hosts(vec![OTHER, HOST, OTHER]))
    };
    assert_eq!(audit.append(asked, at(100)).unwrap(), 1);
    let enrolled = Note { actor: Actor::Host(HOST), scope: Scope::Hosts(vec![HOST]), ..note("enrol") };
    assert_eq!(audit.append(enrolled, at(90)).unwrap(), 2);
    assert_eq!(*audit.newest().borrow(), 2);
    drop(audit);

    let audit = open(&directory);
    assert_eq!(*audit.newest().borrow(), 2);
    let Entries { entries, more } = audit.entries(0, 10, &Filter::default()).unwrap();
    let [enrolled, asked] = &entries[..] else { panic!("{entries:?}") };
    assert!(!more);
    let of = |entry: &Entry| (entry.seq, entry.at, entry.who.clone(), entry.role.clone(), entry.rows);
    assert_eq!(of(asked), (1, at(100), "jdoe".into(), "analyst".into(), 3));
    assert_eq!((&asked.hosts[..], asked.all_hosts), (&[HOST, OTHER][..], false), "each once");
    assert_eq!(of(enrolled), (2, at(90), HOST.to_string(), "host".into(), 0));
    assert_eq!(asked.head, asked.head_after(&Entry::head_of_nothing()));
    assert_eq!(enrolled.head, enrolled.head_after(&asked.head));
    let verified = audit.verify().unwrap();
    let wanted = (1, 2, enrolled.head, vec![]);
    assert_eq!((verified.from_seq, verified.to_seq, verified.head, verified.problems), wanted);
}

/// So that whoever keeps a head elsewhere can make it again.
#[test]
fn a_head_is_made_as_it_is_documented() {
    let entry =
        Entry::new(1, at(1), &by("jdoe", "who", Scope::Hosts(vec![HOST])), 0, &Entry::head_of_nothing());
    let mut bytes = blake3::hash(b"alibi audit 1").as_bytes().to_vec();
    bytes.push(1);
    let fields: [&[u8]; 12] = [
        &1_u64.to_le_bytes(),
        &1_000_000_000_u64.to_le_bytes(),
        b"jdoe",
        b"analyst",
        b"10.0.0.1",
        b"who",
        b"",
        b"ok",
        &[0; 8],
        &[1; 16],
        &[0],
        &[0; 8],
    ];
    for field in fields {
        bytes.extend((field.len() as u32).to_le_bytes());
        bytes.extend(field);
    }
    assert_eq!(entry.head, Head::from_bytes(*blake3::hash(&bytes).as_bytes()));
}

#[test]
fn what_is_too_long_is_cut_and_marked() {
    let entry = |note: Note| Entry::new(1, at(1), &note, 0, &Entry::head_of_nothing());
    for (text, want) in [
        ("x".repeat(TEXT_BYTES_MAX), "x".repeat(TEXT_BYTES_MAX)),
        ("x".repeat(TEXT_BYTES_MAX + 1), format!("{}…", "x".repeat(TEXT_BYTES_MAX - 3))),
        ("ä".repeat(TEXT_BYTES_MAX), format!("{}…", "ä".repeat(TEXT_BYTES_MAX / 2 - 2))),
    ] {
        let cut = entry(Note { detail: text.clone(), outcome: text.clone(), from: text, ..note("who") });
        assert_eq!((&cut.detail, &cut.outcome, &cut.from), (&want, &want, &want));
        assert!(cut.detail.len() <= TEXT_BYTES_MAX);
    }
    let hosts =
        |count: usize| (0..count).map(|host| HostId::from_bytes([host as u8; 16])).collect::<Vec<_>>();
    let few = entry(by("jdoe", "who", Scope::Hosts(hosts(HOSTS_MAX))));
    assert_eq!((few.hosts.len(), few.all_hosts), (HOSTS_MAX, false));
    let many = entry(by("jdoe", "who", Scope::Hosts(hosts(HOSTS_MAX + 1))));
    assert_eq!((many.hosts.len(), many.all_hosts), (0, true), "none of them misses it");
}

#[test]
fn entries_are_found_by_place_host_and_analyst() {
    let directory = tempfile::tempdir().unwrap();
    let audit = open(&directory);
    for (name, action, scope) in [
        ("jdoe", "1", Scope::All),
        ("jdoe", "2", Scope::Hosts(vec![HOST])),
        ("mroe", "3", Scope::Hosts(vec![HOST, OTHER])),
        ("mroe", "4", Scope::Hosts(vec![])),
        ("jdoe", "5", Scope::Hosts(vec![OTHER])),
    ] {
        audit.append(by(name, action, scope), at(1)).unwrap();
    }
    let filter = |host: Option<HostId>, who: Option<&str>| Filter { host, who: who.map(str::to_owned) };
    for (before, limit, filter, want, more) in [
        (0, 10, filter(None, None), &["5", "4", "3", "2", "1"][..], false),
        (0, 5, filter(None, None), &["5", "4", "3", "2", "1"], false),
        (0, 2, filter(None, None), &["5", "4"], true),
        (4, 2, filter(None, None), &["3", "2"], true),
        (2, 2, filter(None, None), &["1"], false),
        (1, 2, filter(None, None), &[], false),
        (u64::MAX, 1, filter(None, None), &["5"], true),
        (0, 0, filter(None, None), &[], true),
        (0, 10, filter(Some(HOST), None), &["3", "2", "1"], false),
        (0, 10, filter(Some(OTHER), None), &["5", "3", "1"], false),
        (0, 10, filter(None, Some("jdoe")), &["5", "2", "1"], false),
        (5, 1, filter(Some(HOST), Some("jdoe")), &["2"], true),
        (0, 10, filter(None, Some("jd")), &[], false),
    ] {
        let found = audit.entries(before, limit, &filter).unwrap();
        assert_eq!(
            (actions(&found.entries), found.more),
            (want.to_vec(), more),
            "{before} {limit} {filter:?}"
        );
    }
}

#[test]
fn a_hosts_owner_sees_what_analysts_did_about_it() {
    let directory = tempfile::tempdir().unwrap();
    let audit = open(&directory);
    let host = |action| Note { actor: Actor::Host(HOST), scope: Scope::Hosts(vec![HOST]), ..note(action) };
    for note in [
        by("jdoe", "1", Scope::All),
        host("2"),
        by("jdoe", "3", Scope::Hosts(vec![HOST])),
        Note { scope: Scope::All, ..note("4") },
        by("jdoe", "5", Scope::Hosts(vec![OTHER])),
        by("jdoe", "6", Scope::Hosts(vec![])),
        by("mroe", "7", Scope::Hosts(vec![OTHER, HOST])),
        by("mroe", "8", Scope::All),
    ] {
        audit.append(note, at(1)).unwrap();
    }
    for (after, limit, want) in [
        (0, 10, &["1", "3", "7", "8"][..]),
        (0, 3, &["1", "3", "7"]),
        (1, 1, &["3"]),
        (3, 10, &["7", "8"]),
        (8, 10, &[]),
        (u64::MAX, 10, &[]),
    ] {
        let found = audit.entries_about(HOST, after, limit).unwrap();
        let actions =
            |found: &[Arc<Entry>]| found.iter().map(|entry| entry.action.clone()).collect::<Vec<_>>();
        assert_eq!(actions(&found), want, "after {after}, {limit}");
        // What is in memory tells the same, as far as it reaches back.
        let recent = audit.recent_about(HOST, after, limit);
        let is_there = after >= 8 - recent::RECENT_MAX as u64;
        assert_eq!(recent.is_some(), is_there, "after {after}");
        assert!(recent.is_none_or(|recent| actions(&recent) == want), "after {after}, {limit}");
    }
}

#[test]
fn many_note_at_once_and_each_has_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let audit = open(&directory);
    let mut seqs: Vec<u64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| (0..20).map(|_| audit.append(note("x"), at(1)).unwrap()).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=160).collect::<Vec<_>>());
    assert_eq!(*audit.newest().borrow(), 160);
    assert_eq!(audit.verify().unwrap().problems, Vec::<String>::new());
}

#[test]
fn a_flood_of_refusals_costs_little() {
    let directory = tempfile::tempdir().unwrap();
    let audit = open(&directory);
    // For ten seconds, from a thousand addresses.
    for index in 0..100_000_u32 {
        let from = IpAddr::from((0x0a00_0000 + index % 1_000).to_be_bytes());
        let now = Timestamp::from_nanos(1_000_000_000_000 + u64::from(index) * 100_000);
        let outcome = "the credential is not known";
        let refusal = Refusal { from: Some(from), action: "ask", outcome, ..Refusal::default() };
        audit.refused(&refusal, now).unwrap();
    }
    audit.flush(at(1_060)).unwrap();
    audit.flush(at(1_080)).unwrap();
    let entries = audit.entries(0, ENTRIES_MAX, &Filter::default()).unwrap().entries;
    assert!(entries.len() <= 2 * (REFUSALS_FOLDED_MAX + 1), "{}", entries.len());
    let refusals: u64 = entries.iter().map(|entry| entry.repeats.max(1)).sum();
    assert_eq!(refusals, 100_000, "each is counted");
}

#[test]
fn refusals_that_are_counted_are_noted_when_the_log_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let audit = open(&directory);
    let from = "10.0.0.1".parse().ok();
    let refusal = Refusal { from, action: "enrol", outcome: "expired", ..Refusal::default() };
    (0..5).for_each(|secs| audit.refused(&refusal, at(secs)).unwrap());
    drop(audit);
    let entries = open(&directory).entries(0, 10, &Filter::default()).unwrap().entries;
    let told: Vec<_> = entries.iter().map(|entry| (entry.from.as_str(), entry.at, entry.repeats)).collect();
    assert_eq!(told, [("10.0.0.1", at(4), 4), ("10.0.0.1", at(0), 0)]);
}

/// A disk that is full keeps nobody from an answer at once, and what waits is written, in order, when there is room.
#[test]
fn a_full_disk_is_waited_for_and_what_waits_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let audit = open(&directory);
    let long = |seq: u64| Note { detail: format!("{seq} {}", "x".repeat(1_000)), ..note("who") };
    audit.append(long(1), at(1)).unwrap();
    audit.store.fill(true);
    let mut appended = 1;
    let mut waits = || {
        appended += 1;
        audit.append(long(appended), at(appended)).map(|seq| seq == 0)
    };
    // Some still find room in what there is.
    let tries = (0..100).take_while(|_| !waits().unwrap()).count();
    assert!(tries < 100, "it never gets full");
    (1..WAITING_MAX).for_each(|_| assert!(waits().unwrap()));
    assert!(matches!(waits(), Err(StoreError::Full { .. })), "no more wait than that");
    appended -= 1;

    audit.store.fill(false);
    audit.flush(at(200)).unwrap();
    assert_eq!(*audit.newest().borrow(), appended);
    let entries = audit.entries(0, 200, &Filter::default()).unwrap().entries;
    let begins =
        |entry: &Entry| entry.detail.starts_with(&format!("{} ", entry.seq)) && entry.at == at(entry.seq);
    assert!(entries.iter().all(begins), "in order, each with its own time");
    assert_eq!(audit.verify().unwrap().problems, Vec::<String>::new());
}
