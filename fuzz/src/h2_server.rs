//! Frames of a client for a whole server side: the library with the settings that clients meet, and the watch and the
//! repacking in front of it, over a transport in memory.
//!
//! What must hold: nothing panics; the work and the answer are in proportion to what came; and a farewell that is
//! renamed is still a farewell.

use crate::h2_watch::BEGINNING;
use crate::input::Input;
use bytes::Bytes;
use h2::server::{self, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use isthmus_core::h2::{FRAME_SIZE_MAX, Misbehaviour, Repack, Watch};
use isthmus_core::limits::Settings;
use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Streams that are under way at most; the others are given up.
const STREAMS_MAX: usize = 20;
/// Bytes that may be written beyond those that answer what was read.
const WRITTEN_BASE: usize = 64 * 1024;
/// Bytes that may be written for each that was read: a request of few may have a whole answer.
const WRITTEN_PER_READ: usize = 64;

/// What is seen of the transport from outside.
#[derive(Default)]
struct Seen {
    found: Cell<Option<Misbehaviour>>,
    read: Cell<usize>,
    written: Cell<usize>,
}

/// A client that has said all it will say.
struct Client {
    pieces: VecDeque<Vec<u8>>,
    watch: Watch,
    repack: Repack,
    /// What passes and was not taken yet.
    passed: VecDeque<u8>,
    now: Instant,
    seen: Rc<Seen>,
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.seen.found.get().is_some() {
            return Poll::Pending;
        }
        while this.passed.is_empty() {
            let Some(piece) = this.pieces.pop_front() else {
                return Poll::Ready(Ok(()));
            };
            this.seen.read.set(this.seen.read.get() + piece.len());
            if let Err(found) = this.watch.read(&piece, this.now) {
                this.seen.found.set(Some(found));
                return Poll::Pending;
            }
            let piece = [this.repack.begun(), &piece].concat();
            let (mut rest, mut voids) = (Vec::new(), this.watch.voids().iter());
            let passed = this
                .repack
                .pass(&piece, |_| voids.next() == Some(&true), &mut rest);
            assert_eq!(voids.next(), None, "both have seen the same frames");
            assert!(this.repack.held_bytes() <= FRAME_SIZE_MAX as usize + 9);
            this.passed.extend(&piece[..passed]);
            this.passed.extend(rest);
        }
        let taken = this.passed.len().min(into.remaining());
        let taken: Vec<u8> = this.passed.drain(..taken).collect();
        into.put_slice(&taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut found = this.watch.farewell(data);
        if found.is_some() {
            assert_eq!(found, Some(Misbehaviour::Compression));
            assert!(data.ends_with(&u32::from(Reason::PROTOCOL_ERROR).to_be_bytes()));
        }
        found = found.or(this.watch.wrote(data, this.now).err());
        this.seen.found.set(this.seen.found.get().or(found));
        this.seen.written.set(this.seen.written.get() + data.len());
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Serves a client.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut pieces = VecDeque::from([BEGINNING.to_vec()]);
    let step = 1 + 8 * input.below(256);
    let is_slow = input.once_in(3);
    pieces.extend(input.rest().chunks(step).map(<[u8]>::to_vec));
    let turns_max = 64 + 4 * bytes.len();
    let now = Instant::now();
    let settings = Settings::default();
    let seen = Rc::<Seen>::default();
    let client = Client {
        pieces,
        watch: Watch::new(settings.http2_limits(), now),
        repack: Repack::of_client(),
        passed: VecDeque::new(),
        now,
        seen: Rc::clone(&seen),
    };
    // As clients meet it.
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_frame_size(FRAME_SIZE_MAX)
        .max_concurrent_streams(settings.http2_concurrent_streams)
        .max_header_list_size(settings.message_limits().header_bytes as u32)
        .max_send_buffer_size(128 * 1024)
        .enable_connect_protocol();
    let mut cx = Context::from_waker(Waker::noop());
    let mut handshake = pin!(builder.handshake(client));
    let Poll::Ready(Ok(engine)) = handshake.as_mut().poll(&mut cx) else {
        return;
    };
    let turns = serve(engine, &seen, is_slow, turns_max, &mut cx);
    assert!(turns < turns_max, "{turns} turns for {} bytes", bytes.len());
    let (read, written) = (seen.read.get(), seen.written.get());
    let most = WRITTEN_BASE + WRITTEN_PER_READ * read;
    assert!(written <= most, "{written} bytes for {read}");
}

/// Serves until the connection ends, or nothing moves; answers how many turns that took.
fn serve(
    mut engine: Connection<Client, Bytes>,
    seen: &Seen,
    is_slow: bool,
    turns_max: usize,
    cx: &mut Context<'_>,
) -> usize {
    let mut streams: Vec<Stream> = Vec::new();
    let mut is_told = false;
    for turn in 0..turns_max {
        if let Some(found) = seen.found.get()
            && !std::mem::replace(&mut is_told, true)
        {
            engine.abrupt_shutdown(found.code().into());
        }
        let moved = (seen.read.get(), seen.written.get(), is_told);
        match engine.poll_accept(cx) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                streams.push(Stream::new(request, respond));
                if streams.len() > STREAMS_MAX {
                    streams.remove(0);
                }
                continue;
            }
            Poll::Ready(_) => return turn,
            Poll::Pending => {}
        }
        if !is_slow || turn % 3 == 0 {
            streams.retain_mut(|stream| stream.poll(cx).is_pending());
        }
        let is_still = moved == (seen.read.get(), seen.written.get(), seen.found.get().is_some());
        if is_still && streams.is_empty() {
            return turn;
        }
    }
    // What is left waits for a client that says no more.
    if seen.found.get().is_some() { 0 } else { turns_max }
}

/// A request that is being answered.
struct Stream {
    body: RecvStream,
    respond: Option<SendResponse<Bytes>>,
}

impl Stream {
    fn new(request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Self {
        Self {
            body: request.into_body(),
            respond: Some(respond),
        }
    }

    /// Reads the body, then answers with its trailers.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.body.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(data))) => {
                    assert!(self.body.flow_control().release_capacity(data.len()).is_ok());
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(()),
                Poll::Ready(None) => break,
            }
        }
        let Poll::Ready(trailers) = self.body.poll_trailers(cx) else {
            return Poll::Pending;
        };
        let (Ok(trailers), Some(mut respond)) = (trailers, self.respond.take()) else {
            return Poll::Ready(());
        };
        if let Ok(mut answer) = respond.send_response(Response::new(()), false) {
            // A client that has gone takes nothing.
            let _gone = answer.send_data(Bytes::from_static(&[b'x'; 100]), false);
            let _gone = answer.send_trailers(trailers.unwrap_or_else(HeaderMap::new));
        }
        Poll::Ready(())
    }
}
