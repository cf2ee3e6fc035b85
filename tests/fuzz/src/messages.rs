//! Messages that are put together out of bytes, and sound ones to begin with.

use std::{fs, path::Path};

use alibi_proto::{
    chain::Head,
    frame::{Frame, Packer},
    id::Seq,
    wire::{self, event::Kind},
};
use prost::Message as _;

use crate::{FIX, HEADER, NTH, segments, sound};

/// A payload of these columns.
pub fn payload(columns: &[u8]) -> Vec<u8> {
    let mut payload = vec![1];
    payload.extend((columns.len() as u32).to_le_bytes());
    payload.extend(zstd::bulk::compress(columns, 1).unwrap());
    payload
}

/// Events in frames that are numbered and chained as they should be. Two bytes say where the first is; then each event
/// has a byte for its length, of which the highest bit ends a frame.
pub fn response(bytes: &[u8]) -> Option<wire::TailResponse> {
    let (&[how, seq], mut rest) = bytes.split_first_chunk()?;
    let mut seq = u64::from(seq);
    let hole = wire::Hole { first_seq: 1, last_seq: seq, ..wire::Hole::default() };
    let mut frames: Vec<Frame> = Vec::new();
    let mut events: Vec<Vec<u8>> = Vec::new();
    while let Some((&length, after)) = rest.split_first() {
        let (event, after) = after.split_at(usize::from(length & 0x7f).min(after.len()));
        rest = after;
        seq += 1;
        // What comes last in a message counts.
        events.push([event, &[0x08], &varint(seq)].concat());
        if length & 0x80 != 0 || rest.is_empty() {
            let each: Vec<&[u8]> = events.iter().map(Vec::as_slice).collect();
            let (count, first_seq) = (each.len() as u32, Seq(seq + 1 - each.len() as u64));
            frames.push(Frame { first_seq, count, payload: Packer::default().pack(&each) });
            events.clear();
        }
    }
    let previous = Head::from_bytes([7; Head::BYTES]);
    let head = frames.iter().fold(previous, |head, frame| head.then(frame));
    Some(wire::TailResponse {
        hole: (how & 1 != 0).then_some(hole),
        previous_head: (how & 2 == 0).then(|| previous.as_bytes().to_vec()),
        head: Some(head.as_bytes().to_vec()),
        frames: frames.into_iter().map(Into::into).collect(),
        ..wire::TailResponse::default()
    })
}

fn varint(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}

/// Puts what a target begins with where `ALIBI_FUZZ_SEEDS` says, before that is read.
pub fn seed(target: &str) {
    let Some(directory) = std::env::var_os("ALIBI_FUZZ_SEEDS") else { return };
    let seeds = seeds().into_iter().filter(|(of, _)| *of == target).flat_map(|(_, seeds)| seeds);
    for (nth, seed) in seeds.enumerate() {
        fs::write(Path::new(&directory).join(format!("seed-{nth}")), seed).unwrap();
    }
}

/// For each target, a sound one of everything.
fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let segment = |nth: usize, how: u8| {
        let bytes = &sound()[segments()[nth]];
        let from = if how & HEADER != 0 { 0 } else { crate::SEGMENT_HEADER_BYTES };
        [&[how | NTH * nth as u8], &bytes[from..]].concat()
    };
    let segment_seeds = (0..3).flat_map(|nth| [0, FIX, FIX | HEADER, HEADER].map(|how| segment(nth, how)));
    let checkpoint = &sound()["checkpoint"];
    let contents: Vec<&[u8]> =
        checkpoint.chunks(crate::SLOT_BYTES).map(|slot| &slot[..crate::SLOT_CONTENT_BYTES]).collect();
    let checkpoint_seeds =
        vec![[&[FIX], contents.concat().as_slice()].concat(), [&[0], checkpoint.as_slice()].concat()];
    let frames = [&b"\x03\x03\x01abcabx"[..], &[0, 1, 2, 1, 2, 1, 7, 7, 7, 8, 8, 9]];
    let frame_seeds = frames.map(|columns| {
        let columns = columns.to_vec();
        [vec![1, columns[0], 0], columns.clone()].concat()
    });
    let sound_frame = payload(b"\x03\x03\x01abcabxx");
    let frame_seeds = frame_seeds.into_iter().chain([[&[0, 3, 0], sound_frame.as_slice()].concat()]);
    let events: Vec<Vec<u8>> = events().iter().map(wire::Event::encode_to_vec).collect();
    let short = events.iter().filter(|event| event.len() < 0x80);
    let packed = short.flat_map(|event| [&[event.len() as u8], event.as_slice()].concat());
    let tail = [vec![1, 0, 0], packed.collect()].concat();
    let sent = response(&tail[1..]).map(|response| response.encode_to_vec()).unwrap_or_default();
    vec![
        ("segment", segment_seeds.collect()),
        ("checkpoint", checkpoint_seeds),
        ("frame", frame_seeds.collect()),
        ("event", events),
        ("tail", vec![tail, [vec![0], sent].concat()]),
        ("search", crate::queries::seeds()),
    ]
}

/// One of each kind.
pub(crate) fn events() -> Vec<wire::Event> {
    let uid = vec![1; 16];
    let endpoint = |last| Some(wire::Endpoint { address: vec![192, 0, 2, last], port: 443 });
    let file = wire::FileIdentity { device: 1, inode: 2, modified_ns: 3, size: 4 };
    let user = |id: &str| Some(wire::User { id: id.into(), name: Some("jdoe".into()) });
    let image = wire::ProcessImage {
        path: Some("/usr/bin/x".into()),
        name: "x".into(),
        arguments: vec!["x".into(), "-y".into()],
        user: user("1"),
        effective_user: user("2"),
        file: Some(file),
        sha256: Some(vec![2; 32]),
        ..wire::ProcessImage::default()
    };
    let traffic = wire::Traffic {
        bytes_sent: 1,
        bytes_received: 2,
        packets_sent: 3,
        packets_received: 4,
        packets_retransmitted: 5,
    };
    let (process_uid, image) = (Some(uid.clone()), Some(image));
    let grade = wire::grade::Grade::Lost(wire::Lost { count: 3, reason: "a reason".into() });
    let flow = wire::Flow {
        connection_uid: uid.clone(),
        process_uid: process_uid.clone(),
        attribution: 1,
        protocol: 1,
        direction: 1,
        local: endpoint(1),
        remote: endpoint(2),
        first_ns: 10,
        last_ns: 20,
        traffic: Some(traffic),
        state: 3,
        end_reason: 3,
        opened_ns: 5,
        remote_name: Some(wire::RemoteName { name: "a.example".into(), source: 1 }),
        ..wire::Flow::default()
    };
    let scope = wire::Scope { source: "s".into(), covers: "c".into(), cannot_see: "n".into() };
    let package = wire::Package { name: "p".into(), version: "1".into(), source: "dpkg".into() };
    let kinds = [
        Kind::Flow(flow),
        Kind::ProcessStarted(wire::ProcessStarted {
            uid: uid.clone(),
            pid: 7,
            parent_uid: process_uid.clone(),
            started_ns: 9,
            image: image.clone(),
            ..wire::ProcessStarted::default()
        }),
        Kind::ProcessExecuted(wire::ProcessExecuted { uid: uid.clone(), executed_ns: 9, image }),
        Kind::ProcessExited(wire::ProcessExited { uid: uid.clone(), exited_ns: 11, exit_code: Some(1) }),
        Kind::Listen(wire::Listen {
            process_uid: process_uid.clone(),
            protocol: 2,
            local: endpoint(1),
            attribution: 2,
            since_ns: 4,
        }),
        Kind::CoverageChanged(wire::CoverageChanged {
            facet: 2,
            grade: Some(wire::Grade { grade: Some(grade) }),
            from_ns: 5,
            to_ns: Some(6),
            scope: Some(scope),
            announced_from_seq: Some(1),
        }),
        Kind::NameResolved(wire::NameResolved {
            time_ns: 4,
            name: "a.example".into(),
            aliases: vec!["b.example".into()],
            addresses: vec![vec![192, 0, 2, 3], vec![3; 16]],
            ttl_s: 60,
            server: endpoint(4),
            process_uid: process_uid.clone(),
            network_namespace: Some(1),
        }),
        Kind::ServerName(wire::ServerName {
            time_ns: 4,
            connection_uid: Some(uid),
            name: Some("a.example".into()),
            local: endpoint(1),
            remote: endpoint(2),
            network_namespace: None,
        }),
        Kind::ExecutableSeen(wire::ExecutableSeen {
            time_ns: 4,
            path: "/usr/bin/x".into(),
            file: Some(file),
            sha256: Some(vec![2; 32]),
            first_on_host: true,
            package: Some(package),
            sighting: 1,
            process_uid,
            problem: None,
            signature: Some(wire::Signature {
                status: 2,
                reason: Some("a reason".into()),
                subject: Some("Example Corp.".into()),
                certificate_sha256: Some(vec![3; 32]),
                ..wire::Signature::default()
            }),
            version: Some(wire::VersionInfo {
                company: Some("Example Corp.".into()),
                file_version: Some("1.2.3.4".into()),
                ..wire::VersionInfo::default()
            }),
        }),
        Kind::LinkChanged(wire::LinkChanged {
            time_ns: 4,
            interface: "eth0".into(),
            index: 2,
            present: true,
            up: true,
            running: true,
            addresses: vec!["192.0.2.1/24".into()],
            default_gateways: vec!["192.0.2.254".into()],
            network_namespace: None,
        }),
    ];
    let event = |(kind, seq)| wire::Event { seq, time_ns: 1000 + seq, boot_time_ns: 10, kind: Some(kind) };
    kinds.into_iter().zip(1..).map(event).collect()
}
