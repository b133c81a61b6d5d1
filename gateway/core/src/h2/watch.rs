//! How much of what costs a client little it may send on one HTTP/2 connection.
//!
//! Everything that is counted has an allowance: so much at once, and more by time and by what the client does that is
//! of use to it, such as a request that is answered or a DATA frame that it takes. What is earned so is what a sane
//! client needs: nobody acknowledges more data than came, or cancels more requests than it sends. A client that is
//! slow, bursty or wasteful stays within; one that does nothing but what is counted runs out after a bounded number of
//! frames. The numbers and their reasons are in [`crate::limits`].
//!
//! How many streams are open at a time, how large a frame or a list of fields may be, and whether a frame is allowed where
//! it is, are rules of the protocol, which the connection itself sees to.

use super::frame::{FrameHeader, FrameKind, code};
use crate::limits::Http2Limits;
use std::time::{Duration, Instant};

/// How often allowances grow and streams grow old.
const TICK: Duration = Duration::from_secs(1);
/// An allowance that is used up is whole again after so many ticks.
const TICKS_TO_FULL: u32 = 10;
/// Control frames that a request earns: it may be reprioritized as it moves into view, and is cancelled once at most.
const CONTROL_FRAMES_PER_STREAM: u32 = 10;
/// WINDOW_UPDATE frames that a DATA frame earns (Envoy's `max_inbound_window_update_frames_per_data_frame_sent` is 10,
/// for the stream and for the connection).
const WINDOW_UPDATES_PER_DATA: u32 = 20;
/// WINDOW_UPDATE frames that a request earns: clients open its window, and the connection's for it.
const WINDOW_UPDATES_PER_STREAM: u32 = 4;
/// How much of the two is kept, in allowances: a client with a window of 16 MiB may take what it was sent in one go
/// long after, in steps as small as it likes.
const KEPT: u32 = 100;
/// DATA frames below this are tiny: the head of a gRPC message alone has as many bytes.
const TINY_BELOW: u32 = 5;
/// A SETTINGS frame counts once more for each so many bytes: usual ones have seven settings of six bytes.
const SETTINGS_BYTES: u32 = 64;
/// How many streams are remembered that were reset because of the client: as many as libraries leave open at a time.
const STREAMS_REMEMBERED: usize = 256;

/// Why a connection is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Misbehaviour {
    /// Requests are sent and cancelled at once.
    RapidReset,
    /// Requests are sent, and then broken so that the gateway must reset them.
    StreamErrors,
    /// Requests are sent beyond the number that may be open.
    RefusedStreams,
    /// A header block goes on in more and more CONTINUATION frames.
    Continuations,
    /// A header block has too many bytes.
    HeaderBlock,
    /// Settings are sent over and over.
    Settings,
    /// Pings are.
    Pings,
    /// Frames are that mean little or nothing.
    ControlFrames,
    /// DATA frames are that are empty.
    EmptyData,
    /// DATA frames are that have hardly anything in them.
    TinyData,
    /// Windows are opened over and over, and nothing comes through them.
    WindowUpdates,
    /// The first frame is not SETTINGS (RFC 9113, 3.4).
    NoSettings,
    /// A frame has a size that none of its kind has (RFC 9113, 4.2).
    FrameSize,
    /// A setting wants windows larger than there can be (RFC 9113, 6.5.2).
    WindowSize,
    /// A stream goes on that its client has ended (RFC 9113, 5.1).
    StreamClosed,
    /// A header block does not decompress (RFC 9113, 4.3).
    Compression,
    /// Another rule of the protocol is broken.
    Protocol,
}

impl Misbehaviour {
    /// As metrics and x-isthmus-cause name it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::RapidReset => "http2_rapid_reset",
            Self::StreamErrors => "http2_stream_errors",
            Self::RefusedStreams => "http2_refused_streams",
            Self::Continuations => "http2_continuations",
            Self::HeaderBlock => "http2_header_block",
            Self::Settings => "http2_settings",
            Self::Pings => "http2_pings",
            Self::ControlFrames => "http2_control_frames",
            Self::EmptyData => "http2_empty_data",
            Self::TinyData => "http2_tiny_data",
            Self::WindowUpdates => "http2_window_updates",
            Self::NoSettings => "http2_no_settings",
            Self::FrameSize => "http2_frame_size",
            Self::WindowSize => "http2_window_size",
            Self::StreamClosed => "http2_stream_closed",
            Self::Compression => "http2_compression",
            Self::Protocol => "http2_protocol",
        }
    }

    /// As the access log names it: Envoy's word where the meaning is equal, else in its form.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::RapidReset => "http2.premature_reset_flood",
            Self::StreamErrors => "http2.stream_error_flood",
            Self::RefusedStreams => "http2.refused_stream_flood",
            Self::Continuations => "http2.inbound_continuation_frames_flood",
            Self::HeaderBlock => "http2.header_block_too_large",
            Self::Settings => "http2.inbound_settings_frames_flood",
            Self::Pings => "http2.inbound_ping_frames_flood",
            Self::ControlFrames => "http2.inbound_priority_frames_flood",
            Self::EmptyData => "http2.inbound_empty_frames_flood",
            Self::TinyData => "http2.inbound_tiny_frames_flood",
            Self::WindowUpdates => "http2.inbound_window_update_frames_flood",
            Self::NoSettings => "http2.codec_error{no_settings}",
            Self::FrameSize => "http2.codec_error{frame_size}",
            Self::WindowSize => "http2.codec_error{window_size}",
            Self::StreamClosed => "http2.codec_error{stream_closed}",
            Self::Compression => "http2.codec_error{compression}",
            Self::Protocol => "http2.codec_error{protocol}",
        }
    }
}

impl Misbehaviour {
    /// The error code that the client is told (RFC 9113, 7).
    pub const fn code(self) -> u32 {
        match self {
            Self::NoSettings | Self::Protocol => code::PROTOCOL_ERROR,
            Self::FrameSize => code::FRAME_SIZE_ERROR,
            Self::WindowSize => code::FLOW_CONTROL_ERROR,
            Self::StreamClosed => code::STREAM_CLOSED,
            Self::Compression => code::COMPRESSION_ERROR,
            _ => code::ENHANCE_YOUR_CALM,
        }
    }
}

/// How much of something is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowance(u32);

impl Allowance {
    /// Uses some up, or says that there is not so much left.
    fn take(&mut self, cost: u32, or: Misbehaviour) -> Result<(), Misbehaviour> {
        self.0 = self.0.checked_sub(cost).ok_or(or)?;
        Ok(())
    }

    /// Adds some, up to `most`.
    fn earn(&mut self, gain: u32, most: u32) {
        if self.0 < most {
            self.0 = self.0.saturating_add(gain).min(most);
        }
    }

    /// Adds what so many ticks are worth.
    fn refill(&mut self, full: u32, ticks: u32) {
        self.earn((full / TICKS_TO_FULL).max(1).saturating_mul(ticks), full);
    }
}

/// What is left of everything that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    rapid_resets: Allowance,
    stream_errors: Allowance,
    refused_streams: Allowance,
    settings: Allowance,
    pings: Allowance,
    control_frames: Allowance,
    empty_data: Allowance,
    tiny_data: Allowance,
    window_updates: Allowance,
}

/// The header block that is under way, or was last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct HeaderBlock {
    bytes: u32,
    continuations: u32,
}

/// A frame that the gateway has put on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// A part of an answer's body, and whether it is the last.
    Data {
        /// See above.
        is_last: bool,
    },
    /// A head, or trailers, and whether nothing follows.
    Headers {
        /// See above.
        is_last: bool,
    },
    /// A question whether the client is there.
    Ping,
    /// The end of a stream before its time.
    Reset {
        /// The stream.
        stream: u32,
        /// Why.
        code: u32,
    },
}

/// The watch over one connection of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    limits: Http2Limits,
    left: Left,
    block: HeaderBlock,
    /// When allowances last grew.
    ticked: Instant,
    /// The client's last stream.
    newest: u32,
    /// The client's last stream at the last tick, and at the one before: what came after it is new.
    newest_at_tick: [u32; 2],
    /// Streams that were reset because of the client, by their number, made when there is the first.
    broken: Option<Box<[u32; STREAMS_REMEMBERED]>>,
}

impl Watch {
    /// For a connection whose first frame is still to come.
    pub fn new(limits: Http2Limits, now: Instant) -> Self {
        Self {
            left: Left {
                rapid_resets: Allowance(limits.rapid_resets),
                stream_errors: Allowance(limits.stream_errors),
                refused_streams: Allowance(limits.refused_streams),
                settings: Allowance(limits.settings),
                pings: Allowance(limits.pings),
                control_frames: Allowance(limits.control_frames),
                empty_data: Allowance(limits.empty_data),
                tiny_data: Allowance(limits.tiny_data),
                window_updates: Allowance(limits.window_updates),
            },
            limits,
            block: HeaderBlock::default(),
            ticked: now,
            newest: 0,
            newest_at_tick: [0; 2],
            broken: None,
        }
    }

    /// Notes the time, before frames of this moment are shown.
    pub fn at(&mut self, now: Instant) {
        if now.saturating_duration_since(self.ticked) >= TICK {
            self.tick(now);
        }
    }

    fn tick(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.ticked).as_secs();
        self.ticked += Duration::from_secs(seconds);
        // After more than one tick without a look, all that is there is old.
        self.newest_at_tick = match seconds {
            1 => [self.newest, self.newest_at_tick[0]],
            _ => [self.newest; 2],
        };
        let ticks = u32::try_from(seconds).unwrap_or(u32::MAX);
        let (left, limits) = (&mut self.left, &self.limits);
        for (allowance, full) in [
            (&mut left.rapid_resets, limits.rapid_resets),
            (&mut left.stream_errors, limits.stream_errors),
            (&mut left.refused_streams, limits.refused_streams),
            (&mut left.settings, limits.settings),
            (&mut left.pings, limits.pings),
            (&mut left.control_frames, limits.control_frames),
            (&mut left.empty_data, limits.empty_data),
            (&mut left.tiny_data, limits.tiny_data),
            (&mut left.window_updates, limits.window_updates),
        ] {
            allowance.refill(full, ticks);
        }
    }

    /// Sees a frame of the client.
    pub fn read(&mut self, frame: &FrameHeader) -> Result<(), Misbehaviour> {
        let (left, limits) = (&mut self.left, &self.limits);
        match frame.kind {
            // What ends a stream is of use, however small.
            FrameKind::Data if frame.is_end_stream() => Ok(()),
            FrameKind::Data if frame.length == 0 => left.empty_data.take(1, Misbehaviour::EmptyData),
            FrameKind::Data => {
                left.empty_data.earn(1, limits.empty_data);
                if frame.length < TINY_BELOW {
                    return left.tiny_data.take(1, Misbehaviour::TinyData);
                }
                left.tiny_data.earn(1, limits.tiny_data);
                Ok(())
            }
            FrameKind::Headers => {
                self.block = HeaderBlock::default();
                if frame.stream > self.newest {
                    self.newest = frame.stream;
                    self.stream_opened();
                }
                self.block_goes_on(frame.length)
            }
            FrameKind::Continuation => {
                self.block.continuations += 1;
                if self.block.continuations > self.limits.continuations {
                    return Err(Misbehaviour::Continuations);
                }
                self.block_goes_on(frame.length)
            }
            FrameKind::RstStream if frame.stream > self.newest_at_tick[1] => {
                left.rapid_resets.take(1, Misbehaviour::RapidReset)
            }
            FrameKind::Settings => {
                let cost = 1 + frame.length / SETTINGS_BYTES;
                left.settings.take(cost, Misbehaviour::Settings)
            }
            FrameKind::Ping => left.pings.take(1, Misbehaviour::Pings),
            FrameKind::WindowUpdate => left.window_updates.take(1, Misbehaviour::WindowUpdates),
            // A stream that has been open for a while held one of the places for streams: that is its price.
            FrameKind::RstStream
            | FrameKind::Priority
            | FrameKind::PushPromise
            | FrameKind::GoAway
            | FrameKind::Other(_) => left.control_frames.take(1, Misbehaviour::ControlFrames),
        }
    }

    fn stream_opened(&mut self) {
        let (left, limits) = (&mut self.left, &self.limits);
        // Some clients send an empty frame to begin a body, and a body may be tiny.
        left.empty_data.earn(1, limits.empty_data);
        left.tiny_data.earn(1, limits.tiny_data);
        left.control_frames.earn(
            CONTROL_FRAMES_PER_STREAM,
            limits.control_frames.saturating_mul(KEPT),
        );
        left.window_updates.earn(
            WINDOW_UPDATES_PER_STREAM,
            limits.window_updates.saturating_mul(KEPT),
        );
    }

    fn block_goes_on(&mut self, bytes: u32) -> Result<(), Misbehaviour> {
        self.block.bytes = self.block.bytes.saturating_add(bytes);
        if self.block.bytes > self.limits.header_block_bytes {
            return Err(Misbehaviour::HeaderBlock);
        }
        Ok(())
    }

    /// Sees a frame of the gateway.
    pub fn wrote(&mut self, frame: Written) -> Result<(), Misbehaviour> {
        let (left, limits) = (&mut self.left, &self.limits);
        match frame {
            Written::Data { is_last } => {
                left.pings.earn(1, limits.pings);
                let most = limits.window_updates.saturating_mul(KEPT);
                left.window_updates.earn(WINDOW_UPDATES_PER_DATA, most);
                if is_last {
                    self.stream_answered();
                }
            }
            Written::Headers { is_last: true } => self.stream_answered(),
            Written::Headers { .. } => {}
            // The answer to it will come.
            Written::Ping => left.pings.earn(1, limits.pings),
            Written::Reset { stream, code } => return self.reset_written(stream, code),
        }
        Ok(())
    }

    fn stream_answered(&mut self) {
        let (left, limits) = (&mut self.left, &self.limits);
        left.rapid_resets.earn(1, limits.rapid_resets);
        left.stream_errors.earn(1, limits.stream_errors);
    }

    /// The codes with which a server answers what a client does wrong on a stream; others are the server's own affair,
    /// or the upstream's.
    fn reset_written(&mut self, stream: u32, code: u32) -> Result<(), Misbehaviour> {
        match code {
            code::REFUSED_STREAM => self.left.refused_streams.take(1, Misbehaviour::RefusedStreams),
            code::PROTOCOL_ERROR
            | code::FLOW_CONTROL_ERROR
            | code::STREAM_CLOSED
            | code::FRAME_SIZE_ERROR
                if self.is_first_break(stream) =>
            {
                self.left.stream_errors.take(1, Misbehaviour::StreamErrors)
            }
            _ => Ok(()),
        }
    }

    /// Whether a stream was not broken before, as far as that is remembered. An upload that is answered before its end
    /// may have many frames on the way, each of which is answered with STREAM_CLOSED; they count as one.
    fn is_first_break(&mut self, stream: u32) -> bool {
        let broken = self
            .broken
            .get_or_insert_with(|| Box::new([0; STREAMS_REMEMBERED]));
        // Clients' streams have odd numbers (RFC 9113, 5.1.1).
        match broken.get_mut((stream / 2) as usize % STREAMS_REMEMBERED) {
            Some(known) if *known == stream => false,
            Some(known) => {
                *known = stream;
                true
            }
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::written::*;
    use super::*;
    use crate::limits::Settings;
    use crate::random::Random;

    use super::code::{CANCEL, INTERNAL_ERROR, NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, STREAM_CLOSED};

    const PRIORITY_UPDATE: u8 = 16;
    const ACK: u8 = 1;

    /// A connection, as both sides write it.
    struct Connection {
        watch: Watch,
        now: Instant,
        random: Random,
        next: u32,
        found: Option<Misbehaviour>,
        frames: u32,
    }

    impl Connection {
        fn new(seed: u64) -> Self {
            let now = Instant::now();
            let mut connection = Self {
                watch: Watch::new(Settings::default().http2_limits(), now),
                now,
                random: Random::from_seed(seed),
                next: 1,
                found: None,
                frames: 0,
            };
            connection.client(SETTINGS, 0, 0, 18);
            connection.client(SETTINGS, ACK, 0, 0);
            connection.client(WINDOW_UPDATE, 0, 0, 4);
            connection
        }

        /// A frame of the client.
        fn client(&mut self, kind: u8, flags: u8, stream: u32, length: u32) {
            self.frames += 1;
            self.watch.at(self.now);
            let [s1, s2, s3, s4] = stream.to_be_bytes();
            let mut header = FrameHeader::read([0, 0, 0, kind, flags, s1, s2, s3, s4]);
            header.length = length;
            self.found = self.found.or(self.watch.read(&header).err());
        }

        /// A frame of the server.
        fn server(&mut self, frame: Written) {
            self.watch.at(self.now);
            self.found = self.found.or(self.watch.wrote(frame).err());
        }

        fn resets(&mut self, stream: u32, code: u32) {
            self.server(Written::Reset { stream, code });
        }

        fn opens(&mut self, flags: u8) -> u32 {
            let stream = self.next;
            self.next += 2;
            self.client(HEADERS, END_HEADERS | flags, stream, 60);
            stream
        }

        fn cancels(&mut self, stream: u32) {
            self.client(RST_STREAM, 0, stream, 4);
        }

        fn answers(&mut self) {
            self.server(Written::Headers { is_last: false });
            self.server(Written::Data { is_last: true });
        }

        fn waits(&mut self, ms: u64) {
            self.now += Duration::from_millis(ms);
        }

        fn below(&mut self, bound: u64) -> u64 {
            self.random.below(bound)
        }

        fn one_in(&mut self, many: u64) -> bool {
            self.below(many) == 0
        }
    }

    /// Plays the same with many seeds: nobody may be found to misbehave.
    fn is_well_behaved(seeds: u64, play: impl Fn(&mut Connection)) {
        for seed in 0..seeds {
            let mut connection = Connection::new(seed);
            play(&mut connection);
            assert_eq!(connection.found, None, "seed {seed}, frame {}", connection.frames);
        }
    }

    #[test]
    fn browsers_that_leave_pages_with_a_hundred_images_are_well_behaved() {
        is_well_behaved(1000, |browser| {
            for _ in 0..20 {
                let images: Vec<u32> = (0..100).map(|_| browser.opens(END_STREAM)).collect();
                let leaves = browser.one_in(2);
                for image in images {
                    // As it comes into view.
                    if browser.one_in(2) {
                        browser.client(PRIORITY_UPDATE, 0, 0, 12);
                    }
                    if leaves && !browser.one_in(4) {
                        browser.cancels(image);
                    } else {
                        browser.answers();
                        browser.client(WINDOW_UPDATE, 0, 0, 4);
                    }
                }
                let wait = 500 + browser.below(10_000);
                browser.waits(wait);
            }
        });
    }

    #[test]
    fn grpc_clients_with_pings_and_thousands_of_calls_are_well_behaved() {
        is_well_behaved(400, |client| {
            let mut pinged = client.now;
            for _ in 0..3000 {
                let call = client.opens(0);
                let length = 5 + client.below(45) as u32;
                client.client(DATA, END_STREAM, call, length);
                if client.one_in(20) {
                    // Its deadline is over.
                    client.cancels(call);
                    continue;
                }
                client.server(Written::Headers { is_last: false });
                client.server(Written::Data { is_last: false });
                client.server(Written::Headers { is_last: true });
                // With each data, some measure the network.
                client.client(PING, 0, 0, 8);
                client.client(WINDOW_UPDATE, 0, 0, 4);
                if client.now - pinged >= Duration::from_secs(10) {
                    client.client(PING, 0, 0, 8);
                    pinged = client.now;
                }
                if client.one_in(10) {
                    let wait = client.below(200);
                    client.waits(wait);
                }
            }
        });
    }

    #[test]
    fn downloads_are_well_behaved_however_slow_and_in_whatever_steps() {
        is_well_behaved(1000, |client| {
            let stream = client.opens(END_STREAM);
            client.server(Written::Headers { is_last: false });
            client.client(WINDOW_UPDATE, 0, stream, 4);
            let window = 1 + client.below(128);
            let steps = 1 + client.below(10);
            let pause = client.below(1000);
            for _ in 0..20 {
                // A whole window is sent at once, and taken later in small steps.
                (0..window).for_each(|_| client.server(Written::Data { is_last: false }));
                client.waits(pause);
                for _ in 0..window * steps {
                    client.client(WINDOW_UPDATE, 0, 0, 4);
                    client.client(WINDOW_UPDATE, 0, stream, 4);
                }
            }
        });
    }

    #[test]
    fn streams_of_small_messages_are_well_behaved() {
        is_well_behaved(1000, |client| {
            let streams: Vec<u32> = (0..10).map(|_| client.opens(0)).collect();
            for _ in 0..3000 {
                let stream = streams[client.below(10) as usize];
                match client.below(6) {
                    0 => {
                        client.server(Written::Data { is_last: false });
                        client.client(WINDOW_UPDATE, 0, 0, 4);
                        client.client(WINDOW_UPDATE, 0, stream, 4);
                    }
                    // The head of a message and a tiny message, each for itself.
                    1 => {
                        client.client(DATA, 0, stream, 5);
                        client.client(DATA, 0, stream, 1);
                    }
                    // A flush.
                    2 => {
                        client.client(DATA, 0, stream, 5);
                        client.client(DATA, 0, stream, 0);
                    }
                    _ => {
                        let length = 5 + client.below(45) as u32;
                        client.client(DATA, 0, stream, length);
                    }
                }
            }
        });
    }

    #[test]
    fn keystrokes_are_well_behaved() {
        is_well_behaved(100, |client| {
            let stream = client.opens(0);
            for _ in 0..5000 {
                client.client(DATA, 0, stream, 1);
                let wait = 5 + client.below(20);
                client.waits(wait);
            }
        });
    }

    #[test]
    fn trees_of_priorities_are_well_behaved() {
        is_well_behaved(1000, |client| {
            for anchor in [3, 5, 7, 9, 11] {
                client.client(PRIORITY, 0, anchor, 5);
            }
            client.next = 13;
            for _ in 0..10 {
                let streams: Vec<u32> = (0..100).map(|_| client.opens(END_STREAM)).collect();
                for stream in streams {
                    for _ in 0..client.below(6) {
                        client.client(PRIORITY, 0, stream, 5);
                    }
                    client.answers();
                }
            }
        });
    }

    #[test]
    fn uploads_that_are_answered_before_their_end_are_well_behaved() {
        is_well_behaved(300, |client| {
            for _ in 0..5 {
                let uploads: Vec<u32> = (0..100).map(|_| client.opens(0)).collect();
                for &upload in &uploads {
                    client.server(Written::Headers { is_last: true });
                    client.resets(upload, NO_ERROR);
                }
                for _ in 0..64 {
                    // What was on the way, mixed.
                    let upload = uploads[client.below(100) as usize];
                    for _ in 0..4 {
                        client.client(DATA, 0, upload, 100);
                        client.resets(upload, STREAM_CLOSED);
                    }
                }
            }
        });
    }

    #[test]
    fn clients_are_not_blamed_for_resets_that_are_not_theirs() {
        is_well_behaved(10, |client| {
            for code in [INTERNAL_ERROR, CANCEL, NO_ERROR] {
                for _ in 0..5000 {
                    let stream = client.opens(END_STREAM);
                    client.resets(stream, code);
                }
            }
        });
    }

    #[test]
    fn streams_that_were_open_for_a_while_may_all_be_cancelled_at_once() {
        is_well_behaved(10, |client| {
            for _ in 0..5 {
                let streams: Vec<u32> = (0..1000).map(|_| client.opens(0)).collect();
                client.waits(2000);
                streams.into_iter().for_each(|stream| client.cancels(stream));
            }
        });
    }

    type Attack = fn(&mut Connection);

    #[test]
    fn each_attack_is_found_within_a_bounded_number_of_frames() {
        let attacks: &[(Misbehaviour, u32, Attack)] = &[
            (Misbehaviour::RapidReset, 1010, |client| {
                let stream = client.opens(END_STREAM);
                client.cancels(stream);
            }),
            // Every third is left to be answered.
            (Misbehaviour::RapidReset, 5000, |client| {
                for _ in 0..2 {
                    let stream = client.opens(END_STREAM);
                    client.cancels(stream);
                }
                client.opens(END_STREAM);
                client.answers();
            }),
            (Misbehaviour::StreamErrors, 250, |client| {
                let stream = client.opens(END_STREAM);
                client.client(WINDOW_UPDATE, 0, stream, 4);
                client.resets(stream, PROTOCOL_ERROR);
            }),
            (Misbehaviour::StreamErrors, 250, |client| {
                let stream = client.opens(0);
                client.client(DATA, 0, stream, 10);
                client.resets(stream, STREAM_CLOSED);
            }),
            (Misbehaviour::RefusedStreams, 1010, |client| {
                let stream = client.opens(END_STREAM);
                client.resets(stream, REFUSED_STREAM);
            }),
            (Misbehaviour::Continuations, 110, |client| {
                if client.next == 1 {
                    client.next = 3;
                    client.client(HEADERS, 0, 1, 10);
                }
                client.client(CONTINUATION, 0, 1, 0);
            }),
            (Misbehaviour::Settings, 110, |client| {
                client.client(SETTINGS, 0, 0, 6)
            }),
            (Misbehaviour::Settings, 10, |client| {
                client.client(SETTINGS, 0, 0, 16_380);
            }),
            (Misbehaviour::Settings, 110, |client| {
                client.client(SETTINGS, ACK, 0, 0);
            }),
            (Misbehaviour::Pings, 210, |client| client.client(PING, 0, 0, 8)),
            (Misbehaviour::Pings, 210, |client| client.client(PING, ACK, 0, 8)),
            (Misbehaviour::ControlFrames, 1010, |client| {
                client.client(PRIORITY, 0, 1, 5)
            }),
            (Misbehaviour::ControlFrames, 1010, |client| {
                client.client(0xfa, 0, 0, 0)
            }),
            // The same stream, over and over.
            (Misbehaviour::ControlFrames, 1020, |client| {
                if client.next == 1 {
                    client.opens(END_STREAM);
                    client.waits(5000);
                }
                client.cancels(1);
            }),
            (Misbehaviour::EmptyData, 110, |client| {
                client.client(DATA, 0, 1, 0)
            }),
            (Misbehaviour::TinyData, 2010, |client| {
                client.client(DATA, 0, 1, 1)
            }),
            (Misbehaviour::TinyData, 4010, |client| {
                client.client(DATA, 0, 1, 1);
                client.client(DATA, 0, 1, 0);
            }),
            (Misbehaviour::WindowUpdates, 1010, |client| {
                client.client(WINDOW_UPDATE, 0, 0, 4)
            }),
        ];
        for (at, (misbehaviour, bound, attack)) in attacks.iter().enumerate() {
            let mut client = Connection::new(at as u64);
            while client.found.is_none() && client.frames <= *bound {
                attack(&mut client);
            }
            assert_eq!(
                client.found,
                Some(*misbehaviour),
                "attack {at}, {} frames",
                client.frames
            );
        }
    }

    #[test]
    fn time_gives_back_what_was_used_and_no_more_than_there_was() {
        let mut client = Connection::new(1);
        for _ in 0..100 {
            // Twenty a second for ever.
            (0..20).for_each(|_| client.client(PING, 0, 0, 8));
            client.waits(1000);
        }
        assert_eq!(client.found, None);
        client.waits(3_600_000);
        for _ in 0..200 {
            client.client(PING, 0, 0, 8);
        }
        assert_eq!(client.found, None);
        client.client(PING, 0, 0, 8);
        assert_eq!(client.found, Some(Misbehaviour::Pings));
    }

    #[test]
    fn a_header_block_is_bounded_however_many_parts_it_may_have() {
        let settings = Settings {
            http2_continuations: 0,
            ..Settings::default()
        };
        let mut client = Connection::new(1);
        client.watch = Watch::new(settings.http2_limits(), client.now);
        client.client(HEADERS, 0, 1, 16_000);
        for _ in 0..5 {
            client.client(CONTINUATION, 0, 1, 16_000);
            assert_eq!(client.found, None);
        }
        client.client(CONTINUATION, 0, 1, 16_000);
        assert_eq!(client.found, Some(Misbehaviour::HeaderBlock));
    }

    #[test]
    fn what_has_no_limit_is_never_found() {
        let settings = Settings {
            http2_rapid_resets: 0,
            http2_continuations: 0,
            http2_header_block_bytes: 0,
            http2_window_updates: 0,
            ..Settings::default()
        };
        let mut client = Connection::new(1);
        client.watch = Watch::new(settings.http2_limits(), client.now);
        for _ in 0..20_000 {
            let stream = client.opens(0);
            client.cancels(stream);
            client.client(CONTINUATION, END_HEADERS, stream, 1000);
            client.client(WINDOW_UPDATE, 0, stream, 4);
        }
        client.waits(1_000_000);
        client.client(WINDOW_UPDATE, 0, 1, 4);
        assert_eq!(client.found, None);
    }

    #[test]
    fn causes_have_names_of_their_own() {
        let all = [
            Misbehaviour::RapidReset,
            Misbehaviour::StreamErrors,
            Misbehaviour::RefusedStreams,
            Misbehaviour::Continuations,
            Misbehaviour::HeaderBlock,
            Misbehaviour::Settings,
            Misbehaviour::Pings,
            Misbehaviour::ControlFrames,
            Misbehaviour::EmptyData,
            Misbehaviour::TinyData,
            Misbehaviour::WindowUpdates,
            Misbehaviour::NoSettings,
            Misbehaviour::FrameSize,
            Misbehaviour::WindowSize,
            Misbehaviour::StreamClosed,
            Misbehaviour::Compression,
            Misbehaviour::Protocol,
        ];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert_ne!(one.label(), other.label());
                assert_ne!(one.detail(), other.detail());
            }
        }
    }
}
