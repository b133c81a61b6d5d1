//! What a server of HTTP/2 must do with what a client sends: cases with their sections of RFC 9113, or of RFC 7541
//! where that is said, and the outcomes that are right.
//!
//! Each case has a connection of its own: the preface, then its script, then the outcome. Behind an outcome that leaves
//! the connection open, the same connection must serve a request; behind any other, a new one must. A peer that breaks
//! a rule in what it sends fails the case, too.
//!
//! Where the RFC names one code, no other is taken, although section 5.4 would let a server say `PROTOCOL_ERROR` or
//! `INTERNAL_ERROR` always: the code tells that the server saw the error that the case is about. Behind the server
//! stands [`answer`], directly or behind a proxy.

mod connection;
mod flow;
mod fragments;
mod headers;
mod hpack;
mod messages;
mod settings;
mod streams;

use super::client::{Connection, Failed, Step};
use super::frame::{Code, Frame, flag};
use super::transport::Target;
use crate::upstream::{Answer, Request};
use std::fmt;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Cases that are played at the same time.
const AT_ONCE: usize = 8;

/// No server may pass a request with this path on: those that have it are malformed (RFC 9113, 8.1.1).
pub const REFUSED_PATH: &str = "/refused";

/// The path whose answer is longer than a window.
pub const BIG_PATH: &str = "/big";

/// The octets of that answer.
pub const BIG_BYTES: usize = 200_000;

/// The outcomes that are right.
#[derive(Clone, Copy)]
pub enum Expect {
    /// GOAWAY with one of these codes, and the end of the connection (RFC 9113, 5.4.1).
    ConnectionError(&'static [Code]),
    /// The same, or the end alone: before HTTP/2 is agreed on, GOAWAY may be left out (RFC 9113, 3.4), and a peer that
    /// speaks HTTP/1 there may say so.
    End(&'static [Code]),
    /// RST_STREAM with one of these codes, or a connection error with one of them (RFC 9113, 5.4.2).
    StreamError(&'static [Code]),
    /// The stream error `PROTOCOL_ERROR`, or an answer that blames the client (RFC 9113, 8.1.1).
    Malformed,
    /// The same with any code, or the end of the connection: the client wants more than a server gives (RFC 9113,
    /// 10.5).
    Refused,
    /// An answer with this status, to its end.
    Answer(u16),
    /// The answer 200, or the stream error `PROTOCOL_ERROR`: RFC 9113 took back what RFC 7540 demanded.
    AnswerOrError,
    /// The script has looked itself; the connection goes on.
    Alive,
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectionError(codes) => write!(f, "GOAWAY with {codes:?} and the end"),
            Self::End(codes) => write!(f, "the end, with {codes:?} if anything"),
            Self::StreamError(codes) => write!(f, "RST_STREAM or GOAWAY with {codes:?}"),
            Self::Malformed => f.write_str("RST_STREAM or GOAWAY with PROTOCOL_ERROR, or a status 4xx"),
            Self::Refused => f.write_str("RST_STREAM, GOAWAY, the end, or a status 4xx"),
            Self::Answer(status) => write!(f, "the status {status}"),
            Self::AnswerOrError => f.write_str("the status 200, or the stream error PROTOCOL_ERROR"),
            Self::Alive => f.write_str("a connection that goes on"),
        }
    }
}

type Script = Box<dyn Fn(&mut Connection) -> Step + Send + Sync>;

/// One thing that a client does.
pub struct Case {
    /// The section of RFC 9113, or with the prefix `7541 ` of RFC 7541.
    pub section: &'static str,
    /// What the client does.
    pub name: String,
    /// What is right.
    pub expect: Expect,
    script: Script,
    /// The stream that the outcome is about.
    stream: u32,
    /// The script begins with an open connection that said nothing.
    has_preface: bool,
    /// Behind the script goes a PING, whose answer tells that a connection goes on that should not. It is left out
    /// where a PING would be an error itself.
    has_probe: bool,
    /// The peer may close the connection behind the outcome.
    may_close: bool,
}

impl Case {
    /// A script that may fail.
    fn plays(
        section: &'static str,
        name: impl Into<String>,
        expect: Expect,
        script: impl Fn(&mut Connection) -> Step + Send + Sync + 'static,
    ) -> Self {
        Self {
            section,
            name: name.into(),
            expect,
            script: Box::new(script),
            stream: 1,
            has_preface: true,
            has_probe: true,
            may_close: false,
        }
    }

    /// A script that only sends.
    fn sends(
        section: &'static str,
        name: impl Into<String>,
        expect: Expect,
        script: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> Self {
        Self::plays(section, name, expect, move |connection| {
            script(connection);
            Ok(())
        })
    }

    /// The outcome is about this stream, not the first.
    fn on(mut self, stream: u32) -> Self {
        self.stream = stream;
        self
    }

    fn without_preface(mut self) -> Self {
        self.has_preface = false;
        self
    }

    fn without_probe(mut self) -> Self {
        self.has_probe = false;
        self
    }

    fn may_close(mut self) -> Self {
        self.may_close = true;
        self
    }

    /// Plays it; the error is what was seen instead.
    pub fn play(&self, target: Target) -> Result<(), Failed> {
        let mut connection = Connection::open(target)?;
        let result = self.play_on(&mut connection);
        if let Some(rule) = &connection.violation {
            return Err(format!("the peer breaks {rule} [{}]", connection.told()));
        }
        result.map_err(|why| format!("{why} [{}]", connection.told()))?;
        if connection.closed || connection.goaway.is_some() || self.may_close {
            drop(connection);
            let mut connection = Connection::open(target)?;
            let served = connection.handshake(&[]).and_then(|()| serves(&mut connection));
            return served.map_err(|why| format!("then a new connection: {why} [{}]", connection.told()));
        }
        connection.settle();
        let served = serves(&mut connection);
        if let Some(rule) = &connection.violation {
            return Err(format!("then the peer breaks {rule} [{}]", connection.told()));
        }
        served.map_err(|why| format!("then the same connection: {why} [{}]", connection.told()))
    }

    fn play_on(&self, connection: &mut Connection) -> Step {
        if self.has_preface {
            connection.handshake(&[])?;
        }
        (self.script)(connection)?;
        match self.expect {
            Expect::ConnectionError(codes) => self.connection_error(connection, codes, false),
            Expect::End(codes) => self.connection_error(connection, codes, true),
            Expect::StreamError(codes) => {
                connection.until("RST_STREAM or GOAWAY", |connection| {
                    connection.answer(self.stream).reset.is_some() || connection.goaway.is_some()
                })?;
                self.stream_error(connection, codes)
            }
            Expect::Malformed => {
                self.until_over(connection)?;
                let answer = connection.answer(self.stream);
                match answer.status {
                    Some(400..500) if answer.ended => Ok(()),
                    _ => self.stream_error(connection, &[Code::PROTOCOL_ERROR]),
                }
            }
            Expect::Refused => {
                connection.until_over_or_closed(self.stream)?;
                let answer = connection.answer(self.stream);
                match (answer.status, answer.reset) {
                    (Some(400..500), _) | (_, Some(_)) => Ok(()),
                    _ if connection.goaway.is_some() => connection.until_closed(),
                    (status, None) => check(connection.closed, || format!("an answer with {status:?}")),
                }
            }
            Expect::Answer(status) => connection.answered(self.stream, status).map(drop),
            Expect::AnswerOrError => {
                self.until_over(connection)?;
                if connection.answer(self.stream).status == Some(200) {
                    return Ok(());
                }
                self.stream_error(connection, &[Code::PROTOCOL_ERROR])
            }
            Expect::Alive if !self.may_close && (connection.closed || connection.goaway.is_some()) => {
                Err("the connection is given up".to_owned())
            }
            Expect::Alive => Ok(()),
        }
    }

    fn until_over(&self, connection: &mut Connection) -> Step {
        connection.until("the end of the stream", |connection| {
            connection.is_over(self.stream) || connection.goaway.is_some()
        })
    }

    fn stream_error(&self, connection: &mut Connection, codes: &[Code]) -> Step {
        if connection.goaway.is_some() {
            return self.connection_error(connection, codes, false);
        }
        let answer = connection.answer(self.stream);
        match (answer.reset, answer.status) {
            (Some(code), _) if codes.contains(&code) => Ok(()),
            (Some(code), _) => Err(format!("RST_STREAM with {code:?}")),
            (None, status) => Err(format!("an answer with {status:?}")),
        }
    }

    fn connection_error(&self, connection: &mut Connection, codes: &[Code], alone: bool) -> Step {
        /// The PING that must not be answered.
        const PROBE: [u8; 8] = *b"goes on?";
        if self.has_probe && connection.goaway.is_none() {
            connection.send(&Frame::ping(flag::NONE, PROBE));
        }
        let known = connection.until("GOAWAY", |connection| {
            connection.goaway.is_some() || connection.pongs.contains(&PROBE)
        });
        if connection.pongs.contains(&PROBE) && connection.goaway.is_none() {
            return Err("the connection goes on".to_owned());
        }
        if !alone && connection.goaway.is_none() {
            return known;
        }
        connection.until_closed()?;
        match connection.goaway {
            Some((_, code)) if !codes.contains(&code) => Err(format!("GOAWAY with {code:?}")),
            _ => Ok(()),
        }
    }
}

/// A request like any other is answered.
fn serves(connection: &mut Connection) -> Step {
    let stream = connection.get("/after");
    let answer = connection.answered(stream, 200)?;
    if answer.text().starts_with("GET /after\n") {
        Ok(())
    } else {
        Err(format!("another answer: {:?}", answer.text()))
    }
}

/// A case whose outcome was not right.
#[derive(Debug)]
pub struct Failure {
    /// The section.
    pub section: &'static str,
    /// The case.
    pub name: String,
    /// What would have been right.
    pub expected: String,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            section,
            name,
            expected,
            seen,
        } = self;
        write!(f, "{section} {name}\n    expected: {expected}\n    seen: {seen}")
    }
}

/// Every case, in the order of their sections as far as one has one.
pub fn all() -> Vec<Case> {
    let topics = [
        connection::cases(),
        fragments::cases(),
        streams::cases(),
        settings::cases(),
        flow::cases(),
        headers::cases(),
        messages::cases(),
        hpack::cases(),
    ];
    topics.into_iter().flatten().collect()
}

/// Plays all cases against a target.
pub fn run(target: Target) -> Vec<Failure> {
    play(target, &all(), |_, _| {})
}

/// Plays these cases, several at a time, and tells each outcome as it is known. The failures are in the order of the
/// cases.
pub fn play(
    target: Target,
    cases: &[Case],
    tell: impl Fn(&Case, &Result<(), Failed>) + Sync,
) -> Vec<Failure> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, case)) = take(cases, &next) {
                    let result = case.play(target);
                    tell(case, &result);
                    if let Err(seen) = result {
                        let (section, name) = (case.section, case.name.clone());
                        let expected = case.expect.to_string();
                        let failure = Failure {
                            section,
                            name,
                            expected,
                            seen,
                        };
                        failures.lock().expect("no thread fails").push((number, failure));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no thread fails");
    failures.sort_by_key(|(number, _)| *number);
    failures.into_iter().map(|(_, failure)| failure).collect()
}

fn take<'a>(cases: &'a [Case], next: &AtomicUsize) -> Option<(usize, &'a Case)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    cases.get(number).map(|case| (number, case))
}

/// What the server behind a target answers: the request as it came, as text. Some paths have answers of other kinds.
pub fn answer(request: &Request) -> Answer {
    match request.target.as_str() {
        BIG_PATH => Answer::ok(vec![b'x'; BIG_BYTES]),
        "/204" => Answer::status(204),
        "/304" => Answer::status(304).field("etag", "\"a\""),
        "/chunked" => Answer::ok("some content in chunks")
            .chunked(7)
            .trailer("x-end", "reached"),
        // RFC 9113, 8.2.2: none of these may reach a client of HTTP/2.
        "/hop" => Answer::ok("content")
            .field("connection", "x-hop")
            .field("keep-alive", "timeout=5")
            .field("x-hop", "1")
            .field("X-Upper", "Case"),
        _ => Answer::ok(echo(request)),
    }
}

fn echo(request: &Request) -> Vec<u8> {
    let mut text = format!("{} {}\n", request.method, request.target);
    for (name, value) in &request.fields.0 {
        let _text = writeln!(text, "{}: {value}", name.to_ascii_lowercase());
    }
    text.push('\n');
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(&request.body);
    bytes
}

/// The error unless the condition holds.
fn check(holds: bool, why: impl FnOnce() -> String) -> Step {
    if holds { Ok(()) } else { Err(why()) }
}
