//! Real processes with real connections, that do as they are told.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result};

/// Reads `connect NAME ADDRESS` and `close NAME`, one in a line, and answers each with the local address, `closed`, or
/// `failed ERROR`. Ends with its input.
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
