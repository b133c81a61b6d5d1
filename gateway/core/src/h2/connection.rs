//! One HTTP/2 connection, as either side of it sees it (RFC 9113): a state machine over bytes.
//!
//! What the peer has sent goes in by [`Connection::receive`], in pieces of any size; what it is to be sent piles up in
//! [`Connection::output`]. In between are streams, which users hold by a [`Key`]: heads and data come out of them and go
//! into them, and whoever holds one is told when something about it changes. Nothing here waits or knows a socket.
//!
//! Memory is bounded by what peers may send without being read: windows for data, [`OUTPUT_MAX`] for what waits to be
//! sent, the number of streams and the sizes of their heads, and one frame that has not come whole.

use super::fields::{Fields, Pseudo};
use super::frame::{self, FRAME_SIZE_MAX, FrameHeader, FrameKind, HEADER_BYTES, PREFACE, code, setting};
use super::hpack::{Decoder, NO_TABLE};
use super::watch::{Misbehaviour, Watch, Written};
use crate::h1::head::content_length;
use crate::limits::Http2Limits;
use foldhash::fast::FixedState;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// Data that may wait to be sent: two of the largest TLS writes that a socket takes in one go.
pub const OUTPUT_MAX: usize = 128 * 1024;
/// A stream waits rather than sending less than this of more, because of the other streams' data.
const OUTPUT_LEAST: usize = 1024;
/// Room for output that a connection keeps while it has streams.
const OUTPUT_KEPT: usize = 16 * 1024;
/// The largest window (RFC 9113, 6.9.1).
const WINDOW_MAX: i64 = (1 << 31) - 1;
/// What windows are before anybody says otherwise (RFC 9113, 6.9.2).
const WINDOW_AT_FIRST: i64 = 65_535;
/// The last number that a stream can have.
const STREAM_MAX: u32 = (1 << 31) - 1;
/// Frames to be sent are no larger, whatever the peer takes, so that streams have their turns.
const SEND_FRAME_MAX: u32 = 64 * 1024;
/// The most of a header block that is held, whatever is allowed of it.
const BLOCK_MAX: usize = 1024 * 1024;
/// Interim answers of one stream that wait to be looked at; more are left out.
const INTERIM_MAX: usize = 16;
/// How many streams are remembered as reset.
const RESETS_REMEMBERED: usize = 256;
/// Sections of fields that are kept to be used again, and the room that each may keep.
const SPARE_MAX: usize = 32;
const SPARE_BYTES: usize = 8 * 1024;
/// What the question is marked with whose answer says that the peer knows of the end.
const LEAVING: [u8; 8] = *b"leaving\0";
/// What the question is marked with that is asked to see whether the peer is there.
const PRESENT: [u8; 8] = *b"present\0";

/// Which side of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It opens streams.
    Client,
    /// It answers them.
    Server,
}

/// What a connection begins with.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Which side it is.
    pub role: Role,
    /// Bytes of data that the peer may send on a stream before they are taken.
    pub stream_window: u32,
    /// The same for all streams together; at least 65,535.
    pub connection_window: u32,
    /// Streams that may be open at a time: for a server, those of its client; for a client, until the server has said
    /// how many it takes.
    pub streams: u32,
    /// Bytes that a head may have, as RFC 9113, 6.5.2 counts them.
    pub header_bytes: usize,
    /// Fields that a head may have.
    pub header_count: usize,
    /// What a client may do that costs it little; None for a peer that is not watched.
    pub limits: Option<Http2Limits>,
}

/// Who is told when something about a stream changes.
pub trait Holder: Default {
    /// There may be more to read, or room to write, or the end.
    fn tell(&mut self);
}

/// A stream, to who holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    slot: u32,
    serial: u32,
}

/// Why nothing more comes of a stream, and nothing more goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The peer has reset it, with this code (RFC 9113, 6.4).
    Reset(u32),
    /// It was reset from here.
    Given,
    /// The connection takes no more streams, and the peer has not looked at this one (RFC 9113, 6.8).
    LeftOut,
    /// The connection is over.
    Over,
}

/// One stream.
struct Stream<T> {
    /// Its number; 0 as long as it waits to be opened.
    id: u32,
    serial: u32,
    holder: T,
    /// Whether somebody holds it.
    is_held: bool,
    /// Whether it counts as open.
    is_counted: bool,
    failure: Option<Failure>,

    /// Interim heads that have come and were not taken, and the one behind them.
    interim: VecDeque<Box<Fields>>,
    head: Option<Box<Fields>>,
    /// Whether the head of the message itself has come.
    has_head: bool,
    /// Whether its answer's length describes what is not sent (RFC 9110, 8.6).
    is_head_request: bool,
    trailers: Option<Box<Fields>>,
    /// Data that has come and was not taken.
    data: Vec<u8>,
    /// Whether the peer has ended its side.
    is_received: bool,
    /// Bytes that the peer may still send.
    room: i64,
    /// Bytes that were taken, and the peer was not told.
    untold: u32,
    /// Bytes of the body that are still to come, if the head has said how many there are.
    expected: Option<u64>,

    /// What goes as soon as it may be opened.
    pending: Option<Pending>,
    /// Whether this side has ended.
    is_sent: bool,
    /// Bytes that may be sent.
    window: i64,
    /// Whether it waits for room to send.
    is_waiting: bool,
}

/// What is to be sent of a stream that waits to be opened.
#[derive(Debug, Default)]
struct Pending {
    /// The block of its head.
    head: Vec<u8>,
    /// The block of trailers behind it.
    trailers: Option<Vec<u8>>,
    /// Whether nothing follows the head.
    is_last: bool,
}

/// How far a connection is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It takes streams.
    Open,
    /// The client was told that it shall open no more, and not yet which was the last that counts.
    Announced,
    /// Streams behind this one are not looked at.
    After(u32),
    /// Nothing more is read, and nothing but what is in the output is sent.
    Over,
}

/// The frame that is under way.
#[derive(Debug, Clone, Copy)]
enum Input {
    /// The client's preface.
    Preface,
    /// The header of the next one.
    Header,
    /// It is kept until it is whole.
    Payload(FrameHeader),
    /// So much data is still to come, for a stream or for nobody, and whether it is the stream's last.
    Data {
        key: Option<Key>,
        left: usize,
        is_last: bool,
    },
    /// So much is passed over.
    Skip(usize),
}

/// A header block that goes on in CONTINUATION frames.
#[derive(Debug, Clone, Copy)]
struct Block {
    stream: u32,
    is_last: bool,
}

/// Streams that were reset lately, and by whom (RFC 9113, 5.1: what was on its way is no mistake).
#[derive(Debug, Default)]
struct Resets {
    streams: VecDeque<(u32, bool)>,
}

impl Resets {
    fn remember(&mut self, stream: u32, by_peer: bool) {
        if self.streams.len() >= RESETS_REMEMBERED {
            self.streams.pop_front();
        }
        self.streams.push_back((stream, by_peer));
    }

    /// Whether the peer has reset it; None when nobody has, as far as is remembered.
    fn by_peer(&self, stream: u32) -> Option<bool> {
        let found = self.streams.iter().rev().find(|(reset, _)| *reset == stream);
        found.map(|(_, by_peer)| *by_peer)
    }
}

/// One connection, with what its user keeps of each stream.
pub struct Connection<T> {
    options: Options,
    input: Input,
    /// The beginning of a preface or of a header that came in pieces.
    start: [u8; PREFACE.len()],
    filled: usize,
    /// A frame that came in pieces.
    kept: Vec<u8>,
    block: Option<Block>,
    block_bytes: Vec<u8>,
    decoder: Decoder,
    watch: Option<Watch>,
    #[allow(clippy::vec_box, reason = "they move between streams and back, and are large")]
    spare: Vec<Box<Fields>>,

    output: Vec<u8>,
    /// Bytes of the output that were sent.
    sent: usize,
    /// Whether the peer knows that its table is not used.
    has_sent_block: bool,
    /// Bytes that may be sent.
    window: i64,
    /// Streams that wait for room to send, the longest first.
    waiting: VecDeque<Key>,
    peer_window: i64,
    peer_frame_max: u32,
    peer_takes_connect: bool,

    /// Bytes that the peer may still send, and those that were taken without its being told.
    room: i64,
    untold: u32,

    streams: Vec<Option<Stream<T>>>,
    free: Vec<u32>,
    serial: u32,
    by_id: HashMap<u32, Key, FixedState>,
    /// Streams that the peer has opened and nobody holds yet.
    opened: VecDeque<Key>,
    /// Streams that wait to be opened, because the peer takes no more.
    unopened: VecDeque<Key>,
    /// Streams that count as open.
    active: u32,
    /// Streams that may be open.
    allowed: u32,
    /// The last stream of the peer, and of this side.
    peer_last: u32,
    own_last: u32,
    resets: Resets,
    is_settled: bool,
    end: End,
    /// Whether the peer opens no more streams, or takes no more.
    is_peer_leaving: bool,
    /// Whether no more are opened from here.
    is_retired: bool,
    found: Option<Misbehaviour>,
    is_present: bool,
    frames: u64,
}

impl<T: Holder> Connection<T> {
    /// A connection whose first byte is still to come, and whose settings are on their way out.
    pub fn new(options: Options, now: Instant) -> Self {
        let mut output = Vec::new();
        let header_bytes = u32::try_from(options.header_bytes).unwrap_or(u32::MAX);
        match options.role {
            Role::Client => {
                output.extend_from_slice(PREFACE);
                let settings = [
                    (setting::ENABLE_PUSH, 0),
                    (setting::INITIAL_WINDOW_SIZE, options.stream_window),
                    (setting::MAX_HEADER_LIST_SIZE, header_bytes),
                ];
                frame::write_settings(&mut output, &settings);
            }
            Role::Server => {
                let settings = [
                    (setting::MAX_CONCURRENT_STREAMS, options.streams),
                    (setting::INITIAL_WINDOW_SIZE, options.stream_window),
                    (setting::MAX_FRAME_SIZE, FRAME_SIZE_MAX),
                    (setting::MAX_HEADER_LIST_SIZE, header_bytes),
                    (setting::ENABLE_CONNECT_PROTOCOL, 1),
                ];
                frame::write_settings(&mut output, &settings);
            }
        }
        let more = i64::from(options.connection_window) - WINDOW_AT_FIRST;
        if let Ok(more @ 1..) = u32::try_from(more) {
            frame::write_window_update(&mut output, 0, more);
        }
        Self {
            options,
            input: match options.role {
                Role::Client => Input::Header,
                Role::Server => Input::Preface,
            },
            start: [0; PREFACE.len()],
            filled: 0,
            kept: Vec::new(),
            block: None,
            block_bytes: Vec::new(),
            decoder: Decoder::default(),
            watch: options.limits.map(|limits| Watch::new(limits, now)),
            spare: Vec::new(),
            output,
            sent: 0,
            has_sent_block: false,
            window: WINDOW_AT_FIRST,
            waiting: VecDeque::new(),
            peer_window: WINDOW_AT_FIRST,
            peer_frame_max: FRAME_SIZE_MAX,
            peer_takes_connect: false,
            room: i64::from(options.connection_window).max(WINDOW_AT_FIRST),
            untold: 0,
            streams: Vec::new(),
            free: Vec::new(),
            serial: 0,
            by_id: HashMap::default(),
            opened: VecDeque::new(),
            unopened: VecDeque::new(),
            active: 0,
            allowed: options.streams,
            peer_last: 0,
            own_last: 0,
            resets: Resets::default(),
            is_settled: false,
            end: End::Open,
            is_peer_leaving: false,
            is_retired: false,
            found: None,
            is_present: false,
            frames: 0,
        }
    }

    /// What the peer has done for which the connection has ended.
    pub fn misbehaviour(&self) -> Option<Misbehaviour> {
        self.found
    }

    /// Frames that have come since this was last asked.
    pub fn take_frames(&mut self) -> u64 {
        std::mem::take(&mut self.frames)
    }

    /// Whether the peer has said what it takes (RFC 9113, 3.4).
    pub fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Streams that may be open at a time, as the peer has said.
    pub fn allowed(&self) -> u32 {
        self.allowed
    }

    /// Whether the peer takes CONNECT with a protocol (RFC 8441, 3).
    pub fn takes_connect(&self) -> bool {
        self.peer_takes_connect
    }

    /// Whether another stream can be opened, at once or when others have ended.
    pub fn takes_streams(&self) -> bool {
        self.may_open() && !self.is_retired
    }

    fn may_open(&self) -> bool {
        self.end == End::Open && !self.is_peer_leaving && self.own_last < STREAM_MAX - 1
    }

    /// Whether nothing more will come or go but what is in the output.
    pub fn is_over(&self) -> bool {
        self.end == End::Over || self.is_finished()
    }

    /// Whether there are no streams, and there will be none.
    fn is_finished(&self) -> bool {
        let is_leaving = self.is_peer_leaving || self.is_retired || matches!(self.end, End::After(_));
        is_leaving && !self.has_streams()
    }

    /// Whether there is any stream that has not ended, or is held.
    pub fn has_streams(&self) -> bool {
        self.streams.len() > self.free.len()
    }

    /// Bytes that are held of what the peer has sent, but for data of streams.
    pub fn kept_bytes(&self) -> usize {
        self.kept.capacity() + self.block_bytes.capacity() + self.decoder.kept_bytes()
    }

    // What is to be sent.

    /// What is to be sent next.
    pub fn output(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// Notes that so much of it was sent, and lets streams go on that have waited for that.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent >= self.output.len() {
            self.sent = 0;
            if self.output.capacity() > OUTPUT_KEPT || !self.has_streams() {
                self.output = Vec::new();
            } else {
                self.output.clear();
            }
        }
        if self.output().len() <= OUTPUT_MAX / 2 {
            self.tell_waiting();
        }
    }

    /// Whether so much waits to be sent that nothing should be read which may have to be answered.
    pub fn is_clogged(&self) -> bool {
        self.output().len() > 2 * OUTPUT_MAX
    }

    /// Those that waited try again, the longest first, and wait behind each other if they must.
    fn tell_waiting(&mut self) {
        while let Some(key) = self.waiting.pop_front() {
            if let Some(stream) = self.stream(key) {
                stream.is_waiting = false;
                stream.holder.tell();
            }
        }
    }

    // Streams.

    fn stream(&mut self, key: Key) -> Option<&mut Stream<T>> {
        let stream = self.streams.get_mut(key.slot as usize)?.as_mut()?;
        (stream.serial == key.serial).then_some(stream)
    }

    fn stream_ref(&self, key: Key) -> Option<&Stream<T>> {
        let stream = self.streams.get(key.slot as usize)?.as_ref()?;
        (stream.serial == key.serial).then_some(stream)
    }

    fn add(&mut self, id: u32) -> Key {
        self.serial = self.serial.wrapping_add(1);
        let stream = Stream {
            id,
            serial: self.serial,
            holder: T::default(),
            is_held: true,
            is_counted: id != 0,
            failure: None,
            interim: VecDeque::new(),
            head: None,
            has_head: false,
            is_head_request: false,
            trailers: None,
            data: Vec::new(),
            is_received: false,
            room: i64::from(self.options.stream_window),
            untold: 0,
            expected: None,
            pending: None,
            is_sent: false,
            window: self.peer_window,
            is_waiting: false,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.streams.push(None);
                (self.streams.len() - 1) as u32
            }
        };
        if let Some(place) = self.streams.get_mut(slot as usize) {
            *place = Some(stream);
        }
        let key = Key {
            slot,
            serial: self.serial,
        };
        if id != 0 {
            self.active += 1;
            self.by_id.insert(id, key);
        }
        key
    }

    /// Follows up on a stream whose state has changed: one that has ended counts no more, and goes once nobody holds it.
    fn settle(&mut self, key: Key) {
        let Some(stream) = self.stream(key) else { return };
        let is_ended = stream.failure.is_some() || (stream.is_received && stream.is_sent);
        if !is_ended {
            return;
        }
        let was_counted = std::mem::take(&mut stream.is_counted);
        let (is_held, id) = (stream.is_held, stream.id);
        if was_counted {
            self.active = self.active.saturating_sub(1);
        }
        if !is_held {
            let gone = self.streams.get_mut(key.slot as usize).and_then(Option::take);
            self.free.push(key.slot);
            self.by_id.remove(&id);
            if let Some(gone) = gone {
                self.give_back(gone.data.len());
                let left = gone.interim.into_iter().chain(gone.head).chain(gone.trailers);
                left.for_each(|fields| self.recycle(fields));
            }
        }
        if was_counted {
            self.open_more();
        }
    }

    /// A section of fields goes back to be used again.
    pub fn recycle(&mut self, mut fields: Box<Fields>) {
        if self.spare.len() < SPARE_MAX {
            fields.shrink(SPARE_BYTES);
            self.spare.push(fields);
        }
    }

    /// The next stream that the peer has opened.
    pub fn accept(&mut self) -> Option<Key> {
        loop {
            let key = self.opened.pop_front()?;
            if let Some(stream) = self.stream(key) {
                stream.is_held = true;
                return Some(key);
            }
        }
    }

    /// Whether there is one.
    pub fn has_opened(&self) -> bool {
        !self.opened.is_empty()
    }

    /// What its user keeps of a stream.
    pub fn holder(&mut self, key: Key) -> Option<&mut T> {
        self.stream(key).map(|stream| &mut stream.holder)
    }

    /// Why nothing more comes or goes, if it is so.
    pub fn failure(&self, key: Key) -> Option<Failure> {
        match self.stream_ref(key) {
            Some(stream) => stream.failure,
            None => Some(Failure::Over),
        }
    }

    /// Takes the next head that has come.
    pub fn take_head(&mut self, key: Key) -> Option<Box<Fields>> {
        let stream = self.stream(key)?;
        stream.interim.pop_front().or_else(|| stream.head.take())
    }

    /// Exchanges the data that has come for a buffer, which is empty, and answers whether there was any.
    pub fn take_data(&mut self, key: Key, into: &mut Vec<u8>) -> bool {
        let Some(stream) = self.stream(key) else {
            return false;
        };
        if stream.data.is_empty() {
            return false;
        }
        into.clear();
        std::mem::swap(into, &mut stream.data);
        true
    }

    /// Whether the peer has ended its side, and all of its data was taken.
    pub fn is_received(&self, key: Key) -> bool {
        self.stream_ref(key)
            .is_some_and(|stream| stream.is_received && stream.data.is_empty())
    }

    /// Whether trailers have come that were not taken.
    pub fn has_trailers(&self, key: Key) -> bool {
        self.stream_ref(key)
            .is_some_and(|stream| stream.trailers.is_some())
    }

    /// The trailers that came behind the data.
    pub fn take_trailers(&mut self, key: Key) -> Option<Box<Fields>> {
        self.stream(key)?.trailers.take()
    }

    /// Notes that so many bytes of data were passed on: the peer may send as many more.
    pub fn passed_on(&mut self, key: Key, bytes: usize) {
        let window = self.options.stream_window;
        let bytes_told = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Some(stream) = self.stream(key)
            && !stream.is_received
            && stream.failure.is_none()
        {
            stream.untold = stream.untold.saturating_add(bytes_told);
            if stream.untold >= window / 2 {
                let more = std::mem::take(&mut stream.untold);
                let id = stream.id;
                stream.room += i64::from(more);
                frame::write_window_update(&mut self.output, id, more);
            }
        }
        self.give_back(bytes);
    }

    /// Data that takes no room of the connection any more.
    fn give_back(&mut self, bytes: usize) {
        self.untold = self
            .untold
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.untold >= self.options.connection_window / 2 && self.end != End::Over {
            let more = std::mem::take(&mut self.untold);
            self.room += i64::from(more);
            frame::write_window_update(&mut self.output, 0, more);
        }
    }

    /// Opens a stream, whose head `write` appends to the output, or to what waits until the peer takes another stream.
    /// None when the connection takes no more.
    pub fn open(
        &mut self,
        is_last: bool,
        is_head_request: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Option<Key> {
        if !self.takes_streams() {
            return None;
        }
        if self.active >= self.allowed || !self.unopened.is_empty() {
            let mut pending = Pending {
                is_last,
                ..Pending::default()
            };
            write(&mut pending.head);
            let key = self.add(0);
            if let Some(stream) = self.stream(key) {
                stream.is_sent = is_last;
                stream.pending = Some(pending);
                stream.is_head_request = is_head_request;
            }
            self.unopened.push_back(key);
            return Some(key);
        }
        self.own_last += if self.own_last == 0 { 1 } else { 2 };
        let key = self.add(self.own_last);
        if let Some(stream) = self.stream(key) {
            stream.is_head_request = is_head_request;
        }
        self.write_head(key, is_last, write);
        Some(key)
    }

    /// Opens streams that wait, as far as the peer takes more.
    fn open_more(&mut self) {
        while self.active < self.allowed && self.may_open() {
            let Some(key) = self.unopened.pop_front() else {
                return;
            };
            let next = self.own_last + if self.own_last == 0 { 1 } else { 2 };
            let window = self.peer_window;
            let Some(stream) = self.stream(key) else { continue };
            let Some(pending) = stream.pending.take() else {
                continue;
            };
            stream.id = next;
            stream.window = window;
            stream.is_counted = true;
            stream.holder.tell();
            self.own_last = next;
            self.active += 1;
            self.by_id.insert(next, key);
            self.write_head(key, pending.is_last, |out| out.extend_from_slice(&pending.head));
            if let Some(trailers) = pending.trailers {
                self.write_head(key, true, |out| out.extend_from_slice(&trailers));
            }
        }
    }

    /// Sends a head, an interim one, or trailers; false when nothing goes any more.
    pub fn send_head(&mut self, key: Key, is_last: bool, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some(stream) = self.stream(key) else {
            return false;
        };
        if stream.failure.is_some() || stream.is_sent {
            return false;
        }
        if let Some(pending) = &mut stream.pending {
            // Trailers: a head does not come twice.
            write(pending.trailers.get_or_insert_default());
            stream.is_sent = true;
            return true;
        }
        self.write_head(key, is_last, write);
        true
    }

    fn write_head(&mut self, key: Key, is_last: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let frame_max = self.peer_frame_max as usize;
        let at = self.output.len();
        self.output.extend_from_slice(&[0; HEADER_BYTES]);
        if !std::mem::replace(&mut self.has_sent_block, true) {
            self.output.push(NO_TABLE);
        }
        write(&mut self.output);
        let Some(id) = self.stream_ref(key).map(|stream| stream.id) else {
            self.output.truncate(at);
            return;
        };
        frame::close_block(&mut self.output, at, id, is_last, frame_max);
        self.wrote(Written::Headers { is_last });
        if is_last {
            self.ended(key);
        }
    }

    /// Sends as much of `data` as there is room for; if that is all of it, and `is_last`, the stream ends. Answers how
    /// much that is. For nothing of something, the holder is told when it may try again.
    pub fn send_data(&mut self, key: Key, data: &[u8], is_last: bool) -> Result<usize, Failure> {
        let waits = self.output().len();
        let window = self.window;
        let frame_max = self.peer_frame_max.min(SEND_FRAME_MAX) as usize;
        let stream = self.stream(key).ok_or(Failure::Over)?;
        if let Some(failure) = stream.failure {
            return Err(failure);
        }
        if stream.is_sent {
            return Err(Failure::Given);
        }
        if data.is_empty() {
            if let (true, Some(pending)) = (is_last, &mut stream.pending) {
                pending.is_last = true;
                stream.is_sent = true;
            } else if is_last {
                let id = stream.id;
                frame::write_data(&mut self.output, id, &[], true);
                self.wrote(Written::Data { is_last });
                self.ended(key);
            }
            return Ok(0);
        }
        if stream.pending.is_some() || stream.window <= 0 {
            return Ok(0);
        }
        let space = OUTPUT_MAX.saturating_sub(waits);
        if window <= 0 || space < OUTPUT_LEAST.min(data.len()) {
            if !std::mem::replace(&mut stream.is_waiting, true) {
                self.waiting.push_back(key);
            }
            return Ok(0);
        }
        let room = usize::try_from(stream.window.min(window))
            .unwrap_or(usize::MAX)
            .min(space);
        let all = data.get(..room).unwrap_or(data);
        let id = stream.id;
        stream.window -= all.len() as i64;
        self.window -= all.len() as i64;
        let mut parts = all.chunks(frame_max.max(1)).peekable();
        while let Some(part) = parts.next() {
            let ends = is_last && parts.peek().is_none() && all.len() == data.len();
            frame::write_data(&mut self.output, id, part, ends);
            self.wrote(Written::Data { is_last: ends });
            if ends {
                self.ended(key);
            }
        }
        Ok(all.len())
    }

    fn ended(&mut self, key: Key) {
        if let Some(stream) = self.stream(key) {
            stream.is_sent = true;
        }
        self.settle(key);
    }

    fn wrote(&mut self, written: Written) {
        if let Some(watch) = &mut self.watch
            && let Err(found) = watch.wrote(written)
        {
            self.fail(found);
        }
    }

    /// Ends a stream before its time.
    pub fn reset(&mut self, key: Key, code: u32) {
        let Some(stream) = self.stream(key) else { return };
        if stream.failure.is_some() || (stream.is_received && stream.is_sent) {
            return;
        }
        stream.failure = Some(Failure::Given);
        stream.pending = None;
        stream.holder.tell();
        let id = stream.id;
        let data = std::mem::take(&mut stream.data);
        if id != 0 {
            self.write_reset(id, code);
        }
        self.give_back(data.len());
        self.settle(key);
    }

    fn write_reset(&mut self, id: u32, code: u32) {
        if self.end == End::Over {
            return;
        }
        self.resets.remember(id, false);
        frame::write_reset(&mut self.output, id, code);
        self.wrote(Written::Reset { stream: id, code });
    }

    /// Nobody holds the stream any more. One that has not ended is reset. What was kept of it comes back.
    pub fn release(&mut self, key: Key) -> Option<T> {
        let role = self.options.role;
        let stream = self.stream(key)?;
        stream.is_held = false;
        let holder = std::mem::take(&mut stream.holder);
        if stream.failure.is_none() && !(stream.is_received && stream.is_sent) {
            let code = match role {
                // RFC 9113, 8.1: the rest of a request is not wanted.
                Role::Server if stream.is_sent => code::NO_ERROR,
                _ => code::CANCEL,
            };
            self.reset(key, code);
        } else {
            self.settle(key);
        }
        Some(holder)
    }

    // The end of the connection.

    /// Tells a client to open no more streams; those that it has, and those that cross this, go on (RFC 9113, 6.8).
    pub fn leave(&mut self) {
        if self.end == End::Open {
            self.end = End::Announced;
            frame::write_go_away(&mut self.output, STREAM_MAX, code::NO_ERROR);
            frame::write_ping(&mut self.output, false, LEAVING);
            self.wrote(Written::Ping);
        }
    }

    /// Opens no more streams: the connection is over when there are none.
    pub fn retire(&mut self) {
        self.is_retired = true;
    }

    /// Ends the connection, and says why.
    pub fn part(&mut self, code: u32) {
        if self.end == End::Over {
            return;
        }
        frame::write_go_away(&mut self.output, self.peer_last, code);
        self.closed();
    }

    /// The connection is gone: the peer has closed it, or it is broken.
    pub fn closed(&mut self) {
        self.end = End::Over;
        self.kept = Vec::new();
        self.block_bytes = Vec::new();
        self.opened.clear();
        self.unopened.clear();
        for slot in 0..self.streams.len() {
            let Some(Some(stream)) = self.streams.get_mut(slot) else {
                continue;
            };
            if !(stream.is_received && stream.is_sent) {
                let is_unseen = stream.pending.take().is_some();
                let failure = if is_unseen {
                    Failure::LeftOut
                } else {
                    Failure::Over
                };
                stream.failure = stream.failure.or(Some(failure));
            }
            stream.holder.tell();
            let key = Key {
                slot: slot as u32,
                serial: stream.serial,
            };
            self.settle(key);
        }
    }

    fn fail(&mut self, found: Misbehaviour) {
        if self.end != End::Over {
            self.found = Some(found);
            self.part(found.code());
        }
    }

    /// Asks the peer whether it is there.
    pub fn ask_presence(&mut self) {
        self.is_present = false;
        frame::write_ping(&mut self.output, false, PRESENT);
        self.wrote(Written::Ping);
    }

    /// Whether it has answered.
    pub fn is_present(&self) -> bool {
        self.is_present
    }

    // What comes.

    /// Takes what the peer has sent.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) {
        if let Some(watch) = &mut self.watch {
            watch.at(now);
        }
        if self.end == End::Over {
            return;
        }
        if let Err(found) = self.take_in(bytes) {
            self.fail(found);
        }
    }

    fn take_in(&mut self, mut bytes: &[u8]) -> Result<(), Misbehaviour> {
        while self.end != End::Over {
            match self.input {
                Input::Preface => {
                    let expected = PREFACE.get(self.filled..).unwrap_or_default();
                    let piece = split(&mut bytes, expected.len());
                    if !expected.starts_with(piece) {
                        return Err(Misbehaviour::Protocol);
                    }
                    self.filled += piece.len();
                    if self.filled < PREFACE.len() {
                        return Ok(());
                    }
                    self.filled = 0;
                    self.input = Input::Header;
                }
                Input::Header => {
                    if self.filled == 0
                        && let Some((header, rest)) = bytes.split_first_chunk()
                    {
                        bytes = rest;
                        self.begin(&FrameHeader::read(*header))?;
                        continue;
                    }
                    let piece = split(&mut bytes, HEADER_BYTES - self.filled);
                    if let Some(room) = self.start.get_mut(self.filled..self.filled + piece.len()) {
                        room.copy_from_slice(piece);
                    }
                    self.filled += piece.len();
                    if self.filled < HEADER_BYTES {
                        return Ok(());
                    }
                    self.filled = 0;
                    if let Some(header) = self.start.first_chunk() {
                        self.begin(&FrameHeader::read(*header))?;
                    }
                }
                Input::Payload(frame) => {
                    let length = frame.length as usize;
                    if self.kept.is_empty()
                        && let Some((payload, rest)) = bytes.split_at_checked(length)
                    {
                        bytes = rest;
                        self.input = Input::Header;
                        self.payload(&frame, payload)?;
                        continue;
                    }
                    let piece = split(&mut bytes, length.saturating_sub(self.kept.len()));
                    self.kept.extend_from_slice(piece);
                    if self.kept.len() < length {
                        return Ok(());
                    }
                    let payload = std::mem::take(&mut self.kept);
                    self.input = Input::Header;
                    self.payload(&frame, &payload)?;
                }
                Input::Data { key, left, is_last } => {
                    let piece = split(&mut bytes, left);
                    if piece.is_empty() {
                        return Ok(());
                    }
                    let left = left - piece.len();
                    self.input = match left {
                        0 => Input::Header,
                        _ => Input::Data { key, left, is_last },
                    };
                    self.data(key, piece, left == 0 && is_last);
                }
                Input::Skip(left) => {
                    let piece = split(&mut bytes, left);
                    match left - piece.len() {
                        0 => self.input = Input::Header,
                        left => {
                            self.input = Input::Skip(left);
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks at a frame's header, and decides what becomes of its payload.
    fn begin(&mut self, frame: &FrameHeader) -> Result<(), Misbehaviour> {
        self.frames += 1;
        if !self.is_settled && (frame.kind != FrameKind::Settings || frame.is_ack()) {
            return Err(Misbehaviour::NoSettings);
        }
        if frame.length > FRAME_SIZE_MAX {
            return Err(Misbehaviour::FrameSize);
        }
        if let Some(block) = &self.block
            && (frame.kind != FrameKind::Continuation || frame.stream != block.stream)
        {
            // RFC 9113, 4.3: nothing comes between.
            return Err(Misbehaviour::Protocol);
        }
        if frame.kind == FrameKind::Continuation && self.block.is_none() {
            return Err(Misbehaviour::Protocol);
        }
        let is_of_stream = match frame.kind {
            FrameKind::Data
            | FrameKind::Headers
            | FrameKind::Priority
            | FrameKind::RstStream
            | FrameKind::Continuation => true,
            FrameKind::Settings | FrameKind::Ping | FrameKind::GoAway => false,
            // Either kind, or any.
            FrameKind::WindowUpdate | FrameKind::Other(_) => frame.stream != 0,
            // It was never asked for, and a client has none to send (RFC 9113, 8.4).
            FrameKind::PushPromise => return Err(Misbehaviour::Protocol),
        };
        if is_of_stream != (frame.stream != 0) {
            return Err(Misbehaviour::Protocol);
        }
        let is_sized = match frame.kind {
            FrameKind::Ping => frame.length == 8,
            FrameKind::Priority => frame.length == 5,
            FrameKind::RstStream | FrameKind::WindowUpdate => frame.length == 4,
            FrameKind::GoAway => frame.length >= 8,
            FrameKind::Settings if frame.is_ack() => frame.length == 0,
            FrameKind::Settings => frame.length.is_multiple_of(6),
            _ => true,
        };
        if !is_sized {
            return Err(Misbehaviour::FrameSize);
        }
        if let Some(watch) = &mut self.watch {
            watch.read(frame)?;
        }
        match frame.kind {
            FrameKind::Data if !frame.is_padded() => return self.begin_data(frame, frame.length),
            FrameKind::RstStream | FrameKind::WindowUpdate if self.is_idle(frame.stream) => {
                return Err(Misbehaviour::Protocol);
            }
            FrameKind::Other(_) => self.input = Input::Skip(frame.length as usize),
            _ => self.input = Input::Payload(*frame),
        }
        Ok(())
    }

    /// Whether nobody has opened a stream yet (RFC 9113, 5.1).
    fn is_idle(&self, stream: u32) -> bool {
        if stream == 0 {
            return false;
        }
        let is_odd = stream % 2 == 1;
        match self.options.role {
            Role::Server => !is_odd || stream > self.peer_last,
            Role::Client => !is_odd || stream > self.own_last,
        }
    }

    /// Judges a DATA frame, and lets `length` bytes of data come, of a payload that counts as a whole.
    fn begin_data(&mut self, frame: &FrameHeader, length: u32) -> Result<(), Misbehaviour> {
        let counts = i64::from(frame.length);
        if counts > self.room {
            return Err(Misbehaviour::WindowSize);
        }
        if self.is_idle(frame.stream) {
            return Err(Misbehaviour::Protocol);
        }
        self.room -= counts;
        // What is padding is taken at once.
        let padding = frame.length - length;
        let mut key = self.by_id.get(&frame.stream).copied();
        match key.and_then(|key| self.stream(key)) {
            Some(stream) if stream.failure.is_some() => key = None,
            Some(stream) if stream.is_received => return Err(Misbehaviour::StreamClosed),
            Some(stream) => {
                let fits = counts <= stream.room;
                let left = stream
                    .expected
                    .map(|expected| expected.checked_sub(u64::from(length)));
                let is_whole = match left {
                    // RFC 9113, 8.1.1: as long as the head has said.
                    Some(None) => false,
                    Some(Some(left)) => left == 0 || !frame.is_end_stream(),
                    None => true,
                };
                stream.room -= counts;
                stream.expected = left.flatten();
                let wrong = match (fits, is_whole, stream.has_head) {
                    (false, ..) => Some(code::FLOW_CONTROL_ERROR),
                    (_, false, _) | (.., false) => Some(code::PROTOCOL_ERROR),
                    _ => None,
                };
                if let Some(wrong) = wrong
                    && let Some(broken) = key.take()
                {
                    self.reset(broken, wrong);
                }
            }
            None => {
                key = None;
                self.closed_stream(frame.stream)?;
            }
        }
        if padding > 0 {
            if let Some(key) = key {
                self.passed_on(key, padding as usize);
            } else {
                self.give_back(padding as usize);
            }
        }
        if length == 0 {
            self.input = Input::Header;
            self.data(key, &[], frame.is_end_stream());
        } else {
            self.input = Input::Data {
                key,
                left: length as usize,
                is_last: frame.is_end_stream(),
            };
        }
        Ok(())
    }

    /// Takes a piece of data, which may be the last of its stream.
    fn data(&mut self, key: Option<Key>, piece: &[u8], is_last: bool) {
        let stream = key.and_then(|key| self.stream(key));
        match stream {
            Some(stream) if stream.failure.is_none() => {
                stream.data.extend_from_slice(piece);
                stream.is_received |= is_last;
                stream.holder.tell();
            }
            _ => self.give_back(piece.len()),
        }
        if is_last && let Some(key) = key {
            self.settle(key);
        }
    }

    /// What is to be done about a head or data on a stream that has ended.
    fn closed_stream(&mut self, stream: u32) -> Result<(), Misbehaviour> {
        match self.resets.by_peer(stream) {
            // It was on its way.
            Some(false) => Ok(()),
            Some(true) => {
                self.resets.remember(stream, true);
                frame::write_reset(&mut self.output, stream, code::STREAM_CLOSED);
                self.wrote(Written::Reset {
                    stream,
                    code: code::STREAM_CLOSED,
                });
                Ok(())
            }
            None => Err(Misbehaviour::StreamClosed),
        }
    }

    /// Takes a frame that is whole.
    fn payload(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), Misbehaviour> {
        match frame.kind {
            FrameKind::Data => {
                let data = unpadded(payload)?;
                let (before, length) = (payload.len() - data.len(), data.len());
                debug_assert!(before > 0);
                self.begin_data(frame, length as u32)?;
                if let Input::Data { key, is_last, .. } = self.input {
                    self.input = Input::Header;
                    self.data(key, data, is_last);
                }
            }
            FrameKind::Headers => {
                let mut fragment = if frame.is_padded() {
                    unpadded(payload)?
                } else {
                    payload
                };
                if frame.has_priority() {
                    let (priority, rest) =
                        fragment.split_first_chunk::<5>().ok_or(Misbehaviour::FrameSize)?;
                    depends(priority, frame.stream)?;
                    fragment = rest;
                }
                let block = Block {
                    stream: frame.stream,
                    is_last: frame.is_end_stream(),
                };
                if frame.is_end_headers() {
                    return self.block(block, fragment);
                }
                self.block_bytes.extend_from_slice(fragment);
                self.block = Some(block);
            }
            FrameKind::Continuation => {
                if self.block_bytes.len() + payload.len() > BLOCK_MAX {
                    return Err(Misbehaviour::HeaderBlock);
                }
                self.block_bytes.extend_from_slice(payload);
                if frame.is_end_headers()
                    && let Some(block) = self.block.take()
                {
                    let bytes = std::mem::take(&mut self.block_bytes);
                    return self.block(block, &bytes);
                }
            }
            FrameKind::Priority => {
                let priority = payload.first_chunk().ok_or(Misbehaviour::FrameSize)?;
                depends(priority, frame.stream)?;
            }
            FrameKind::RstStream => {
                let code = number(payload).ok_or(Misbehaviour::FrameSize)?;
                self.peer_reset(frame.stream, code);
            }
            FrameKind::Settings if frame.is_ack() => {}
            FrameKind::Settings => self.settings(payload)?,
            FrameKind::Ping => {
                let payload = payload.first_chunk().ok_or(Misbehaviour::FrameSize)?;
                self.ping(frame.is_ack(), *payload);
            }
            FrameKind::GoAway => {
                let last = number(payload).ok_or(Misbehaviour::FrameSize)?;
                self.peer_leaves(last & STREAM_MAX);
            }
            FrameKind::WindowUpdate => {
                let more = number(payload).ok_or(Misbehaviour::FrameSize)? & STREAM_MAX;
                self.window_update(frame.stream, more)?;
            }
            FrameKind::PushPromise | FrameKind::Other(_) => {}
        }
        Ok(())
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), Misbehaviour> {
        for setting in payload.chunks_exact(6) {
            let &[i1, i2, v1, v2, v3, v4] = setting else {
                continue;
            };
            let value = u32::from_be_bytes([v1, v2, v3, v4]);
            match u16::from_be_bytes([i1, i2]) {
                setting::ENABLE_PUSH => {
                    let is_right = value == 0 || (value == 1 && self.options.role == Role::Server);
                    is_right.then_some(()).ok_or(Misbehaviour::Protocol)?;
                }
                setting::MAX_CONCURRENT_STREAMS if self.options.role == Role::Client => self.allowed = value,
                setting::INITIAL_WINDOW_SIZE => self.resize_windows(i64::from(value))?,
                setting::MAX_FRAME_SIZE => {
                    if !(FRAME_SIZE_MAX..1 << 24).contains(&value) {
                        return Err(Misbehaviour::Protocol);
                    }
                    self.peer_frame_max = value;
                }
                setting::ENABLE_CONNECT_PROTOCOL => {
                    // RFC 8441, 3: nothing else, and not taken back.
                    if value > 1 || (value == 0 && self.peer_takes_connect) {
                        return Err(Misbehaviour::Protocol);
                    }
                    self.peer_takes_connect = value == 1;
                }
                _ => {}
            }
        }
        if !std::mem::replace(&mut self.is_settled, true)
            && self.options.role == Role::Client
            && !payload
                .chunks_exact(6)
                .any(|setting| setting.starts_with(&setting::MAX_CONCURRENT_STREAMS.to_be_bytes()))
        {
            // RFC 9113, 6.5.2: without a word there is no limit.
            self.allowed = u32::MAX;
        }
        frame::write_settings_ack(&mut self.output);
        self.open_more();
        Ok(())
    }

    /// The peer has changed what it takes of each stream (RFC 9113, 6.9.2).
    fn resize_windows(&mut self, window: i64) -> Result<(), Misbehaviour> {
        if window > WINDOW_MAX {
            return Err(Misbehaviour::WindowSize);
        }
        let more = window - self.peer_window;
        self.peer_window = window;
        for stream in self.streams.iter_mut().flatten() {
            stream.window += more;
            if stream.window > WINDOW_MAX {
                return Err(Misbehaviour::WindowSize);
            }
            if more > 0 {
                stream.holder.tell();
            }
        }
        Ok(())
    }

    fn window_update(&mut self, id: u32, more: u32) -> Result<(), Misbehaviour> {
        if id == 0 {
            self.window += i64::from(more);
            if more == 0 {
                return Err(Misbehaviour::Protocol);
            }
            if self.window > WINDOW_MAX {
                return Err(Misbehaviour::WindowSize);
            }
            if self.output().len() <= OUTPUT_MAX / 2 {
                self.tell_waiting();
            }
            return Ok(());
        }
        let Some(key) = self.by_id.get(&id).copied() else {
            return Ok(());
        };
        if let Some(stream) = self.stream(key) {
            stream.window += i64::from(more);
            let wrong = match more {
                0 => Some(code::PROTOCOL_ERROR),
                _ if stream.window > WINDOW_MAX => Some(code::FLOW_CONTROL_ERROR),
                _ => None,
            };
            match wrong {
                Some(code) => self.reset(key, code),
                None => stream.holder.tell(),
            }
        }
        Ok(())
    }

    fn peer_reset(&mut self, id: u32, code: u32) {
        let Some(key) = self.by_id.get(&id).copied() else {
            return;
        };
        self.resets.remember(id, true);
        if let Some(stream) = self.stream(key) {
            if stream.failure.is_none() && !(stream.is_received && stream.is_sent) {
                stream.failure = Some(Failure::Reset(code));
            }
            stream.holder.tell();
        }
        self.settle(key);
    }

    fn ping(&mut self, is_ack: bool, payload: [u8; 8]) {
        if !is_ack {
            return frame::write_ping(&mut self.output, true, payload);
        }
        match payload {
            PRESENT => self.is_present = true,
            LEAVING if self.end == End::Announced => {
                // What was on its way when the client did not know has come.
                self.end = End::After(self.peer_last);
                frame::write_go_away(&mut self.output, self.peer_last, code::NO_ERROR);
            }
            _ => {}
        }
    }

    /// The peer ends the connection, and looks at no stream behind the last (RFC 9113, 6.8).
    fn peer_leaves(&mut self, last: u32) {
        self.is_peer_leaving = true;
        if self.options.role == Role::Server {
            return;
        }
        self.unopened.clear();
        for slot in 0..self.streams.len() {
            let Some(Some(stream)) = self.streams.get_mut(slot) else {
                continue;
            };
            let is_left_out = stream.id == 0 || stream.id > last;
            if is_left_out && stream.failure.is_none() && !stream.is_received {
                stream.failure = Some(Failure::LeftOut);
                stream.pending = None;
                stream.holder.tell();
                let key = Key {
                    slot: slot as u32,
                    serial: stream.serial,
                };
                self.settle(key);
            }
        }
    }

    // Heads.

    /// Takes a header block that is whole.
    fn block(&mut self, block: Block, bytes: &[u8]) -> Result<(), Misbehaviour> {
        let mut fields = self.spare.pop().unwrap_or_default();
        let most = (self.options.header_bytes, self.options.header_count);
        // Whatever becomes of it: the next block builds on it.
        self.decoder
            .decode(bytes, most, &mut fields)
            .map_err(|_| Misbehaviour::Compression)?;
        let left = match self.options.role {
            Role::Server => self.request(block, fields)?,
            Role::Client => self.answer(block, fields)?,
        };
        if let Some(fields) = left {
            self.recycle(fields);
        }
        Ok(())
    }

    /// Takes a head, or trailers, of a client; what is of no use comes back.
    fn request(
        &mut self,
        block: Block,
        mut fields: Box<Fields>,
    ) -> Result<Option<Box<Fields>>, Misbehaviour> {
        let id = block.stream;
        if id.is_multiple_of(2) {
            return Err(Misbehaviour::Protocol);
        }
        if id <= self.peer_last {
            let Some(key) = self.by_id.get(&id).copied() else {
                self.closed_stream(id)?;
                return Ok(Some(fields));
            };
            return self.trailers(key, block, fields);
        }
        self.peer_last = id;
        if let End::After(_) = self.end {
            return Ok(Some(fields));
        }
        let refusal = if self.active >= self.options.streams {
            Some(code::REFUSED_STREAM)
        } else if !fields.is_too_large() && (fields.is_malformed() || !is_request(&fields)) {
            Some(code::PROTOCOL_ERROR)
        } else {
            None
        };
        let expected = expected(&fields);
        let is_short = block.is_last && expected.is_some_and(|expected| expected > 0);
        if let Some(code) = refusal.or(is_short.then_some(code::PROTOCOL_ERROR)) {
            self.write_reset(id, code);
            return Ok(Some(fields));
        }
        fields.join_crumbs();
        let key = self.add(id);
        if let Some(stream) = self.stream(key) {
            stream.is_held = false;
            stream.has_head = true;
            stream.is_received = block.is_last;
            stream.expected = expected;
            stream.head = Some(fields);
        }
        self.opened.push_back(key);
        Ok(None)
    }

    /// Takes a head, or trailers, of a server; what is of no use comes back.
    fn answer(&mut self, block: Block, fields: Box<Fields>) -> Result<Option<Box<Fields>>, Misbehaviour> {
        if self.is_idle(block.stream) {
            return Err(Misbehaviour::Protocol);
        }
        let Some(key) = self.by_id.get(&block.stream).copied() else {
            // It was on its way when the stream was given up.
            return Ok(Some(fields));
        };
        let Some(stream) = self.stream(key) else {
            return Ok(Some(fields));
        };
        if stream.has_head {
            return self.trailers(key, block, fields);
        }
        if stream.failure.is_some() {
            return Ok(Some(fields));
        }
        let status = fields.status();
        let is_interim = status.is_some_and(|status| status < 200);
        let expected = match status {
            _ if stream.is_head_request => None,
            Some(204 | 304) => None,
            _ => expected(&fields),
        };
        let is_short = block.is_last && (is_interim || expected.is_some_and(|expected| expected > 0));
        if status.is_none() || fields.is_malformed() || fields.is_too_large() || is_short {
            self.reset(key, code::PROTOCOL_ERROR);
            return Ok(Some(fields));
        }
        stream.holder.tell();
        if is_interim {
            if stream.interim.len() >= INTERIM_MAX {
                return Ok(Some(fields));
            }
            stream.interim.push_back(fields);
            return Ok(None);
        }
        stream.has_head = true;
        stream.expected = expected;
        stream.is_received = block.is_last;
        stream.head = Some(fields);
        self.settle(key);
        Ok(None)
    }

    fn trailers(
        &mut self,
        key: Key,
        block: Block,
        fields: Box<Fields>,
    ) -> Result<Option<Box<Fields>>, Misbehaviour> {
        let Some(stream) = self.stream(key) else {
            return Ok(Some(fields));
        };
        if stream.failure.is_some() {
            return Ok(Some(fields));
        }
        if stream.is_received {
            return Err(Misbehaviour::StreamClosed);
        }
        let is_short = stream.expected.is_some_and(|expected| expected > 0);
        let is_wrong = fields.is_malformed() || fields.is_too_large() || fields.has_pseudo();
        if !block.is_last || is_short || is_wrong {
            self.reset(key, code::PROTOCOL_ERROR);
            return Ok(Some(fields));
        }
        stream.is_received = true;
        stream.trailers = Some(fields);
        stream.holder.tell();
        self.settle(key);
        Ok(None)
    }
}

/// The first `most` bytes, or those that there are.
fn split<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (piece, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    piece
}

/// A payload without its padding (RFC 9113, 6.1).
fn unpadded(payload: &[u8]) -> Result<&[u8], Misbehaviour> {
    let (padding, rest) = payload.split_first().ok_or(Misbehaviour::FrameSize)?;
    let length = rest.len().checked_sub(usize::from(*padding));
    let length = length.ok_or(Misbehaviour::Protocol)?;
    Ok(rest.get(..length).unwrap_or_default())
}

/// A stream that depends on itself is a mistake, although nobody orders streams so any more (RFC 7540, 5.3.1).
fn depends(priority: &[u8; 5], stream: u32) -> Result<(), Misbehaviour> {
    let [a, b, c, d, _] = *priority;
    let is_own = u32::from_be_bytes([a & 0x7f, b, c, d]) == stream;
    (!is_own).then_some(()).ok_or(Misbehaviour::Protocol)
}

fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The length that a message says it has; None also for one that says it wrongly, which its reader refuses.
fn expected(fields: &Fields) -> Option<u64> {
    content_length(&fields.list).ok().flatten()
}

/// Whether a request has the pseudo-header fields that it must, and no others (RFC 9113, 8.3.1 and 8.5; RFC 8441, 4).
fn is_request(fields: &Fields) -> bool {
    let has = |pseudo| fields.pseudo(pseudo).is_some();
    if has(Pseudo::Status) {
        return false;
    }
    let is_targeted = has(Pseudo::Scheme) && has(Pseudo::Path);
    match (fields.pseudo(Pseudo::Method), has(Pseudo::Protocol)) {
        (Some(b"CONNECT"), false) => has(Pseudo::Authority) && !has(Pseudo::Scheme) && !has(Pseudo::Path),
        (Some(b"CONNECT"), true) => is_targeted && has(Pseudo::Authority),
        (Some(_), false) => is_targeted,
        _ => false,
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
