//! A client of HTTP/2 that sends any frame and reads strictly. What is sent goes through [`Connection::send`], which
//! keeps account of what the peer may do from then on (RFC 9113, 5.2 and 6.5); what comes is checked against that, and
//! gathered as the answers of streams. A peer that breaks a rule itself is remembered in [`Connection::violation`].

use super::frame::{Code, Frame, HEADER_BYTES, MAX_31, RESERVED_BIT, flag, kind, setting};
use super::hpack::{Block, Decoder, Field};
use super::transport::{AUTHORITY, Target, Transport};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// What a client says first (RFC 9113, 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The windows that a connection begins with (RFC 9113, 6.9.2).
pub const INITIAL_WINDOW: i64 = 65_535;

/// The size of frames that everybody takes (RFC 9113, 4.2).
pub const FRAME_BYTES: usize = 16_384;

/// A larger frame is not sent to find out whether it is too large.
const FRAME_BYTES_TRIED: usize = 1 << 20;

/// What a peer has to do anything that a case waits for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Why a script cannot go on.
pub type Failed = String;

/// The result of a step of a script.
pub type Step<T = ()> = Result<T, Failed>;

/// What the peer said in its SETTINGS.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// SETTINGS_HEADER_TABLE_SIZE.
    pub header_table_size: u32,
    /// SETTINGS_MAX_CONCURRENT_STREAMS, if it said one.
    pub max_concurrent_streams: Option<u32>,
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    pub initial_window_size: u32,
    /// SETTINGS_MAX_FRAME_SIZE.
    pub max_frame_size: u32,
    /// SETTINGS_MAX_HEADER_LIST_SIZE, if it said one.
    pub max_header_list_size: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            header_table_size: 4096,
            max_concurrent_streams: None,
            initial_window_size: 65_535,
            max_frame_size: 16_384,
            max_header_list_size: None,
        }
    }
}

/// What came on a stream.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The statuses of interim answers.
    pub interim: Vec<u16>,
    /// The status of the answer.
    pub status: Option<u16>,
    /// Its fields without `:status`.
    pub fields: Vec<Field>,
    /// Its content.
    pub body: Vec<u8>,
    /// The sizes of the DATA frames.
    pub data_frames: Vec<usize>,
    /// Its trailer fields.
    pub trailers: Vec<Field>,
    /// Whether END_STREAM came.
    pub ended: bool,
    /// The code of RST_STREAM.
    pub reset: Option<Code>,
    /// What the peer may send on this stream.
    allowance: i64,
    /// What this side may send on this stream.
    window: i64,
    /// This side sent HEADERS on the stream.
    opened: bool,
    /// This side sent RST_STREAM.
    cancelled: bool,
    /// The answer has no content, whatever its content-length says.
    is_head: bool,
}

impl Answer {
    /// Whether nothing more comes.
    pub fn is_over(&self) -> bool {
        self.ended || self.reset.is_some()
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<String> {
        let mut all = self.fields.iter();
        let (_, value) = all.find(|(known, _)| known == name.as_bytes())?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A header block whose end has not come.
#[derive(Debug)]
struct OpenBlock {
    stream: u32,
    ends_stream: bool,
    bytes: Vec<u8>,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    target: Target,
    transport: Transport,
    /// Octets that are no whole frame yet.
    received: Vec<u8>,
    /// Octets that go out before the next wait.
    outgoing: Vec<u8>,
    /// What the peer said in SETTINGS.
    pub peer: Settings,
    /// How many SETTINGS frames came that are no acknowledgement.
    pub settings_seen: usize,
    /// How many acknowledgements of SETTINGS came.
    pub settings_acks: usize,
    /// The answers to PING.
    pub pongs: Vec<[u8; 8]>,
    /// What GOAWAY said: the last stream and the code.
    pub goaway: Option<(u32, Code)>,
    /// The peer has closed, or the connection is broken.
    pub closed: bool,
    /// The peer takes this for HTTP/1: what it said stays as it came.
    pub speaks_http1: bool,
    /// The first rule that the peer broke.
    pub violation: Option<String>,
    /// Acknowledges SETTINGS; true at first.
    pub acknowledges: bool,
    /// Gives back the windows as they are used; true at first.
    pub refills: bool,
    answers: BTreeMap<u32, Answer>,
    block: Option<OpenBlock>,
    decoder: Decoder,
    unacknowledged: VecDeque<Vec<(u16, u32)>>,
    /// What the peer may send on the connection.
    allowance: i64,
    /// What this side may send on the connection.
    window: i64,
    /// This side's SETTINGS_INITIAL_WINDOW_SIZE as the peer may take it.
    own_initial_window: i64,
    own_max_frame_size: usize,
    stream_max: u32,
    log: Vec<String>,
}

impl Connection {
    /// Connects, and sends nothing yet.
    pub fn open(target: Target) -> Step<Self> {
        let transport = Transport::open(target).map_err(|error| format!("cannot connect: {error}"))?;
        Ok(Self {
            target,
            transport,
            received: Vec::new(),
            outgoing: Vec::new(),
            peer: Settings::default(),
            settings_seen: 0,
            settings_acks: 0,
            pongs: Vec::new(),
            goaway: None,
            closed: false,
            speaks_http1: false,
            violation: None,
            acknowledges: true,
            refills: true,
            answers: BTreeMap::new(),
            block: None,
            decoder: Decoder::default(),
            unacknowledged: VecDeque::new(),
            allowance: INITIAL_WINDOW,
            window: INITIAL_WINDOW,
            own_initial_window: INITIAL_WINDOW,
            own_max_frame_size: FRAME_BYTES,
            stream_max: 0,
            log: Vec::new(),
        })
    }

    /// Sends the preface with these settings, and waits for the peer's and for the acknowledgement.
    pub fn handshake(&mut self, settings: &[(u16, u32)]) -> Step {
        self.bytes(PREFACE);
        self.send(&Frame::settings(settings));
        self.until("SETTINGS and their acknowledgement", |connection| {
            connection.settings_seen > 0 && connection.settings_acks > 0
        })
    }

    /// The scheme of requests.
    pub fn scheme(&self) -> &'static str {
        self.target.scheme()
    }

    // --- sending

    /// Bytes that nothing is made of, behind what was sent before.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
    }

    /// A frame, of which account is kept.
    pub fn send(&mut self, frame: &Frame) {
        self.note(frame);
        self.bytes(&frame.encode());
    }

    /// Several frames, which go out together.
    pub fn send_all(&mut self, frames: &[Frame]) {
        for frame in frames {
            self.send(frame);
        }
    }

    /// A frame with another length in its header.
    pub fn send_declaring(&mut self, frame: &Frame, length: u32) {
        self.note(frame);
        self.bytes(&frame.encode_declaring(length));
    }

    /// A frame whose octets go out one by one.
    pub fn send_slowly(&mut self, frame: &Frame) {
        self.note(frame);
        for octet in frame.encode().chunks(1) {
            self.bytes(octet);
            self.flush();
        }
    }

    /// The length of a frame that is one octet too long.
    pub fn too_long(&self) -> Step<usize> {
        match self.peer.max_frame_size as usize {
            limit @ ..=FRAME_BYTES_TRIED => Ok(limit + 1),
            limit => Err(format!(
                "the server takes frames of {limit} octets: one beyond that is not tried"
            )),
        }
    }

    /// Hands over what was sent so far to the network. A peer that has closed already is seen when reading.
    pub fn flush(&mut self) {
        if !self.outgoing.is_empty() {
            let _seen_when_reading = self.transport.write(&self.outgoing);
            self.outgoing.clear();
        }
    }

    /// Says that nothing more is sent.
    pub fn finish(&mut self) {
        self.flush();
        let _seen_when_reading = self.transport.finish();
    }

    /// The identifier for another stream.
    pub fn next_stream(&self) -> u32 {
        if self.stream_max == 0 {
            1
        } else {
            (self.stream_max + 1) | 1
        }
    }

    /// The pseudo-header fields of a request, in literals.
    pub fn head(&self, method: &str, path: &str) -> Block {
        Block::of(&[
            (":method", method),
            (":scheme", self.scheme()),
            (":path", path),
            (":authority", AUTHORITY),
        ])
    }

    /// Sends a GET on a new stream.
    pub fn get(&mut self, path: &str) -> u32 {
        let stream = self.next_stream();
        let block = self.head("GET", path);
        self.send(&Frame::headers(flag::WHOLE, stream, block));
        stream
    }

    /// Sends the head of a POST on a new stream, which stays open.
    pub fn post(&mut self, path: &str) -> u32 {
        let stream = self.next_stream();
        let block = self.head("POST", path);
        self.send(&Frame::headers(flag::END_HEADERS, stream, block));
        stream
    }

    /// Sends content as the windows allow, and the end of the stream.
    pub fn upload(&mut self, stream: u32, content: &[u8]) -> Step {
        let mut rest = content;
        while !rest.is_empty() {
            self.until("a window to send in", |connection| connection.room(stream) > 0)?;
            let (part, behind) = rest.split_at(rest.len().min(self.room(stream)));
            self.send(&Frame::data(flag::NONE, stream, part));
            rest = behind;
        }
        self.send(&Frame::data(flag::END_STREAM, stream, []));
        Ok(())
    }

    /// How long a DATA frame may be now.
    pub fn room(&self, stream: u32) -> usize {
        let of_stream = self.answers.get(&stream).map_or(0, |answer| answer.window);
        let size = i64::from(self.peer.max_frame_size);
        usize::try_from(self.window.min(of_stream).min(size)).unwrap_or(0)
    }

    /// What a frame of this side changes.
    fn note(&mut self, frame: &Frame) {
        let stream = frame.stream & !RESERVED_BIT;
        let new = Answer {
            allowance: self.own_initial_window,
            window: i64::from(self.peer.initial_window_size),
            ..Answer::default()
        };
        if stream != 0 {
            self.answers.entry(stream).or_insert(new);
        }
        let length = frame.payload.len() as i64;
        let increment = i64::from(frame.word(0).unwrap_or_default() & MAX_31);
        match frame.kind {
            kind::HEADERS => {
                self.stream_max = self.stream_max.max(stream);
                self.answer_mut(stream).opened = true;
            }
            kind::RST_STREAM => self.answer_mut(stream).cancelled = true,
            kind::SETTINGS if !frame.has(flag::ACK) => self.note_settings(frame),
            kind::WINDOW_UPDATE if stream == 0 => self.allowance += increment,
            kind::WINDOW_UPDATE => self.answer_mut(stream).allowance += increment,
            kind::DATA => {
                self.window -= length;
                self.answer_mut(stream).window -= length;
            }
            _ => {}
        }
    }

    /// The peer may use what was allowed at once, and must heed what was forbidden once it has acknowledged.
    fn note_settings(&mut self, frame: &Frame) {
        let values: Vec<_> = settings_of(frame).collect();
        for (name, value) in &values {
            match *name {
                setting::INITIAL_WINDOW_SIZE if i64::from(*value) > self.own_initial_window => {
                    self.set_own_initial_window(i64::from(*value));
                }
                setting::MAX_FRAME_SIZE => {
                    self.own_max_frame_size = self.own_max_frame_size.max(*value as usize);
                }
                _ => {}
            }
        }
        self.unacknowledged.push_back(values);
    }

    fn set_own_initial_window(&mut self, size: i64) {
        let difference = size - self.own_initial_window;
        self.own_initial_window = size;
        for answer in self.answers.values_mut() {
            answer.allowance += difference;
        }
    }

    fn answer_mut(&mut self, stream: u32) -> &mut Answer {
        self.answers.entry(stream).or_default()
    }

    /// Says that the answer on this stream has no content, because HEAD asked for it.
    pub fn expect_no_content(&mut self, stream: u32) {
        self.answer_mut(stream).is_head = true;
    }

    // --- reading

    /// What came on a stream so far.
    pub fn answer(&self, stream: u32) -> Answer {
        self.answers.get(&stream).cloned().unwrap_or_default()
    }

    /// Whether nothing more comes on a stream.
    pub fn is_over(&self, stream: u32) -> bool {
        self.answers.get(&stream).is_some_and(Answer::is_over)
    }

    /// Waits until so much content came on a stream, and checks that no more does.
    pub fn stops_at(&mut self, stream: u32, octets: usize) -> Step {
        let length = |connection: &Self| {
            connection
                .answers
                .get(&stream)
                .map_or(0, |answer| answer.body.len())
        };
        self.until("content within the window", |connection| {
            length(connection) >= octets
        })?;
        self.round_trip()?;
        self.round_trip()?;
        match length(self) {
            found if found == octets => Ok(()),
            found => Err(format!(
                "{found} octets on stream {stream}, where {octets} were due"
            )),
        }
    }

    /// Waits until the peer closes, whatever it sends before.
    pub fn until_closed(&mut self) -> Step {
        let end = Instant::now() + PATIENCE;
        while !self.closed {
            self.read_more(end, "the end of the connection")?;
        }
        Ok(())
    }

    /// Waits until nothing more comes on a stream, or on the connection.
    pub fn until_over_or_closed(&mut self, stream: u32) -> Step {
        let end = Instant::now() + PATIENCE;
        while !self.closed && self.goaway.is_none() && !self.is_over(stream) {
            self.read_more(end, "the end of the stream or of the connection")?;
        }
        Ok(())
    }

    /// Gives up what is open on this side, and gives the peer the windows of a new connection.
    pub fn settle(&mut self) {
        self.refills = true;
        let open = self
            .answers
            .iter()
            .filter(|(_, answer)| answer.opened && !answer.cancelled && !answer.is_over());
        let open: Vec<u32> = open.map(|(stream, _)| *stream).collect();
        for stream in open {
            self.send(&Frame::rst_stream(stream, Code::CANCEL));
        }
        if self.own_initial_window != INITIAL_WINDOW || !self.unacknowledged.is_empty() {
            self.send(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535)]));
        }
        if let Ok(missing @ 1..) = u32::try_from(INITIAL_WINDOW - self.allowance) {
            self.send(&Frame::window_update(0, missing));
        }
    }

    /// Waits for the end of an answer.
    pub fn whole_answer(&mut self, stream: u32) -> Step<Answer> {
        self.until("a whole answer", |connection| connection.is_over(stream))?;
        Ok(self.answer(stream))
    }

    /// Waits for an answer with this status that ends in an orderly way.
    pub fn answered(&mut self, stream: u32, status: u16) -> Step<Answer> {
        let answer = self.whole_answer(stream)?;
        if answer.status != Some(status) || !answer.ended {
            return Err(format!(
                "stream {stream}: status {:?}, reset {:?}, where {status} was due",
                answer.status, answer.reset
            ));
        }
        Ok(answer)
    }

    /// Sends a PING and waits for its answer: whatever the peer does at once for the frames before, it has done then.
    pub fn round_trip(&mut self) -> Step {
        let opaque = (0x1000 + self.pongs.len() as u64).to_be_bytes();
        self.send(&Frame::ping(flag::NONE, opaque));
        self.until("the answer to PING", |connection| {
            connection.pongs.contains(&opaque)
        })
    }

    /// Reads until the condition holds.
    pub fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Step {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            if self.closed {
                return Err(format!("the connection is closed before {what}"));
            }
            if self.speaks_http1 {
                return Err(format!("an answer in HTTP/1 before {what}"));
            }
            self.read_more(end, what)?;
        }
        Ok(())
    }

    /// Sends what is to be sent, and takes what has come by now.
    pub fn exchange(&mut self) {
        // That nothing has come yet is no failure.
        while !self.closed && self.read_more(Instant::now(), "anything").is_ok() {}
    }

    fn read_more(&mut self, end: Instant, what: &str) -> Step {
        self.flush();
        let mut buffer = [0; 32 * 1024];
        let patience = end.saturating_duration_since(Instant::now());
        match self.transport.read(&mut buffer, patience) {
            Ok(None) => return Err(format!("not within {PATIENCE:?}: {what}")),
            Ok(Some(0)) | Err(_) => self.closed = true,
            Ok(Some(count)) => self.received.extend_from_slice(&buffer[..count]),
        }
        if self.received.starts_with(b"HTTP/1") {
            self.speaks_http1 = true;
            return Ok(());
        }
        while let Some((frame, length)) = Frame::decode(&self.received) {
            self.received.drain(..length);
            self.log.push(format!("{frame:?}"));
            if let Err(rule) = self.take(&frame) {
                self.violation.get_or_insert(format!("{rule} ({frame:?})"));
            }
        }
        Ok(())
    }

    /// Takes a frame of the peer; the error is the rule that it breaks.
    fn take(&mut self, frame: &Frame) -> Result<(), String> {
        if self.settings_seen == 0 && (frame.kind != kind::SETTINGS || frame.has(flag::ACK)) {
            self.settings_seen = 1;
            return Err("3.4: SETTINGS are the first frame".to_owned());
        }
        if frame.payload.len() > self.own_max_frame_size {
            return Err("4.2: a frame larger than SETTINGS_MAX_FRAME_SIZE".to_owned());
        }
        if frame.stream & RESERVED_BIT != 0 {
            return Err("4.1: the reserved bit is unset".to_owned());
        }
        let continues = frame.kind == kind::CONTINUATION;
        let due = self.block.as_ref().map(|block| block.stream);
        if continues != due.is_some() || due.is_some_and(|stream| stream != frame.stream) {
            return Err("4.3: a header block is contiguous".to_owned());
        }
        match frame.kind {
            kind::DATA | kind::HEADERS | kind::RST_STREAM | kind::CONTINUATION => self.take_of_stream(frame),
            kind::SETTINGS => self.take_settings(frame),
            kind::PING => self.take_ping(frame),
            kind::GOAWAY => {
                let (Some(last), Some(code)) = (frame.word(0), frame.word(4)) else {
                    return Err("6.8: a GOAWAY that is too short".to_owned());
                };
                // The first code is the reason: a peer may say less in a later one.
                if self.goaway.is_none_or(|(_, known)| known == Code::NO_ERROR) {
                    self.goaway = Some((last, Code(code)));
                }
                Ok(())
            }
            kind::WINDOW_UPDATE => self.take_window_update(frame),
            kind::PUSH_PROMISE => Err("8.4: a push, to a client that did not ask".to_owned()),
            _ => Ok(()),
        }
    }

    fn take_settings(&mut self, frame: &Frame) -> Result<(), String> {
        if frame.stream != 0 || !frame.payload.len().is_multiple_of(6) {
            return Err("6.5: SETTINGS on stream 0 of whole settings".to_owned());
        }
        if frame.has(flag::ACK) {
            self.settings_acks += 1;
            let Some(values) = self.unacknowledged.pop_front() else {
                return Err("6.5: an acknowledgement of nothing".to_owned());
            };
            for (name, value) in values {
                match name {
                    setting::INITIAL_WINDOW_SIZE => self.set_own_initial_window(i64::from(value)),
                    setting::HEADER_TABLE_SIZE => self.decoder.set_limit(value as usize),
                    _ => {}
                }
            }
            return Ok(());
        }
        self.settings_seen += 1;
        for (name, value) in settings_of(frame) {
            match name {
                setting::HEADER_TABLE_SIZE => self.peer.header_table_size = value,
                setting::ENABLE_PUSH if value != 0 => return Err("6.5.2: a server offers no push".to_owned()),
                setting::MAX_CONCURRENT_STREAMS => self.peer.max_concurrent_streams = Some(value),
                setting::INITIAL_WINDOW_SIZE => {
                    let difference = i64::from(value) - i64::from(self.peer.initial_window_size);
                    self.peer.initial_window_size = value;
                    for answer in self.answers.values_mut() {
                        answer.window += difference;
                    }
                }
                setting::MAX_FRAME_SIZE => self.peer.max_frame_size = value,
                setting::MAX_HEADER_LIST_SIZE => self.peer.max_header_list_size = Some(value),
                _ => {}
            }
        }
        if self.acknowledges {
            self.send(&Frame::settings_ack());
        }
        Ok(())
    }

    fn take_ping(&mut self, frame: &Frame) -> Result<(), String> {
        let opaque: [u8; 8] = frame
            .payload
            .as_slice()
            .try_into()
            .map_err(|_| "6.7: PING has eight octets")?;
        if frame.has(flag::ACK) {
            self.pongs.push(opaque);
        } else {
            self.send(&Frame::ping(flag::ACK, opaque));
        }
        Ok(())
    }

    fn take_window_update(&mut self, frame: &Frame) -> Result<(), String> {
        let increment = i64::from(frame.word(0).unwrap_or_default());
        if frame.payload.len() != 4 || increment == 0 {
            return Err("6.9: an increment of at least 1".to_owned());
        }
        let window = match frame.stream {
            0 => &mut self.window,
            stream => match self.answers.get_mut(&stream) {
                Some(answer) => &mut answer.window,
                None => return Err("5.1: WINDOW_UPDATE on an idle stream".to_owned()),
            },
        };
        *window += increment;
        if *window > i64::from(MAX_31) {
            return Err("6.9.1: a window above 2^31-1".to_owned());
        }
        Ok(())
    }

    fn take_of_stream(&mut self, frame: &Frame) -> Result<(), String> {
        let stream = frame.stream;
        let Some(answer) = self.answers.get_mut(&stream) else {
            return Err("5.1: a frame on an idle stream".to_owned());
        };
        if frame.kind == kind::RST_STREAM {
            let code = frame.word(0).ok_or("6.4: RST_STREAM has four octets")?;
            answer.reset.get_or_insert(Code(code));
            return Ok(());
        }
        if answer.is_over() && frame.kind != kind::CONTINUATION {
            return Err("5.1: a frame behind the end of a stream".to_owned());
        }
        let content = frame.content().ok_or("6.1: padding longer than its frame")?;
        match frame.kind {
            kind::DATA => {
                let length = frame.payload.len();
                let (used, content) = (length as i64, content.to_vec());
                answer.body.extend_from_slice(&content);
                answer.data_frames.push(content.len());
                answer.allowance -= used;
                let of_stream = answer.allowance;
                let has_head = answer.status.is_some();
                if frame.has(flag::END_STREAM) {
                    self.end(stream)?;
                }
                self.allowance -= used;
                if used > 0 && (of_stream < 0 || self.allowance < 0) {
                    return Err("6.9.1: more than a window".to_owned());
                }
                if !has_head {
                    return Err("8.1: DATA before the answer's head".to_owned());
                }
                self.refill(stream, length);
                Ok(())
            }
            kind::HEADERS => {
                self.block = Some(OpenBlock {
                    stream,
                    ends_stream: frame.has(flag::END_STREAM),
                    bytes: content.to_vec(),
                });
                self.end_block_if(frame.has(flag::END_HEADERS))
            }
            _ => {
                let block = self.block.as_mut().ok_or("6.10: a CONTINUATION of nothing")?;
                block.bytes.extend_from_slice(content);
                self.end_block_if(frame.has(flag::END_HEADERS))
            }
        }
    }

    fn refill(&mut self, stream: u32, length: usize) {
        let Ok(length) = u32::try_from(length) else { return };
        if self.refills && length > 0 {
            self.send(&Frame::window_update(0, length));
            if !self.is_over(stream) {
                self.send(&Frame::window_update(stream, length));
            }
        }
    }

    fn end_block_if(&mut self, complete: bool) -> Result<(), String> {
        let Some(block) = self.block.take_if(|_| complete) else {
            return Ok(());
        };
        let fields = self
            .decoder
            .decode(&block.bytes)
            .map_err(|error| format!("RFC 7541: {error}"))?;
        let answer = self.answer_mut(block.stream);
        if answer.status.is_some() {
            answer.trailers.extend(fields);
            if !block.ends_stream {
                return Err("8.1: trailers end a stream".to_owned());
            }
        } else {
            let (first, rest) = fields.split_first().ok_or("8.3.2: no :status")?;
            let status = status_of(first).ok_or("8.3.2: :status is first, and a number")?;
            check_fields(rest)?;
            if (100..200).contains(&status) {
                answer.interim.push(status);
                return Ok(());
            }
            answer.status = Some(status);
            answer.fields = rest.to_vec();
        }
        if block.ends_stream {
            self.end(block.stream)?;
        }
        Ok(())
    }

    fn end(&mut self, stream: u32) -> Result<(), String> {
        let answer = self.answer_mut(stream);
        answer.ended = true;
        let said = answer.field("content-length");
        let counted = answer.body.len().to_string();
        if !answer.is_head && answer.status != Some(304) && said.is_some_and(|said| said != counted) {
            return Err("8.1.1: content-length is what came".to_owned());
        }
        Ok(())
    }

    /// What came, for a report.
    pub fn told(&self) -> String {
        const SHOWN: usize = 12;
        let mut text = String::new();
        let left_out = self.log.len().saturating_sub(SHOWN);
        if left_out > 0 {
            let _text = write!(text, "({left_out} frames) ");
        }
        text += &self.log[left_out..].join("; ");
        for (stream, answer) in &self.answers {
            if let Some(status) = answer.status {
                let _text = write!(text, "; {status} on {stream}");
            }
        }
        if !self.received.is_empty() {
            let start = &self.received[..self.received.len().min(HEADER_BYTES)];
            let _text = write!(text, "; then {start:?}");
        }
        text + if self.closed { "; closed" } else { "; open" }
    }
}

fn settings_of(frame: &Frame) -> impl Iterator<Item = (u16, u32)> {
    frame.payload.chunks_exact(6).map(|entry| {
        let name = u16::from_be_bytes([entry[0], entry[1]]);
        let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
        (name, value)
    })
}

fn status_of((name, value): &Field) -> Option<u16> {
    let digits = std::str::from_utf8(value).ok()?;
    (name == b":status" && digits.len() == 3)
        .then(|| digits.parse().ok())
        .flatten()
}

/// What no peer may send in an answer (RFC 9113, 8.2).
fn check_fields(fields: &[Field]) -> Result<(), String> {
    const OF_A_CONNECTION: [&str; 5] = [
        "connection",
        "proxy-connection",
        "keep-alive",
        "transfer-encoding",
        "upgrade",
    ];
    for (name, value) in fields {
        let said = String::from_utf8_lossy(name);
        if name
            .iter()
            .any(|byte| matches!(byte, 0..=0x20 | b'A'..=b'Z' | b':' | 0x7f..))
        {
            return Err(format!("8.2.1: the name {said:?}"));
        }
        if value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
            return Err(format!("8.2.1: the value of {said}"));
        }
        if OF_A_CONNECTION.contains(&&*said) {
            return Err(format!("8.2.2: {said}"));
        }
    }
    Ok(())
}
