//! The header blocks that a client has sent last, kept so that they can be judged.
//!
//! Headers of frames come in, and what follows them, as [`FrameTap`](super::FrameTap) finds them; the fragments of header
//! blocks are copied, without padding and priorities, and dropped when the next bytes are read: by then the library has
//! decompressed them. Out comes, for trailers, whether they have what trailers may not have, and, when the library gives
//! the connection up, whether a block was the cause that does not decompress.

use super::fields::{Form, Scan};
use super::frame::{FrameHeader, FrameKind};
use super::watch::Misbehaviour;

/// Flags of HEADERS (RFC 9113, 6.2).
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Octets of the priority that one flag announces.
const PRIORITY_OCTETS: u8 = 5;
/// Bytes that are kept: what there is at most in a piece that is read, and in one block by default. Blocks beyond it
/// are not judged.
pub const KEPT_MAX: usize = 160 * 1024;
/// Room that is kept for the blocks to come: a usual request has less than a kilobyte.
const ROOM: usize = 2 * 1024;
/// As many blocks.
const ROOM_BLOCKS: usize = 32;

/// What a block belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The beginning of a stream.
    Request,
    /// The end of one.
    Trailers,
    /// A stream that is closed, or that clients cannot have.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    stream: u32,
    purpose: Purpose,
    /// Where it begins and ends among the bytes that are kept.
    start: usize,
    end: usize,
    is_ended: bool,
    /// Whether its frames are wrong in themselves, or it is too long to be kept.
    is_unknown: bool,
    /// Whether the library may have given up because of a frame before it.
    is_behind_another: bool,
}

/// The header blocks of the piece that was read last, and one that began before and goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Blocks {
    bytes: Vec<u8>,
    blocks: Vec<Block>,
    /// Whether there was a frame in the piece for which the library may give up.
    has_another: bool,
    /// Bytes of the present frame's payload that are to come.
    left: u32,
    /// Those of them that stand before its fragment.
    lead: u8,
    /// Whether the next of these is the length of the padding.
    is_padded: bool,
    padding: u8,
    ends_block: bool,
}

impl Blocks {
    /// Forgets what the library has decompressed: all blocks that have ended.
    pub(super) fn next_piece(&mut self) {
        self.has_another = false;
        match self.blocks.last().copied() {
            None => {}
            Some(last) if last.is_ended => {
                self.blocks.clear();
                self.bytes.clear();
                if self.bytes.capacity() > ROOM || self.blocks.capacity() > ROOM_BLOCKS {
                    (self.bytes, self.blocks) = Default::default();
                }
            }
            Some(last) => {
                self.bytes.drain(..last.start);
                self.blocks.clear();
                self.blocks.push(Block {
                    start: 0,
                    end: last.end - last.start,
                    is_behind_another: false,
                    ..last
                });
            }
        }
    }

    /// Sees the header of a HEADERS frame, or of one that goes on with it.
    pub(super) fn begin(&mut self, frame: &FrameHeader, purpose: Purpose) {
        let at = self.bytes.len();
        if frame.kind == FrameKind::Headers {
            self.blocks.push(Block {
                stream: frame.stream,
                purpose,
                start: at,
                end: at,
                is_ended: false,
                is_unknown: false,
                is_behind_another: self.has_another,
            });
            self.is_padded = frame.flags & PADDED != 0;
            self.lead = u8::from(self.is_padded);
            if frame.flags & PRIORITY != 0 {
                self.lead += PRIORITY_OCTETS;
            }
        } else {
            match self.blocks.last_mut() {
                Some(block) if !block.is_ended && block.stream == frame.stream => {}
                // Nothing goes on there: the library says so.
                Some(block) => block.is_unknown = true,
                None => {}
            }
            self.lead = 0;
            self.is_padded = false;
        }
        self.padding = 0;
        self.left = frame.length;
        self.ends_block = frame.is_end_headers();
        if frame.length < u32::from(self.lead) {
            self.give_up();
        }
    }

    /// Sees a frame that is of no header block. `is_usual` says that the library never gives up because of it.
    pub(super) fn pass(&mut self, is_usual: bool) {
        self.has_another |= !is_usual;
    }

    /// Takes what belongs to the present frame from the bytes behind its header, and answers whether a block has ended.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> bool {
        let there = bytes.len().min(self.left as usize);
        bytes = bytes.get(..there).unwrap_or_default();
        while self.lead > 0
            && let Some((octet, rest)) = bytes.split_first()
        {
            bytes = rest;
            self.lead -= 1;
            self.left -= 1;
            if std::mem::take(&mut self.is_padded) {
                self.padding = *octet;
            }
            if self.lead == 0 && self.left < u32::from(self.padding) {
                // RFC 9113, 6.2: more padding than there is room for.
                self.give_up();
            }
        }
        if self.lead == 0 {
            let fragment = self.left.saturating_sub(u32::from(self.padding)) as usize;
            self.keep(bytes.get(..fragment).unwrap_or(bytes));
        }
        self.left -= bytes.len() as u32;
        if self.left > 0 || !self.ends_block {
            return false;
        }
        self.ends_block = false;
        match self.blocks.last_mut() {
            Some(block) => !std::mem::replace(&mut block.is_ended, true),
            None => false,
        }
    }

    pub(super) fn kept_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn keep(&mut self, fragment: &[u8]) {
        let Some(block) = self.blocks.last_mut() else {
            return;
        };
        if self.bytes.len() + fragment.len() > KEPT_MAX {
            block.is_unknown = true;
        }
        if block.is_unknown || block.is_ended {
            return;
        }
        self.bytes.extend_from_slice(fragment);
        block.end = self.bytes.len();
    }

    fn give_up(&mut self) {
        if let Some(block) = self.blocks.last_mut() {
            block.is_unknown = true;
        }
    }

    fn of(&self, block: &Block) -> &[u8] {
        self.bytes.get(block.start..block.end).unwrap_or_default()
    }

    /// Judges the block that has just ended, if it is that of trailers.
    pub(super) fn judge_trailers(&self) -> Result<(), Misbehaviour> {
        let Some(block) = self.blocks.last() else {
            return Ok(());
        };
        if block.purpose != Purpose::Trailers || block.is_unknown {
            return Ok(());
        }
        let scan = Scan::shallow(self.of(block));
        match scan.form {
            // RFC 9113, 8.1.
            Form::Whole if scan.has_pseudo => Err(Misbehaviour::Protocol),
            Form::Whole => Ok(()),
            Form::Cut | Form::Broken => Err(Misbehaviour::Compression),
        }
    }

    /// Whether the library has given up because of a block that does not decompress (RFC 9113, 4.3). `processed` is the
    /// last stream that it says it has looked at.
    pub(super) fn is_undone(&self, processed: u32) -> bool {
        // The library has gone through them in this order, and was stopped by the first that is wrong.
        for block in &self.blocks {
            if block.is_unknown {
                return false;
            }
            let scan = Scan::of(self.of(block));
            if scan.is_malformed {
                // PROTOCOL_ERROR is right.
                return false;
            }
            match scan.form {
                Form::Broken => return true,
                Form::Cut if block.is_ended => return true,
                Form::Cut | Form::Whole => {}
            }
            // All that can be wrong besides is an index of what the dynamic table does not have; it is to blame if
            // nothing else can be.
            let may_be = scan.is_dynamic && !block.is_behind_another;
            let is_last = match block.purpose {
                Purpose::Request => block.stream > processed,
                Purpose::Trailers => !self.has_another,
                Purpose::Nothing => false,
            };
            if may_be && is_last {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::written::{PREFACE, frame};
    use super::super::watch::Watch;
    use super::*;
    use crate::limits::Settings;
    use crate::random::Random;
    use std::time::Instant;

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;
    const CONTINUATION: u8 = 9;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    const WHOLE: u8 = END_STREAM | END_HEADERS;

    /// GET / of http, without an authority.
    const GET: &[u8] = &[0x82, 0x86, 0x84];
    /// An index of an empty dynamic table.
    const BEYOND: &[u8] = &[0x82, 0x86, 0x84, 0xbe];
    const BROKEN: &[u8] = &[0x82, 0x86, 0x84, 0x80];
    /// A name in upper case.
    const UPPER: &[u8] = &[0x82, 0, 1, b'A', 1, b'1'];
    const TRAILERS: &[u8] = &[0, 1, b'a', 1, b'1'];

    fn with(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = frame(kind, flags, stream, payload.len());
        let at = bytes.len() - payload.len();
        bytes[at..].copy_from_slice(payload);
        bytes
    }

    fn goaway(last: u32, code: u32) -> Vec<u8> {
        let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
        with(7, 0, 0, &payload)
    }

    fn begun() -> Watch {
        let now = Instant::now();
        let mut watch = Watch::new(Settings::default().http2_limits(), now);
        let start = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, 0)].concat();
        assert_eq!(watch.read(&start, now), Ok(()));
        assert_eq!(watch.wrote(&frame(SETTINGS, 0, 0, 12), now), Ok(()));
        watch
    }

    fn read(watch: &mut Watch, frames: &[Vec<u8>]) -> Result<(), Misbehaviour> {
        watch.read(&frames.concat(), Instant::now())
    }

    /// What the library's farewell is called when these frames came before it in one piece.
    fn farewell(last: u32, frames: &[Vec<u8>]) -> Option<Misbehaviour> {
        let mut watch = begun();
        assert_eq!(read(&mut watch, frames), Ok(()));
        watch.farewell(&goaway(last, 1))
    }

    #[test]
    fn a_farewell_behind_a_block_that_does_not_decompress_says_so() {
        let found = Some(Misbehaviour::Compression);
        for block in [BROKEN, BEYOND, &GET[..2], &[0x82, 0x41, 9, b'a']] {
            // Two octets of GET are a whole block.
            let expected = found.filter(|_| block != &GET[..2]);
            assert_eq!(
                farewell(0, &[with(HEADERS, WHOLE, 1, block)]),
                expected,
                "{block:?}"
            );
        }
        let ping = frame(PING, 0, 0, 8);
        let bad = with(HEADERS, WHOLE, 3, BEYOND);
        let good = with(HEADERS, WHOLE, 1, GET);
        assert_eq!(
            farewell(1, &[good.clone(), ping.clone(), bad.clone(), ping]),
            found
        );
        let wider = with(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
        assert_eq!(farewell(1, &[good, wider, bad.clone()]), found);
        // Before its end, and behind frames of the stream before.
        let data = frame(DATA, 0, 1, 100);
        let open = with(HEADERS, END_HEADERS, 1, GET);
        assert_eq!(farewell(1, &[open, data, bad]), found);
        assert_eq!(farewell(0, &[with(HEADERS, END_STREAM, 1, BROKEN)]), found);
        let rest = with(CONTINUATION, END_HEADERS, 1, &BROKEN[1..]);
        assert_eq!(
            farewell(0, &[with(HEADERS, END_STREAM, 1, &BROKEN[..1]), rest]),
            found
        );
    }

    #[test]
    fn other_farewells_are_left_as_they_are() {
        // Fields that are malformed, and the first mistake counts.
        let upper = with(HEADERS, WHOLE, 1, UPPER);
        assert_eq!(farewell(0, std::slice::from_ref(&upper)), None);
        assert_eq!(farewell(0, &[upper, with(HEADERS, WHOLE, 3, BROKEN)]), None);
        // A block that the library has looked at, or may not have come to.
        let dynamic = with(HEADERS, WHOLE, 1, BEYOND);
        let idle = frame(WINDOW_UPDATE, 0, 9, 4);
        assert_eq!(farewell(1, &[dynamic.clone(), idle.clone()]), None);
        assert_eq!(farewell(0, &[idle, dynamic.clone()]), None);
        let no_wider = with(WINDOW_UPDATE, 0, 0, &[0x80, 0, 0, 0]);
        assert_eq!(farewell(0, &[no_wider, dynamic]), None);
        // Streams that clients do not have.
        assert_eq!(farewell(0, &[with(HEADERS, WHOLE, 2, BEYOND)]), None);
        // Padding that is wrong.
        assert_eq!(farewell(0, &[with(HEADERS, WHOLE | PADDED, 1, &[9, 0x80])]), None);
        assert_eq!(farewell(0, &[with(HEADERS, WHOLE | PRIORITY, 1, &[0x80])]), None);
        // What was read before.
        let mut watch = begun();
        assert_eq!(read(&mut watch, &[with(HEADERS, WHOLE, 1, BROKEN)]), Ok(()));
        assert_eq!(read(&mut watch, &[frame(PING, 0, 0, 8)]), Ok(()));
        assert_eq!(watch.farewell(&goaway(0, 1)), None);
    }

    #[test]
    fn only_a_farewell_is_one() {
        let mut watch = begun();
        assert_eq!(read(&mut watch, &[with(HEADERS, WHOLE, 1, BROKEN)]), Ok(()));
        let found = Some(Misbehaviour::Compression);
        let bye = goaway(0, 1);
        let ack = frame(SETTINGS, 1, 0, 0);
        assert_eq!(watch.farewell(&[ack.clone(), bye.clone()].concat()), found);
        for other in [
            goaway(0, 0),
            goaway(0, 2),
            [bye.clone(), ack].concat(),
            bye[1..].to_vec(),
            // The end of somebody's data.
            with(DATA, 0, 1, &bye),
            Vec::new(),
        ] {
            assert_eq!(watch.farewell(&other), None, "{other:?}");
        }
        // A frame whose beginning was written before.
        let data = with(DATA, 0, 1, &[0; 30]);
        assert_eq!(watch.wrote(&data[..12], Instant::now()), Ok(()));
        assert_eq!(watch.farewell(&[&data[12..], &bye[..]].concat()), found);
        assert_eq!(watch.farewell(&bye), None, "it is the data's");
    }

    #[test]
    fn padding_and_priorities_belong_to_no_block() {
        let priority = [0, 0, 0, 0, 16];
        let padded = [&[4], BROKEN, &[0; 4]].concat();
        let both = [&[4], &priority[..], BROKEN, &[0; 4]].concat();
        let prior = [&priority[..], BROKEN].concat();
        for (flags, payload) in [(PADDED, padded), (PRIORITY, prior), (PADDED | PRIORITY, both)] {
            let found = farewell(0, &[with(HEADERS, WHOLE | flags, 1, &payload)]);
            assert_eq!(found, Some(Misbehaviour::Compression), "{flags:#x}");
        }
        let right = [&[4], &priority[..], GET, &[0; 4]].concat();
        assert_eq!(
            farewell(0, &[with(HEADERS, WHOLE | PADDED | PRIORITY, 1, &right)]),
            None
        );
    }

    fn trailers(frames: &[Vec<u8>]) -> Result<(), Misbehaviour> {
        let mut watch = begun();
        let open = with(HEADERS, END_HEADERS, 1, GET);
        assert_eq!(read(&mut watch, &[open]), Ok(()));
        read(&mut watch, frames)
    }

    #[test]
    fn trailers_have_no_pseudo_header_fields() {
        assert_eq!(trailers(&[with(HEADERS, WHOLE, 1, TRAILERS)]), Ok(()));
        let literal = [&[0, 5][..], b":path", &[1, b'/']].concat();
        let huffman = [&[0, 0x84, 0xb9, 0x58, 0xd3, 0x3f][..], &[1, b'/']].concat();
        for pseudo in [&[0x82][..], &[0x04, 1, b'/'], &literal, &huffman] {
            let block = [TRAILERS, pseudo].concat();
            let whole = with(HEADERS, WHOLE, 1, &block);
            assert_eq!(trailers(&[whole]), Err(Misbehaviour::Protocol), "{pseudo:?}");
            let (first, rest) = block.split_at(6);
            let parts = [
                with(HEADERS, END_STREAM, 1, first),
                with(CONTINUATION, END_HEADERS, 1, rest),
            ];
            assert_eq!(trailers(&parts), Err(Misbehaviour::Protocol), "{pseudo:?}");
        }
        let broken = with(HEADERS, WHOLE, 1, &[0, 9]);
        assert_eq!(trailers(&[broken]), Err(Misbehaviour::Compression));
    }

    #[test]
    fn what_comes_on_streams_that_are_closed_is_left_to_the_library() {
        let again = with(HEADERS, WHOLE, 1, GET);
        let reset = with(3, 0, 1, &8_u32.to_be_bytes());
        assert_eq!(trailers(&[reset, again.clone()]), Ok(()));
        let newer = with(HEADERS, WHOLE, 5, GET);
        let older = with(HEADERS, WHOLE, 3, GET);
        assert_eq!(trailers(&[newer, older]), Ok(()));
        let mut watch = begun();
        assert_eq!(read(&mut watch, &[with(HEADERS, END_HEADERS, 1, GET)]), Ok(()));
        let answer = frame(HEADERS, WHOLE, 1, 9);
        assert_eq!(watch.wrote(&answer, Instant::now()), Ok(()));
        assert_eq!(read(&mut watch, &[again]), Ok(()));
    }

    #[test]
    fn however_blocks_are_cut_the_same_is_kept() {
        for seed in 0..3000 {
            let mut random = Random::from_seed(seed);
            let mut bytes = Vec::new();
            let mut block = Vec::new();
            for _ in 0..1 + random.below(4) {
                let fragment: Vec<u8> = (0..random.below(20)).map(|_| random.next_u64() as u8).collect();
                let padding = vec![0; random.below(5) as usize];
                let is_first = bytes.is_empty();
                let padded = PADDED * random.below(2) as u8;
                let flags = padded | (PRIORITY * random.below(2) as u8);
                let flags = if is_first { flags } else { 0 };
                let mut payload = Vec::new();
                if flags & PADDED != 0 {
                    payload.push(padding.len() as u8);
                }
                if flags & PRIORITY != 0 {
                    payload.extend([0; 5]);
                }
                payload.extend(&fragment);
                if flags & PADDED != 0 {
                    payload.extend(&padding);
                }
                let kind = if is_first { HEADERS } else { CONTINUATION };
                bytes.extend(with(kind, flags, 1, &payload));
                block.extend(fragment);
            }
            let mut watch = begun();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((1 + random.below(12) as usize).min(rest.len()));
                assert_eq!(watch.read(piece, Instant::now()), Ok(()), "seed {seed}");
                rest = after;
            }
            let kept = watch.blocks();
            assert_eq!(kept.of(&kept.blocks[0]), block, "seed {seed}");
            assert!(!kept.blocks[0].is_unknown && !kept.blocks[0].is_ended);
        }
    }

    #[test]
    fn blocks_without_end_are_not_kept_without_end() {
        let settings = Settings {
            http2_continuations: 0,
            http2_header_block_bytes: 0,
            ..Settings::default()
        };
        let now = Instant::now();
        let mut watch = Watch::new(settings.http2_limits(), now);
        let start = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, 0)].concat();
        assert_eq!(watch.read(&start, now), Ok(()));
        assert_eq!(watch.read(&frame(HEADERS, 0, 1, 16_000), now), Ok(()));
        for _ in 0..100 {
            assert_eq!(watch.read(&frame(CONTINUATION, 0, 1, 16_000), now), Ok(()));
            assert!(watch.blocks().bytes.len() <= KEPT_MAX);
        }
        assert_eq!(watch.farewell(&goaway(0, 1)), None);
        let end = [frame(CONTINUATION, END_HEADERS, 1, 0), frame(PING, 0, 0, 8)].concat();
        assert_eq!(watch.read(&end, now), Ok(()));
        assert_eq!(watch.read(&frame(PING, 0, 0, 8), now), Ok(()));
        assert!(watch.blocks().bytes.capacity() <= ROOM);
    }
}
