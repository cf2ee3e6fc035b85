use super::{
    fixtures::{ALL, Fixture, Value, network},
    *,
};

const CREATED: u64 = 133_000_000_000_000_000;

fn decode(fixture: &Fixture) -> What {
    Event::decode(&fixture.record()).unwrap().unwrap().what
}

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_start_is_read_in_every_version() {
    for version in 0..=4 {
        let fixture = Fixture::new(
            (Provider::Process, 1, version),
            &[
                ("ProcessID", Value::Number(4_711)),
                ("CreateTime", Value::Number(CREATED)),
                ("ParentProcessID", Value::Number(815)),
                ("ImageName", Value::Text(r"\Device\HarddiskVolume3\Windows\é.exe")),
            ],
        );
        let want = Started {
            pid: 4_711,
            created: since_1970(CREATED),
            parent_pid: 815,
            image: r"\Device\HarddiskVolume3\Windows\é.exe".to_owned(),
        };
        assert_eq!(decode(&fixture), What::ProcessStarted(want), "version {version}");
    }
}

#[test]
fn a_stop_is_read_in_every_version() {
    for version in 0..=2 {
        let fixture = Fixture::new(
            (Provider::Process, 2, version),
            &[
                ("ProcessID", Value::Number(4_711)),
                ("CreateTime", Value::Number(CREATED)),
                ("ExitCode", Value::Number(0xc000_0005)),
            ],
        );
        let want = What::ProcessStopped { pid: 4_711, created: since_1970(CREATED), exit_code: 0xc000_0005 };
        assert_eq!(decode(&fixture), want, "version {version}");
    }
}

#[test]
fn the_network_is_read_with_its_ends_as_they_are() {
    let kinds = [
        (fixtures::SENT, TcpEvent::Sent),
        (fixtures::RECEIVED, TcpEvent::Received),
        (fixtures::CONNECTED, TcpEvent::Connected),
        (fixtures::DISCONNECTED, TcpEvent::Disconnected),
        (fixtures::RETRANSMITTED, TcpEvent::Retransmitted),
        (fixtures::ACCEPTED, TcpEvent::Accepted),
    ];
    for (local, remote) in [("10.0.0.1:50000", "192.0.2.7:443"), ("[2001:db8::1]:50000", "[2001:db8::2]:443")]
    {
        for (ids, kind) in kinds {
            let fixture = network(ids, 12, 34, local, remote);
            let want = What::Tcp { what: kind, pid: 12, bytes: 34, local: end(local), remote: end(remote) };
            assert_eq!(decode(&fixture), want);
        }
        for (ids, is_sent) in [(fixtures::UDP_SENT, true), (fixtures::UDP_RECEIVED, false)] {
            let fixture = network(ids, 12, 34, local, remote);
            let want =
                What::Udp { is_sent, pid: 12, bytes: 34, source: end(local), destination: end(remote) };
            assert_eq!(decode(&fixture), want);
        }
    }
    let mapped = network(fixtures::SENT, 1, 1, "[::ffff:10.0.0.1]:5", "[::ffff:192.0.2.7]:443");
    assert!(matches!(decode(&mapped), What::Tcp { remote, .. } if remote == end("192.0.2.7:443")));
}

#[test]
fn an_attempt_is_read_from_its_request_to_its_end() {
    for (local, remote) in [("0.0.0.0:0", "192.0.2.7:443"), ("[::1]:9", "[::2]:443")] {
        let [local, remote] = [local, remote].map(end);
        let ends = [("LocalAddress", Value::At(local)), ("RemoteAddress", Value::At(remote))];
        let tcb = ("Tcb", Value::Number(0xffff_8000_1234_5678));
        let values = [ends.to_vec(), vec![tcb.clone()]].concat();
        let requested = Fixture::new((Provider::Tcpip, 1002, 0), &values).by(77);
        let tcb = 0xffff_8000_1234_5678;
        assert_eq!(decode(&requested), What::ConnectRequested { tcb, pid: 77, local, remote });
        for version in 0..=1 {
            let values = [
                values.clone(),
                vec![("ProcessId", Value::Number(77)), ("Status", Value::Number(0xc000_0236))],
            ]
            .concat();
            for (id, failure) in [(1033, None), (1034, Some(0xc000_0236))] {
                let ended = Fixture::new((Provider::Tcpip, id, version), &values);
                assert_eq!(decode(&ended), What::ConnectEnded { tcb, pid: 77, local, remote, failure });
            }
        }
    }
}

#[test]
fn a_pointer_of_a_32_bit_program_has_four_bytes() {
    let ends = [7, 0, 0, 0].to_vec();
    let endpoint = [16, 0, 0, 0, 2, 0, 1, 187, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    let payload = [ends, endpoint.to_vec(), endpoint.to_vec(), vec![0; 8]].concat();
    let fixture = Fixture::new((Provider::Tcpip, 1002, 0), &[]);
    let record = Record { pointer_bytes: 4, payload: &payload, ..fixture.record() };
    let event = Event::decode(&record).unwrap().unwrap();
    assert!(
        matches!(event.what, What::ConnectRequested { tcb: 7, remote, .. } if remote == end("192.0.2.7:443"))
    );
}

#[test]
fn a_lookup_is_read_with_who_asked() {
    let fixture = Fixture::new(
        (Provider::Dns, 3008, 0),
        &[
            ("QueryName", Value::Text("Cloud.Example.com")),
            ("QueryType", Value::Number(28)),
            ("QueryStatus", Value::Number(0)),
            ("QueryResults", Value::Text("::ffff:192.0.2.7;")),
        ],
    );
    let want = What::Resolved {
        pid: 99,
        name: "Cloud.Example.com".to_owned(),
        query_type: 28,
        status: 0,
        results: "::ffff:192.0.2.7;".to_owned(),
    };
    assert_eq!(decode(&fixture.by(99)), want);
}

/// Whatever is cut off what is needed, the event is torn; what is not needed may be cut, and nothing else comes of it.
#[test]
fn every_truncation_is_torn_or_the_same() {
    for (provider, id, version) in ALL {
        let whole = Fixture::new((*provider, *id, *version), &[]);
        let want = decode(&whole);
        let mut torn = 0;
        for length in 0..whole.payload.len() {
            let mut cut = whole.clone();
            cut.payload.truncate(length);
            match Event::decode(&cut.record()) {
                Ok(event) => assert_eq!(event.unwrap().what, want, "{provider:?} {id} cut to {length}"),
                Err(unreadable) => {
                    assert_eq!(unreadable.why, Why::Torn { id: *id });
                    assert_eq!(torn, length, "what is torn at a length is torn at every smaller one");
                    torn += 1;
                }
            }
        }
        assert!(torn > 0, "{provider:?} {id} {version}");
    }
}

#[test]
fn a_version_that_is_not_known_is_refused_and_named() {
    for (provider, id, version) in ALL.iter().filter(|known| known.0 != Provider::Own) {
        let known = |version| ALL.contains(&(*provider, *id, version));
        let next = version + 1;
        let fixture = Fixture::new((*provider, *id, *version), &[]).of_version(next);
        let decoded = Event::decode(&fixture.record());
        if known(next) {
            continue;
        }
        let why = Why::UnknownVersion { id: *id, version: next };
        assert_eq!(decoded, Err(Unreadable { provider: *provider, why }));
    }
}

#[test]
fn what_is_not_asked_for_is_passed_over() {
    let start = Fixture::new((Provider::Process, 1, 0), &[]);
    for id in [0, 3, 5, 15, u16::MAX] {
        let record = Record { id, version: 99, payload: &[], ..start.record() };
        assert_eq!(Event::decode(&record), Ok(None));
    }
}

#[test]
fn random_bytes_are_read_or_refused() {
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..200_000 {
        let (provider, id, version) = ALL[random.usize(..ALL.len())];
        let mut payload = vec![0; random.usize(..200)];
        random.fill(&mut payload);
        let fixture = Fixture::new((provider, id, version), &[]);
        let _ = Event::decode(&Record { payload: &payload, ..fixture.record() });
    }
}
