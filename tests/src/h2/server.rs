//! An upstream of HTTP/2 that a test scripts, frame by frame where it must. It reads strictly, keeps what came, and
//! sends content as the windows allow; what the gateway does against the rules is remembered.

use super::client::PREFACE;
use super::frame::{Code, Frame, flag, kind, setting};
use super::hpack::{Block, Decoder, Field};
use crate::upstream::LiveStreams;
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

const STACK_BYTES: usize = 256 * 1024;
const INITIAL_WINDOW: i64 = 65_535;
/// Largest frame that everybody takes.
const FRAME_BYTES: usize = 16_384;

/// A request as it reached an upstream.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The stream that it came on.
    pub stream: u32,
    /// Its pseudo-header fields and its fields.
    pub fields: Vec<Field>,
    /// Its content so far.
    pub body: Vec<u8>,
    /// Its trailer fields.
    pub trailers: Vec<Field>,
    /// Whether END_STREAM came.
    pub ended: bool,
    /// The code of RST_STREAM.
    pub reset: Option<Code>,
}

impl Request {
    /// The value of the first field of this name.
    pub fn field(&self, name: &str) -> Option<String> {
        let found = self.fields.iter().find(|(known, _)| known == name.as_bytes());
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }

    /// All values of this name.
    pub fn values(&self, name: &str) -> Vec<String> {
        let all = self.fields.iter().filter(|(known, _)| known == name.as_bytes());
        all.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    /// Its `:path`.
    pub fn path(&self) -> String {
        self.field(":path").unwrap_or_default()
    }
}

/// What has come on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The head of the request on this stream.
    Head(u32),
    /// Content of it.
    Data(u32),
    /// Its end.
    End(u32),
    /// RST_STREAM from the gateway.
    Reset(u32),
    /// PING, which was not answered yet.
    Ping([u8; 8]),
}

#[derive(Debug, Default)]
struct Outgoing {
    window: i64,
    waiting: VecDeque<u8>,
    trailers: Option<Vec<u8>>,
    ends: bool,
    over: bool,
}

/// What is known of one connection.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The requests in the order of their streams.
    pub requests: BTreeMap<u32, Request>,
    /// The most streams that were open at a time.
    pub open_max: usize,
    /// The code of GOAWAY from the gateway.
    pub goaway: Option<Code>,
    /// How many PING frames came.
    pub pings: usize,
    /// Whether the connection has ended.
    pub ended: bool,
    /// The first rule that the gateway broke.
    pub violation: Option<String>,
}

/// The server's end of one connection, for scripts.
#[derive(Debug)]
pub struct Peer {
    /// Which connection this is, from 0.
    pub number: usize,
    /// What has come.
    pub seen: Seen,
    /// Gives back windows as they are used; true at first.
    pub refills: bool,
    /// Answers PING; true at first.
    pub answers_pings: bool,
    stream: TcpStream,
    decoder: Decoder,
    window: i64,
    initial_window: i64,
    outgoing: BTreeMap<u32, Outgoing>,
    /// What the gateway may still send: on the connection and on each stream.
    allowance: i64,
    own_window: i64,
    allowances: BTreeMap<u32, i64>,
    own_settings: Vec<(u16, u32)>,
    block: Option<(u32, bool, Vec<u8>)>,
}

impl Peer {
    /// Sends a frame as it is.
    pub fn send(&mut self, frame: &Frame) {
        // A peer that has gone is noticed when reading.
        let _gone = self.stream.write_all(&frame.encode());
    }

    /// The request on this stream.
    pub fn request(&self, stream: u32) -> &Request {
        &self.seen.requests[&stream]
    }

    /// Sends a whole answer.
    pub fn answer(&mut self, stream: u32, status: u16, fields: &[(&str, &str)], body: &[u8]) {
        self.head(stream, status, fields, body.is_empty());
        if !body.is_empty() {
            self.data(stream, body, true);
        }
    }

    /// Sends the head of an answer; interim ones, too.
    pub fn head(&mut self, stream: u32, status: u16, fields: &[(&str, &str)], ends: bool) {
        let mut block = Block::new().field(":status", status.to_string());
        for (name, value) in fields {
            block = block.field(name, value);
        }
        let flags = if ends { flag::WHOLE } else { flag::END_HEADERS };
        self.send(&Frame::headers(flags, stream, block.bytes()));
        if ends {
            self.outgoing.entry(stream).or_default().over = true;
        }
    }

    /// Sends content as soon as the windows allow.
    pub fn data(&mut self, stream: u32, body: &[u8], ends: bool) {
        let Some(out) = self.outgoing.get_mut(&stream) else {
            return;
        };
        out.waiting.extend(body);
        out.ends |= ends;
        self.push(stream);
    }

    /// Ends an answer with trailers, behind its content.
    pub fn trailers(&mut self, stream: u32, fields: &[(&str, &str)]) {
        let block = Block::of(fields);
        let Some(out) = self.outgoing.get_mut(&stream) else {
            return;
        };
        out.trailers = Some(block.bytes().to_vec());
        self.push(stream);
    }

    /// Ends a stream with this code.
    pub fn reset(&mut self, stream: u32, code: Code) {
        self.outgoing.entry(stream).or_default().over = true;
        self.send(&Frame::rst_stream(stream, code));
    }

    /// Says that streams behind `last` are not looked at.
    pub fn goaway(&mut self, last: u32, code: Code) {
        self.send(&Frame::goaway(last, code, b""));
    }

    /// The highest stream that came.
    pub fn last(&self) -> u32 {
        self.seen.requests.keys().next_back().copied().unwrap_or(0)
    }

    /// Whether the answer on this stream is still to come.
    pub fn has(&self, stream: u32) -> bool {
        self.outgoing.get(&stream).is_some_and(|out| !out.over)
    }

    /// Says that nothing more comes, in an orderly way; what the gateway still sends is read.
    pub fn close(&mut self) {
        let _gone = self.stream.shutdown(Shutdown::Write);
    }

    /// Streams that are under way.
    pub fn open(&self) -> usize {
        let open = |stream: &u32, request: &Request| {
            let answered = self.outgoing.get(stream).is_some_and(|out| out.over);
            request.reset.is_none() && !(answered && request.ended)
        };
        let all = self.seen.requests.iter();
        all.filter(|(stream, request)| open(stream, request)).count()
    }

    fn push(&mut self, stream: u32) {
        loop {
            let Some(out) = self.outgoing.get_mut(&stream) else {
                return;
            };
            if out.over {
                return;
            }
            let room = usize::try_from(out.window.min(self.window)).unwrap_or(0);
            let count = out.waiting.len().min(room).min(FRAME_BYTES);
            let all = count == out.waiting.len();
            if count == 0 && !(all && (out.ends || out.trailers.is_some())) {
                return;
            }
            let part: Vec<u8> = out.waiting.drain(..count).collect();
            out.window -= count as i64;
            self.window -= count as i64;
            let trailers = out.trailers.take_if(|_| all);
            let ends = all && out.ends && trailers.is_none();
            out.over = ends || trailers.is_some();
            if count > 0 || ends {
                let flags = if ends { flag::END_STREAM } else { flag::NONE };
                self.send(&Frame::data(flags, stream, part));
            }
            if let Some(block) = trailers {
                self.send(&Frame::headers(flag::WHOLE, stream, block));
                return;
            }
            if ends {
                return;
            }
        }
    }

    fn broke(&mut self, rule: impl Into<String>) {
        self.seen.violation.get_or_insert(rule.into());
    }

    fn take(&mut self, frame: &Frame) -> Option<Vec<Event>> {
        let continues = self.block.is_some();
        if continues != (frame.kind == kind::CONTINUATION) {
            self.broke("4.3: a header block is contiguous");
        }
        if frame.payload.len() > FRAME_BYTES {
            self.broke("4.2: a frame larger than SETTINGS_MAX_FRAME_SIZE");
        }
        match frame.kind {
            kind::HEADERS => {
                let content = frame.content()?.to_vec();
                self.block = Some((frame.stream, frame.has(flag::END_STREAM), content));
                self.end_block(frame.has(flag::END_HEADERS))
            }
            kind::CONTINUATION => {
                self.block.as_mut()?.2.extend_from_slice(&frame.payload);
                self.end_block(frame.has(flag::END_HEADERS))
            }
            kind::DATA => self.take_data(frame),
            kind::RST_STREAM => {
                let code = Code(frame.word(0)?);
                let Some(request) = self.seen.requests.get_mut(&frame.stream) else {
                    self.broke("5.1: RST_STREAM on an idle stream");
                    return None;
                };
                request.reset = Some(code);
                if let Some(out) = self.outgoing.get_mut(&frame.stream) {
                    out.over = true;
                }
                Some(vec![Event::Reset(frame.stream)])
            }
            kind::SETTINGS if !frame.has(flag::ACK) => {
                for entry in frame.payload.chunks_exact(6) {
                    let name = u16::from_be_bytes([entry[0], entry[1]]);
                    let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
                    if name == setting::INITIAL_WINDOW_SIZE {
                        let more = i64::from(value) - self.initial_window;
                        self.initial_window = i64::from(value);
                        self.outgoing.values_mut().for_each(|out| out.window += more);
                    }
                }
                self.send(&Frame::settings_ack());
                None
            }
            kind::PING if !frame.has(flag::ACK) => {
                self.seen.pings += 1;
                let opaque: [u8; 8] = frame.payload.as_slice().try_into().ok()?;
                if self.answers_pings {
                    self.send(&Frame::ping(flag::ACK, opaque));
                }
                Some(vec![Event::Ping(opaque)])
            }
            kind::GOAWAY => {
                self.seen.goaway = Some(Code(frame.word(4)?));
                None
            }
            kind::WINDOW_UPDATE => {
                let more = i64::from(frame.word(0)?);
                if frame.stream == 0 {
                    self.window += more;
                    let all: Vec<u32> = self.outgoing.keys().copied().collect();
                    all.into_iter().for_each(|stream| self.push(stream));
                } else if let Some(out) = self.outgoing.get_mut(&frame.stream) {
                    out.window += more;
                    self.push(frame.stream);
                }
                None
            }
            _ => None,
        }
    }

    fn take_data(&mut self, frame: &Frame) -> Option<Vec<Event>> {
        let stream = frame.stream;
        let used = frame.payload.len() as i64;
        let ends = frame.has(flag::END_STREAM);
        self.allowance -= used;
        let own = self.allowances.entry(stream).or_insert(0);
        *own -= used;
        if used > 0 && (self.allowance < 0 || *own < 0) {
            self.broke("6.9.1: more than a window");
        }
        let content = frame.content()?;
        let Some(request) = self.seen.requests.get_mut(&stream) else {
            self.broke("5.1: DATA on an idle stream");
            return None;
        };
        request.body.extend_from_slice(content);
        let was_over = request.ended || request.reset.is_some();
        request.ended |= ends;
        let said = request.field("content-length");
        let counted = request.body.len().to_string();
        if was_over {
            self.broke("5.1: DATA behind the end of a stream");
        }
        if ends && said.is_some_and(|said| said != counted) {
            self.broke("8.1.1: content-length is what came");
        }
        if self.refills && used > 0 {
            self.give(stream, used, ends);
        }
        let mut events = vec![Event::Data(stream)];
        if ends {
            events.push(Event::End(stream));
        }
        Some(events)
    }

    /// Gives the gateway room for so many bytes more.
    fn give(&mut self, stream: u32, bytes: i64, ended: bool) {
        let Ok(more) = u32::try_from(bytes) else { return };
        self.allowance += bytes;
        self.send(&Frame::window_update(0, more));
        if !ended {
            *self.allowances.entry(stream).or_insert(0) += bytes;
            self.send(&Frame::window_update(stream, more));
        }
    }

    fn end_block(&mut self, complete: bool) -> Option<Vec<Event>> {
        if !complete {
            return None;
        }
        let (stream, ends, bytes) = self.block.take()?;
        let fields = match self.decoder.decode(&bytes) {
            Ok(fields) => fields,
            Err(error) => {
                self.broke(format!("RFC 7541: {error}"));
                return None;
            }
        };
        if let Some(request) = self.seen.requests.get_mut(&stream) {
            request.trailers.extend(fields);
            request.ended = true;
            return Some(vec![Event::End(stream)]);
        }
        if stream <= self.last() || stream.is_multiple_of(2) {
            self.broke("5.1.1: a stream's number is new and odd");
        }
        for (name, _) in &fields {
            let name = String::from_utf8_lossy(name);
            let of_a_connection = [
                "connection",
                "keep-alive",
                "transfer-encoding",
                "upgrade",
                "proxy-connection",
                "host",
            ];
            if of_a_connection.contains(&&*name) || name.chars().any(char::is_uppercase) {
                self.broke(format!("8.2: {name}"));
            }
        }
        let request = Request {
            stream,
            fields,
            ended: ends,
            ..Request::default()
        };
        self.seen.requests.insert(stream, request);
        self.allowances.insert(stream, self.own_window);
        let window = self.initial_window;
        self.outgoing.insert(
            stream,
            Outgoing {
                window,
                ..Outgoing::default()
            },
        );
        let open = self.open();
        self.seen.open_max = self.seen.open_max.max(open);
        let mut events = vec![Event::Head(stream)];
        if ends {
            events.push(Event::End(stream));
        }
        Some(events)
    }
}

type Script = Arc<dyn Fn(&mut Peer, Event) + Send + Sync>;

struct Shared {
    settings: Vec<(u16, u32)>,
    script: Script,
    peers: Mutex<Vec<Arc<Mutex<Peer>>>>,
    stopping: AtomicBool,
    live: LiveStreams,
}

/// A scripted upstream on a port of its own; it ends when dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

impl Server {
    /// Says these settings, and calls the script with everything that comes.
    pub fn start(settings: &[(u16, u32)], script: impl Fn(&mut Peer, Event) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            settings: settings.to_vec(),
            script: Arc::new(script),
            peers: Mutex::default(),
            stopping: AtomicBool::new(false),
            live: LiveStreams::default(),
        });
        let state = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &state));
        Self { address, shared }
    }

    /// Answers each whole request with 200 and its own content.
    pub fn echo() -> Self {
        Self::start(&[], echo)
    }

    /// Takes requests and answers none.
    pub fn silent(settings: &[(u16, u32)]) -> Self {
        Self::start(settings, |_, _| {})
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is known of the connections so far.
    pub fn connections(&self) -> Vec<Seen> {
        let peers = self.shared.peers.lock().unwrap().clone();
        peers
            .iter()
            .map(|peer| peer.lock().unwrap().seen.clone())
            .collect()
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        let all = self.connections().into_iter();
        all.flat_map(|seen| seen.requests.into_values()).collect()
    }

    /// The request with this path, once it has come.
    pub fn request(&self, path: &str) -> Option<Request> {
        self.requests().into_iter().find(|request| request.path() == path)
    }

    /// Does something with a connection.
    pub fn on<T>(&self, connection: usize, act: impl FnOnce(&mut Peer) -> T) -> T {
        let peer = Arc::clone(&self.shared.peers.lock().unwrap()[connection]);
        let mut peer = peer.lock().unwrap();
        act(&mut peer)
    }

    /// Does something with the stream that carries this path; panics when there is none.
    pub fn on_path<T>(&self, path: &str, act: impl FnOnce(&mut Peer, u32) -> T) -> T {
        let peers = self.shared.peers.lock().unwrap().clone();
        for peer in peers {
            let mut peer = peer.lock().unwrap();
            let found = peer.seen.requests.values().find(|request| request.path() == path);
            if let Some(stream) = found.map(|request| request.stream) {
                return act(&mut peer, stream);
            }
        }
        panic!("no request for {path}")
    }

    /// Panics if the gateway has broken a rule of HTTP/2.
    pub fn assert_no_violation(&self) {
        for seen in self.connections() {
            assert_eq!(seen.violation, None);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _wakes_accept = TcpStream::connect(self.address);
        self.shared.live.shut_down();
    }
}

/// The script that answers each whole request with its own content.
pub fn echo(peer: &mut Peer, event: Event) {
    if let Event::End(stream) = event {
        let body = peer.request(stream).body.clone();
        let trailers = peer.request(stream).trailers.clone();
        if trailers.is_empty() {
            peer.answer(stream, 200, &[], &body);
            return;
        }
        peer.head(stream, 200, &[], false);
        peer.data(stream, &body, false);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let texts: Vec<_> = trailers
            .iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect();
        let fields: Vec<_> = texts.iter().map(|(name, value)| (&**name, &**value)).collect();
        peer.trailers(stream, &fields);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (number, stream) in listener.incoming().enumerate() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { return };
        let shared = Arc::clone(shared);
        shared.live.add(number, &stream);
        let peer = Arc::new(Mutex::new(Peer::new(number, &stream, &shared.settings)));
        shared.peers.lock().unwrap().push(Arc::clone(&peer));
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                serve(stream, &peer, &shared.script);
                shared.live.remove(number);
                peer.lock().unwrap().seen.ended = true;
            })
            .expect("a thread");
    }
}

impl Peer {
    fn new(number: usize, stream: &TcpStream, settings: &[(u16, u32)]) -> Self {
        let said = |name| {
            settings
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| *value)
        };
        Self {
            number,
            seen: Seen::default(),
            refills: true,
            answers_pings: true,
            stream: stream.try_clone().expect("a handle"),
            decoder: Decoder::default(),
            window: INITIAL_WINDOW,
            initial_window: INITIAL_WINDOW,
            outgoing: BTreeMap::new(),
            allowance: INITIAL_WINDOW,
            own_window: said(setting::INITIAL_WINDOW_SIZE).map_or(INITIAL_WINDOW, i64::from),
            allowances: BTreeMap::new(),
            own_settings: settings.to_vec(),
            block: None,
        }
    }
}

fn serve(mut stream: TcpStream, peer: &Arc<Mutex<Peer>>, script: &Script) {
    let _slower_only = stream.set_nodelay(true);
    let mut preface = [0; PREFACE.len()];
    if stream.read_exact(&mut preface).is_err() {
        return;
    }
    let mut received = Vec::new();
    {
        let mut peer = peer.lock().unwrap();
        if preface != *PREFACE {
            peer.broke("3.4: the preface");
            return peer.close();
        }
        let settings = peer.own_settings.clone();
        peer.send(&Frame::settings(&settings));
    }
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => received.extend_from_slice(&buffer[..count]),
        }
        let mut at = 0;
        while let Some((frame, length)) = Frame::decode(&received[at..]) {
            at += length;
            let mut peer = peer.lock().unwrap();
            for event in peer.take(&frame).unwrap_or_default() {
                script(&mut peer, event);
            }
        }
        received.drain(..at);
    }
}
