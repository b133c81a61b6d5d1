//! What the peer sends: frames found in bytes, judged, and brought to their streams.

use super::super::fields::{Fields, Pseudo};
use super::super::frame::{
    self, FRAME_SIZE_MAX, FrameHeader, FrameKind, HEADER_BYTES, PREFACE, code, setting,
};
use super::super::watch::{Misbehaviour, Written};
use super::{
    BLOCK_MAX, Block, Connection, End, Ending, Failure, Holder, INTERIM_MAX, Input, Key, LEAVING, OUTPUT_MAX,
    PRESENT, Role, STREAM_MAX, WINDOW_MAX,
};
use crate::h1::head::content_length;
use std::time::Instant;

/// How many bytes a frame is as much work as, whatever is in it.
const FRAME_WORK: usize = 256;

impl<T: Holder> Connection<T> {
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
        self.work += FRAME_WORK;
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
        let is_padded_data = frame.kind == FrameKind::Data && frame.is_padded();
        if let Some(watch) = self.watch.as_mut().filter(|_| !is_padded_data) {
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
            // Those that are not looked at may be open, as the client sees it.
            Role::Server => !is_odd || (stream > self.peer_last && !matches!(self.end, End::After(_))),
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
                self.closed_stream(frame.stream, true)?;
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
                stream.is_received |= is_last;
                stream.holder.tell();
                if !stream.is_ignored {
                    stream.data.extend_from_slice(piece);
                } else if let Some(key) = key {
                    self.passed_on(key, piece.len());
                }
            }
            _ => self.give_back(piece.len()),
        }
        if is_last && let Some(key) = key {
            self.settle(key);
        }
    }

    /// What is to be done about a head, or data, on a stream that has ended.
    fn closed_stream(&mut self, stream: u32, is_data: bool) -> Result<(), Misbehaviour> {
        if self.options.role == Role::Client || matches!(self.end, End::After(last) if stream > last) {
            // It was on its way when the stream was given up, or is not looked at.
            return Ok(());
        }
        match self.past.how(stream) {
            Some(Ending::Given) => Ok(()),
            Some(Ending::Reset) => {
                frame::write_reset(&mut self.output, stream, code::STREAM_CLOSED);
                self.wrote(Written::Reset {
                    stream,
                    code: code::STREAM_CLOSED,
                });
                Ok(())
            }
            Some(Ending::Whole) => Err(Misbehaviour::StreamClosed),
            // One that ended long ago, so that nobody remembers how; or the number was left out (RFC 9113, 5.1.1).
            None if is_data => Ok(()),
            None => Err(Misbehaviour::Protocol),
        }
    }

    /// Takes a frame that is whole.
    fn payload(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), Misbehaviour> {
        match frame.kind {
            FrameKind::Data => {
                let data = unpadded(payload)?;
                let length = data.len() as u32;
                if let Some(watch) = &mut self.watch {
                    // What is padding is of no use, however much of it there is.
                    watch.read(&FrameHeader { length, ..*frame })?;
                }
                self.begin_data(frame, length)?;
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
            // Only who had no room waits for some.
            if stream.window > 0 && stream.window <= more {
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
        self.past.remember(id, Ending::Reset);
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
        if self.options.role == Role::Server {
            // It is about streams that are opened from here, of which there are none.
            return;
        }
        self.is_peer_leaving = true;
        self.unopened.clear();
        for slot in 0..self.streams.len() {
            let Some(Some(stream)) = self.streams.get_mut(slot) else {
                continue;
            };
            let is_left_out = stream.id == 0 || stream.id > last;
            if is_left_out && stream.failure.is_none() && !stream.is_received {
                let key = Key {
                    slot: slot as u32,
                    serial: stream.serial,
                };
                self.leave_out(key);
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
        self.work += fields.size();
        if fields.is_bomb() {
            return Err(Misbehaviour::HeaderBlock);
        }
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
                self.closed_stream(id, false)?;
                return Ok(Some(fields));
            };
            return self.trailers(key, block, fields);
        }
        if let End::After(_) = self.end {
            // It is not looked at, and the client has been told which was the last that is.
            return Ok(Some(fields));
        }
        self.peer_last = id;
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
pub(super) fn split<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
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

pub(super) fn number(payload: &[u8]) -> Option<u32> {
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
