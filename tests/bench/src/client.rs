//! An HTTP client that does as little as possible, since it is measured along: HTTP/1.1 over connections that are kept, bodies with
//! a length.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Longer than anything may take that is measured.
const LIMIT: Duration = Duration::from_secs(60);

/// A request's bytes.
pub(crate) fn request(method: &str, path: &str, token: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    /// From before the request's first byte to the answer's last.
    pub(crate) took: Duration,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// A header's value; empty if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        field(&self.head, name).unwrap_or_default()
    }

    /// What kind of start it was.
    pub(crate) fn start(&self) -> &str {
        self.header("x-sock-start")
    }

    /// `queue`, `provision`, `init` or `handler`, as the server has measured it.
    pub(crate) fn phase(&self, name: &str) -> Duration {
        let mut phases = self.header("server-timing").split(',').map(str::trim);
        let millis = phases.find_map(|phase| phase.strip_prefix(name)?.strip_prefix(";dur=")?.parse().ok());
        Duration::from_secs_f64(millis.unwrap_or(0.0) / 1e3)
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// One connection, on which one request is under way at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    sent: Instant,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("failed to connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self { stream, received: Vec::with_capacity(4096), sent: Instant::now() })
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<Answer> {
        self.send(request)?;
        loop {
            if let Some(answer) = self.receive()? {
                return Ok(answer);
            }
            if self.sent.elapsed() >= LIMIT {
                bail!("no answer for {} s", LIMIT.as_secs());
            }
        }
    }

    fn send(&mut self, request: &[u8]) -> Result<()> {
        self.sent = Instant::now();
        self.stream.write_all(request).context("failed to send a request")
    }

    /// Reads what is there; the answer, if that is all of it.
    fn receive(&mut self) -> Result<Option<Answer>> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("failed to receive an answer"),
        }
        let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&self.received[..end]).into_owned();
        let length = field(&head, "content-length").and_then(|length| length.parse::<usize>().ok());
        let length = length.context("an answer does not tell its length")?;
        if self.received.len() < end + 4 + length {
            return Ok(None);
        }
        let took = self.sent.elapsed();
        let body = self.received[end + 4..].to_vec();
        self.received.clear();
        Ok(Some(Answer { took, head, body }))
    }
}

/// Connections that are used at the same time, by one thread.
pub(crate) struct Crowd {
    connections: Vec<Connection>,
    epoll: Epoll,
}

impl Crowd {
    /// Opens `count`, and asks `first` on each: then it is known to have been accepted.
    pub(crate) fn open(address: SocketAddr, count: usize, first: &[u8]) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut connections = Vec::new();
        for at in 0..count {
            let mut connection = Connection::open(address)?;
            connection.ask(first)?;
            connection.stream.set_nonblocking(true)?;
            epoll.add(&connection.stream, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
            connections.push(connection);
        }
        Ok(Self { connections, epoll })
    }

    /// Asks on all at once; and again where an answer came for as long as `answered` says so. How many requests were lost: their
    /// connection broke, or nothing came within `limit`.
    pub(crate) fn ask(
        &mut self,
        request: &[u8],
        limit: Duration,
        mut answered: impl FnMut(&Answer) -> bool,
    ) -> Result<usize> {
        let begin = Instant::now();
        for connection in &mut self.connections {
            connection.send(request)?;
        }
        let (mut waiting, mut lost) = (self.connections.len(), 0);
        let mut events = [EpollEvent::empty(); 256];
        while waiting > 0 {
            let left = limit.saturating_sub(begin.elapsed());
            let ready = self.epoll.wait(&mut events, EpollTimeout::try_from(left)?)?;
            if ready == 0 && left.is_zero() {
                break;
            }
            for event in &events[..ready] {
                let connection = &mut self.connections[event.data() as usize];
                match connection.receive() {
                    Ok(None) => {}
                    Ok(Some(answer)) if answered(&answer) => connection.send(request)?,
                    Ok(Some(_)) => waiting -= 1,
                    Err(_) => {
                        self.epoll.delete(&connection.stream)?;
                        (waiting, lost) = (waiting - 1, lost + 1);
                    }
                }
            }
        }
        Ok(lost + waiting)
    }
}
