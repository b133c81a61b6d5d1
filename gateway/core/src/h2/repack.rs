//! Frames in the form that the library which speaks HTTP/2 takes, whatever legal form they come in.
//!
//! The library gives a connection up over more CONTINUATION frames in a header block than hold the largest one when they
//! are full, and over more than a hundred DATA frames in its whole life that have nothing in them and end nothing. Both
//! are legal, and what is too much of them is for the watch to say. So the bytes of one direction pass through here on
//! their way to the library: the fragments of small CONTINUATION frames come out as few full ones, and DATA frames that
//! say nothing do not come out. Everything else passes as it is, where it is: the usual piece is only looked through.
//!
//! What is held back is less than a frame: the beginning of a header, or fragments that fill no frame yet.

use super::frame::{FrameHeader, FrameKind, HEADER_BYTES, PREFACE_BYTES};
use super::rules::FRAME_SIZE_MAX;

/// The flag of DATA that has padding (RFC 9113, 6.1).
const PADDED: u8 = 0x8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
/// Bytes of a full frame, which every endpoint takes (RFC 9113, 4.2).
const FULL: usize = FRAME_SIZE_MAX as usize;

/// One direction of a connection, on its way to the library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repack {
    /// The beginning of a header that came in pieces.
    start: [u8; HEADER_BYTES],
    filled: usize,
    /// Bytes of the present frame's payload, or of the preface, that are to come.
    left: usize,
    /// Whether these are held back.
    is_held: bool,
    /// The stream whose header block is under way; 0 for none.
    block: u32,
    /// Whether the present frame ends it.
    ends_block: bool,
    /// What was held back of the block.
    held: Vec<u8>,
    /// Whether a frame has begun.
    has_begun: bool,
    /// Whether the first frame is whole.
    has_first: bool,
}

impl Repack {
    /// For what a client sends: the preface, then frames.
    pub const fn of_client() -> Self {
        let mut client = Self::of_server();
        client.left = PREFACE_BYTES;
        client
    }

    /// For what a server sends: frames.
    pub const fn of_server() -> Self {
        Self {
            start: [0; HEADER_BYTES],
            filled: 0,
            left: 0,
            is_held: false,
            block: 0,
            ends_block: false,
            held: Vec::new(),
            has_begun: false,
            has_first: false,
        }
    }

    /// Whether all of the first frame has come, which is the one with the settings (RFC 9113, 3.4).
    pub const fn has_first(&self) -> bool {
        self.has_first
    }

    /// Bytes that are held back.
    pub fn held_bytes(&self) -> usize {
        self.filled + self.held.len()
    }

    /// The beginning of a header that is held back: what is read next goes behind it.
    pub fn begun(&self) -> &[u8] {
        self.start.get(..self.filled).unwrap_or_default()
    }

    /// Goes through a piece, which begins with [`Self::begun`]. So many of its first bytes pass as they are, as is
    /// answered; what follows them is appended to `rest`, as far as it passes. `is_void` tells of each
    /// DATA frame on a stream that has nothing in it and ends nothing whether the library may not be shown it.
    pub fn pass(&mut self, bytes: &[u8], mut is_void: impl FnMut(u32) -> bool, rest: &mut Vec<u8>) -> usize {
        let mut out = Out {
            bytes,
            passed: 0,
            is_straight: true,
            rest,
        };
        self.filled = 0;
        let mut at = 0;
        loop {
            at += self.payload(bytes.get(at..).unwrap_or_default(), &mut out);
            let there = bytes.get(at..).unwrap_or_default();
            let Some(header) = there.first_chunk::<HEADER_BYTES>() else {
                if let Some(start) = self.start.get_mut(..there.len()) {
                    start.copy_from_slice(there);
                    self.filled = there.len();
                }
                return out.passed;
            };
            at += HEADER_BYTES;
            let frame = FrameHeader::read(*header, 0);
            self.left = frame.length as usize;
            self.has_begun = true;
            self.has_first |= self.left == 0;
            self.is_held = self.holds(&frame);
            if self.is_held {
                self.ends_block = frame.is_end_headers();
                out.leave_out();
            } else if is_empty(&frame) && is_void(frame.stream) && self.block == 0 {
                out.leave_out();
            } else {
                // A frame that is not held ends what is: it is the next full one, or a mistake, which the library names.
                self.release(false, &mut out);
                self.track(&frame);
                out.pass(header);
            }
            if self.is_held && self.left == 0 {
                self.frame_held(&mut out);
            }
        }
    }

    /// Takes what belongs to the present frame; answers how much that is.
    fn payload(&mut self, bytes: &[u8], out: &mut Out<'_>) -> usize {
        let taken = self.left.min(bytes.len());
        if taken == 0 {
            return 0;
        }
        let part = bytes.get(..taken).unwrap_or_default();
        self.left -= taken;
        self.has_first |= self.has_begun && self.left == 0;
        if !self.is_held {
            out.pass(part);
            return taken;
        }
        self.held.extend_from_slice(part);
        if self.left == 0 {
            self.frame_held(out);
        } else if self.held.len() > FULL {
            self.release_full(out);
        }
        taken
    }

    /// Whether a frame goes on with the block that is under way and is to be joined with others.
    fn holds(&self, frame: &FrameHeader) -> bool {
        let goes_on = frame.kind == FrameKind::Continuation && frame.stream == self.block && self.block != 0;
        // One that is full, or the last, and has none before it to be joined with, is good as it is.
        let is_good = self.held.is_empty() && (frame.is_end_headers() || self.left == FULL);
        goes_on && !is_good && self.left <= FULL
    }

    /// Knows the block that begins or ends with a frame that passes.
    fn track(&mut self, frame: &FrameHeader) {
        match frame.kind {
            // A server's promise has a block as well.
            FrameKind::Headers | FrameKind::PushPromise if !frame.is_end_headers() => {
                self.block = frame.stream
            }
            FrameKind::Continuation if !frame.is_end_headers() => {}
            _ => self.block = 0,
        }
    }

    /// Sees the end of a frame that is held back.
    fn frame_held(&mut self, out: &mut Out<'_>) {
        self.is_held = false;
        if self.ends_block {
            self.release(true, out);
            self.block = 0;
        } else if self.held.len() >= FULL {
            self.release_full(out);
        }
    }

    /// Lets go of all that is held.
    fn release(&mut self, ends_block: bool, out: &mut Out<'_>) {
        if self.held.len() > FULL {
            self.release_full(out);
        }
        if ends_block || !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            out.put(self.block, ends_block, &held);
        }
    }

    /// Lets go of as much as fills a frame.
    fn release_full(&mut self, out: &mut Out<'_>) {
        if let Some(full) = self.held.get(..FULL) {
            out.put(self.block, false, full);
            self.held.drain(..FULL);
        }
    }
}

/// Whether a DATA frame of a stream has nothing in it and ends nothing.
pub(super) fn is_empty(frame: &FrameHeader) -> bool {
    let is_plain = frame.length == 0 && frame.flags & PADDED == 0 && !frame.is_end_stream();
    frame.kind == FrameKind::Data && is_plain && frame.stream != 0
}

/// Where what passes goes: nowhere as long as it stays what it is.
struct Out<'a> {
    bytes: &'a [u8],
    passed: usize,
    is_straight: bool,
    rest: &'a mut Vec<u8>,
}

impl Out<'_> {
    /// Lets the next bytes of the piece pass.
    fn pass(&mut self, part: &[u8]) {
        if self.is_straight {
            self.passed = (self.passed + part.len()).min(self.bytes.len());
        } else {
            self.rest.extend_from_slice(part);
        }
    }

    /// Passes over some.
    fn leave_out(&mut self) {
        self.is_straight = false;
    }

    /// Puts a frame of a header block in.
    fn put(&mut self, stream: u32, ends_block: bool, fragment: &[u8]) {
        self.is_straight = false;
        let [_, length @ ..] = (fragment.len() as u32).to_be_bytes();
        let flags = if ends_block { END_HEADERS } else { 0 };
        self.rest.extend_from_slice(&length);
        self.rest.extend_from_slice(&[CONTINUATION, flags]);
        self.rest.extend_from_slice(&stream.to_be_bytes());
        self.rest.extend_from_slice(fragment);
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::written::{PREFACE, frame};
    use super::*;
    use crate::random::Random;

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const PING: u8 = 6;
    const END_STREAM: u8 = 1;

    fn with(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = frame(kind, flags, stream, payload.len());
        let at = bytes.len() - payload.len();
        bytes[at..].copy_from_slice(payload);
        bytes
    }

    /// What comes out when bytes come in pieces of such sizes.
    fn repacked(repack: &mut Repack, bytes: &[u8], mut size: impl FnMut() -> usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut left = bytes;
        while !left.is_empty() {
            let (piece, after) = left.split_at(size().clamp(1, left.len()));
            left = after;
            let piece = [repack.begun(), piece].concat();
            let mut rest = Vec::new();
            let passed = repack.pass(&piece, |stream| stream != 99, &mut rest);
            out.extend_from_slice(&piece[..passed]);
            out.extend(rest);
            assert!(repack.held_bytes() < FULL + HEADER_BYTES);
        }
        out
    }

    fn whole(frames: &[Vec<u8>]) -> Vec<u8> {
        repacked(&mut Repack::of_server(), &frames.concat(), || usize::MAX)
    }

    #[test]
    fn usual_frames_stay_where_they_are() {
        let bytes = [
            PREFACE.to_vec(),
            frame(4, 0, 0, 18),
            with(HEADERS, END_HEADERS, 1, &[7; 300]),
            frame(DATA, 0, 1, 5),
            frame(DATA, END_STREAM, 1, 0),
            with(HEADERS, 0, 3, &[7; FULL]),
            with(CONTINUATION, 0, 3, &[7; FULL]),
            with(CONTINUATION, END_HEADERS, 3, &[7; 3]),
        ]
        .concat();
        let mut repack = Repack::of_client();
        let mut rest = Vec::new();
        assert_eq!(repack.pass(&bytes, |_| true, &mut rest), bytes.len());
        assert!(rest.is_empty());
        assert_eq!(repack.held.capacity(), 0, "nothing was copied");
        assert_eq!(
            repacked(&mut Repack::of_client(), &bytes, || 1),
            bytes,
            "nor changed, octet by octet"
        );
    }

    #[test]
    fn fragments_are_joined_into_full_frames() {
        let octets = |count: usize| (0..count).map(|at| with(CONTINUATION, 0, 5, &[at as u8]));
        let mut frames = vec![with(HEADERS, END_STREAM, 5, b"a")];
        frames.extend(octets(20));
        frames.push(frame(CONTINUATION, 0, 5, 0));
        frames.push(with(CONTINUATION, END_HEADERS, 5, b"z"));
        frames.push(frame(PING, 0, 0, 8));
        let joined: Vec<u8> = (0..20).chain([b'z']).collect();
        let expected = [
            with(HEADERS, END_STREAM, 5, b"a"),
            with(CONTINUATION, END_HEADERS, 5, &joined),
            frame(PING, 0, 0, 8),
        ];
        assert_eq!(whole(&frames), expected.concat());

        // More than one full frame, and an end without a fragment.
        let mut frames = vec![with(HEADERS, 0, 5, &[])];
        frames.extend((0..5).map(|at| with(CONTINUATION, 0, 5, &[at; 9000])));
        frames.push(frame(CONTINUATION, END_HEADERS, 5, 0));
        let block: Vec<u8> = (0..5).flat_map(|at| [at; 9000]).collect();
        let expected = [
            with(HEADERS, 0, 5, &[]),
            with(CONTINUATION, 0, 5, &block[..FULL]),
            with(CONTINUATION, 0, 5, &block[FULL..2 * FULL]),
            with(CONTINUATION, END_HEADERS, 5, &block[2 * FULL..]),
        ];
        assert_eq!(whole(&frames), expected.concat());
    }

    #[test]
    fn data_that_says_nothing_is_left_out() {
        let nothing = frame(DATA, 0, 1, 0);
        let kept = [
            frame(DATA, END_STREAM, 1, 0),
            // They use up a window, or are wrong.
            with(DATA, PADDED, 1, &[0]),
            frame(DATA, PADDED, 1, 0),
            frame(DATA, 0, 0, 0),
            frame(DATA, 0, 99, 0),
            frame(DATA, 0, 1, 1),
        ];
        let mut frames = Vec::new();
        for frame in &kept {
            frames.extend([nothing.clone(), frame.clone(), nothing.clone()]);
        }
        assert_eq!(whole(&frames), kept.concat());
    }

    #[test]
    fn mistakes_reach_the_library_behind_what_came_before_them() {
        let begun = [with(HEADERS, 0, 1, b"a"), with(CONTINUATION, 0, 1, b"b")];
        for mistake in [
            frame(PING, 0, 0, 8),
            with(CONTINUATION, END_HEADERS, 3, b"c"),
            with(CONTINUATION, 0, 1, &[0; FULL + 1]),
            with(HEADERS, END_HEADERS, 1, b"c"),
        ] {
            let frames = [begun.to_vec(), vec![mistake]].concat();
            assert_eq!(whole(&frames), frames.concat());
        }
        // One that goes on with nothing.
        let stray = [with(CONTINUATION, 0, 1, b"a"), with(CONTINUATION, 0, 1, b"b")];
        assert_eq!(whole(&stray), stray.concat());
    }

    #[test]
    fn the_first_frame_is_known_when_it_is_whole() {
        let settings = frame(4, 0, 0, 12);
        let mut repack = Repack::of_client();
        repacked(&mut repack, &[PREFACE.as_slice(), &settings[..20]].concat(), || 7);
        assert!(!repack.has_first());
        repacked(&mut repack, &settings[20..], || 7);
        assert!(repack.has_first());
        let mut repack = Repack::of_server();
        repacked(&mut repack, &frame(4, 0, 0, 0), || 2);
        assert!(repack.has_first(), "an empty one");
    }

    /// The header blocks and the other frames of some bytes.
    fn meaning(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let mut found: Vec<(u8, u8, u32, Vec<u8>)> = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
            let frame = FrameHeader::read(*header, 0);
            let (payload, rest) = rest.split_at((frame.length as usize).min(rest.len()));
            bytes = rest;
            match found.last_mut() {
                Some(last) if frame.kind == FrameKind::Continuation && last.2 == frame.stream => {
                    last.1 |= frame.flags;
                    last.3.extend_from_slice(payload);
                }
                _ if is_empty(&frame) && frame.stream != 99 => {}
                _ => found.push((header[3], frame.flags, frame.stream, payload.to_vec())),
            }
        }
        found
    }

    #[test]
    fn however_bytes_are_cut_they_mean_the_same() {
        for seed in 0..2000 {
            let mut random = Random::from_seed(seed);
            let mut bytes = Vec::new();
            for _ in 0..random.below(10) {
                let stream = 1 + 2 * random.below(3) as u32;
                match random.below(4) {
                    0 => {
                        bytes.extend(frame(DATA, 0, stream, random.below(2) as usize));
                    }
                    1 => {
                        let flags = [0, END_STREAM, PADDED][random.below(3) as usize];
                        let stream = [0, 99, stream][random.below(3) as usize];
                        bytes.extend(frame(DATA, flags, stream, 0));
                    }
                    2 => bytes.extend(with(PING, 0, 0, &[7; 8])),
                    _ => {
                        bytes.extend(with(HEADERS, 0, stream, &[1; 3]));
                        for number in 0..random.below(12) {
                            let most = [3, 300, FULL as u64 + 1][random.below(3) as usize];
                            let fragment = vec![number as u8; random.below(most) as usize];
                            bytes.extend(with(CONTINUATION, 0, stream, &fragment));
                        }
                        bytes.extend(frame(CONTINUATION, END_HEADERS, stream, random.below(2) as usize));
                    }
                }
            }
            let most = [2, 20, 3000][random.below(3) as usize];
            let out = repacked(&mut Repack::of_server(), &bytes, || {
                1 + random.below(most) as usize
            });
            assert_eq!(meaning(&out), meaning(&bytes), "seed {seed}");
            let all_at_once = repacked(&mut Repack::of_server(), &bytes, || usize::MAX);
            assert_eq!(meaning(&all_at_once), meaning(&bytes), "seed {seed}");
            assert!(out.len() <= bytes.len());
        }
    }
}
