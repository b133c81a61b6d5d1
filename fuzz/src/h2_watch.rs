//! What is watched of an HTTP/2 connection: the bytes of both sides in pieces, and header blocks for themselves; and the
//! same bytes as they are repacked for the library.
//!
//! What must hold: however the bytes are cut, the same is found; what is found once stays so; what is kept is bounded;
//! a block that is broken stays so, whatever follows; and what is repacked has the same frames, but for those that are
//! joined or say nothing.

use crate::input::Input;
use isthmus_core::h2::fields::{Form, Scan};
use isthmus_core::h2::watch::{BLOCKS_BYTES_MAX, Misbehaviour};
use isthmus_core::h2::{FRAME_SIZE_MAX, FrameHeader, FrameKind, FrameTap, Repack, Watch};
use isthmus_core::limits::{Http2Limits, Settings};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a client's connection begins with (RFC 9113, 3.4), and an empty SETTINGS frame.
pub(crate) const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Watches both sides.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    // One moment of the past for the whole process, so that an input always runs alike.
    static START: OnceLock<Instant> = OnceLock::new();
    let mut now = *START.get_or_init(Instant::now);
    let mut whole = Watch::new(limits(&mut input), now);
    if input.once_in(2) {
        assert_eq!(whole.read(BEGINNING, now), Ok(()));
    }
    let mut pieces = whole.clone();
    while !input.is_spent() {
        let turn = input.byte();
        let length = input.below(1024);
        let bytes = input.take(length);
        scan(bytes);
        repack(bytes, 1 + usize::from(turn));
        now += Duration::from_millis(u64::from(turn & 0xc0) * 10);
        let step = 1 + usize::from(turn >> 1 & 0x1f);
        let show: Show = if turn & 1 == 0 { Watch::read } else { Watch::wrote };
        let expected = show(&mut whole, bytes, now);
        let seen = bytes
            .chunks(step)
            .try_fold((), |(), piece| show(&mut pieces, piece, now))
            .and_then(|()| show(&mut pieces, &[], now));
        assert_eq!(seen, expected, "in steps of {step}");
        assert!(whole.kept_bytes() <= BLOCKS_BYTES_MAX);
        assert!(pieces.kept_bytes() <= BLOCKS_BYTES_MAX);
        let farewell = whole.farewell(bytes);
        assert!(farewell.is_none_or(|found| found == Misbehaviour::Compression));
        if let Err(found) = expected {
            assert!(!found.label().is_empty() && found.detail().starts_with("http2."));
            assert_eq!(whole.read(bytes, now), Err(found), "it stays found");
            assert_eq!(whole.wrote(bytes, now), Err(found));
            return;
        }
    }
}

type Show = fn(&mut Watch, &[u8], Instant) -> Result<(), Misbehaviour>;

/// The default limits, or such small ones that short inputs reach them.
fn limits(input: &mut Input<'_>) -> Http2Limits {
    let settings = if input.once_in(2) {
        Settings::default()
    } else {
        Settings {
            http2_rapid_resets: 2,
            http2_stream_errors: 2,
            http2_refused_streams: 2,
            http2_continuations: 3,
            http2_header_block_bytes: 200,
            http2_settings: 3,
            http2_pings: 3,
            http2_control_frames: 3,
            http2_empty_data: 3,
            http2_tiny_data: 3,
            http2_window_updates: 3,
            ..Settings::default()
        }
    };
    settings.http2_limits()
}

/// Bytes as frames for the library.
fn repack(bytes: &[u8], step: usize) {
    let is_void = |stream: u32| stream % 4 == 1;
    let mut repack = Repack::of_server();
    let mut out = Vec::new();
    for piece in bytes.chunks(step) {
        let piece = [repack.begun(), piece].concat();
        let mut rest = Vec::new();
        let passed = repack.pass(&piece, is_void, &mut rest);
        out.extend_from_slice(&piece[..passed]);
        out.extend(rest);
        assert!(repack.held_bytes() <= FRAME_SIZE_MAX as usize + 9);
    }
    assert!(out.len() <= bytes.len());
    let (came, went) = (frames(bytes), frames(&out));
    // All that is not joined or left out is there, in its order.
    let other = |frames: &[FrameHeader]| -> Vec<FrameHeader> {
        let mut frames = frames.to_vec();
        frames.retain(|frame| {
            let is_empty = frame.kind == FrameKind::Data && frame.length == 0 && is_void(frame.stream);
            frame.kind != FrameKind::Continuation && !is_empty
        });
        frames
    };
    assert_eq!(other(&came), other(&went));
    // Of a block no more bytes come out than went in, and no fewer when it is whole.
    let fragments = |frames: &[FrameHeader]| -> u64 {
        let parts = frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Continuation);
        parts.map(|frame| u64::from(frame.length)).sum()
    };
    let held = repack.held_bytes() as u64 + u64::from(FRAME_SIZE_MAX);
    assert!(fragments(&went) <= fragments(&came) && fragments(&came) <= fragments(&went) + held);
}

/// The frames whose header is whole.
fn frames(mut bytes: &[u8]) -> Vec<FrameHeader> {
    let mut tap = FrameTap::of_server();
    std::iter::from_fn(|| tap.next(&mut bytes)).collect()
}

/// Bytes as a header block.
fn scan(block: &[u8]) {
    let whole = Scan::of(block);
    let shallow = Scan::shallow(block);
    // Who looks less deep sees no less of the form that there is, and no more that is broken.
    assert!(whole.form == shallow.form || whole.form == Form::Broken);
    assert!(!shallow.is_malformed);
    for end in 0..block.len().min(200) {
        let part = Scan::of(&block[..end]);
        assert!(part.form != Form::Broken || part == whole, "{end} of {block:x?}");
        assert!(!part.is_malformed || whole.is_malformed);
        assert!(!part.has_pseudo || whole.has_pseudo);
    }
    if whole.form == Form::Whole {
        // A field behind it changes nothing of it.
        let longer = Scan::of(&[block, &[0x90]].concat());
        assert_eq!(longer, whole);
    }
}
