//! What the peer is sent: heads and data of streams, as far as there is room for them, and the output that they pile up in.

use super::super::frame::{self, HEADER_BYTES, code};
use super::super::hpack::NO_TABLE;
use super::super::watch::Written;
use super::{
    Connection, End, Ending, Failure, Holder, Key, OUTPUT_KEPT, OUTPUT_LEAST, OUTPUT_MAX, Pending, Role,
    SEND_FRAME_MAX, STREAM_MAX,
};

impl<T: Holder> Connection<T> {
    /// What is to be sent next.
    pub fn output(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// Notes that so much of it was sent, and lets streams go on that have waited for that.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent >= self.output.len() {
            self.sent = 0;
            if self.output.capacity() > OUTPUT_KEPT || !self.has_streams() {
                self.output = Vec::new();
            } else {
                self.output.clear();
            }
        }
        // A socket that never takes all of it must not keep what it has taken.
        if self.sent >= OUTPUT_MAX {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        if self.output().len() <= OUTPUT_MAX / 2 {
            self.tell_waiting();
        }
    }

    /// Whether so much waits to be sent that nothing should be read which may have to be answered.
    pub fn is_clogged(&self) -> bool {
        self.output().len() > 2 * OUTPUT_MAX
    }

    /// Those that waited try again, the longest first, and wait behind each other if they must.
    pub(super) fn tell_waiting(&mut self) {
        while let Some(key) = self.waiting.pop_front() {
            if let Some(stream) = self.stream(key) {
                stream.is_waiting = false;
                stream.holder.tell();
            }
        }
    }

    /// Opens a stream, whose head `write` appends to the output, or to what waits until the peer takes another stream.
    /// None when the connection takes no more.
    pub fn open(
        &mut self,
        is_last: bool,
        is_head_request: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Option<Key> {
        if !self.takes_streams() {
            return None;
        }
        if self.active >= self.allowed || !self.unopened.is_empty() {
            let mut pending = Pending {
                is_last,
                ..Pending::default()
            };
            write(&mut pending.head);
            let key = self.add(0);
            if let Some(stream) = self.stream(key) {
                stream.is_sent = is_last;
                stream.pending = Some(pending);
                stream.is_head_request = is_head_request;
            }
            self.unopened.push_back(key);
            return Some(key);
        }
        self.own_last += if self.own_last == 0 { 1 } else { 2 };
        let key = self.add(self.own_last);
        if let Some(stream) = self.stream(key) {
            stream.is_head_request = is_head_request;
        }
        self.write_head(key, is_last, write);
        Some(key)
    }

    /// Opens streams that wait, as far as the peer takes more.
    pub(super) fn open_more(&mut self) {
        if self.own_last >= STREAM_MAX - 1 {
            // No number is left for those that wait.
            self.is_retired = true;
            while let Some(key) = self.unopened.pop_front() {
                self.leave_out(key);
            }
        }
        while self.active < self.allowed && self.may_open() {
            let Some(key) = self.unopened.pop_front() else {
                return;
            };
            let next = self.own_last + if self.own_last == 0 { 1 } else { 2 };
            let window = self.peer_window;
            let Some(stream) = self.stream(key) else { continue };
            let Some(pending) = stream.pending.take() else {
                continue;
            };
            stream.id = next;
            stream.window = window;
            stream.is_counted = true;
            stream.holder.tell();
            self.own_last = next;
            self.active += 1;
            self.by_id.insert(next, key);
            self.write_head(key, pending.is_last, |out| out.extend_from_slice(&pending.head));
            if let Some(trailers) = pending.trailers {
                self.write_head(key, true, |out| out.extend_from_slice(&trailers));
            }
        }
    }

    /// Sends a head, an interim one, or trailers; false when nothing goes any more.
    pub fn send_head(&mut self, key: Key, is_last: bool, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some(stream) = self.stream(key) else {
            return false;
        };
        if stream.failure.is_some() || stream.is_sent {
            return false;
        }
        if let Some(pending) = &mut stream.pending {
            // Trailers: a head does not come twice.
            write(pending.trailers.get_or_insert_default());
            stream.is_sent = true;
            return true;
        }
        self.write_head(key, is_last, write);
        true
    }

    pub(super) fn write_head(&mut self, key: Key, is_last: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let frame_max = self.peer_frame_max as usize;
        let at = self.output.len();
        self.output.extend_from_slice(&[0; HEADER_BYTES]);
        if !std::mem::replace(&mut self.has_sent_block, true) {
            self.output.push(NO_TABLE);
        }
        write(&mut self.output);
        let Some(id) = self.stream_ref(key).map(|stream| stream.id) else {
            self.output.truncate(at);
            return;
        };
        frame::close_block(&mut self.output, at, id, is_last, frame_max);
        self.wrote(Written::Headers { is_last });
        if is_last {
            self.ended(key);
        }
    }

    /// Sends as much of `data` as there is room for; if that is all of it, and `is_last`, the stream ends. Answers how
    /// much that is. For nothing of something, the holder is told when it may try again.
    pub fn send_data(&mut self, key: Key, data: &[u8], is_last: bool) -> Result<usize, Failure> {
        let waits = self.output().len();
        let window = self.window;
        // With its header, a frame fills a record of TLS.
        let frame_max = (self.peer_frame_max.min(SEND_FRAME_MAX) as usize).saturating_sub(HEADER_BYTES);
        let stream = self.stream(key).ok_or(Failure::Over)?;
        if let Some(failure) = stream.failure {
            return Err(failure);
        }
        if stream.is_sent {
            return Err(Failure::Given);
        }
        if data.is_empty() {
            if let (true, Some(pending)) = (is_last, &mut stream.pending) {
                pending.is_last = true;
                stream.is_sent = true;
            } else if is_last {
                let id = stream.id;
                frame::write_data(&mut self.output, id, &[], true);
                self.wrote(Written::Data { is_last });
                self.ended(key);
            }
            return Ok(0);
        }
        if stream.pending.is_some() || stream.window <= 0 {
            return Ok(0);
        }
        let space = OUTPUT_MAX.saturating_sub(waits);
        if window <= 0 || space < OUTPUT_LEAST.min(data.len()) {
            if !std::mem::replace(&mut stream.is_waiting, true) {
                self.waiting.push_back(key);
            }
            return Ok(0);
        }
        // Headers count, so that what is written at once is no more than it is meant to be.
        let headers = space.div_ceil(frame_max.max(1)) * HEADER_BYTES;
        let space = space.saturating_sub(headers).max(1);
        let room = usize::try_from(stream.window.min(window)).unwrap_or(usize::MAX);
        let room = room.min(space);
        let all = data.get(..room).unwrap_or(data);
        let id = stream.id;
        stream.window -= all.len() as i64;
        self.window -= all.len() as i64;
        let mut parts = all.chunks(frame_max.max(1)).peekable();
        while let Some(part) = parts.next() {
            let ends = is_last && parts.peek().is_none() && all.len() == data.len();
            frame::write_data(&mut self.output, id, part, ends);
            self.wrote(Written::Data { is_last: ends });
            if ends {
                self.ended(key);
            }
        }
        Ok(all.len())
    }

    pub(super) fn ended(&mut self, key: Key) {
        if let Some(stream) = self.stream(key) {
            stream.is_sent = true;
        }
        self.settle(key);
    }

    pub(super) fn wrote(&mut self, written: Written) {
        if let Some(watch) = &mut self.watch
            && let Err(found) = watch.wrote(written)
        {
            self.fail(found);
        }
    }

    /// Ends a stream before its time.
    pub fn reset(&mut self, key: Key, code: u32) {
        let Some(stream) = self.stream(key) else { return };
        if stream.failure.is_some() || (stream.is_received && stream.is_sent) {
            return;
        }
        stream.failure = Some(Failure::Given);
        stream.pending = None;
        stream.holder.tell();
        let id = stream.id;
        let data = std::mem::take(&mut stream.data);
        if id != 0 {
            self.write_reset(id, code);
        }
        self.give_back(data.len());
        self.settle(key);
    }

    pub(super) fn write_reset(&mut self, id: u32, code: u32) {
        if self.end == End::Over {
            return;
        }
        self.past.remember(id, Ending::Given);
        frame::write_reset(&mut self.output, id, code);
        self.wrote(Written::Reset { stream: id, code });
    }

    /// Nobody holds the stream any more. One that has not ended is reset. What was kept of it comes back.
    pub fn release(&mut self, key: Key) -> Option<T> {
        let role = self.options.role;
        let stream = self.stream(key)?;
        stream.is_held = false;
        let holder = std::mem::take(&mut stream.holder);
        if stream.failure.is_none() && !(stream.is_received && stream.is_sent) {
            let code = match role {
                // RFC 9113, 8.1: the rest of a request is not wanted.
                Role::Server if stream.is_sent => code::NO_ERROR,
                _ => code::CANCEL,
            };
            self.reset(key, code);
        } else {
            self.settle(key);
        }
        Some(holder)
    }
}
