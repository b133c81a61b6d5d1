//! HTTP/1.1 messages over a stream: the half that reads and the half that writes, for either side of the gateway.
//!
//! A [`MessageReader`] reads heads and bodies out of one buffer; a [`MessageWriter`] gathers a head and the first data
//! into one system call. Data is passed on in the reader's own buffer: what the writer does not take stays there, and
//! while it stays nothing more is read. So memory is bounded by the buffer, whatever the body's size.

use super::buffer::{Filled, Pool, ReadBuffer};
use super::stream::Stream;
use isthmus_core::h1::encode::{self, BodyFraming, ResponseContext};
use isthmus_core::h1::{BodyDecoder, BodyError, BodyStep, HeadError, HeadParser, Parsed};
use isthmus_core::header::HeaderList;
use isthmus_core::limits::MessageLimits;
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead};
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

/// Data up to this size is copied behind the head instead of being written from its own buffer.
const COPY_MAX: usize = 4 * 1024;
/// Copied bytes that are gathered before they are written.
const GATHER_MAX: usize = 16 * 1024;
/// Room that a writer keeps for the next message; more is given back.
const KEEP_MAX: usize = 16 * 1024;

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The connection ended; `clean` when it did so between messages.
    #[error("the connection ended")]
    Closed {
        /// Whether no byte of a message had come.
        clean: bool,
    },
    /// The peer has said that it did nothing with the message: it can be sent again (RFC 9113, 8.7).
    #[error("the peer refused the stream")]
    Refused,
    /// The connection takes no more messages, and the peer has not looked at this one (RFC 9113, 6.8).
    #[error("the peer left the stream out when it ended the connection")]
    LeftOut,
    /// The peer broke this exchange off, and not the connection (RFC 9113, 6.4).
    #[error("the peer reset the stream")]
    Reset,
    /// The message cannot be said in the version that the connection speaks.
    #[error("the message has no form in HTTP/2")]
    Unspeakable,
    /// The head is refused.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The body is refused.
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// What [`MessageReader::poll_data`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// So many bytes at the front of [`MessageReader::data`] belong to the body.
    Data(usize),
    /// The body is complete.
    End,
}

/// Reads messages.
pub struct MessageReader {
    buffer: ReadBuffer,
    parser: HeadParser,
    body: Option<BodyDecoder>,
    limits: MessageLimits,
    /// Bytes of bodies that were passed on since the last head.
    taken: u64,
}

impl MessageReader {
    /// A reader between messages.
    pub fn new(pool: &Pool, limits: MessageLimits) -> Self {
        Self::with(ReadBuffer::new(pool), limits)
    }

    /// A reader of a connection from which bytes were read already.
    pub fn with(buffer: ReadBuffer, limits: MessageLimits) -> Self {
        Self {
            buffer,
            parser: HeadParser::default(),
            body: None,
            limits,
            taken: 0,
        }
    }

    /// What was read and not used, when something else than this reader is to read it.
    pub fn into_unread(self) -> ReadBuffer {
        self.buffer
    }

    /// The unread bytes, when at least one more has come; false when there will be none, or no room.
    pub fn poll_more(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<bool> {
        self.buffer
            .poll_fill(stream, cx)
            .map(|filled| matches!(filled, Ok(Filled::Bytes(_))))
    }

    /// Waits for the first byte of a message: true when there is one, false when the peer has closed.
    pub fn poll_begun(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.buffer.poll_ready(stream, cx)
    }

    /// Whether bytes have come that were not used yet.
    pub fn has_unread(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether a head has begun to arrive; empty lines before it are nothing (RFC 9112, 2.2).
    pub fn has_begun(&self) -> bool {
        self.parser.has_begun()
    }

    fn poll_head<T>(
        &mut self,
        stream: &Stream,
        cx: &mut Context<'_>,
        mut parse: impl FnMut(&mut HeadParser, &[u8], &MessageLimits) -> Result<(Parsed, T), HeadError>,
    ) -> Poll<Result<T, ReadError>> {
        // Nothing is known of this message's body; what is known of the last one's must not be taken for it.
        self.taken = 0;
        loop {
            if !self.buffer.is_empty() {
                let (parsed, value) = parse(&mut self.parser, self.buffer.data(), &self.limits)?;
                if let Parsed::Complete(used) = parsed {
                    self.buffer.consume(used);
                    return Poll::Ready(Ok(value));
                }
            }
            match ready!(self.buffer.poll_fill(stream, cx))? {
                Filled::Bytes(_) => {}
                Filled::Full => return Poll::Ready(Err(HeadError::HeaderTooLarge.into())),
                Filled::End => {
                    return Poll::Ready(Err(ReadError::Closed {
                        clean: self.buffer.is_empty() || !self.parser.has_begun(),
                    }));
                }
            }
        }
    }

    /// Reads a request's head and stands before its body.
    pub fn poll_request(
        &mut self,
        stream: &Stream,
        cx: &mut Context<'_>,
        head: &mut RequestHead,
    ) -> Poll<Result<(), ReadError>> {
        ready!(self.poll_head(stream, cx, |parser, bytes, limits| {
            parser
                .parse_request(bytes, limits, head)
                .map(|parsed| (parsed, ()))
        }))?;
        self.begin_body(head.body);
        Poll::Ready(Ok(()))
    }

    /// Reads a response's head and stands before its body; interim responses are answered like any other.
    pub fn poll_response(
        &mut self,
        stream: &Stream,
        cx: &mut Context<'_>,
        method: &http::Method,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), ReadError>> {
        ready!(self.poll_head(stream, cx, |parser, bytes, limits| {
            parser
                .parse_response(bytes, limits, method, head)
                .map(|parsed| (parsed, ()))
        }))?;
        self.begin_body(head.body);
        Poll::Ready(Ok(()))
    }

    /// From here on everything is one body that ends with the peer's side of the connection.
    pub fn begin_tunnel(&mut self) {
        self.begin_body(BodyLength::UntilClose);
    }

    fn begin_body(&mut self, length: BodyLength) {
        self.taken = 0;
        self.body = (!length.is_empty()).then(|| BodyDecoder::new(length, &self.limits));
    }

    /// Whether the body, if any, is wholly read.
    pub fn is_body_done(&self) -> bool {
        self.body.as_ref().is_none_or(BodyDecoder::is_done)
    }

    /// Bytes of the present body that were passed on.
    pub fn body_bytes(&self) -> u64 {
        self.taken
    }

    /// The whole rest of a body of known length, when all of it has arrived already: it can be sent more than once.
    pub fn whole_body(&self) -> Option<&[u8]> {
        let left = usize::try_from(self.body.as_ref()?.remaining()?).ok()?;
        self.buffer.data().get(..left)
    }

    /// Finds data of the body, reading when there is none.
    pub fn poll_data(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        loop {
            let Some(body) = &mut self.body else {
                return Poll::Ready(Ok(Chunk::End));
            };
            match body.step(self.buffer.data())? {
                BodyStep::Data(there) => return Poll::Ready(Ok(Chunk::Data(there))),
                BodyStep::Skip(used) => self.buffer.consume(used),
                BodyStep::End => return Poll::Ready(Ok(Chunk::End)),
                BodyStep::NeedInput => match ready!(self.buffer.poll_fill(stream, cx))? {
                    // A block is never full of bytes that the decoder has not used.
                    Filled::Bytes(_) | Filled::Full => {}
                    Filled::End => {
                        if let Some(body) = &mut self.body {
                            body.end_of_input()?;
                        }
                    }
                },
            }
        }
    }

    /// The unread bytes.
    pub fn data(&self) -> &[u8] {
        self.buffer.data()
    }

    /// Notes that so many bytes of a [`Chunk::Data`] were passed on.
    pub fn take(&mut self, used: usize) {
        if let Some(body) = &mut self.body {
            body.take(used);
        }
        self.taken += used as u64;
        self.buffer.consume(used);
    }

    /// The trailers of a body that is done.
    pub fn trailers(&self, into: &mut HeaderList) {
        match &self.body {
            Some(body) => body.trailers(into),
            None => into.clear(),
        }
    }

    /// Reads ahead while nothing is asked of the peer: Ready when it has closed or failed. Bytes that come (a pipelined
    /// request) are kept; a full buffer hides the close until it is used.
    pub fn poll_gone(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.buffer.poll_fill(stream, cx) {
                Poll::Ready(Ok(Filled::Bytes(_))) => {}
                Poll::Ready(Ok(Filled::Full)) | Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Filled::End) | Err(_)) => return Poll::Ready(()),
            }
        }
    }

    /// Reads and throws away: Ready when the peer has closed or failed, or sent more than `left` bytes.
    pub fn poll_discard(&mut self, stream: &Stream, cx: &mut Context<'_>, left: &mut u64) -> Poll<()> {
        loop {
            let there = self.buffer.data().len();
            self.buffer.consume(there);
            *left = left.saturating_sub(there as u64);
            if *left == 0 {
                return Poll::Ready(());
            }
            match ready!(self.buffer.poll_fill(stream, cx)) {
                Ok(Filled::Bytes(_) | Filled::Full) => {}
                Ok(Filled::End) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

/// Writes messages.
pub struct MessageWriter {
    out: Vec<u8>,
    at: usize,
    framing: BodyFraming,
    /// Bytes that are still to come of a chunk whose size is written.
    chunk_left: usize,
    /// Bytes that the socket took since the last [`Self::reset`].
    written: u64,
}

impl Default for MessageWriter {
    fn default() -> Self {
        Self {
            out: Vec::new(),
            at: 0,
            framing: BodyFraming::Plain,
            chunk_left: 0,
            written: 0,
        }
    }
}

impl MessageWriter {
    /// Forgets what was not written and begins anew.
    pub fn reset(&mut self) {
        self.out.clear();
        if self.out.capacity() > KEEP_MAX {
            self.out = Vec::new();
        }
        self.at = 0;
        self.framing = BodyFraming::Plain;
        self.chunk_left = 0;
        self.written = 0;
    }

    /// Gives the room back that the last messages took.
    pub fn release(&mut self) {
        if self.out.is_empty() {
            self.out = Vec::new();
        }
    }

    /// Bytes that the socket took since the last reset.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Queues a request's head.
    pub fn request_head(&mut self, head: &RequestHead, close: bool) {
        self.framing = encode::request_head(head, close, &mut self.out);
    }

    /// Queues a response's head; answers whether the connection must close after it.
    pub fn response_head(&mut self, head: &ResponseHead, context: ResponseContext) -> bool {
        let (framing, close) = encode::response_head(head, context, &mut self.out);
        self.framing = framing;
        close
    }

    /// Queues an interim response.
    pub fn interim_head(&mut self, head: &ResponseHead) {
        encode::interim_head(head, &mut self.out);
    }

    /// Takes some of `data`, at least a byte, and answers how much. Small data is gathered, large data written.
    pub fn poll_data(
        &mut self,
        stream: &Stream,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.framing == BodyFraming::Chunked && self.chunk_left == 0 {
                encode::chunk_start(data.len(), &mut self.out);
                self.chunk_left = data.len();
            }
            let part = match self.framing {
                BodyFraming::Plain => data,
                BodyFraming::Chunked => data.get(..self.chunk_left).unwrap_or(data),
            };
            if part.len() <= COPY_MAX && self.out.len() < GATHER_MAX {
                self.out.extend_from_slice(part);
                self.account(part.len());
                return Poll::Ready(Ok(part.len()));
            }
            let queued = self.out.get(self.at..).unwrap_or(&[]);
            let written = ready!(stream.poll_write(cx, &[IoSlice::new(queued), IoSlice::new(part)]))?;
            self.written += written as u64;
            let of_queue = written.min(queued.len());
            self.advance(of_queue);
            let of_part = written - of_queue;
            if of_part > 0 {
                self.account(of_part);
                return Poll::Ready(Ok(of_part));
            }
        }
    }

    fn account(&mut self, data: usize) {
        if self.framing == BodyFraming::Chunked {
            self.chunk_left = self.chunk_left.saturating_sub(data);
            if self.chunk_left == 0 {
                self.out.extend_from_slice(encode::CHUNK_END);
            }
        }
    }

    fn advance(&mut self, written: usize) {
        self.at += written;
        if self.at >= self.out.len() {
            self.out.clear();
            self.at = 0;
        }
    }

    /// Queues the end of the body.
    pub fn finish(&mut self, trailers: &HeaderList) {
        if self.framing == BodyFraming::Chunked {
            encode::last_chunk(trailers, &mut self.out);
        }
    }

    /// How many bytes are queued and not written.
    pub fn queued(&self) -> usize {
        self.out.len() - self.at
    }

    /// Whether everything that was queued is written.
    pub fn is_flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// Writes what is queued.
    pub fn poll_flush(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let queued = self.out.get(self.at..).unwrap_or(&[]);
            let written = ready!(stream.poll_write(cx, &[IoSlice::new(queued)]))?;
            self.written += written as u64;
            self.advance(written);
        }
        stream.poll_flush(cx)
    }

    /// Writes what is queued and then `data`, in as few system calls as the socket allows. `at` counts how much of
    /// `data` is written, so that the call can be repeated; `data` is not used up and can be written again elsewhere.
    pub fn poll_all(
        &mut self,
        stream: &Stream,
        cx: &mut Context<'_>,
        data: &[u8],
        at: &mut usize,
    ) -> Poll<io::Result<()>> {
        loop {
            let queued = self.out.get(self.at..).unwrap_or(&[]);
            let rest = data.get(*at..).unwrap_or(&[]);
            if queued.is_empty() && rest.is_empty() {
                return stream.poll_flush(cx);
            }
            let written = ready!(stream.poll_write(cx, &[IoSlice::new(queued), IoSlice::new(rest)]))?;
            self.written += written as u64;
            let of_queue = written.min(queued.len());
            self.advance(of_queue);
            *at += written - of_queue;
        }
    }
}
