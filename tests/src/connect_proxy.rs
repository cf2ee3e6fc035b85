//! An HTTP proxy that lets connections through (CONNECT, RFC 9110), and remembers what was asked of it.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// Lines of a request.
const LINES_MAX: usize = 64;

/// The proxy. It serves as long as the test runs.
#[derive(Debug)]
pub struct ConnectProxy {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// Starts one at a free port of this machine.
    ///
    /// # Panics
    /// When there is none.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let remembered = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let remembered = Arc::clone(&remembered);
                // Whoever asks wrongly finds that out.
                thread::spawn(move || let_through(stream, &remembered));
            }
        });
        Self { address, seen }
    }

    /// What was asked of it, each request with its headers.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn let_through(stream: TcpStream, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    for _ in 0..LINES_MAX {
        let before = request.len();
        reader.read_line(&mut request)?;
        if request[before..].trim().is_empty() {
            break;
        }
    }
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    let other = TcpStream::connect(target)?;
    let mut near = stream;
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut from_far, mut to_near) = (other.try_clone()?, near);
    let back = thread::spawn(move || io::copy(&mut from_far, &mut to_near));
    let mut to_far = other;
    io::copy(&mut reader, &mut to_far)?;
    to_far.shutdown(std::net::Shutdown::Write)?;
    let _ = back.join();
    Ok(())
}
