//! A whole exchange after the other, as the proxy drives them: a client's bytes on one side, an upstream's on the other,
//! both in arbitrary pieces, failures where the input wants them, and time that jumps.
//!
//! What must hold: every request gets exactly one final answer; what is sent upstream is read there as the request that
//! came, and what is sent to the client as the answer that came; attempts stay within their policy; a connection is
//! used only while it lives and is idle; and at the end everything that was acquired has been given back.

use crate::input::Input;
use http::{Method, StatusCode};
use isthmus_core::attempt::{Attempts, BodyProgress, Failure, RetryPolicy, Verdict};
use isthmus_core::cluster::balancer::BalancerKind;
use isthmus_core::cluster::locality::Levels;
use isthmus_core::cluster::pool::Group;
use isthmus_core::cluster::retry_budget::RetryLimits;
use isthmus_core::cluster::{Acquired, CONNECT_TIMEOUT, Choice, Cluster, ClusterSpec, ConnId, EndpointId};
use isthmus_core::endpoint::{Endpoint, EndpointSet};
use isthmus_core::h1::encode::{self, BodyFraming};
use isthmus_core::h1::{BodyDecoder, BodyStep, HeadParser, Parsed};
use isthmus_core::header::HeaderList;
use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead};
use isthmus_core::name::ClusterKey;
use isthmus_core::protocol::{Protocol, UpstreamHttp};
use isthmus_core::random::Random;
use isthmus_core::reply::Cause;
use isthmus_core::shared::{ClusterShared, Permit};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const CONNECTIONS_MAX: u32 = 3;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Plays both sides.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    let client_bytes = usize::from(input.byte()) << 2;
    let client = input.take(client_bytes).to_vec();
    let mut client = Side::new(&client);
    let limits = Settings::default().message_limits();
    let mut request = RequestHead::default();
    loop {
        let step = 1 + input.below(64);
        match client.head(step, |parser, bytes| {
            parser.parse_request(bytes, &limits, &mut request)
        }) {
            Some(Ok(())) => {}
            // The client's bytes end here, or are no request: what was answered so far was right.
            Some(Err(())) | None => break,
        }
        let Some(body) = client.body(step, request.body, &limits) else {
            break;
        };
        request.headers.remove_connection_fields();
        let answers = world.exchange(&request, &body, &mut input, &limits);
        assert_eq!(answers, 1, "one final answer for a request");
        if !request.keep_alive {
            break;
        }
    }
    world.end();
}

/// The bytes of one side and how far they were read.
struct Side<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How much of them has arrived.
    there: usize,
}

impl<'a> Side<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            there: 0,
        }
    }

    /// Lets some more bytes arrive; false when all are there.
    fn more(&mut self, step: usize) -> bool {
        let before = self.there;
        self.there = (self.there + step).min(self.bytes.len());
        self.there > before
    }

    /// Reads a head; None when the bytes end before it does.
    fn head<E>(
        &mut self,
        step: usize,
        mut parse: impl FnMut(&mut HeadParser, &[u8]) -> Result<Parsed, E>,
    ) -> Option<Result<(), ()>> {
        let mut parser = HeadParser::default();
        loop {
            match parse(&mut parser, &self.bytes[self.at..self.there]) {
                Ok(Parsed::Complete(used)) => {
                    self.at += used;
                    return Some(Ok(()));
                }
                Err(_) => return Some(Err(())),
                Ok(Parsed::Partial) if self.more(step) => {}
                Ok(Parsed::Partial) => return None,
            }
        }
    }

    /// Reads a body; None when it does not end well.
    fn body(&mut self, step: usize, length: BodyLength, limits: &MessageLimits) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        if length == BodyLength::None {
            return Some(data);
        }
        let mut decoder = BodyDecoder::new(length, limits);
        loop {
            match decoder.step(&self.bytes[self.at..self.there]).ok()? {
                BodyStep::Data(there) => {
                    data.extend_from_slice(&self.bytes[self.at..self.at + there]);
                    decoder.take(there);
                    self.at += there;
                }
                BodyStep::Skip(used) => self.at += used,
                BodyStep::End => return Some(data),
                BodyStep::NeedInput if self.more(step) => {}
                BodyStep::NeedInput => {
                    // The end of the connection may be the end of the body, and of nothing else.
                    return decoder.end_of_input().ok().map(|()| data);
                }
            }
        }
    }
}

/// A connection that lives.
struct Live {
    _permit: Permit,
    endpoint: EndpointId,
    idle: bool,
}

struct World {
    cluster: Cluster,
    shared: Arc<ClusterShared>,
    live: HashMap<ConnId, Live>,
    next: u32,
    now: Instant,
    random: Random,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let shared = Arc::new(ClusterShared::new(CONNECTIONS_MAX));
        let mut random = Random::from_seed(u64::from(input.byte()));
        // One moment of the past for the whole process, so that an input always runs alike.
        static START: OnceLock<Instant> = OnceLock::new();
        let now = *START.get_or_init(Instant::now);
        let cluster = Cluster::new(spec(input.below(4)), Arc::clone(&shared), now, &mut random);
        Self {
            cluster,
            shared,
            live: HashMap::new(),
            next: 0,
            now,
            random,
        }
    }

    /// One request until its answer; how many final answers were written.
    fn exchange(
        &mut self,
        request: &RequestHead,
        body: &[u8],
        input: &mut Input<'_>,
        limits: &MessageLimits,
    ) -> usize {
        let policy = RetryPolicy::default();
        let mut attempts = Attempts::new(&policy, None, &request.method, false);
        let mut avoid = Vec::new();
        loop {
            self.jump(input);
            let fresh = attempts.needs_fresh_connection();
            let number = attempts.start();
            assert!(number <= policy.retries + 2, "attempt {number}");
            let choice = Choice {
                hash: None,
                avoid: &avoid,
                group: Group::ALL,
                without: Levels::NONE,
                now: self.now,
            };
            let (conn, endpoint, reused) = match self.cluster.acquire(choice, fresh, &mut self.random) {
                Acquired::Use { conn, endpoint, .. } => {
                    let live = self
                        .live
                        .get_mut(&conn)
                        .expect("only a connection that lives is used");
                    assert!(live.idle && live.endpoint == endpoint);
                    live.idle = false;
                    (conn, endpoint, true)
                }
                Acquired::Open { endpoint, permit, .. } => {
                    let conn = ConnId(self.next);
                    self.next += 1;
                    let live = Live {
                        _permit: permit,
                        endpoint,
                        idle: false,
                    };
                    self.live.insert(conn, live);
                    (conn, endpoint, false)
                }
                Acquired::NoEndpoint | Acquired::Overflow => {
                    return local_answer(request, StatusCode::SERVICE_UNAVAILABLE);
                }
            };
            let sent = input.once_in(2);
            let failure = match input.below(6) {
                0 if !reused => Some(Failure::Connect(Cause::ConnectFailed)),
                1 => Some(Failure::Reset { reused }),
                _ => None,
            };
            let Some(failure) = failure else {
                let (answers, reusable) = self.pass_on(request, body, input, limits);
                self.give_back(conn, endpoint, reusable);
                return answers;
            };
            self.give_back(conn, endpoint, false);
            avoid.push(endpoint);
            let progress = BodyProgress {
                sent,
                replayable: body.len() < 1024,
            };
            match attempts.failed(failure, progress, &mut self.random, || true) {
                Verdict::Retry(wait) => {
                    assert!(wait <= policy.backoff * 10);
                    let twice = sent && matches!(failure, Failure::Reset { .. });
                    assert!(
                        !twice || request.method.is_idempotent(),
                        "sent twice: {}",
                        request.method
                    );
                    self.now += wait;
                }
                Verdict::GiveUp(reply) => return local_answer(request, reply.status),
            }
        }
    }

    /// The request goes up, the input's next bytes come back as the answer; how many final answers were written, and
    /// whether the upstream's connection may be used again.
    fn pass_on(
        &mut self,
        request: &RequestHead,
        body: &[u8],
        input: &mut Input<'_>,
        limits: &MessageLimits,
    ) -> (usize, bool) {
        sent_as_it_came(request, body, limits);
        let length = input.below(400);
        let bytes = input.take(length);
        let step = 1 + input.below(32);
        let mut upstream = Side::new(bytes);
        let mut answer = ResponseHead::default();
        loop {
            let method = &request.method;
            let parsed = upstream.head(step, |parser, bytes| {
                parser.parse_response(bytes, limits, method, &mut answer)
            });
            match parsed {
                Some(Ok(())) if answer.status.is_informational() => {
                    encode::interim_head(&answer, &mut Vec::new());
                }
                Some(Ok(())) => break,
                _ => return (local_answer(request, StatusCode::SERVICE_UNAVAILABLE), false),
            }
        }
        let length = answer.body;
        let keep_alive = answer.keep_alive;
        let whole = upstream.body(step, length, limits);
        answer.headers.remove_connection_fields();
        let form = encode::ResponseContext {
            version: request.version,
            head_request: request.method == Method::HEAD,
            keep_alive: request.keep_alive,
        };
        let mut out = Vec::new();
        let (framing, _) = encode::response_head(&answer, form, &mut out);
        let Some(whole) = whole else {
            // The client's connection is broken off, so that it cannot take half an answer for a whole one.
            return (1, false);
        };
        put_body(&whole, framing, &mut out);
        let mut client = Side::new(&out);
        let mut again = ResponseHead::default();
        let parsed = client.head(usize::MAX / 2, |parser, bytes| {
            parser.parse_response(bytes, limits, &request.method, &mut again)
        });
        assert_eq!(parsed, Some(Ok(())), "{}", String::from_utf8_lossy(&out));
        assert_eq!(again.status, answer.status);
        let read = client.body(usize::MAX / 2, again.body, limits);
        assert_eq!(read.as_deref(), Some(&whole[..]), "{length:?}");
        assert_eq!(client.at, out.len(), "nothing is left over");
        // Bytes that nobody asked for make a connection unusable.
        let clean = upstream.at == upstream.bytes.len();
        (1, clean && keep_alive && length != BodyLength::UntilClose)
    }

    fn give_back(&mut self, conn: ConnId, endpoint: EndpointId, reusable: bool) {
        let closed = self.cluster.release(endpoint, reusable.then_some(conn), self.now);
        if reusable && closed.is_none() {
            self.live.get_mut(&conn).expect("it lives").idle = true;
        } else {
            self.live.remove(&conn);
        }
        self.count();
    }

    /// Time passes, and sometimes the endpoints change.
    fn jump(&mut self, input: &mut Input<'_>) {
        let jump = input.byte();
        self.now += Duration::from_secs(u64::from(jump & 0x7f));
        for conn in self.cluster.expire(self.now) {
            let gone = self.live.remove(&conn).expect("it lives");
            assert!(gone.idle, "what is in use does not expire");
        }
        if jump & 0x80 != 0 {
            for conn in self
                .cluster
                .reconcile(spec(input.below(4)), self.now, &mut self.random)
            {
                assert!(self.live.remove(&conn).expect("it lives").idle);
            }
        }
        self.count();
    }

    fn count(&self) {
        let live = u32::try_from(self.live.len()).unwrap_or(u32::MAX);
        assert_eq!(self.shared.connections.held(), live);
        assert!(live <= CONNECTIONS_MAX);
    }

    fn end(mut self) {
        for conn in self.cluster.drain() {
            assert!(self.live.remove(&conn).expect("it lives").idle);
        }
        assert!(self.live.is_empty(), "every connection was idle at the end");
        assert_eq!(self.shared.connections.held(), 0);
        assert!(
            self.cluster
                .view()
                .all(|(_, _, active, idle)| (active, idle) == (0, 0))
        );
    }
}

fn spec(endpoints: usize) -> Arc<ClusterSpec> {
    let list = (0..endpoints).map(|at| Endpoint::new(([127, 0, 0, 1], 1000 + at as u16).into()));
    Arc::new(ClusterSpec {
        key: ClusterKey::outbound(80, "", "h"),
        endpoints: Arc::new(EndpointSet::new(list)),
        protocol: Protocol::Http,
        http: UpstreamHttp::default(),
        balancer: BalancerKind::LeastRequest.into(),
        connect_timeout: CONNECT_TIMEOUT,
        idle_timeout: IDLE_TIMEOUT,
        max_requests_per_connection: 0,
        namespace: "default".into(),
        tls: None,
        tcp_idle_timeout: Duration::ZERO,
        max_connection_duration: Duration::ZERO,
        keepalive: None,
        proxy_protocol: None,
        tunnel: None,
        dynamic: None,
        limits: isthmus_core::shared::Limits::default(),
        outlier: None,
        health: None,
        retries: RetryLimits::default(),
    })
}

/// The gateway answers by itself; always one answer.
fn local_answer(request: &RequestHead, status: StatusCode) -> usize {
    let head = ResponseHead {
        status,
        body: BodyLength::Known(0),
        ..ResponseHead::default()
    };
    let form = encode::ResponseContext {
        version: request.version,
        head_request: request.method == Method::HEAD,
        keep_alive: request.keep_alive,
    };
    let mut out = Vec::new();
    encode::response_head(&head, form, &mut out);
    assert!(out.starts_with(b"HTTP/1.1 ") && out.ends_with(b"\r\n\r\n"));
    1
}

/// What goes upstream is read there as what came.
fn sent_as_it_came(request: &RequestHead, body: &[u8], limits: &MessageLimits) {
    if request.authority.is_empty() {
        // HTTP/1.0 without Host: an empty Host goes upstream (RFC 9112, 3.2), which this codec would not take itself.
        return;
    }
    let mut out = Vec::new();
    let framing = encode::request_head(request, false, &mut out);
    put_body(body, framing, &mut out);
    let mut upstream = Side::new(&out);
    let mut again = RequestHead::default();
    let parsed = upstream.head(usize::MAX / 2, |parser, bytes| {
        parser.parse_request(bytes, limits, &mut again)
    });
    assert_eq!(parsed, Some(Ok(())), "{}", String::from_utf8_lossy(&out));
    assert_eq!(
        (&again.method, &again.path, &again.authority),
        (&request.method, &request.path, &request.authority)
    );
    let read = upstream.body(usize::MAX / 2, again.body, limits);
    assert_eq!(read.as_deref(), Some(body));
    assert_eq!(upstream.at, out.len(), "a second request would be smuggled");
}

fn put_body(body: &[u8], framing: BodyFraming, out: &mut Vec<u8>) {
    match framing {
        BodyFraming::Plain => out.extend_from_slice(body),
        BodyFraming::Chunked => {
            for chunk in body.chunks(7) {
                encode::chunk_start(chunk.len(), out);
                out.extend_from_slice(chunk);
                out.extend_from_slice(b"\r\n");
            }
            encode::last_chunk(&HeaderList::default(), out);
        }
    }
}
