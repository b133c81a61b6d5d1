//! The load: one thread that keeps many connections busy, and knows when each request was due.
//!
//! It speaks just enough HTTP/1.1 to send one prepared request again and again and to find the end of each answer; an
//! answer of unknown length is an error. In a closed loop every connection sends its next request when it has its
//! answer. In an open loop requests are due at a fixed rate, whether or not answers come, and a latency counts from
//! when its request was due: a proxy that stalls cannot hide the requests that it kept waiting (coordinated omission).

use crate::channel::{Channel, Dialer};
use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::time::Timespec;
use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long answers are waited for when no more requests are sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest head of an answer.
const HEAD_MAX: usize = 16 * 1024;
const FIELDS_MAX: usize = 64;
const SCRATCH: usize = 256 * 1024;

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// As soon as a connection has its answer.
    Closed,
    /// So many in a second.
    Open(u32),
}

/// What to send.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Where to.
    pub(crate) address: SocketAddr,
    /// The bytes of one request.
    pub(crate) request: Vec<u8>,
    /// How connections are made.
    pub(crate) dialer: Dialer,
    /// Whether each request has a connection of its own.
    pub(crate) fresh: bool,
    /// On how many connections.
    pub(crate) connections: usize,
    /// When.
    pub(crate) pace: Pace,
    /// For how long.
    pub(crate) time: Duration,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Whole answers with status 200.
    pub(crate) answers: u64,
    /// Everything else, by what went wrong.
    pub(crate) errors: BTreeMap<String, u64>,
    /// From when a request was due to the last byte of its answer, in microseconds.
    pub(crate) latency: Histogram<u64>,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Head,
    Body(u64),
}

#[derive(Debug)]
struct Connection {
    stream: Channel,
    /// When its request was due; None without one.
    due: Option<Instant>,
    part: Part,
    /// The beginning of a head.
    head: Vec<u8>,
}

/// A run of a [`Load`].
struct Run<'l> {
    load: &'l Load,
    poll: OwnedFd,
    connections: Vec<Connection>,
    free: Vec<usize>,
    /// Requests that are due and wait for a connection.
    waiting: VecDeque<Instant>,
    outcome: Outcome,
    over: bool,
}

impl Load {
    /// Sends it.
    pub(crate) fn run(&self) -> Result<Outcome> {
        let start = Instant::now();
        let mut run = Run {
            load: self,
            poll: epoll::create(CreateFlags::CLOEXEC)?,
            connections: Vec::with_capacity(self.connections),
            free: Vec::new(),
            waiting: VecDeque::new(),
            outcome: Outcome {
                answers: 0,
                errors: BTreeMap::new(),
                latency: Histogram::new_with_bounds(1, 60_000_000, 3)?,
                elapsed: Duration::ZERO,
            },
            over: false,
        };
        for at in 0..self.connections {
            let connection = Connection::open(&self.dialer, self.address)
                .with_context(|| format!("connection {at} to {}", self.address))?;
            run.watch(&connection, at)?;
            run.connections.push(connection);
            run.free.push(at);
        }
        run.drive()?;
        run.outcome.elapsed = start.elapsed();
        Ok(run.outcome)
    }
}

/// Opens connections that have had one answer each, and keeps them open as long as the result lives.
pub(crate) fn idle(
    dialer: &Dialer,
    address: SocketAddr,
    request: &[u8],
    connections: usize,
) -> Result<Vec<impl Sized + use<>>> {
    let mut held = Vec::with_capacity(connections);
    let mut scratch = vec![0; HEAD_MAX];
    for at in 0..connections {
        let mut stream = dialer.open(address).with_context(|| format!("connection {at}"))?;
        stream.send(request)?;
        let mut answer = Vec::new();
        let begun = Instant::now();
        while !is_whole(&answer)? {
            let read = match stream.receive(&mut scratch) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    anyhow::ensure!(begun.elapsed() < PATIENCE, "connection {at} has no answer");
                    let mut events: Vec<PollFd<'_>> = vec![PollFd::new(&stream.socket, PollFlags::IN)];
                    rustix::event::poll(
                        &mut events,
                        Some(&Timespec {
                            tv_sec: 1,
                            tv_nsec: 0,
                        }),
                    )?;
                    continue;
                }
                read => read?,
            };
            anyhow::ensure!(read > 0, "connection {at} was closed");
            answer.extend_from_slice(scratch.get(..read).unwrap_or(&[]));
        }
        held.push(stream);
    }
    Ok(held)
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    Ok(match head(answer).map_err(anyhow::Error::msg)? {
        Some((length, body)) => (answer.len() - length) as u64 >= body,
        None => false,
    })
}

/// Reads a head: how long it is, and how long the body behind it.
fn head(bytes: &[u8]) -> Result<Option<(usize, u64)>, String> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err("a head without end".to_owned()),
        Err(error) => return Err(format!("no HTTP: {error}")),
    };
    match response.code {
        Some(200) => {}
        code => return Err(format!("status {}", code.unwrap_or(0))),
    }
    let body = response
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok())
        .ok_or("an answer without content-length")?;
    Ok(Some((length, body)))
}

impl Connection {
    fn open(dialer: &Dialer, address: SocketAddr) -> Result<Self> {
        Ok(Self {
            stream: dialer.open(address)?,
            due: None,
            part: Part::Head,
            head: Vec::new(),
        })
    }

    /// Takes bytes that came; answers whether the answer is whole.
    fn take(&mut self, mut bytes: &[u8]) -> Result<bool, String> {
        if let Part::Head = self.part {
            let known = if self.head.is_empty() {
                head(bytes)?
            } else {
                self.head.extend_from_slice(bytes);
                head(&self.head)?
            };
            let Some((length, body)) = known else {
                if self.head.is_empty() {
                    self.head.extend_from_slice(bytes);
                }
                return Ok(false);
            };
            let before = self.head.len().saturating_sub(bytes.len());
            bytes = bytes.get(length - before..).unwrap_or(&[]);
            self.head.clear();
            self.part = Part::Body(body);
        }
        if let Part::Body(left) = &mut self.part {
            let Some(rest) = left.checked_sub(bytes.len() as u64) else {
                return Err("more bytes than the answer has".to_owned());
            };
            *left = rest;
            if rest == 0 {
                self.part = Part::Head;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Run<'_> {
    fn watch(&self, connection: &Connection, at: usize) -> Result<()> {
        let data = EventData::new_u64(at as u64);
        epoll::add(&self.poll, &connection.stream.socket, data, EventFlags::IN)?;
        Ok(())
    }

    fn drive(&mut self) -> Result<()> {
        let start = Instant::now();
        let end = start + self.load.time;
        let mut sent = 0u64;
        let mut scratch = vec![0; SCRATCH];
        let mut events: Vec<Event> = Vec::with_capacity(256);
        loop {
            let now = Instant::now();
            self.over = now >= end;
            let mut wait = end.saturating_duration_since(now);
            match self.load.pace {
                Pace::Closed if !self.over => {
                    while let Some(at) = self.free.pop() {
                        self.send(at, Instant::now());
                    }
                }
                Pace::Open(rate) if !self.over => {
                    let due = |sent: u64| start + Duration::from_secs_f64(sent as f64 / f64::from(rate));
                    while due(sent) <= now {
                        self.waiting.push_back(due(sent));
                        sent += 1;
                    }
                    self.catch_up();
                    wait = wait.min(due(sent).saturating_duration_since(now));
                }
                _ => {
                    self.catch_up();
                    let missing = self.connections.iter().any(|connection| connection.due.is_some());
                    if !missing && self.waiting.is_empty() {
                        return Ok(());
                    }
                    wait = (end + PATIENCE).saturating_duration_since(now);
                    if wait.is_zero() {
                        let missing = self.connections.iter().filter(|one| one.due.is_some()).count();
                        *self.outcome.errors.entry("no answer".to_owned()).or_default() +=
                            (missing + self.waiting.len()) as u64;
                        return Ok(());
                    }
                }
            }
            let timeout = Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: i64::from(wait.subsec_nanos()),
            };
            events.clear();
            match epoll::wait(
                &self.poll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                // The data is copied out of a packed structure.
                let data = event.data;
                self.receive(data.u64() as usize, &mut scratch)?;
            }
        }
    }

    fn catch_up(&mut self) {
        while !self.waiting.is_empty()
            && let Some(at) = self.free.pop()
            && let Some(due) = self.waiting.pop_front()
        {
            self.send(at, due);
        }
    }

    fn send(&mut self, at: usize, due: Instant) {
        let Some(connection) = self.connections.get_mut(at) else {
            return;
        };
        connection.due = Some(due);
        // Requests are far smaller than a socket's buffer: what is not taken at once is an error.
        if let Err(error) = connection.stream.send(&self.load.request) {
            self.fail(at, &format!("send: {}", error.kind()));
        }
    }

    fn receive(&mut self, at: usize, scratch: &mut [u8]) -> Result<()> {
        let Some(connection) = self.connections.get_mut(at) else {
            return Ok(());
        };
        let read = match connection.stream.receive(scratch) {
            Ok(0) => {
                self.fail(at, "closed");
                return self.reopen(at);
            }
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => {
                self.fail(at, &format!("receive: {}", error.kind()));
                return self.reopen(at);
            }
        };
        let bytes = scratch.get(..read).unwrap_or(&[]);
        let Some(due) = connection.due else {
            self.fail(at, "bytes that nobody asked for");
            return self.reopen(at);
        };
        match connection.take(bytes) {
            Ok(false) => Ok(()),
            Ok(true) => {
                let now = Instant::now();
                connection.due = None;
                self.outcome.answers += 1;
                let micros = now.saturating_duration_since(due).as_micros().max(1);
                self.outcome.latency.saturating_record(micros as u64);
                if self.load.fresh {
                    self.reopen(at)?;
                    return Ok(());
                }
                match self.load.pace {
                    Pace::Closed if !self.over => self.send(at, now),
                    _ => self.free.push(at),
                }
                Ok(())
            }
            Err(fault) => {
                self.fail(at, &fault);
                self.reopen(at)
            }
        }
    }

    fn fail(&mut self, at: usize, fault: &str) {
        if let Some(connection) = self.connections.get_mut(at) {
            // A connection that is closed while it waits owes nothing.
            if connection.due.take().is_some() {
                *self.outcome.errors.entry(fault.to_owned()).or_default() += 1;
            }
        }
    }

    fn reopen(&mut self, at: usize) -> Result<()> {
        let connection = Connection::open(&self.load.dialer, self.load.address)?;
        self.watch(&connection, at)?;
        if let Some(place) = self.connections.get_mut(at) {
            *place = connection;
        }
        if !self.free.contains(&at) {
            self.free.push(at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_tests::fault::{Fault, FaultPeer};
    use isthmus_tests::nginx::Nginx;
    use isthmus_tests::upstream::{Answer, Upstream};

    fn load(address: SocketAddr, pace: Pace) -> Load {
        Load {
            address,
            request: b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n".to_vec(),
            dialer: Dialer::default(),
            fresh: false,
            connections: 8,
            pace,
            time: Duration::from_millis(300),
        }
    }

    #[test]
    fn every_answer_is_counted_once() {
        let body = vec![b'x'; 300_000];
        let nginx = Nginx::start(&[("/x", &body)]);
        let outcome = load(nginx.address(), Pace::Closed).run().unwrap();
        assert!(outcome.answers > 8 && outcome.errors.is_empty(), "{outcome:?}");
        assert_eq!(outcome.latency.len(), outcome.answers);
        let logged = nginx.access_log().lines().count() as u64;
        assert!(logged <= outcome.answers, "{logged} of {}", outcome.answers);
    }

    #[test]
    fn an_open_loop_sends_what_is_due_and_no_more() {
        let nginx = Nginx::start(&[("/x", b"x")]);
        let outcome = load(nginx.address(), Pace::Open(1_000)).run().unwrap();
        assert_eq!((outcome.answers, outcome.errors.len()), (300, 0), "{outcome:?}");
    }

    #[test]
    fn what_is_no_whole_answer_is_an_error() {
        let upstream = Upstream::start(|_| Answer::status(503));
        let outcome = load(upstream.address(), Pace::Open(100)).run().unwrap();
        assert_eq!(outcome.errors.get("status 503"), Some(&30), "{outcome:?}");
        let peer = FaultPeer::start(Fault::ClosesInBody);
        let outcome = load(peer.address(), Pace::Open(100)).run().unwrap();
        assert_eq!(
            (outcome.answers, outcome.errors.get("closed")),
            (0, Some(&30)),
            "{outcome:?}"
        );
    }

    #[test]
    fn connections_are_held_while_they_are_kept() {
        let nginx = Nginx::start(&[("/x", b"x")]);
        let held = idle(
            &Dialer::default(),
            nginx.address(),
            b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n",
            20,
        )
        .unwrap();
        assert_eq!(held.len(), 20);
    }
}
