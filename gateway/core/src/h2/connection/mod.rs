//! One HTTP/2 connection, as either side of it sees it (RFC 9113): a state machine over bytes.
//!
//! What the peer has sent goes in by [`Connection::receive`], in pieces of any size; what it is to be sent piles up in
//! [`Connection::output`]. In between are streams, which users hold by a [`Key`]: heads and data come out of them and go
//! into them, and whoever holds one is told when something about it changes. Nothing here waits or knows a socket.
//!
//! Memory is bounded by what peers may send without being read: windows for data, [`OUTPUT_MAX`] for data that waits to be
//! sent and twice that for what answers frames ([`Connection::is_clogged`]), the number of streams and the sizes of their
//! heads, and one frame that has not come whole. A connection without streams holds next to nothing.

mod receive;
mod send;

use super::fields::Fields;
use super::frame::{self, FRAME_SIZE_MAX, FrameHeader, PREFACE, code, setting};
use super::hpack::Decoder;
use super::watch::{Misbehaviour, Watch, Written};
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
/// Less than this of a window is not told of by itself.
const CRUMBS: u32 = 1024;
/// The largest window (RFC 9113, 6.9.1).
const WINDOW_MAX: i64 = (1 << 31) - 1;
/// What windows are before anybody says otherwise (RFC 9113, 6.9.2).
const WINDOW_AT_FIRST: i64 = 65_535;
/// The last number that a stream can have.
const STREAM_MAX: u32 = (1 << 31) - 1;
/// Frames to be sent are no larger, whatever the peer takes: what every peer takes is what a record of TLS holds.
const SEND_FRAME_MAX: u32 = FRAME_SIZE_MAX;
/// The most of a header block that is held, whatever is allowed of it.
const BLOCK_MAX: usize = 1024 * 1024;
/// Interim answers of one stream that wait to be looked at; more are left out.
const INTERIM_MAX: usize = 16;
/// How many streams are remembered that have ended, and that were reset: as many as a client may have refused.
const WHOLE_REMEMBERED: usize = 256;
const RESETS_REMEMBERED: usize = 1024;
/// Sections of fields that are kept to be used again, and the room that each may keep.
const SPARE_MAX: usize = 32;
const SPARE_BYTES: usize = 8 * 1024;
/// Places for streams that a connection without any keeps.
const STREAMS_KEPT: usize = 4;
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
    /// Whether data is of no use to anybody.
    is_ignored: bool,
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

/// How a stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Both sides have said all.
    Whole,
    /// It was reset from here: what was on its way is no mistake (RFC 9113, 5.1).
    Given,
    /// The peer has reset it.
    Reset,
}

/// How a client's streams of late have ended.
#[derive(Debug, Default)]
struct Past {
    whole: VecDeque<u32>,
    resets: VecDeque<(u32, Ending)>,
}

impl Past {
    fn remember(&mut self, stream: u32, ending: Ending) {
        if ending == Ending::Whole {
            if self.whole.len() >= WHOLE_REMEMBERED {
                self.whole.pop_front();
            }
            return self.whole.push_back(stream);
        }
        if self.resets.len() >= RESETS_REMEMBERED {
            self.resets.pop_front();
        }
        self.resets.push_back((stream, ending));
    }

    /// None when that is not remembered.
    fn how(&self, stream: u32) -> Option<Ending> {
        let reset = self.resets.iter().rev().find(|(reset, _)| *reset == stream);
        let is_whole = || self.whole.iter().any(|whole| *whole == stream);
        reset
            .map(|(_, ending)| *ending)
            .or_else(|| is_whole().then_some(Ending::Whole))
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
    past: Past,
    is_settled: bool,
    end: End,
    /// Whether the peer opens no more streams, or takes no more.
    is_peer_leaving: bool,
    /// Whether no more are opened from here.
    is_retired: bool,
    found: Option<Misbehaviour>,
    is_present: bool,
    /// See [`Self::take_work`].
    work: usize,
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
            past: Past::default(),
            is_settled: false,
            end: End::Open,
            is_peer_leaving: false,
            is_retired: false,
            found: None,
            is_present: false,
            work: 0,
        }
    }

    /// What the peer has done for which the connection has ended.
    pub fn misbehaviour(&self) -> Option<Misbehaviour> {
        self.found
    }

    /// What has come since this was last asked, in bytes that are as much work to read: a frame costs some whatever is in
    /// it, and a few bytes of a block may stand for many of a field.
    pub fn take_work(&mut self) -> usize {
        std::mem::take(&mut self.work)
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

    /// Bytes that are held: what the peer has sent and was not passed on, what waits to be sent, and what is known of its
    /// fields.
    pub fn held_bytes(&self) -> usize {
        let data = i64::from(self.options.connection_window) - self.room - i64::from(self.untold);
        usize::try_from(data).unwrap_or(0) + self.output.capacity() + self.kept_bytes()
    }

    /// Bytes that are held of what the peer has sent, but for data of streams.
    pub fn kept_bytes(&self) -> usize {
        self.kept.capacity() + self.block_bytes.capacity() + self.decoder.kept_bytes()
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
            is_ignored: false,
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
                if gone.failure.is_none() && self.options.role == Role::Server {
                    self.past.remember(gone.id, Ending::Whole);
                }
                self.give_back(gone.data.len());
                let left = gone.interim.into_iter().chain(gone.head).chain(gone.trailers);
                left.for_each(|fields| self.recycle(fields));
            }
        }
        if was_counted {
            self.open_more();
        }
        if !self.has_streams() {
            // What waits holds no room.
            self.spare.truncate(1);
            if self.streams.capacity() > STREAMS_KEPT {
                self.streams = Vec::new();
                self.free = Vec::new();
            }
        }
    }

    /// The peer has not looked at the stream, and will not.
    fn leave_out(&mut self, key: Key) {
        if let Some(stream) = self.stream(key) {
            stream.failure = Some(Failure::LeftOut);
            stream.pending = None;
            stream.holder.tell();
            self.settle(key);
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

    /// Takes the data that has come, and answers whether there was any.
    pub fn take_data(&mut self, key: Key, into: &mut Vec<u8>) -> bool {
        let Some(stream) = self.stream(key) else {
            return false;
        };
        if stream.data.is_empty() {
            return false;
        }
        *into = std::mem::take(&mut stream.data);
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

    /// Data of the stream is of no use to anybody.
    pub fn ignore(&mut self, key: Key) {
        if let Some(stream) = self.stream(key) {
            stream.is_ignored = true;
            let data = std::mem::take(&mut stream.data);
            self.passed_on(key, data.len());
        }
    }

    /// Notes that so many bytes of data were passed on: the peer may send as many more.
    pub fn passed_on(&mut self, key: Key, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let window = self.options.stream_window;
        let bytes_told = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Some(stream) = self.stream(key)
            && !stream.is_received
            && stream.failure.is_none()
        {
            stream.untold = stream.untold.saturating_add(bytes_told);
            if stream.untold >= window.div_ceil(2) {
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
        // What streams hold that nobody takes from makes the rest of the window smaller: half of that is due as well, but
        // for crumbs, as long as the peer may send any.
        let is_half = self.untold > 0 && i64::from(self.untold) >= self.room;
        let is_much = is_half && (self.untold >= CRUMBS || self.room <= 0);
        let is_due = is_much || self.untold >= self.options.connection_window.div_ceil(2);
        if is_due && self.end != End::Over {
            let more = std::mem::take(&mut self.untold);
            self.room += i64::from(more);
            frame::write_window_update(&mut self.output, 0, more);
        }
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
}

#[cfg(test)]
mod tests {
    // Both sides of a connection against each other, and one against peers that break the rules.
    use super::super::fields::Pseudo;
    use super::super::frame::FrameKind;
    use super::super::frame::written::*;
    use super::super::hpack;
    use super::receive::{number, split};
    use super::*;
    use crate::limits::Settings;
    use crate::random::Random;
    use std::collections::HashMap as Map;

    #[derive(Default)]
    struct Told(u32);

    impl Holder for Told {
        fn tell(&mut self) {
            self.0 += 1;
        }
    }

    fn options(role: Role) -> Options {
        let limits = Settings::default().http2_limits();
        Options {
            role,
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            streams: 100,
            header_bytes: 60 * 1024,
            header_count: 100,
            limits: (role == Role::Server).then_some(limits),
        }
    }

    fn server() -> Connection<Told> {
        Connection::new(options(Role::Server), Instant::now())
    }

    fn client() -> Connection<Told> {
        Connection::new(options(Role::Client), Instant::now())
    }

    /// A block that asks for `/`.
    fn ask(out: &mut Vec<u8>) {
        hpack::write_pseudo(out, Pseudo::Method, b"POST");
        hpack::write_pseudo(out, Pseudo::Scheme, b"https");
        hpack::write_pseudo(out, Pseudo::Authority, b"h.example");
        hpack::write_pseudo(out, Pseudo::Path, b"/");
    }

    fn answer(out: &mut Vec<u8>) {
        hpack::write_status(out, 200);
    }

    fn block(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    /// What a client begins with.
    fn hello() -> Vec<u8> {
        [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
    }

    /// A server that has read what its client begins with, and then this.
    fn server_after(bytes: &[u8]) -> Connection<Told> {
        let mut server = server();
        server.receive(&hello(), Instant::now());
        let sent = server.output().len();
        server.sent(sent);
        server.receive(bytes, Instant::now());
        server
    }

    /// The frames that wait to be sent: kind, stream, and the code of those that have one.
    fn frames<T: Holder>(connection: &Connection<T>) -> Vec<(FrameKind, u32, Option<u32>)> {
        let mut bytes = connection.output();
        if connection.options.role == Role::Client && bytes.starts_with(PREFACE) {
            bytes = &bytes[PREFACE.len()..];
        }
        let mut found = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk() {
            let header = FrameHeader::read(*header);
            let (payload, rest) = rest.split_at(header.length as usize);
            let code = match header.kind {
                FrameKind::RstStream => number(payload),
                FrameKind::GoAway => number(&payload[4..]),
                _ => None,
            };
            found.push((header.kind, header.stream, code));
            bytes = rest;
        }
        found
    }

    /// Moves what one has to send to the other, in pieces of any size; answers whether there was anything.
    fn pump(
        from: &mut Connection<Told>,
        to: &mut Connection<Told>,
        random: &mut Random,
        now: Instant,
    ) -> bool {
        let has_output = !from.output().is_empty();
        let most = [3, 40, 1 << 20][random.below(3) as usize];
        let piece = from.output().len().min(1 + random.below(most) as usize);
        if !to.is_clogged() {
            let bytes = from.output()[..piece].to_vec();
            from.sent(piece);
            to.receive(&bytes, now);
        }
        has_output
    }

    /// What one side does about one stream.
    struct Talk {
        /// What it still has to send, and what it has got.
        send: Vec<u8>,
        got: Vec<u8>,
        has_head: bool,
        is_ended: bool,
        is_over: bool,
    }

    impl Talk {
        fn new(random: &mut Random) -> Self {
            let most = [1, 100, 300_000][random.below(3) as usize];
            Self {
                send: (0..random.below(most)).map(|at| at as u8).collect(),
                got: Vec::new(),
                has_head: false,
                is_ended: false,
                is_over: false,
            }
        }

        /// Sends and takes some.
        fn go_on(&mut self, side: &mut Connection<Told>, key: Key, random: &mut Random) {
            if self.is_over {
                return;
            }
            if !self.has_head {
                self.has_head = side.take_head(key).is_some();
            }
            let mut buffer = Vec::new();
            if side.take_data(key, &mut buffer) {
                self.got.extend_from_slice(&buffer);
                side.passed_on(key, buffer.len());
            }
            if !self.is_ended {
                let part = self.send.len().min(1 + random.below(100_000) as usize);
                let is_last = part == self.send.len();
                let sent = side.send_data(key, &self.send[..part], is_last).unwrap();
                self.send.drain(..sent);
                self.is_ended = is_last && self.send.is_empty();
            }
            if self.is_ended && self.has_head && side.is_received(key) {
                self.is_over = true;
                side.release(key);
            }
        }
    }

    #[test]
    fn whatever_is_sent_arrives_however_it_is_cut() {
        for seed in 0..300 {
            let mut random = Random::from_seed(seed);
            let now = Instant::now();
            let mut server = Connection::new(
                Options {
                    streams: 1 + random.below(8) as u32,
                    stream_window: 1 + random.below(90_000) as u32,
                    connection_window: 65_535 + random.below(100_000) as u32,
                    ..options(Role::Server)
                },
                now,
            );
            let mut client = client();
            let exchanges = 1 + random.below(20) as usize;
            let mut asked: Vec<(Key, Talk, Vec<u8>)> = Vec::new();
            let mut asked_of: Map<u32, (Key, Talk)> = Map::new();
            let mut answers: Vec<Vec<u8>> = Vec::new();
            for _ in 0..200_000 {
                if asked.len() < exchanges && client.is_settled() && random.below(3) == 0 {
                    let key = client.open(false, false, ask).unwrap();
                    let talk = Talk::new(&mut random);
                    let sends = talk.send.clone();
                    asked.push((key, talk, sends));
                }
                let mut moved = pump(&mut client, &mut server, &mut random, now);
                moved |= pump(&mut server, &mut client, &mut random, now);
                while let Some(key) = server.accept() {
                    assert!(server.send_head(key, false, answer));
                    let talk = Talk::new(&mut random);
                    answers.push(talk.send.clone());
                    asked_of.insert(answers.len() as u32 - 1, (key, talk));
                }
                for (key, talk, _) in &mut asked {
                    talk.go_on(&mut client, *key, &mut random);
                }
                for (key, talk) in asked_of.values_mut() {
                    talk.go_on(&mut server, *key, &mut random);
                }
                let is_done = asked.len() == exchanges && asked.iter().all(|(_, talk, _)| talk.is_over);
                if is_done && !moved {
                    break;
                }
            }
            assert_eq!((client.found, server.found), (None, None), "seed {seed}");
            assert_eq!(asked.len(), exchanges);
            for (at, (_, talk, sends)) in asked.iter().enumerate() {
                assert!(talk.is_over, "seed {seed}, stream {at}");
                // Streams are opened in the order in which they were asked for.
                let (_, theirs) = &asked_of[&(at as u32)];
                assert!(
                    talk.got == answers[at] && theirs.got == *sends,
                    "seed {seed}, stream {at}"
                );
            }
            assert!(!client.has_streams() && !server.has_streams(), "seed {seed}");
            assert_eq!((client.active, server.active), (0, 0));
            assert!(client.by_id.is_empty() && server.by_id.is_empty());
        }
    }

    #[test]
    fn however_bytes_are_cut_the_same_comes_of_them() {
        for seed in 0..3000 {
            let mut random = Random::from_seed(seed);
            let now = Instant::now();
            let mut bytes = hello();
            let mut next = 1;
            for _ in 0..random.below(30) {
                let stream = [0, 1, next, next + 2, 2][random.below(5) as usize];
                let kind = random.below(11) as u8;
                let payload = match kind {
                    HEADERS if random.below(4) != 0 => {
                        next += 2;
                        block(ask)
                    }
                    SETTINGS => [0, 4, 0, 0, 1, 0].repeat(random.below(3) as usize),
                    PING | GOAWAY => vec![0; 8],
                    RST_STREAM | WINDOW_UPDATE => vec![0, 0, 0, random.below(3) as u8],
                    PRIORITY => vec![0, 0, 0, random.below(3) as u8, 0],
                    _ => (0..random.below(30)).map(|_| random.below(20) as u8).collect(),
                };
                let flags = [END_HEADERS, END_HEADERS | END_STREAM, 0, 0xff][random.below(4) as usize];
                bytes.extend(frame(kind, flags, stream, &payload));
            }
            let mut whole = Connection::<Told>::new(options(Role::Server), now);
            whole.receive(&bytes, now);
            let mut pieces = Connection::<Told>::new(options(Role::Server), now);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let piece = split(&mut rest, 1 + random.below(30) as usize);
                pieces.receive(piece, now);
            }
            assert_eq!(frames(&whole), frames(&pieces), "seed {seed}");
            assert_eq!(
                (whole.found, whole.room),
                (pieces.found, pieces.room),
                "seed {seed}"
            );
            assert_eq!(whole.opened.len(), pieces.opened.len(), "seed {seed}");
        }
    }

    #[test]
    fn any_bytes_are_taken_by_either_side() {
        for seed in 0..3000 {
            let mut random = Random::from_seed(seed);
            let junk: Vec<u8> = (0..random.below(600))
                .map(|_| random.next_u64() as u8 >> random.below(8))
                .collect();
            let server = server_after(&junk);
            assert!(server.kept_bytes() < 64 * 1024);
            let mut client = client();
            let key = client.open(true, false, ask);
            client.receive(&frame(SETTINGS, 0, 0, &[]), Instant::now());
            client.receive(&junk, Instant::now());
            if let Some(key) = key {
                client.release(key);
            }
        }
    }

    #[test]
    fn what_breaks_the_connection_ends_it_with_its_code() {
        let ask = block(ask);
        let opened = frame(HEADERS, END_HEADERS, 1, &ask);
        let asked = frame(HEADERS, END_HEADERS | END_STREAM, 1, &ask);
        let cases: &[(Misbehaviour, &[&[u8]])] = &[
            (Misbehaviour::FrameSize, &[&frame(PING, 0, 0, &[0; 7])]),
            (Misbehaviour::FrameSize, &[&frame(SETTINGS, 1, 0, &[0; 6])]),
            (Misbehaviour::FrameSize, &[&frame(SETTINGS, 0, 0, &[0; 5])]),
            (Misbehaviour::FrameSize, &[&frame(DATA, 0, 1, &[0; 16_385])]),
            (
                Misbehaviour::WindowSize,
                &[&frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])],
            ),
            (
                Misbehaviour::Protocol,
                &[&frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])],
            ),
            (
                Misbehaviour::Protocol,
                &[&frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2])],
            ),
            (Misbehaviour::Protocol, &[&frame(SETTINGS, 0, 1, &[])]),
            (Misbehaviour::Protocol, &[&frame(PING, 0, 1, &[0; 8])]),
            (Misbehaviour::Protocol, &[&frame(DATA, 0, 0, &[])]),
            (Misbehaviour::Protocol, &[&frame(DATA, 0, 1, &[])]),
            (Misbehaviour::Protocol, &[&frame(HEADERS, END_HEADERS, 2, &ask)]),
            (Misbehaviour::Protocol, &[&frame(RST_STREAM, 0, 1, &[0; 4])]),
            (Misbehaviour::Protocol, &[&frame(WINDOW_UPDATE, 0, 0, &[0; 4])]),
            (
                Misbehaviour::WindowSize,
                &[&frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])],
            ),
            (
                Misbehaviour::Protocol,
                &[&frame(CONTINUATION, END_HEADERS, 1, &ask)],
            ),
            (
                Misbehaviour::Protocol,
                &[&frame(HEADERS, 0, 1, &ask), &frame(PING, 0, 0, &[0; 8])],
            ),
            (
                Misbehaviour::Protocol,
                &[&frame(HEADERS, 0, 1, &ask), &frame(CONTINUATION, 0, 3, &[])],
            ),
            (Misbehaviour::Protocol, &[&frame(5, 0, 1, &[0; 4])]),
            (
                Misbehaviour::Protocol,
                &[&frame(PRIORITY, 0, 3, &[0, 0, 0, 3, 0])],
            ),
            (Misbehaviour::Protocol, &[&opened, &frame(DATA, 8, 1, &[5, 0, 0])]),
            (
                Misbehaviour::Compression,
                &[&frame(HEADERS, END_HEADERS, 1, &[0x80])],
            ),
            (Misbehaviour::StreamClosed, &[&asked, &frame(DATA, 0, 1, &[1])]),
            (Misbehaviour::StreamClosed, &[&asked, &asked]),
        ];
        for (at, (found, bytes)) in cases.iter().enumerate() {
            let server = server_after(&bytes.concat());
            assert_eq!(server.misbehaviour(), Some(*found), "case {at}");
            let last = frames(&server).pop();
            assert_eq!(
                last,
                Some((FrameKind::GoAway, 0, Some(found.code()))),
                "case {at}"
            );
            assert!(server.is_over());
        }
        let mut server = server();
        server.receive(
            &[PREFACE.to_vec(), frame(PING, 0, 0, &[0; 8])].concat(),
            Instant::now(),
        );
        assert_eq!(server.misbehaviour(), Some(Misbehaviour::NoSettings));
        let mut server = self::server();
        server.receive(b"GET / HTTP/1.1\r\n", Instant::now());
        assert_eq!(server.misbehaviour(), Some(Misbehaviour::Protocol));
    }

    #[test]
    fn what_breaks_a_stream_ends_it_alone() {
        let ask = block(ask);
        let with = |name: &[u8], value: &[u8]| {
            let mut block = ask.clone();
            hpack::write_field(&mut block, crate::header::HeaderId::Other, name, value);
            block
        };
        let headers = |block: &[u8]| frame(HEADERS, END_HEADERS, 1, block);
        let length = headers(&with(b"content-length", b"3"));
        let data = |length: usize, flags| frame(DATA, flags, 1, &vec![0; length]);
        let mut upper = ask.clone();
        upper.extend(b"\x00\x01A\x01b");
        let mut late = with(b"a", b"b");
        hpack::write_pseudo(&mut late, Pseudo::Path, b"/");
        let mut twice = ask.clone();
        hpack::write_pseudo(&mut twice, Pseudo::Path, b"/x");
        let cases: &[(u32, &[&[u8]])] = &[
            (code::PROTOCOL_ERROR, &[&headers(&upper)]),
            (code::PROTOCOL_ERROR, &[&headers(&late)]),
            (code::PROTOCOL_ERROR, &[&headers(&twice)]),
            (code::PROTOCOL_ERROR, &[&headers(&[0x82, 0x87])]),
            (code::PROTOCOL_ERROR, &[&headers(&with(b"connection", b"close"))]),
            (code::PROTOCOL_ERROR, &[&headers(&with(b"te", b"gzip"))]),
            (code::PROTOCOL_ERROR, &[&headers(&with(b"a", b"b\x00"))]),
            (code::PROTOCOL_ERROR, &[&length, &data(4, 0)]),
            (code::PROTOCOL_ERROR, &[&length, &data(2, END_STREAM)]),
            (
                code::PROTOCOL_ERROR,
                &[&headers(&ask), &headers(&with(b"a", b"b"))],
            ),
            (
                code::PROTOCOL_ERROR,
                &[&headers(&ask), &frame(HEADERS, END_HEADERS | END_STREAM, 1, &ask)],
            ),
            (
                code::PROTOCOL_ERROR,
                &[&headers(&ask), &frame(WINDOW_UPDATE, 0, 1, &[0; 4])],
            ),
            (
                code::FLOW_CONTROL_ERROR,
                &[
                    &headers(&ask),
                    &frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]),
                ],
            ),
        ];
        for (at, (code, bytes)) in cases.iter().enumerate() {
            let mut server = server_after(&bytes.concat());
            assert_eq!(server.misbehaviour(), None, "case {at}");
            let last = frames(&server).pop();
            assert_eq!(last, Some((FrameKind::RstStream, 1, Some(*code))), "case {at}");
            // What was on its way means nothing, and the next stream is served.
            let more = [data(10, 0), frame(HEADERS, END_HEADERS | END_STREAM, 3, &ask)].concat();
            server.receive(&more, Instant::now());
            assert_eq!(server.misbehaviour(), None, "case {at}");
            let key = std::iter::from_fn(|| server.accept()).last().unwrap();
            assert_eq!(server.failure(key), None, "case {at}");
            assert_eq!(server.stream(key).unwrap().id, 3);
        }
    }

    #[test]
    fn streams_beyond_what_is_allowed_are_refused_and_their_fields_are_read_all_the_same() {
        let mut bytes = Vec::new();
        for at in 0..102 {
            // Each adds an entry to the table, and the last uses it.
            let mut ask = block(ask);
            ask.extend(if at < 101 {
                &b"\x40\x01a\x01b"[..]
            } else {
                &[0x80 | 62]
            });
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * at + 1, &ask));
        }
        let mut server = server_after(&bytes);
        assert_eq!(
            frames(&server),
            [201, 203].map(|id| (FrameKind::RstStream, id, Some(code::REFUSED_STREAM)))
        );
        assert_eq!(std::iter::from_fn(|| server.accept()).count(), 100);
    }

    #[test]
    fn a_head_that_is_too_large_is_handed_over_as_such() {
        let mut ask = block(ask);
        let large = vec![b'x'; 15_000];
        (0..5).for_each(|_| hpack::write_field(&mut ask, crate::header::HeaderId::Other, b"a", &large));
        let mut bytes = Vec::new();
        let fragments: Vec<&[u8]> = ask.chunks(16_000).collect();
        for (at, fragment) in fragments.iter().enumerate() {
            let (kind, first) = if at == 0 {
                (HEADERS, END_STREAM)
            } else {
                (CONTINUATION, 0)
            };
            let last = if at + 1 == fragments.len() { END_HEADERS } else { 0 };
            bytes.extend(frame(kind, first | last, 1, fragment));
        }
        let mut server = server_after(&bytes);
        assert_eq!(server.misbehaviour(), None);
        let key = server.accept().unwrap();
        assert!(server.take_head(key).unwrap().is_too_large());
    }

    #[test]
    fn a_head_that_grows_by_its_table_ends_the_connection() {
        let mut ask = block(ask);
        ask.extend(b"\x40\x01a\x7f\xb9\x1d");
        ask.extend([b'v'; 3896]);
        ask.extend([0x80 | 62; 10_000]);
        let server = server_after(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &ask));
        assert_eq!(server.misbehaviour(), Some(Misbehaviour::HeaderBlock));
    }

    #[test]
    fn windows_open_again_for_what_nobody_takes() {
        // All that a client sends on streams that are given up counts, and is given back.
        let mut server = server_after(&[]);
        let now = Instant::now();
        for at in 0..400 {
            let id = 2 * at + 1;
            server.receive(&frame(HEADERS, END_HEADERS, id, &block(ask)), now);
            let key = server.accept().unwrap();
            if at % 3 == 0 {
                server.release(key);
            }
            for _ in 0..3 {
                server.receive(&frame(DATA, 8, id, &[&[9][..], &[0; 9_999]].concat()), now);
            }
            if at % 3 == 1 {
                let mut buffer = Vec::new();
                assert!(server.take_data(key, &mut buffer));
                server.passed_on(key, buffer.len());
            }
            server.release(key);
            let sent = server.output().len();
            server.sent(sent);
        }
        assert_eq!(server.misbehaviour(), None);
        assert_eq!(server.room + i64::from(server.untold), 1024 * 1024);
    }

    #[test]
    fn streams_that_nobody_takes_from_stop_no_other() {
        const PIECE: usize = 16_384;
        // What is left of the connection's window beside them.
        for left in [300, 5_000, PIECE, 2 * PIECE, 300_000, 500_000, 700_000] {
            let mut server = server_after(&[]);
            let now = Instant::now();
            let mut held = 0;
            let data = |id, size: usize| frame(DATA, 0, id, &vec![0; size]);
            for at in 0.. {
                let id = 2 * at + 1;
                server.receive(&frame(HEADERS, END_HEADERS, id, &block(ask)), now);
                let _never_taken_from = server.accept().unwrap();
                for _ in 0..3 {
                    let size = PIECE.min(1024 * 1024 - left - held);
                    server.receive(&data(id, size), now);
                    held += size;
                }
                if held == 1024 * 1024 - left {
                    break;
                }
            }
            let id = 1001;
            server.receive(&frame(HEADERS, END_HEADERS, id, &block(ask)), now);
            let key = server.accept().unwrap();
            for _ in 0..100 {
                let piece = PIECE.min(usize::try_from(server.room).unwrap());
                assert!(piece > 0, "{left}: the client may not go on");
                server.receive(&data(id, piece), now);
                let mut buffer = Vec::new();
                assert!(server.take_data(key, &mut buffer));
                server.passed_on(key, buffer.len());
            }
            assert_eq!(server.misbehaviour(), None, "{left}");
        }
    }

    #[test]
    fn a_server_that_leaves_serves_what_crosses_its_word() {
        let asks = |id| frame(HEADERS, END_HEADERS | END_STREAM, id, &block(ask));
        let mut server = server_after(&asks(1));
        let first = server.accept().unwrap();
        server.leave();
        assert_eq!(
            frames(&server),
            [
                (FrameKind::GoAway, 0, Some(code::NO_ERROR)),
                (FrameKind::Ping, 0, None)
            ]
        );
        let now = Instant::now();
        server.receive(&asks(3), now);
        let second = server.accept().unwrap();
        server.receive(&frame(PING, 1, 0, &LEAVING), now);
        assert_eq!(
            frames(&server).pop(),
            Some((FrameKind::GoAway, 0, Some(code::NO_ERROR)))
        );
        server.receive(&asks(5), now);
        assert_eq!(server.accept(), None);
        for key in [first, second] {
            assert!(!server.is_over());
            assert!(server.send_head(key, true, answer));
            server.release(key);
        }
        assert!(server.is_over());
        assert_eq!(server.misbehaviour(), None);
    }

    #[test]
    fn a_client_whose_server_leaves_knows_what_was_left_out() {
        let mut client = client();
        let now = Instant::now();
        client.receive(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 3]), now);
        let keys: Vec<Key> = (0..5).map(|_| client.open(true, false, ask).unwrap()).collect();
        // Two wait until the server takes more.
        assert_eq!(client.active, 3);
        client.receive(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x88]), now);
        assert!(client.is_received(keys[0]));
        client.release(keys[0]);
        assert_eq!((client.active, client.own_last), (3, 7));
        client.receive(&frame(GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]), now);
        let failures: Vec<_> = keys[1..].iter().map(|key| client.failure(*key)).collect();
        let left_out = Some(Failure::LeftOut);
        assert_eq!(failures, [None, left_out, left_out, left_out]);
        assert!(!client.takes_streams() && client.open(true, false, ask).is_none());
        client.receive(&frame(RST_STREAM, 0, 3, &[0, 0, 0, 7]), now);
        assert_eq!(
            client.failure(keys[1]),
            Some(Failure::Reset(code::REFUSED_STREAM))
        );
        assert!(!client.is_over());
        for key in keys {
            client.release(key);
        }
        assert!(client.is_over());
    }

    #[test]
    fn interim_answers_come_before_the_last_and_trailers_behind_it() {
        let mut client = client();
        let now = Instant::now();
        let key = client.open(true, false, ask).unwrap();
        let mut bytes = frame(SETTINGS, 0, 0, &[]);
        let hints = block(|out| hpack::write_status(out, 103));
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &hints));
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &block(answer)));
        bytes.extend(frame(DATA, 0, 1, b"some"));
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x01a\x01b"));
        client.receive(&bytes, now);
        assert_eq!(client.take_head(key).unwrap().status(), Some(103));
        assert_eq!(client.take_head(key).unwrap().status(), Some(200));
        assert!(client.take_head(key).is_none());
        let mut data = Vec::new();
        assert!(!client.is_received(key) && client.take_data(key, &mut data));
        assert_eq!(data, b"some");
        assert!(client.is_received(key));
        assert_eq!(client.take_trailers(key).unwrap().list.len(), 1);
        assert!(client.holder(key).unwrap().0 > 0);
    }

    #[test]
    fn a_socket_that_never_takes_all_keeps_nothing_of_what_it_has_taken() {
        let mut client = client();
        let now = Instant::now();
        client.receive(&frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]), now);
        client.receive(&frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]), now);
        let key = client.open(false, false, ask).unwrap();
        let data = vec![0; 1 << 20];
        for _ in 0..2000 {
            client.send_data(key, &data, false).unwrap();
            client.sent(20_000.min(client.output().len()));
            assert!(
                client.output.capacity() <= 4 * OUTPUT_MAX,
                "{}",
                client.output.capacity()
            );
        }
    }

    #[test]
    fn a_request_that_crosses_the_last_word_ends_nothing() {
        let opens = |id| frame(HEADERS, END_HEADERS, id, &block(ask));
        let mut server = server_after(&opens(1));
        let now = Instant::now();
        let first = server.accept().unwrap();
        server.leave();
        server.receive(&frame(PING, 1, 0, &LEAVING), now);
        let late = [
            opens(3),
            frame(DATA, 0, 3, b"some"),
            frame(RST_STREAM, 0, 3, &[0; 4]),
        ]
        .concat();
        server.receive(&late, now);
        server.receive(&frame(DATA, END_STREAM, 1, b"more"), now);
        assert_eq!((server.misbehaviour(), server.accept()), (None, None));
        assert_eq!(server.failure(first), None);
        assert!(server.send_head(first, true, answer));
        server.release(first);
        assert!(server.is_over());
    }

    #[test]
    fn what_was_on_its_way_to_streams_long_given_up_ends_nothing() {
        let mut bytes = Vec::new();
        let mut server = server_after(&[]);
        let now = Instant::now();
        for at in 0..2000 {
            server.receive(&frame(HEADERS, END_HEADERS, 2 * at + 1, &block(ask)), now);
            let key = server.accept().unwrap();
            server.release(key);
            bytes.extend(frame(DATA, 0, 2 * at + 1, b"late"));
            let sent = server.output().len();
            server.sent(sent);
        }
        server.receive(&bytes, now);
        assert_eq!(server.misbehaviour(), None);
        assert_eq!(server.room + i64::from(server.untold), 1024 * 1024);
    }

    #[test]
    fn a_connection_without_streams_holds_next_to_nothing() {
        let mut ask = block(ask);
        let long = vec![b'x'; 15_000];
        hpack::write_field(&mut ask, crate::header::HeaderId::Other, b"a", &long);
        let mut bytes = Vec::new();
        for at in 0..100 {
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * at + 1, &ask));
        }
        let mut server = server_after(&bytes);
        for key in std::iter::from_fn(|| server.accept()).collect::<Vec<_>>() {
            let head = server.take_head(key).unwrap();
            server.recycle(head);
            assert!(server.send_head(key, true, answer));
            server.release(key);
        }
        let sent = server.output().len();
        server.sent(sent);
        assert!(server.spare.len() <= 1 && server.streams.capacity() <= STREAMS_KEPT);
        assert!(
            server.output.capacity() == 0 && server.kept_bytes() < 16 * 1024,
            "{}",
            server.kept_bytes()
        );
    }

    #[test]
    fn what_waits_to_be_sent_is_bounded_and_streams_take_turns() {
        let mut client = client();
        let now = Instant::now();
        let wide = [0, 4, 0x7f, 0xff, 0xff, 0xff];
        client.receive(&frame(SETTINGS, 0, 0, &wide), now);
        client.receive(&frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]), now);
        let keys: Vec<Key> = (0..3).map(|_| client.open(false, false, ask).unwrap()).collect();
        let data = vec![0; 1 << 20];
        let mut sent = [0; 3];
        for turn in 0..300 {
            let at = turn % 3;
            sent[at] += client.send_data(keys[at], &data, false).unwrap();
            assert!(client.output().len() <= OUTPUT_MAX + 4096);
            if turn % 5 == 0 {
                let all = client.output().len();
                client.sent(all);
            }
        }
        assert!(sent.iter().all(|bytes| *bytes > 0), "{sent:?}");
        assert!(client.holder(keys[1]).unwrap().0 > 0);
    }
}
