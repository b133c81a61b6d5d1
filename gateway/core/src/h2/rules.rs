//! Rules of HTTP/2 that the library which speaks it has no name for, or another one.
//!
//! A server says by an error code what a client has done wrong (RFC 9113, 5.4.1 and 7). The library knows nearly all of
//! the mistakes, and calls most of them PROTOCOL_ERROR; those that have a code of their own are found here, from the
//! headers of frames, before the library sees them.

use super::blocks::Purpose;
use super::frame::{FrameHeader, FrameKind};
use super::watch::Misbehaviour;

/// The setting that gives the window of new streams (RFC 9113, 6.5.2).
const INITIAL_WINDOW_SIZE: u16 = 4;
/// The flag of DATA that has padding (RFC 9113, 6.1).
const PADDED: u8 = 0x8;
/// The largest window (RFC 9113, 6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// The largest frame that clients may send: what is so without a setting (RFC 9113, 6.5.2). Larger ones gain nothing
/// here, since data is passed on as it comes.
pub const FRAME_SIZE_MAX: u32 = 16_384;

/// Streams that are remembered as open on one side: more than may be open, since the library takes its time to refuse
/// the others. The oldest are forgotten first; the library knows them all.
const STREAMS_REMEMBERED: usize = 1024;

/// What is remembered of a connection to judge its next frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rules {
    has_begun: bool,
    /// Whether a header block has begun and not ended.
    in_block: bool,
    /// The client's last stream.
    newest: u32,
    /// Streams whose client has not ended its side, and whose answer is not complete.
    open: Vec<u32>,
    /// Streams whose client has ended its side, and whose answer is not complete.
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
            FrameKind::Data => self.ended_by_client(frame),
            FrameKind::Headers => {
                let is_new = frame.stream > self.newest;
                self.newest = self.newest.max(frame.stream);
                if is_new && !frame.is_end_stream() {
                    remember(&mut self.open, frame.stream);
                }
                self.ended_by_client(frame);
            }
            FrameKind::RstStream(_) => self.forget(frame.stream),
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
            self.forget(frame.stream);
        }
    }

    /// What the header block belongs to that begins with this frame, which is still to be judged.
    pub(super) fn purpose(&self, frame: &FrameHeader) -> Purpose {
        if frame.stream > self.newest && frame.stream % 2 == 1 {
            Purpose::Request
        } else if self.open.contains(&frame.stream) {
            Purpose::Trailers
        } else {
            Purpose::Nothing
        }
    }

    /// Whether a client may send data on a stream.
    pub(super) fn is_open(&self, stream: u32) -> bool {
        self.open.contains(&stream)
    }

    /// Whether the library takes a frame that is of no header block, or ends no more than its stream for it. `rest` is
    /// what has come of its payload.
    pub(super) fn is_usual(&self, frame: &FrameHeader, rest: &[u8]) -> bool {
        let is_known = frame.stream % 2 == 1 && frame.stream <= self.newest;
        match frame.kind {
            FrameKind::Ping => frame.stream == 0,
            FrameKind::Settings => frame.is_ack() && frame.stream == 0,
            FrameKind::Priority => frame.stream != 0,
            // RFC 9113, 6.9: the connection's window grows by more than nothing.
            FrameKind::WindowUpdate if frame.stream == 0 => {
                matches!(rest, [a, b, c, d, ..] if [a & 0x7f, *b, *c, *d] != [0; 4])
            }
            FrameKind::RstStream(_) | FrameKind::WindowUpdate => is_known,
            FrameKind::Data => is_known && frame.flags & PADDED == 0,
            FrameKind::Other(_) => true,
            _ => false,
        }
    }

    fn ended_by_client(&mut self, frame: &FrameHeader) {
        if frame.is_end_stream() && frame.stream != 0 {
            self.open.retain(|stream| *stream != frame.stream);
            remember(&mut self.half_closed, frame.stream);
        }
    }

    fn forget(&mut self, stream: u32) {
        self.open.retain(|open| *open != stream);
        self.half_closed.retain(|half_closed| *half_closed != stream);
    }
}

fn remember(streams: &mut Vec<u32>, stream: u32) {
    if streams.len() >= STREAMS_REMEMBERED {
        streams.remove(0);
    }
    streams.push(stream);
}
