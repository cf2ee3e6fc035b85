//! Real processes with real connections, that do as they are told.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Reads `connect NAME ADDRESS`, `close NAME` and `resolve HOST SERVER`, one in a line, and answers each with the local
/// address, `closed`, the address that was found, or `failed ERROR`. Ends with its input.
///
/// # Errors
/// When a line cannot be understood.
pub fn client() -> Result<()> {
    let mut open: HashMap<String, TcpStream> = HashMap::new();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match *words.as_slice() {
            ["connect", name, address] => {
                let address: SocketAddr = address.parse().context("an address")?;
                match connect(address) {
                    Ok(stream) => {
                        let local = stream.local_addr()?.to_string();
                        open.insert(name.to_owned(), stream);
                        local
                    }
                    Err(error) => format!("failed {error}"),
                }
            }
            ["resolve", host, server] => {
                let found = resolve(host, server.parse().context("an address")?);
                found.map_or_else(|error| format!("failed {error}"), |address| address.to_string())
            }
            ["close", name] => {
                open.remove(name).context("close of what is not open")?;
                "closed".to_owned()
            }
            _ => anyhow::bail!("`{line}` is not understood"),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}

/// Connects, and has one byte echoed: then both ends have the connection.
fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// How long an answer is waited for.
const DNS_PATIENCE: Duration = Duration::from_secs(5);
/// Of a DNS message that fits into any network.
const DNS_BYTES_MAX: usize = 512;

/// Asks `server` for the IPv4 address of `host` (RFC 1035).
fn resolve(host: &str, server: SocketAddr) -> io::Result<Ipv4Addr> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in host.split('.') {
        query.push(u8::try_from(label.len()).map_err(io::Error::other)?);
        query.extend(label.as_bytes());
    }
    // The root, and then: an address (A) in the Internet.
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(DNS_PATIENCE))?;
    socket.send_to(&query, server)?;
    let mut answer = [0; DNS_BYTES_MAX];
    let (length, _) = socket.recv_from(&mut answer)?;
    let address = answer[..length].last_chunk::<4>().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Ipv4Addr::from(*address))
}

/// Says `listening ADDRESS`, then answers each question for an address with `address`, until it is ended.
///
/// # Errors
/// When it cannot listen.
pub fn name_server(listen: SocketAddr, address: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening {}", socket.local_addr()?);
    io::stdout().flush()?;
    let mut query = [0; DNS_BYTES_MAX];
    loop {
        let (length, asker) = socket.recv_from(&mut query)?;
        let mut answer = query[..length].to_vec();
        if answer.len() < 12 {
            continue;
        }
        // A response without error, with one answer, to the question that follows.
        answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        // The name stands at byte 12; A, Internet, for 60 s, 4 bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
        socket.send_to(&answer, asker)?;
    }
}

/// Says `listening ADDRESS`, then answers each byte of each connection with the same, until it is ended.
///
/// # Errors
/// When it cannot listen.
pub fn server(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening {}", listener.local_addr()?);
    io::stdout().flush()?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        thread::spawn(move || {
            let mut byte = [0];
            while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
        });
    }
    Ok(())
}

/// What the system says of a TCP connection (TCP_INFO, tcp(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// Packets sent again, in all.
    pub retransmitted: u32,
    /// Smoothed round-trip time in microseconds.
    pub round_trip_us: u32,
}

/// Asks the system about a connection.
///
/// # Errors
/// When it does not tell.
#[expect(unsafe_code, reason = "no safe crate reads TCP_INFO")]
pub fn tcp_info(stream: &TcpStream) -> io::Result<TcpInfo> {
    let mut length = u32::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: a struct of numbers alone, of which every bit pattern is one.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `length` bytes to `info`, and to `length` how many.
    let result = unsafe {
        let info = std::ptr::from_mut(&mut info).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, &mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpInfo { retransmitted: info.tcpi_total_retrans, round_trip_us: info.tcpi_rtt })
}
