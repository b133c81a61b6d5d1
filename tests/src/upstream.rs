//! Upstreams that record: they read requests strictly, keep every byte, and answer as a test tells them.

use crate::wire::{Fields, Length, Wire, WireError, declared_length, is_token};
use rustix::net::sockopt::set_socket_linger;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The field in which an echo upstream says its name.
pub const SERVED_BY: &str = "x-served-by";

const STACK_BYTES: usize = 256 * 1024;

/// A request as it reached an upstream.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which connection it came on, from 0.
    pub connection: usize,
    /// The method.
    pub method: String,
    /// The target as it was sent.
    pub target: String,
    /// The header fields.
    pub fields: Fields,
    /// How the body was delimited.
    pub length: Length,
    /// The body, out of its framing; empty as long as only the head was read.
    pub body: Vec<u8>,
    /// The trailer fields.
    pub trailers: Fields,
}

impl Request {
    /// The value of a field that appears at most once.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)
    }
}

/// What happens to the connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It serves the next request.
    KeepAlive,
    /// It is closed in an orderly way.
    Close,
    /// It is reset.
    Reset,
}

/// An answer to send.
#[derive(Debug, Clone)]
pub struct Answer {
    raw: Option<Vec<u8>>,
    status: u16,
    fields: String,
    body: Vec<u8>,
    chunk: Option<usize>,
    trailers: String,
    then: Then,
}

impl Answer {
    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        let (fields, trailers) = (String::new(), String::new());
        Self {
            raw: None,
            status,
            fields,
            body: Vec::new(),
            chunk: None,
            trailers,
            then: Then::KeepAlive,
        }
    }

    /// 200 with a body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).body(body)
    }

    /// Exactly these bytes.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            raw: Some(bytes.into()),
            ..Self::status(200)
        }
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Adds a field.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        write!(self.fields, "{name}: {value}\r\n").expect("text");
        self
    }

    /// Sends the body in chunks of this size.
    #[must_use]
    pub fn chunked(mut self, size: usize) -> Self {
        self.chunk = Some(size);
        self
    }

    /// Adds a trailer field to a chunked body.
    #[must_use]
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        write!(self.trailers, "{name}: {value}\r\n").expect("text");
        self
    }

    /// Says what happens to the connection afterwards.
    #[must_use]
    pub fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }

    fn render(&self, head_request: bool) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let bodiless = matches!(self.status, 100..=199 | 204 | 304);
        let framing = match self.chunk {
            Some(_) => "transfer-encoding: chunked\r\n".to_owned(),
            None if bodiless => String::new(),
            None => format!("content-length: {}\r\n", self.body.len()),
        };
        let mut out = format!("HTTP/1.1 {} Reason\r\n{}{framing}\r\n", self.status, self.fields).into_bytes();
        if head_request || bodiless {
            return out;
        }
        match self.chunk {
            None => out.extend_from_slice(&self.body),
            Some(size) => {
                for chunk in self.body.chunks(size.max(1)) {
                    out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    out.extend_from_slice(chunk);
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(format!("0\r\n{}\r\n", self.trailers).as_bytes());
            }
        }
        out
    }
}

/// What an upstream does when it has a request's head and not yet its body.
#[derive(Debug, Clone)]
pub enum OnHead {
    /// Reads the body, then answers.
    ReadBody,
    /// Sends these bytes first, such as an interim answer, then reads the body and answers.
    Send(Vec<u8>),
    /// Answers at once, then reads the body.
    Answer(Answer),
    /// Answers at once and reads nothing more.
    AnswerUnread(Answer),
}

/// What is known of one connection.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// All bytes that came.
    pub raw: Arc<Mutex<Vec<u8>>>,
    /// Whole requests.
    pub requests: u64,
    /// Whether it has ended.
    pub ended: bool,
    /// What was wrong with the bytes: a violation of HTTP/1.1 by the gateway.
    pub violation: Option<String>,
}

type Handler = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;
type HeadHandler = Arc<dyn Fn(&Request) -> OnHead + Send + Sync>;

struct Shared {
    handler: Handler,
    on_head: HeadHandler,
    keep_requests: bool,
    served: AtomicU64,
    stopping: AtomicBool,
    requests: Mutex<Vec<Request>>,
    connections: Mutex<Vec<Connection>>,
    live: LiveStreams,
}

/// Handles of the connections that are served, so that a server that ends can wake who serves them.
#[derive(Debug, Default)]
pub(crate) struct LiveStreams(Mutex<BTreeMap<usize, TcpStream>>);

impl LiveStreams {
    pub(crate) fn add(&self, number: usize, stream: &TcpStream) {
        self.0
            .lock()
            .unwrap()
            .insert(number, stream.try_clone().expect("a handle"));
    }

    /// Before the connection ends: the handle would keep the socket open.
    pub(crate) fn remove(&self, number: usize) {
        self.0.lock().unwrap().remove(&number);
    }

    pub(crate) fn shut_down(&self) {
        for stream in self.0.lock().unwrap().values() {
            let _gone = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A recording upstream on a port of its own; it ends when dropped.
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({})", self.address)
    }
}

impl Upstream {
    /// Answers each whole request by the function.
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::launch(
            loopback(),
            Arc::new(handler),
            Arc::new(|_| OnHead::ReadBody),
            true,
        )
    }

    /// Decides with each head, before the body is read; a request whose body is read is then answered by `handler`.
    pub fn with_heads(
        on_head: impl Fn(&Request) -> OnHead + Send + Sync + 'static,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::launch(loopback(), Arc::new(handler), Arc::new(on_head), true)
    }

    /// Gives the answers of the script one after the other, the last one for ever.
    pub fn scripted(script: Vec<Answer>) -> Self {
        let next = Mutex::new(0);
        Self::start(move |_| {
            let mut next = next.lock().unwrap();
            let answer = script[(*next).min(script.len() - 1)].clone();
            *next += 1;
            answer
        })
    }

    /// Answers 200 with its name in `x-served-by` and as the body's first line, then the request's body.
    pub fn echo(name: &str) -> Self {
        Self::launch(
            loopback(),
            echo_handler(name),
            Arc::new(|_| OnHead::ReadBody),
            true,
        )
    }

    /// Like [`echo`](Self::echo), for many requests: it counts them and does not keep them.
    pub fn echo_for_load(name: &str) -> Self {
        Self::launch(
            loopback(),
            echo_handler(name),
            Arc::new(|_| OnHead::ReadBody),
            false,
        )
    }

    /// Echoes with these names, all on one port of these addresses; they count requests and do not keep them.
    pub fn echoes_at<const N: usize>(places: [(&str, &str); N]) -> [Self; N] {
        let listeners = (0..100)
            .find_map(|_| {
                let mut port = 0;
                let bound = places.map(|(_, ip)| {
                    let ip: IpAddr = ip.parse().expect("an address");
                    let listener = TcpListener::bind((ip, port)).ok()?;
                    port = listener.local_addr().ok()?.port();
                    Some(listener)
                });
                bound
                    .iter()
                    .all(Option::is_some)
                    .then(|| bound.map(|bound| bound.expect("all are bound")))
            })
            .expect("a port that is free at all of them");
        let mut names = places.iter();
        listeners.map(|listener| {
            let (name, _) = names.next().expect("as many names as listeners");
            Self::launch(
                listener,
                echo_handler(name),
                Arc::new(|_| OnHead::ReadBody),
                false,
            )
        })
    }

    fn launch(listener: TcpListener, handler: Handler, on_head: HeadHandler, keep_requests: bool) -> Self {
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            handler,
            on_head,
            keep_requests,
            served: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            requests: Mutex::default(),
            connections: Mutex::default(),
            live: LiveStreams::default(),
        });
        let state = shared.clone();
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || accept(&listener, &state))
            .expect("a thread");
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests so far, in the order of their ends.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The only request so far; panics when there are more or none.
    pub fn only_request(&self) -> Request {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "requests at the upstream: {requests:?}");
        requests.remove(0)
    }

    /// How many whole requests came.
    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::SeqCst)
    }

    /// The connections so far.
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.connections.lock().unwrap().clone()
    }

    /// Panics if the gateway has sent anything that is not HTTP/1.1.
    pub fn assert_no_violation(&self) {
        for connection in self.connections() {
            let raw = connection.raw.lock().unwrap().clone();
            assert_eq!(
                connection.violation,
                None,
                "the gateway sent: {:?}",
                String::from_utf8_lossy(&raw)
            );
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _wake = TcpStream::connect(self.address);
        self.shared.live.shut_down();
    }
}

fn echo_handler(name: &str) -> Handler {
    let name = name.to_owned();
    Arc::new(move |request| {
        let mut body = format!("{name}\n").into_bytes();
        body.extend_from_slice(&request.body);
        Answer::ok(body).field(SERVED_BY, &name)
    })
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let connection = Connection::default();
        let record = connection.raw.clone();
        let number = {
            let mut connections = shared.connections.lock().unwrap();
            connections.push(connection);
            connections.len() - 1
        };
        shared.live.add(number, &stream);
        let state = shared.clone();
        let serve = move || serve_connection(stream, number, record, &state);
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(serve)
            .expect("a thread");
    }
}

fn serve_connection(stream: TcpStream, number: usize, record: Arc<Mutex<Vec<u8>>>, shared: &Shared) {
    let _quick = stream.set_nodelay(true);
    let mut wire = if shared.keep_requests {
        Wire::recording(stream, record)
    } else {
        Wire::new(stream)
    };
    let ended = loop {
        match serve_request(&mut wire, number, shared) {
            Ok(Then::KeepAlive) => {}
            other => break other,
        }
    };
    {
        let mut connections = shared.connections.lock().unwrap();
        connections[number].ended = true;
        if let Err(WireError::Syntax(text)) = &ended {
            connections[number].violation = Some(text.clone());
        }
    }
    match ended {
        Ok(Then::Reset) => set_socket_linger(wire.stream(), Some(Duration::ZERO)).expect("SO_LINGER"),
        _ => {
            // Orderly, and without a reset for bytes that were not read.
            let _gone = wire.stream().shutdown(Shutdown::Write);
            while wire.fill().is_ok_and(|got| got > 0) {}
        }
    }
    shared.live.remove(number);
}

fn serve_request(wire: &mut Wire, connection: usize, shared: &Shared) -> Result<Then, WireError> {
    let mut request = read_head(wire, connection)?;
    let head_request = request.method == "HEAD";
    let decision = (shared.on_head)(&request);
    let early = match decision {
        OnHead::ReadBody => None,
        OnHead::Send(bytes) => {
            wire.stream_mut().write_all(&bytes)?;
            None
        }
        OnHead::Answer(answer) => {
            wire.stream_mut().write_all(&answer.render(head_request))?;
            Some(answer)
        }
        OnHead::AnswerUnread(answer) => {
            wire.stream_mut().write_all(&answer.render(head_request))?;
            return Ok(answer.then);
        }
    };
    (request.body, request.trailers) = wire.body(request.length)?;
    {
        let mut connections = shared.connections.lock().unwrap();
        connections[connection].requests += 1;
    }
    if shared.keep_requests {
        shared.requests.lock().unwrap().push(request.clone());
    }
    shared.served.fetch_add(1, Ordering::SeqCst);
    let answer = match early {
        Some(answer) => answer,
        None => {
            let answer = (shared.handler)(&request);
            wire.stream_mut().write_all(&answer.render(head_request))?;
            answer
        }
    };
    let closes = request
        .field("connection")
        .is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok(if closes && answer.then == Then::KeepAlive {
        Then::Close
    } else {
        answer.then
    })
}

fn read_head(wire: &mut Wire, connection: usize) -> Result<Request, WireError> {
    let line = wire.start_line()?;
    let fields = wire.fields("head")?;
    let bad = |text: &str| WireError::Syntax(format!("{text}: {line:?} {fields:?}"));
    let words: Vec<_> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words.as_slice() else {
        return Err(bad("not a request line"));
    };
    if !is_token(method) || target.is_empty() || !target.bytes().all(|byte| (33..127).contains(&byte)) {
        return Err(bad("not a method and target"));
    }
    if fields.all("host").count() != 1 {
        return Err(bad("not exactly one Host"));
    }
    let length = declared_length(&fields)?.unwrap_or(Length::None);
    let (method, target) = ((*method).to_owned(), (*target).to_owned());
    Ok(Request {
        connection,
        method,
        target,
        fields,
        length,
        body: Vec::new(),
        trailers: Fields::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, get};
    use crate::deadline::{SOON, eventually};

    #[test]
    fn requests_are_recorded_and_echoed() {
        let upstream = Upstream::echo("v1");
        let mut client = Client::connect(upstream.address());
        let first = client.get("h", "/a");
        assert_eq!((first.field(SERVED_BY), first.text()), (Some("v1"), "v1\n"));
        let chunked =
            b"POST /b HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(
            client.send_split(chunked, &[5, 60, 70]).response().text(),
            "v1\nabc"
        );
        assert_eq!(get(upstream.address(), "h", "/c").status, 200);
        let requests = upstream.requests();
        let seen: Vec<_> = requests
            .iter()
            .map(|request| (request.connection, request.target.as_str()))
            .collect();
        assert_eq!(seen, [(0, "/a"), (0, "/b"), (1, "/c")]);
        let raw = upstream.connections()[0].raw.lock().unwrap().clone();
        assert!(raw.starts_with(b"GET /a HTTP/1.1\r\nhost: h\r\n\r\nPOST /b") && raw.ends_with(b"0\r\n\r\n"));
        assert_eq!(upstream.connections()[0].requests, 2);
        upstream.assert_no_violation();
    }

    #[test]
    fn a_violation_is_recorded() {
        for request in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"GET / HTTP/1.0\r\nhost: h\r\n\r\n",
            b"GET / HTTP/1.1\nhost: h\n\n",
            b"GET / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            b"GET  / HTTP/1.1\r\nhost: h\r\n\r\n",
        ] {
            let upstream = Upstream::echo("v1");
            let mut client = Client::connect(upstream.address());
            client.send(request).assert_closed();
            eventually(SOON, "a violation", || {
                upstream.connections()[0].violation.is_some()
            });
            assert_eq!(upstream.served(), 0);
        }
    }

    #[test]
    fn a_script_is_answered_in_order_and_its_ends_are_kept() {
        let upstream = Upstream::scripted(vec![
            Answer::status(503).field("a", "b"),
            Answer::ok("chunks").chunked(4).trailer("t", "v"),
            Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").then(Then::Close),
            Answer::raw("HTTP/1.1 200").then(Then::Reset),
        ]);
        let mut client = Client::connect(upstream.address());
        assert_eq!(client.get("h", "/").field("a"), Some("b"));
        assert_eq!(client.get("h", "/").trailers.get("t"), Some("v"));
        assert_eq!(
            client.send_get("h", "/").try_response(false),
            Err(WireError::Truncated("body"))
        );
        let mut client = Client::connect(upstream.address());
        assert_eq!(
            client.send_get("h", "/").try_response(false),
            Err(WireError::Reset)
        );
    }

    #[test]
    fn an_answer_may_come_before_the_body() {
        let on_head = |request: &Request| match request.target.as_str() {
            "/early" => OnHead::Answer(Answer::status(403).body("no")),
            _ => OnHead::Send(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
        };
        let upstream = Upstream::with_heads(on_head, |_| Answer::ok("done"));
        let mut client = Client::connect(upstream.address());
        client.send("POST /early HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n");
        assert_eq!(client.response().status, 403);
        client.send("abcPOST /wait HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n");
        assert_eq!(client.head().unwrap().1, 100);
        assert_eq!(client.send("def").response().text(), "done");
    }
}
