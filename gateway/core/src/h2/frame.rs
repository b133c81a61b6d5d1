//! Frames (RFC 9113, 4.1 and 6): the header of one that comes, and whole ones to be sent.

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 9;
/// The largest frame that peers may send: what is so without a setting (RFC 9113, 6.5.2). Larger ones gain nothing
/// here, since data is passed on as it comes.
pub const FRAME_SIZE_MAX: u32 = 16_384;
/// What a client with prior knowledge says first (RFC 9113, 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

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
    RstStream,
    /// What an endpoint takes, or the acknowledgement of it.
    Settings,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// Whether a DATA or HEADERS frame has padding.
    pub const fn is_padded(&self) -> bool {
        self.flags & PADDED != 0
    }

    /// Whether a HEADERS frame says how its stream is ordered.
    pub const fn has_priority(&self) -> bool {
        self.flags & PRIORITY != 0
    }

    /// Reads a header.
    pub const fn read(bytes: [u8; HEADER_BYTES]) -> Self {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = bytes;
        Self {
            length: u32::from_be_bytes([0, l1, l2, l3]),
            kind: match kind {
                0 => FrameKind::Data,
                1 => FrameKind::Headers,
                2 => FrameKind::Priority,
                3 => FrameKind::RstStream,
                4 => FrameKind::Settings,
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

/// Error codes of RST_STREAM and GOAWAY (RFC 9113, 7).
#[allow(missing_docs, reason = "each has the RFC's own name")]
pub mod code {
    pub const NO_ERROR: u32 = 0x0;
    pub const PROTOCOL_ERROR: u32 = 0x1;
    pub const INTERNAL_ERROR: u32 = 0x2;
    pub const FLOW_CONTROL_ERROR: u32 = 0x3;
    pub const STREAM_CLOSED: u32 = 0x5;
    pub const FRAME_SIZE_ERROR: u32 = 0x6;
    pub const REFUSED_STREAM: u32 = 0x7;
    pub const CANCEL: u32 = 0x8;
    pub const COMPRESSION_ERROR: u32 = 0x9;
    pub const CONNECT_ERROR: u32 = 0xa;
    pub const ENHANCE_YOUR_CALM: u32 = 0xb;
}

/// Settings (RFC 9113, 6.5.2; RFC 8441, 3).
pub(super) mod setting {
    pub(in crate::h2) const ENABLE_PUSH: u16 = 2;
    pub(in crate::h2) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in crate::h2) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in crate::h2) const MAX_FRAME_SIZE: u16 = 5;
    pub(in crate::h2) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(in crate::h2) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

fn header(length: usize, kind: u8, flags: u8, stream: u32) -> [u8; HEADER_BYTES] {
    let [_, l1, l2, l3] = (length as u32).to_be_bytes();
    let [s1, s2, s3, s4] = stream.to_be_bytes();
    [l1, l2, l3, kind, flags, s1, s2, s3, s4]
}

fn whole(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&header(payload.len(), kind, flags, stream));
    out.extend_from_slice(payload);
}

/// Writes a DATA frame.
pub(super) fn write_data(out: &mut Vec<u8>, stream: u32, data: &[u8], is_last: bool) {
    whole(out, 0, if is_last { END_STREAM } else { 0 }, stream, data);
}

/// Writes a header block that stands at the end of `out`, from `at` on and behind [`HEADER_BYTES`] that were left free,
/// as HEADERS and, beyond the largest frame that the peer takes, CONTINUATION frames.
pub(super) fn close_block(out: &mut Vec<u8>, at: usize, stream: u32, is_last: bool, frame_max: usize) {
    let start = at + HEADER_BYTES;
    let length = out.len().saturating_sub(start);
    let end_stream = if is_last { END_STREAM } else { 0 };
    let end_headers = if length <= frame_max { END_HEADERS } else { 0 };
    let first = header(length.min(frame_max), 1, end_stream | end_headers, stream);
    if let Some(room) = out.get_mut(at..start) {
        room.copy_from_slice(&first);
    }
    if length > frame_max {
        let rest = out.split_off(start + frame_max);
        let mut fragments = rest.chunks(frame_max.max(1)).peekable();
        while let Some(fragment) = fragments.next() {
            let flags = if fragments.peek().is_none() {
                END_HEADERS
            } else {
                0
            };
            whole(out, 9, flags, stream, fragment);
        }
    }
}

/// Writes an RST_STREAM frame.
pub(super) fn write_reset(out: &mut Vec<u8>, stream: u32, code: u32) {
    whole(out, 3, 0, stream, &code.to_be_bytes());
}

/// Writes settings.
pub(super) fn write_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    out.extend_from_slice(&header(settings.len() * 6, 4, 0, 0));
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Acknowledges settings.
pub(super) fn write_settings_ack(out: &mut Vec<u8>) {
    whole(out, 4, ACK, 0, &[]);
}

/// Writes a PING frame, or the answer to one.
pub(super) fn write_ping(out: &mut Vec<u8>, is_ack: bool, payload: [u8; 8]) {
    whole(out, 6, if is_ack { ACK } else { 0 }, 0, &payload);
}

/// Writes a GOAWAY frame without debug data.
pub(super) fn write_go_away(out: &mut Vec<u8>, last: u32, code: u32) {
    let [a, b, c, d] = last.to_be_bytes();
    let [e, f, g, h] = code.to_be_bytes();
    whole(out, 7, 0, 0, &[a, b, c, d, e, f, g, h]);
}

/// Gives the peer more room.
pub(super) fn write_window_update(out: &mut Vec<u8>, stream: u32, more: u32) {
    whole(out, 8, 0, stream, &more.to_be_bytes());
}

/// Frames for the tests of this module's users.
#[cfg(test)]
pub(super) mod written {
    pub(in crate::h2) const DATA: u8 = 0;
    pub(in crate::h2) const HEADERS: u8 = 1;
    pub(in crate::h2) const PRIORITY: u8 = 2;
    pub(in crate::h2) const RST_STREAM: u8 = 3;
    pub(in crate::h2) const SETTINGS: u8 = 4;
    pub(in crate::h2) const PING: u8 = 6;
    pub(in crate::h2) const GOAWAY: u8 = 7;
    pub(in crate::h2) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::h2) const CONTINUATION: u8 = 9;
    pub(in crate::h2) const END_STREAM: u8 = super::END_STREAM;
    pub(in crate::h2) const END_HEADERS: u8 = super::END_HEADERS;

    /// A frame.
    pub(in crate::h2) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        super::whole(&mut out, kind, flags, stream, payload);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frames in some bytes, with what is in them.
    fn all(mut bytes: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk() {
            let header = FrameHeader::read(*header);
            let (payload, rest) = rest.split_at(header.length as usize);
            found.push((header, payload.to_vec()));
            bytes = rest;
        }
        assert!(bytes.is_empty());
        found
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut out = Vec::new();
        write_data(&mut out, 0x7fff_ffff, b"some", true);
        write_reset(&mut out, 3, code::CANCEL);
        write_settings(&mut out, &[(4, 70_000), (8, 1)]);
        write_settings_ack(&mut out);
        write_ping(&mut out, true, *b"12345678");
        write_go_away(&mut out, 7, code::NO_ERROR);
        write_window_update(&mut out, 0, 1 << 20);
        let found = all(&out);
        let kinds: Vec<_> = found
            .iter()
            .map(|(frame, _)| (frame.kind, frame.stream))
            .collect();
        assert_eq!(
            kinds,
            [
                (FrameKind::Data, 0x7fff_ffff),
                (FrameKind::RstStream, 3),
                (FrameKind::Settings, 0),
                (FrameKind::Settings, 0),
                (FrameKind::Ping, 0),
                (FrameKind::GoAway, 0),
                (FrameKind::WindowUpdate, 0),
            ]
        );
        assert!(found[0].0.is_end_stream() && found[3].0.is_ack() && found[4].0.is_ack());
        assert_eq!(found[2].1, [0, 4, 0, 1, 0x11, 0x70, 0, 8, 0, 0, 0, 1]);
        assert_eq!(found[5].1, [0, 0, 0, 7, 0, 0, 0, 0]);
    }

    #[test]
    fn long_blocks_go_on_in_more_frames() {
        for length in [0_usize, 1, 99, 100, 101, 200, 201, 950] {
            let mut out = b"before".to_vec();
            let at = out.len();
            out.extend([0; HEADER_BYTES]);
            let block: Vec<u8> = (0..length).map(|octet| octet as u8).collect();
            out.extend_from_slice(&block);
            close_block(&mut out, at, 5, true, 100);
            let found = all(&out[at..]);
            assert_eq!(found.len(), length.div_ceil(100).max(1), "{length}");
            for (at, (frame, _)) in found.iter().enumerate() {
                assert_eq!(frame.stream, 5);
                assert_eq!(frame.is_end_headers(), at + 1 == found.len());
                let kind = if at == 0 {
                    FrameKind::Headers
                } else {
                    FrameKind::Continuation
                };
                assert_eq!(frame.kind, kind);
            }
            assert!(found[0].0.is_end_stream());
            let payloads: Vec<u8> = found.into_iter().flat_map(|(_, payload)| payload).collect();
            assert_eq!(payloads, block, "{length}");
        }
    }

    #[test]
    fn the_reserved_bit_of_a_stream_says_nothing() {
        let frame = FrameHeader::read([0, 0, 1, 0x10, 0xff, 0x80, 0, 0, 1]);
        assert_eq!((frame.kind, frame.stream), (FrameKind::Other(0x10), 1));
        assert!(frame.is_padded() && frame.has_priority() && frame.is_end_headers());
    }
}
