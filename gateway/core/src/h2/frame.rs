//! The frames in a stream of bytes, without what is in them (RFC 9113, 4.1).
//!
//! Bytes go in as the socket gives or takes them; out comes the header of each frame as soon as it is whole. Payloads
//! are skipped without a look, but for the error code of RST_STREAM, which says whose fault a reset is, and a client's
//! settings. Nothing is checked here.

use std::fmt;

/// Bytes of a frame's header.
pub(super) const HEADER_BYTES: usize = 9;
/// Bytes that are looked at of an RST_STREAM frame: its header and its error code.
const RESET_BYTES: usize = HEADER_BYTES + 4;
/// Bytes that a client's connection begins with: `PRI * HTTP/2.0`, and so on (RFC 9113, 3.4).
pub(super) const PREFACE_BYTES: usize = 24;

const RST_STREAM: u8 = 3;
const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const SETTINGS: u8 = 4;
/// Bytes of one setting.
const SETTING_BYTES: usize = 6;

/// Types of frames (RFC 9113, 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A part of a body.
    Data,
    /// The beginning of a header block.
    Headers,
    /// An old way to order streams.
    Priority,
    /// The end of a stream before its time, with an error code (RFC 9113, 7).
    RstStream(u32),
    /// What an endpoint takes, or the acknowledgement of it.
    Settings,
    /// One setting of a client's SETTINGS frame, by its number, behind that frame's header.
    Setting(u16, u32),
    /// A request that a server announces.
    PushPromise,
    /// A question whether the peer is there, or its answer.
    Ping,
    /// The end of the connection.
    GoAway,
    /// Leave to send more.
    WindowUpdate,
    /// More of a header block.
    Continuation,
    /// A type of an extension, such as PRIORITY_UPDATE (RFC 9218), or of nobody.
    Other(u8),
}

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of its payload.
    pub length: u32,
    /// What it is.
    pub kind: FrameKind,
    /// Flags, whose meaning depends on the kind.
    pub flags: u8,
    /// The stream that it belongs to; 0 for the connection.
    pub stream: u32,
}

impl FrameHeader {
    /// Whether a SETTINGS or PING frame answers one.
    pub const fn is_ack(&self) -> bool {
        self.flags & ACK != 0
    }

    /// Whether a DATA or HEADERS frame is its sender's last of the stream.
    pub const fn is_end_stream(&self) -> bool {
        self.flags & END_STREAM != 0
    }

    /// Whether a HEADERS or CONTINUATION frame is the last of its header block.
    pub const fn is_end_headers(&self) -> bool {
        self.flags & END_HEADERS != 0
    }

    /// Reads a header; `code` is what follows it in an RST_STREAM frame.
    pub(super) const fn read(bytes: [u8; HEADER_BYTES], code: u32) -> Self {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = bytes;
        Self {
            length: u32::from_be_bytes([0, l1, l2, l3]),
            kind: match kind {
                0 => FrameKind::Data,
                1 => FrameKind::Headers,
                2 => FrameKind::Priority,
                RST_STREAM => FrameKind::RstStream(code),
                SETTINGS => FrameKind::Settings,
                5 => FrameKind::PushPromise,
                6 => FrameKind::Ping,
                7 => FrameKind::GoAway,
                8 => FrameKind::WindowUpdate,
                9 => FrameKind::Continuation,
                other => FrameKind::Other(other),
            },
            flags,
            // The first bit is reserved and ignored.
            stream: u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]),
        }
    }
}

impl fmt::Debug for FrameHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} on {} flags {:#x} bytes {}",
            self.kind, self.stream, self.flags, self.length
        )
    }
}

/// Finds the frames of one direction of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameTap {
    /// Bytes to pass over before the next header.
    skip: usize,
    /// The beginning of a frame that came in pieces.
    start: [u8; RESET_BYTES],
    filled: usize,
    /// Whether settings are looked at, and how many bytes of them are still to come.
    settings: Option<usize>,
}

impl FrameTap {
    /// For what a client sends: the preface, then frames.
    pub const fn of_client() -> Self {
        Self {
            skip: PREFACE_BYTES,
            settings: Some(0),
            ..Self::of_server()
        }
    }

    /// For what a server sends: frames.
    pub const fn of_server() -> Self {
        Self {
            skip: 0,
            start: [0; RESET_BYTES],
            filled: 0,
            settings: None,
        }
    }

    /// The next frame whose header ends in `bytes`, which then begin behind that header; None, and no byte left, when
    /// there is none.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<FrameHeader> {
        let passed = self.skip.min(bytes.len());
        self.skip -= passed;
        *bytes = &bytes[passed..];
        if let Some(left @ 1..) = self.settings {
            return self.setting(left, bytes);
        }
        // The usual frame begins and has its header in one piece.
        if self.filled == 0
            && let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>()
            && !matches!(header[3], RST_STREAM | SETTINGS)
        {
            let frame = FrameHeader::read(*header, 0);
            self.skip = frame.length as usize;
            *bytes = rest;
            return Some(frame);
        }
        while let Some((byte, rest)) = bytes.split_first() {
            *bytes = rest;
            *self.start.get_mut(self.filled)? = *byte;
            self.filled += 1;
            if let Some((frame, used)) = self.started() {
                self.skip = (frame.length as usize).saturating_sub(used - HEADER_BYTES);
                self.filled = 0;
                let is_list = frame.kind == FrameKind::Settings && self.skip.is_multiple_of(SETTING_BYTES);
                if is_list && let Some(settings) = &mut self.settings {
                    *settings = std::mem::take(&mut self.skip);
                }
                return Some(frame);
            }
        }
        None
    }

    /// The next setting of a frame of which `left` bytes are still to come.
    fn setting(&mut self, left: usize, bytes: &mut &[u8]) -> Option<FrameHeader> {
        while let Some((byte, rest)) = bytes.split_first() {
            *bytes = rest;
            *self.start.get_mut(self.filled)? = *byte;
            self.filled += 1;
            if self.filled == SETTING_BYTES {
                self.filled = 0;
                self.settings = Some(left - SETTING_BYTES);
                let [i1, i2, v1, v2, v3, v4, ..] = self.start;
                let id = u16::from_be_bytes([i1, i2]);
                return Some(FrameHeader {
                    length: SETTING_BYTES as u32,
                    kind: FrameKind::Setting(id, u32::from_be_bytes([v1, v2, v3, v4])),
                    flags: 0,
                    stream: 0,
                });
            }
        }
        None
    }

    /// The frame whose beginning came in pieces, and how many bytes of it were looked at; None when more must come.
    fn started(&self) -> Option<(FrameHeader, usize)> {
        if self.filled < HEADER_BYTES {
            return None;
        }
        let (header, code) = self.start.split_first_chunk::<HEADER_BYTES>()?;
        let frame = FrameHeader::read(*header, 0);
        match frame.kind {
            // One without a whole code is broken, and whoever speaks the protocol will say so.
            FrameKind::RstStream(_) if frame.length >= 4 => {
                let code = u32::from_be_bytes(code.try_into().ok()?);
                (self.filled == RESET_BYTES).then(|| (FrameHeader::read(*header, code), RESET_BYTES))
            }
            _ => Some((frame, HEADER_BYTES)),
        }
    }
}

/// Frames for the tests of this module's users.
#[cfg(test)]
pub(super) mod written {
    /// The beginning of every client's connection.
    pub(in crate::h2) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    /// A frame with a payload of zeros.
    pub(in crate::h2) fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.resize(bytes.len() + length, 0);
        bytes
    }

    /// An RST_STREAM frame.
    pub(in crate::h2) fn reset(stream: u32, code: u32) -> Vec<u8> {
        let mut bytes = frame(3, 0, stream, 0);
        bytes[2] = 4;
        bytes.extend(code.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::written::{PREFACE, frame, reset};
    use super::*;
    use crate::random::Random;

    fn all(tap: &mut FrameTap, mut bytes: &[u8]) -> Vec<FrameHeader> {
        std::iter::from_fn(|| tap.next(&mut bytes)).collect()
    }

    /// Every frame of some bytes that are cut at random.
    fn in_pieces(mut tap: FrameTap, mut bytes: &[u8], random: &mut Random) -> (Vec<FrameHeader>, FrameTap) {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let most = [1, 4, 40][random.below(3) as usize];
            let (piece, rest) = bytes.split_at((1 + random.below(most) as usize).min(bytes.len()));
            found.extend(all(&mut tap, piece));
            bytes = rest;
        }
        (found, tap)
    }

    #[test]
    fn headers_are_found_and_payloads_are_passed_over() {
        let bytes = [
            PREFACE.to_vec(),
            frame(4, 0, 0, 18),
            frame(1, END_STREAM | END_HEADERS, 0x8000_0001, 300),
            reset(1, 8),
            frame(9, 0, 1, 0),
            frame(0x10, 0xff, 0, 1),
            frame(0, 0, 0x7fff_ffff, 70_000),
            frame(6, ACK, 0, 8),
        ]
        .concat();
        let found = all(&mut FrameTap::of_client(), &bytes);
        let kinds: Vec<_> = found
            .iter()
            .map(|found| (found.kind, found.stream, found.length))
            .collect();
        assert_eq!(
            kinds,
            [
                (FrameKind::Settings, 0, 18),
                (FrameKind::Setting(0, 0), 0, 6),
                (FrameKind::Setting(0, 0), 0, 6),
                (FrameKind::Setting(0, 0), 0, 6),
                (FrameKind::Headers, 1, 300),
                (FrameKind::RstStream(8), 1, 4),
                (FrameKind::Continuation, 1, 0),
                (FrameKind::Other(0x10), 0, 1),
                (FrameKind::Data, 0x7fff_ffff, 70_000),
                (FrameKind::Ping, 0, 8),
            ]
        );
        assert!(found[4].is_end_stream() && found[4].is_end_headers() && found[9].is_ack());
        assert!(!found[8].is_end_stream());
    }

    #[test]
    fn however_bytes_are_cut_the_frames_are_the_same() {
        for seed in 0..2000 {
            let mut random = Random::from_seed(seed);
            let mut bytes = PREFACE.to_vec();
            for _ in 0..random.below(30) {
                let stream = random.below(1 << 32) as u32;
                if random.below(3) == 0 {
                    // Some with a payload that has no room for a code, or too much.
                    bytes.extend(reset(stream, random.below(14) as u32));
                    bytes.extend(frame(RST_STREAM, 0, stream, random.below(6) as usize));
                } else {
                    let most = [1, 12, 300][random.below(3) as usize];
                    let length = random.below(most) as usize;
                    bytes.extend(frame(
                        random.below(12) as u8,
                        random.below(256) as u8,
                        stream,
                        length,
                    ));
                }
            }
            bytes.truncate(bytes.len() - random.below(20) as usize);
            let mut whole = FrameTap::of_client();
            let expected = all(&mut whole, &bytes);
            let (found, pieces) = in_pieces(FrameTap::of_client(), &bytes, &mut random);
            assert_eq!(found, expected, "seed {seed}");
            assert_eq!(
                (pieces.skip, pieces.filled),
                (whole.skip, whole.filled),
                "seed {seed}"
            );
        }
    }

    #[test]
    fn any_bytes_are_taken() {
        for seed in 0..2000 {
            let mut random = Random::from_seed(seed);
            let bytes: Vec<u8> = (0..random.below(500)).map(|_| random.next_u64() as u8).collect();
            let (found, _) = in_pieces(FrameTap::of_server(), &bytes, &mut random);
            assert_eq!(found, all(&mut FrameTap::of_server(), &bytes), "seed {seed}");
        }
    }
}
