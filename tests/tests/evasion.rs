//! Programs that want to talk unseen. None of these needs a right.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::{Read as _, Write as _},
    mem::size_of,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::Command,
    time::Duration,
};

use alibi_lab::{
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, now},
};
use alibi_proto::time::Timestamp;
use rustix::{
    net::{AddressFamily, SocketType, connect, socket},
    process::geteuid,
};

/// Fills all the memory that the kernel lets a socket have beside its data, with keys for connections that it never has
/// (TCP_MD5SIG): nobody else can store anything with it then.
#[expect(unsafe_code, reason = "no crate has this option")]
fn fill(socket: &impl std::os::fd::AsFd) {
    /// `struct tcp_md5sig`: an address, and a key for it.
    #[repr(C)]
    struct Key {
        family: u16,
        port: u16,
        address: [u8; 4],
        rest_of_address: [u8; 120],
        flags: u8,
        prefix: u8,
        length: u16,
        interface: i32,
        key: [u8; 80],
    }
    let mut keys = 0;
    for number in 0_u32.. {
        let [_, high, middle, low] = number.to_be_bytes();
        let key = Key {
            family: 2,
            port: 0,
            address: [10, high, middle, low],
            rest_of_address: [0; 120],
            flags: 0,
            prefix: 0,
            length: 4,
            interface: 0,
            key: [b'k'; 80],
        };
        // SAFETY: the kernel reads as many bytes of the key as it is told, and they are there.
        let refused = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_MD5SIG,
                std::ptr::from_ref(&key).cast(),
                u32::try_from(size_of::<Key>()).unwrap(),
            )
        };
        if refused != 0 {
            break;
        }
        keys += 1;
    }
    assert!(keys > 10, "the system takes no keys: {}", std::io::Error::last_os_error());
}

const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 78, 255, 255);

fn ask(agent: &Agent, target: Ipv4Addr, from: Timestamp, to: Timestamp) -> serde_json::Value {
    let output = Command::new(&programs().agent)
        .args(["query", &target.to_string(), "--from", &from.to_string(), "--to", &to.to_string(), "--json"])
        .arg("--data")
        .arg(&agent.data)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Waits until everything before `instant` is recorded: until then nothing can be ruled out.
fn known_until(agent: &Agent, instant: Timestamp) {
    let until = || {
        let answer = ask(agent, NOBODY, now().saturating_sub(Duration::from_secs(1)), now());
        serde_json::from_value::<Timestamp>(answer["hosts"][0]["known_until"].clone()).ok()
    };
    while until().is_none_or(|until| until < instant) {}
}

#[test]
fn a_program_that_leaves_the_probe_no_room_at_its_socket_is_not_taken_to_have_hung_up() {
    if !met("evasion", &[Requirement::Bpf]) {
        return;
    }
    assert!(geteuid().is_root(), "the probe takes root");
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::start(&directory.path().join("agent"), &["--source", "ebpf"]);
    let target = Ipv4Addr::new(127, 78, 1, 1);
    let listener = TcpListener::bind((target, 0)).unwrap();
    known_until(&agent, now());

    let unseen = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    fill(&unseen);
    let address: SocketAddr = listener.local_addr().unwrap();
    connect(&unseen, &address).unwrap();
    let mut client = TcpStream::from(unseen);
    // The other end is seen, and would tell on it: it belongs to another laptop in earnest.
    let (mut server, _) = listener.accept().unwrap();
    // More of the kind, while it is open: each is a loss, after which everything open is looked at anew.
    for _ in 0..3 {
        let other = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        fill(&other);
        connect(&other, &address).unwrap();
        drop((other, listener.accept().unwrap()));
    }
    // It goes on talking, beyond the gap that the losses are.
    let client_end = client.local_addr().unwrap().to_string();
    for _ in 0..100 {
        let from = now();
        client.write_all(b"still here").unwrap();
        server.read_exact(&mut [0; 10]).unwrap();
        let to = now();
        known_until(&agent, to);
        if ask(&agent, NOBODY, from, to)["hosts"][0]["verdict"] != "clear" {
            continue;
        }
        let answer = ask(&agent, target, from, to);
        assert_eq!(answer["hosts"][0]["verdict"], "talked");
        assert!(answer.to_string().contains(&client_end), "{answer}");
        return;
    }
    panic!("the gap has no end");
}
