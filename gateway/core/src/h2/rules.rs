//! Rules of HTTP/2 that the library which speaks it has no name for, or another one.
//!
//! A server says by an error code what a client has done wrong (RFC 9113, 5.4.1 and 7). The library knows nearly all of
//! the mistakes, and calls most of them PROTOCOL_ERROR; those that have a code of their own are found here, from the
//! headers of frames, before the library sees them.

use super::frame::{FrameHeader, FrameKind};
use super::watch::Misbehaviour;

/// The setting that gives the window of new streams (RFC 9113, 6.5.2).
const INITIAL_WINDOW_SIZE: u16 = 4;
/// The largest window (RFC 9113, 6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// The largest frame that clients may send: what is so without a setting (RFC 9113, 6.5.2). Larger ones gain nothing
/// here, since data is passed on as it comes.
pub const FRAME_SIZE_MAX: u32 = 16_384;

/// What is remembered of a connection to judge its next frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rules {
    has_begun: bool,
    /// Whether a header block has begun and not ended.
    in_block: bool,
    /// Streams whose client has ended its side, and whose answer is not complete. As many as may be open, at most.
    half_closed: Vec<u32>,
}

impl Rules {
    /// Judges a frame of the client.
    pub(super) fn read(&mut self, frame: &FrameHeader) -> Result<(), Misbehaviour> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        if is_first && (frame.kind != FrameKind::Settings || frame.is_ack()) {
            return Err(Misbehaviour::NoSettings);
        }
        if frame.length > FRAME_SIZE_MAX {
            return Err(Misbehaviour::FrameSize);
        }
        if self.in_block && frame.kind != FrameKind::Continuation {
            // RFC 9113, 4.3: nothing comes between.
            return Err(Misbehaviour::Protocol);
        }
        match frame.kind {
            FrameKind::Headers | FrameKind::Continuation => self.in_block = !frame.is_end_headers(),
            _ => {}
        }
        match frame.kind {
            FrameKind::Setting(INITIAL_WINDOW_SIZE, size) if size > WINDOW_MAX => {
                return Err(Misbehaviour::WindowSize);
            }
            FrameKind::Settings if frame.stream == 0 => {
                let right = if frame.is_ack() {
                    frame.length == 0
                } else {
                    frame.length.is_multiple_of(6)
                };
                return right.then_some(()).ok_or(Misbehaviour::FrameSize);
            }
            FrameKind::Data | FrameKind::Headers if self.half_closed.contains(&frame.stream) => {
                return Err(Misbehaviour::StreamClosed);
            }
            FrameKind::Data | FrameKind::Headers => self.ended_by_client(frame),
            FrameKind::RstStream(_) => self.half_closed.retain(|stream| *stream != frame.stream),
            _ => {}
        }
        match (frame.kind, frame.length) {
            (FrameKind::Ping, 8) | (FrameKind::Priority, 5) => Ok(()),
            (FrameKind::RstStream(_) | FrameKind::WindowUpdate, 4) => Ok(()),
            (FrameKind::GoAway, 8..) => Ok(()),
            // On the wrong kind of stream a frame is wrong whatever its size.
            (FrameKind::Ping | FrameKind::GoAway, _) if frame.stream != 0 => Ok(()),
            (FrameKind::Priority | FrameKind::RstStream(_), _) if frame.stream == 0 => Ok(()),
            (
                FrameKind::Ping
                | FrameKind::Priority
                | FrameKind::RstStream(_)
                | FrameKind::WindowUpdate
                | FrameKind::GoAway,
                _,
            ) => Err(Misbehaviour::FrameSize),
            _ => Ok(()),
        }
    }

    /// Sees a frame of the gateway.
    pub(super) fn wrote(&mut self, frame: &FrameHeader) {
        let ends = match frame.kind {
            FrameKind::Data | FrameKind::Headers => frame.is_end_stream(),
            FrameKind::RstStream(_) => true,
            _ => false,
        };
        if ends {
            self.half_closed.retain(|stream| *stream != frame.stream);
        }
    }

    fn ended_by_client(&mut self, frame: &FrameHeader) {
        if frame.is_end_stream() && frame.stream != 0 {
            self.half_closed.push(frame.stream);
        }
    }
}
